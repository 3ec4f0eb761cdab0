# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Coordinate frames and rigid transforms, (4, 4) matrices named T_to_from."""

import numpy as np
from scipy.spatial.transform import Rotation

# REP-103: the map has x forward, y left, z up; an optical frame has z forward, x right, y down.
T_MAP_OPTICAL = np.array([[0.0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]])
T_MAP_OPTICAL.setflags(write=False)


def invert(T: np.ndarray) -> np.ndarray:
    """Invert a rigid transform, (4, 4)."""
    inverse = np.eye(4)
    inverse[:3, :3] = T[:3, :3].T
    inverse[:3, 3] = -T[:3, :3].T @ T[:3, 3]
    return inverse


def transform(T: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Apply a transform (4, 4) to points (..., 3), in the points' own precision."""
    T = T.astype(points.dtype, copy=False)
    return points @ T[:3, :3].T + T[:3, 3]


def rigid(rotation: np.ndarray, translation: np.ndarray) -> np.ndarray:
    """Join a rotation (3, 3) and a translation (3,) to a transform (4, 4)."""
    T = np.eye(4)
    T[:3, :3] = rotation
    T[:3, 3] = translation
    return T


def to_quaternion(rotation: np.ndarray) -> np.ndarray:
    """Return the unit quaternion x y z w of a rotation (3, 3)."""
    return Rotation.from_matrix(rotation).as_quat()


def from_quaternion(xyzw: np.ndarray) -> np.ndarray:
    """Return the rotation (3, 3) of a quaternion x y z w, of any length but zero."""
    return Rotation.from_quat(xyzw).as_matrix()
