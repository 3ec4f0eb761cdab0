# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Tidying a finished mesh: join the blocks' borders, drop specks, do with fewer triangles."""

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components


def weld(vertices: np.ndarray, colors: np.ndarray,
         triangles: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Make one vertex of those at bitwise equal positions, as on the border of two blocks.

    Args:
        vertices: (N, 3) float32.
        colors: (N, 3) uint8.
        triangles: (M, 3).

    Returns:
        the same three, with fewer vertices.
    """
    positions = np.asarray(vertices, np.float32, order='C') + np.float32(0)  # + 0 makes -0 to 0
    rows = positions.view(np.dtype((np.void, 12)))[:, 0]
    _, first, number = np.unique(rows, return_index=True, return_inverse=True)
    return vertices[first], colors[first], number.reshape(-1)[triangles].astype(np.uint32)


def remove_small_components(vertices: np.ndarray, colors: np.ndarray, triangles: np.ndarray,
                            min_triangles: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Drop the connected pieces of a welded mesh that have fewer than `min_triangles` triangles.

    Args:
        vertices: (N, 3) float32.
        colors: (N, 3) uint8.
        triangles: (M, 3).
        min_triangles: what a piece needs to stay.

    Returns:
        the same three, with only the vertices still used.
    """
    if not len(triangles):
        return vertices[:0], colors[:0], triangles
    pairs = triangles[:, [0, 1, 1, 2]].reshape(-1, 2).T
    graph = coo_array((np.ones(pairs.shape[1], np.bool_), tuple(pairs)), (len(vertices),) * 2)
    piece = connected_components(graph, directed=False)[1][triangles[:, 0]]  # (M,)
    kept = triangles[np.bincount(piece)[piece] >= min_triangles]
    used, number = np.unique(kept, return_inverse=True)
    return vertices[used], colors[used], number.reshape(-1, 3).astype(np.uint32)


def decimate(vertices: np.ndarray, colors: np.ndarray, triangles: np.ndarray,
             target: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Merge the vertices of a welded mesh where that changes its shape least, until few triangles are left.

    By quadric error metrics (Garland and Heckbert, SIGGRAPH 1997): flat places lose theirs first.

    Args:
        vertices: (N, 3) float32.
        colors: (N, 3) uint8; a merged vertex has the mean of those it was made of.
        triangles: (M, 3).
        target: how many triangles may stay; of very ragged meshes some more do.

    Returns:
        the same three; untouched when there are no more than that.

    Raises:
        ValueError: the target is not positive.
    """
    if target < 1:
        raise ValueError(f'{target} triangles cannot make a mesh; ask for one at least')
    if len(triangles) <= target:
        return vertices, colors, triangles
    import fast_simplification

    positions, faces = np.asarray(vertices, np.float32), np.asarray(triangles, np.int32)
    *_, merges = fast_simplification.simplify(positions, faces, target_count=target, return_collapses=True)
    positions, faces, into = fast_simplification.replay_simplification(positions, faces, merges)  # into: (N,)
    members = np.maximum(np.bincount(into, minlength=len(positions)), 1)
    means = np.stack([np.bincount(into, channel, len(positions)) for channel in colors.T], axis=-1) / members[:, None]
    return positions.astype(np.float32), np.round(means).astype(np.uint8), faces.astype(np.uint32)
