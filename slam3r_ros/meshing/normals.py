# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Which way a mesh faces: outward is where its triangles turn counter-clockwise."""

import numpy as np


def face_normals(vertices: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """Return the normals (M, 3) of triangles (M, 3) over vertices (N, 3), each as long as twice the area."""
    a, b, c = (vertices[triangles[:, i]] for i in range(3))
    return np.cross(b - a, c - a)


def vertex_normals(vertices: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """Return the unit normals (N, 3) float64 at a welded mesh's vertices: its triangles' mean, weighted by area.

    A vertex of no triangle, or of none with an area, has (0, 0, 0).
    """
    normals = face_normals(np.asarray(vertices, np.float64), triangles)
    sums = np.stack([np.bincount(triangles.ravel(), np.repeat(axis, 3), len(vertices)) for axis in normals.T], axis=-1)
    lengths = np.linalg.norm(sums, axis=1, keepdims=True)
    return np.divide(sums, lengths, out=np.zeros(sums.shape), where=lengths > 0)
