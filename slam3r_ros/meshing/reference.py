# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The kernels of the mesher in plain NumPy: slow, easy to check, and the oracle of the compiled ones.

A camera is one array (16,) float64: fx, fy, cx, cy, then the upper three rows of a transform.  Keep the order of
the operations: the compiled kernels follow it, so that all agree bit for bit.
"""

from typing import Any

import numpy as np

from slam3r_ros.meshing.lattice import CORNERS, EDGE, OFFSET, pack
from slam3r_ros.meshing.marching_cubes import CELL_EDGES, CORNER_MARGIN, SIDE, TRIANGLES
from slam3r_ros.meshing.tsdf import BAND_SAMPLES, DISTANCE_STEPS, FADE

xp = np  # the array module of these kernels
BATCH = 64  # blocks to march at once: bounds the memory of results
_VOXELS = np.stack(np.meshgrid(*[np.arange(EDGE)] * 3, indexing='ij'), axis=-1).reshape(-1, 3)  # (512, 3)
_READ_BY = (_VOXELS[:, None] * CORNERS == 0).all(axis=-1)  # (512, 8): the block at minus that corner reads the voxel


def as_array(values: Any) -> np.ndarray:
    """Return a NumPy or CuPy array or a torch tensor as a NumPy array, without a copy if it lies on the host."""
    for to_host in ('cpu', 'get'):  # of torch, of CuPy
        if hasattr(values, to_host):
            values = getattr(values, to_host)()
    return np.asarray(values)


def band_keys(depth: np.ndarray, weight: np.ndarray, camera: np.ndarray, block_size: float,
              truncation: float) -> np.ndarray:
    """Return the keys (N,) of the blocks that a view's truncation band crosses, each once and sorted.

    Args:
        depth: (H, W) float32.
        weight: (H, W) uint8.
        camera: (16,), with T_map_camera.
        block_size: edge of a block, map units.
        truncation: half the width of the band, map units.
    """
    (fx, fy, cx, cy), T = camera[:4], camera[4:].reshape(3, 4)
    v, u = np.nonzero(weight)
    z = depth[v, u] + truncation * np.linspace(-1, 1, BAND_SAMPLES)[:, None]  # (S, N)
    x, y = (u - cx) / fx, (v - cy) / fy
    along = T[:, :1] * x + T[:, 1:2] * y + T[:, 2:3]  # (3, N)
    indices = np.floor((along[:, None] * z + T[:, 3, None, None]) / block_size)  # (3, S, N)
    indices = indices[:, (z > 0) & (np.abs(indices) < OFFSET - 1).all(axis=0)]
    return np.unique(pack(indices.T.astype(np.int64)))


def fuse(sums: np.ndarray, slots: np.ndarray, indices: np.ndarray, depth: np.ndarray, weight: np.ndarray,
         colors: np.ndarray, camera: np.ndarray, voxel_size: float, truncation: float, sign: int,
         max_weight: int) -> tuple[np.ndarray, np.ndarray]:
    """Add a view to blocks or subtract it, in place.

    Each voxel takes the nearest pixel: interpolating would smear depth over discontinuities.  The weight fades over the
    last part of the band behind the surface: else the far side of a thin edge grows a curtain.

    Args:
        sums: (capacity, 512, 5) int32.
        slots: (N,) int64, where the blocks live in `sums`.
        indices: (N, 3) int64, the blocks' lattice positions.
        depth: (H, W) float32.
        weight: (H, W) uint8.
        colors: (H, W, 3) uint8.
        camera: (16,), with T_camera_map.
        voxel_size: map units.
        truncation: map units.
        sign: 1 adds, -1 subtracts.
        max_weight: above it, sums are halved.

    Returns:
        (N,) bool, the block holds anything at all; (N, 8) bool, the block's neighbour at minus corner c, or the
        block itself for c = 0, has a cell that reads a voxel which changed.
    """
    (fx, fy, cx, cy), T = camera[:4], camera[4:].reshape(3, 4)
    height, width = depth.shape
    gx, gy, gz = np.moveaxis((indices[:, None] * EDGE + _VOXELS) * voxel_size, -1, 0)  # (N, 512) each
    x, y, z = (row[0] * gx + row[1] * gy + row[2] * gz + row[3] for row in T)
    with np.errstate(all='ignore'):
        u, v = np.floor(fx * x / z + cx + 0.5), np.floor(fy * y / z + cy + 0.5)
    inside = (z > 0) & (u >= 0) & (u < width) & (v >= 0) & (v < height)
    n, voxel = np.nonzero(inside)
    u, v, z = u[inside].astype(int), v[inside].astype(int), z[inside]
    distance = (depth[v, u] - z) / truncation
    share = np.ceil(weight[v, u] * np.minimum((1 + distance) / FADE, 1)).astype(np.int64)
    touched = share > 0
    n, voxel, u, v, distance, share = (values[touched] for values in (n, voxel, u, v, distance, share))  # (T,) each
    steps = np.floor(np.minimum(distance, 1) * DISTANCE_STEPS + 0.5).astype(np.int64)
    parts = np.concatenate((np.ones_like(steps)[:, None], steps[:, None], colors[v, u]), axis=-1)  # (T, 5)
    total = sums[slots[n], voxel] + sign * share[:, None] * parts
    total[total[:, 0] > max_weight] >>= 1
    total[total[:, 0] <= 0] = 0
    sums[slots[n], voxel] = total
    read = np.zeros((len(slots), 8), bool)
    for corner in range(8):
        read[n[_READ_BY[voxel, corner]], corner] = True
    return (sums[slots, :, 0] > 0).any(axis=1), read


def march(sums: np.ndarray, slots: np.ndarray, indices: np.ndarray, voxel_size: float,
          min_weight: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Extract the surface within each of N blocks, one after the other into common arrays.

    Args:
        sums: (capacity, 512, 5) int32, of a volume.
        slots: (N, 8) int64, where each block and its neighbours at `CORNERS` live in `sums`; -1 for none.
        indices: (N, 3) int64, the blocks' lattice positions.
        voxel_size: map units.
        min_weight: of a voxel that counts as seen, 1 or more.

    Returns:
        vertices (V, 3) float32 in map units, in the order of their lattice edges; colours (V, 3) uint8;
        triangles (T, 3) uint32 counterclockwise from outside, in the order of their cells, counting from the
        block's first vertex; and (N, 2) int64 the ends of each block's vertices and triangles.
    """
    surfaces = [_march_block(sums, *block, voxel_size, min_weight) for block in zip(slots, indices, strict=True)]
    vertices, colors, triangles = (np.concatenate(parts) for parts in zip(*surfaces, strict=True))
    return vertices, colors, triangles, np.cumsum([(len(v), len(t)) for v, _, t in surfaces], axis=0)


