# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Vectors made by the official networks and pipelines.

They are read from `SLAM3R_GOLDEN_DIR`, else from `../shared/golden`, else from the subset in `test/data/golden`.
Nothing here or in the tests knows the sizes of a set: they are in its manifest, its names and its shapes.  Tests whose
file a set lacks are skipped.
"""

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest

from slam3r_ros.bench.golden import generate

ROOT = Path(__file__).resolve().parents[2]
SUBSET = ROOT / 'test/data/golden'
GOLDEN = Path(os.environ.get('SLAM3R_GOLDEN_DIR') or ROOT.parent / 'shared/golden')
if not os.environ.get('SLAM3R_GOLDEN_DIR') and not (GOLDEN / 'manifest.json').exists():
    GOLDEN = SUBSET


def read_json(name: str) -> dict:
    """Read a file of the set; skip the test, or the module, that asks for one that is not there."""
    if not (GOLDEN / name).exists():
        pytest.skip(f'{name} is not in this set', allow_module_level=True)
    return json.loads((GOLDEN / name).read_text())


class Vectors:
    """The arrays of one file; a name may stand in a folder.

    A file that is not there has no cases, and skips the test that asks for its arrays.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._arrays = dict(np.load(GOLDEN / name)) if (GOLDEN / name).exists() else None

    def _present(self) -> dict[str, np.ndarray]:
        if self._arrays is None:
            pytest.skip(f'{self.name} is not in this set')
        return self._arrays

    def __getitem__(self, key: str) -> np.ndarray:
        return self._present()[key]

    def __contains__(self, key: str) -> bool:
        return key in (self._arrays or ())

    def cases(self) -> list[str]:
        return list(dict.fromkeys(key.split('/')[0] for key in self._arrays or ()))

    def find(self, pattern: str) -> re.Match:
        """Return the one name that matches, for names that tell a number."""
        (found,) = filter(None, (re.fullmatch(pattern, name) for name in self._present()))
        return found


MANIFEST = json.loads((GOLDEN / 'manifest.json').read_text())


def limit(kind: str) -> float:
    """Return the tolerance that the manifest states in words, as in 'max rel <= 2e-5'."""
    return float(re.search(r'<=\s*([-+.\deE]+)', MANIFEST['tolerances'][kind])[1])


def thinned(maps: np.ndarray, stored: np.ndarray) -> np.ndarray:
    """Take every n-th row and column of maps (V, B, H, W, ...), as many as were stored."""
    step = round(maps.shape[2] / stored.shape[2])
    return maps[:, :, ::step, ::step]


def point_error(found: np.ndarray, expected: np.ndarray) -> float:
    distance = np.linalg.norm(found - expected, axis=-1)
    return float((distance / (np.linalg.norm(expected, axis=-1) + 1e-2)).max())


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    return float((np.abs(found - expected) / np.abs(expected)).max())


def scaled_error(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def load(network, name: str, strict: bool = True):
    """Fill a network with the weights of the vectors."""
    import torch
    from safetensors.torch import load_file

    path = GOLDEN / f'tiny_{name}.safetensors'
    if path.exists():
        weights = {key: value for key, value in load_file(path).items() if key in network.state_dict()}
    else:
        recipe = MANIFEST['weight_recipe']
        shapes = {key: list(value.shape) for key, value in network.state_dict().items()}
        generated = generate(shapes, recipe[f'salt_{name}'], recipe['conf_bias_shift'])
        weights = {key: torch.from_numpy(value) for key, value in generated.items()}
    network.load_state_dict(weights, strict=strict)
    return network.eval()


def pixels(u8: np.ndarray):
    """Turn images (V, B, H, W, 3) uint8 into network input (V, B, 3, H, W)."""
    import torch

    return ((torch.from_numpy(u8).float() / 255 - 0.5) / 0.5).movedim(-1, -3)
