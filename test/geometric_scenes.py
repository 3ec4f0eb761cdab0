# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Points, cameras that see them, and maps made of both, for the tests of the geometric engine."""

import cv2
import numpy as np

from slam3r_ros.engines.geometric.adjust import rotate
from slam3r_ros.engines.geometric.sparse_map import Features, SparseKeyframe, SparseMap
from slam3r_ros.mapping.frames import invert, rigid, transform

FOCAL = 500.0


def texture(height: int = 240, width: int = 320, seed: int = 0) -> np.ndarray:
    """Return a smooth random image, (H, W) uint8."""
    noise = np.random.default_rng(seed).uniform(0, 255, (height, width)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 2)
    return cv2.normalize(smooth, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)


def camera(turn: tuple, centre: tuple) -> np.ndarray:
    """Return T_camera_world (4, 4) of a camera at `centre` turned by a rotation vector."""
    return invert(rigid(rotate(np.eye(3), turn), np.array(centre, float)))


def project(T: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Return the pixels (N, 2) at which a camera T_camera_world sees points (N, 3)."""
    seen = transform(T, points)
    return FOCAL * seen[:, :2] / seen[:, 2:]


def make_map(points: np.ndarray, path: list[np.ndarray], random: np.random.Generator | None = None) -> SparseMap:
    """Return a map in which every keyframe sees every point, without positions; `random` adds descriptors."""
    sparse = SparseMap(FOCAL)
    ids = sparse.allocate(len(points))
    for number, T in enumerate(path):
        sparse.keyframes.append(SparseKeyframe(number, T, ids.copy(), project(T, points)))
        if random is not None:
            descriptors = random.integers(0, 100, (len(points), 128)).astype(np.uint8)
            sparse.keyframes[-1].features = Features(ids.copy(), project(T, points), descriptors)
            sparse.described.append(number)
    return sparse
