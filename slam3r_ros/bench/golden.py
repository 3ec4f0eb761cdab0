# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The recipe by which the vectors of the official networks were made: weights from their names, and a pointmap."""

import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

VARIABLE = 'SLAM3R_GOLDEN_DIR'
_AT_ONCE = 1 << 15  # numbers: all of a layer in float64 would be memory that is taken for a moment only


def folder() -> Path:
    """Return where vectors are: `SLAM3R_GOLDEN_DIR`, else those of the repository that this package lies in."""
    return Path(os.environ.get(VARIABLE) or Path(__file__).parents[2] / 'test/data/golden')


def generate(
    shapes: Mapping[str, Sequence[int]], salt: str, confidence_shift: float = 0.0
) -> dict[str, np.ndarray]:
    """Make the weights of a network, by name, of these shapes."""
    weights = {}
    for key, shape in shapes.items():
        generator = np.random.RandomState(zlib.crc32(f'{salt}:{key}'.encode()) & 0x7FFFFFFF)
        noise = np.empty(shape, np.float32)
        for part in np.split(noise.reshape(-1), range(_AT_ONCE, noise.size, _AT_ONCE)):
            part[:] = generator.standard_normal(part.size)
        if len(shape) >= 2:
            noise *= np.float32(1 / np.sqrt(np.prod(shape[1:])))
        elif key.endswith('.weight'):
            noise = np.float32(1) + np.float32(0.1) * noise
        else:
            noise *= np.float32(0.1)
        if confidence_shift and key.startswith('downstream_head') and key.endswith('.bias'):
            noise[len(noise) * 3 // 4 :] += np.float32(confidence_shift)
        weights[key] = noise
    return weights


def pointmap(number: int, height: int, width: int) -> np.ndarray:
    """Return the pointmap (H, W, 3) float32 of a view: a wavy wall."""
    yy, xx = np.mgrid[:height, :width].astype(np.float32)
    depth = 1 + 0.3 * np.sin(xx / 40 + number) + 0.2 * np.cos(yy / 31)
    return np.stack([(xx - 112) / 200 * (1 + 0.1 * number), (yy - 112) / 200, depth], axis=-1).astype(np.float32)