def _march_block(sums: np.ndarray, slots: np.ndarray, index: np.ndarray, voxel_size: float,
                 min_weight: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    grid = np.zeros((2 * EDGE, 2 * EDGE, 2 * EDGE, 5))
    for slot, (x, y, z) in zip(slots, CORNERS * EDGE, strict=True):
        if slot >= 0:
            grid[x:x + EDGE, y:y + EDGE, z:z + EDGE] = sums[slot].reshape(EDGE, EDGE, EDGE, 5)
    grid = grid[:SIDE, :SIDE, :SIDE]
    seen = grid[..., :1] >= min_weight
    means = np.where(seen, grid[..., 1:] / np.where(seen, grid[..., :1], 1), np.nan)  # (9, 9, 9, 4) distance, RGB
    corners = np.stack([means[x:x + EDGE, y:y + EDGE, z:z + EDGE, 0] for x, y, z in CORNERS], axis=-1)  # (8, 8, 8, 8)
    case = ((corners < 0) << np.arange(8)).sum(axis=-1)
    case[np.isnan(corners).any(axis=-1)] = 0
    cells = np.argwhere(case > 0)  # (C, 3)
    edges = TRIANGLES[case[tuple(cells.T)]]  # (C, 5, 3)
    low = cells[:, None, None] + CORNERS[CELL_EDGES[edges, 0]]  # (C, 5, 3, 3)
    drawn = edges[..., 0] >= 0
    low, axis = low[drawn], CELL_EDGES[edges[drawn], 1]  # (T, 3, 3), (T, 3)
    lattice_edges = np.ravel_multi_index((*np.moveaxis(low, -1, 0), axis), (SIDE, SIDE, SIDE, 3))  # (T, 3)
    used, triangles = np.unique(lattice_edges, return_inverse=True)
    *low, axis = np.unravel_index(used, (SIDE, SIDE, SIDE, 3))  # (V,) each
    low = np.stack(low, axis=-1)
    high = low + np.eye(3, dtype=int)[axis]
    a, b = means[tuple(low.T)], means[tuple(high.T)]  # (V, 4)
    t = np.clip(a[:, 0] / (a[:, 0] - b[:, 0]), CORNER_MARGIN, 1 - CORNER_MARGIN)[:, None]
    vertices = (index * EDGE + low + t * (high - low)) * voxel_size
    colors = np.floor(np.clip((1 - t) * a[:, 1:] + t * b[:, 1:], 0, 255) + 0.5)
    return vertices.astype(np.float32), colors.astype(np.uint8), triangles.reshape(-1, 3).astype(np.uint32)
