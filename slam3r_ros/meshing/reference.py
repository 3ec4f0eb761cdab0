# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The compiled kernels of the mesher once more, in plain NumPy: slow, easy to check, the oracle of the tests."""

import numpy as np

from slam3r_ros.mapping.frames import transform
from slam3r_ros.meshing.lattice import EDGE, pack
from slam3r_ros.meshing.marching_cubes import CELL_EDGES, CORNER_MARGIN, CORNERS, SIDE, TRIANGLES
from slam3r_ros.meshing.tsdf import BAND_SAMPLES, DISTANCE_STEPS

_VOXELS = np.stack(np.meshgrid(*[np.arange(EDGE)] * 3, indexing='ij'), axis=-1).reshape(-1, 3)  # (512, 3)


def band_keys(depth: np.ndarray, weight: np.ndarray, camera: np.ndarray, T_map_camera: np.ndarray,
              block_size: float, truncation: float) -> np.ndarray:
    """Do as `tsdf.band_keys`, each key once and sorted."""
    fx, fy, cx, cy = camera
    v, u = np.nonzero(weight)
    z = depth[v, u].astype(np.float64) + truncation * np.linspace(-1, 1, BAND_SAMPLES)[:, None]  # (S, N)
    points = np.stack(((u - cx) / fx * z, (v - cy) / fy * z, z), axis=-1)[z > 0]
    return np.unique(pack(np.floor(transform(T_map_camera, points) / block_size).astype(np.int64)))


def fuse(sums: np.ndarray, slots: np.ndarray, indices: np.ndarray, depth: np.ndarray, weight: np.ndarray,
         colors: np.ndarray, camera: np.ndarray, T_camera_map: np.ndarray, voxel_size: float, truncation: float,
         sign: int, max_weight: int) -> np.ndarray:
    """Do as `tsdf.fuse`."""
    fx, fy, cx, cy = camera
    height, width = depth.shape
    points = (indices[:, None] * EDGE + _VOXELS) * voxel_size  # (N, 512, 3)
    x, y, z = np.moveaxis(transform(T_camera_map, points), -1, 0)  # (N, 512) each
    with np.errstate(divide='ignore', invalid='ignore'):
        u, v = np.floor(fx * x / z + cx + 0.5), np.floor(fy * y / z + cy + 0.5)
    inside = (z > 0) & (u >= 0) & (u < width) & (v >= 0) & (v < height)
    u, v = np.where(inside, u, 0).astype(int), np.where(inside, v, 0).astype(int)
    distance = (depth[v, u] - z) / truncation
    inside &= (weight[v, u] > 0) & (distance >= -1)
    steps = np.floor(np.clip(distance, -1, 1) * DISTANCE_STEPS + 0.5)
    parts = np.concatenate((np.ones_like(steps)[..., None], steps[..., None], colors[v, u]), axis=-1)  # (N, 512, 5)
    total = sums[slots] + np.where(inside, sign * weight[v, u].astype(np.int64), 0)[..., None] * parts.astype(np.int64)
    total[inside & (total[..., 0] > max_weight)] >>= 1
    total[total[..., 0] <= 0] = 0
    sums[slots] = total
    return (total[..., 0] > 0).any(axis=1)


def march(sums: np.ndarray, slots: np.ndarray, index: np.ndarray, voxel_size: float,
          min_weight: int) -> tuple[np.ndarray, np.ndarray]:
    """Do as `marching_cubes.march` for one block.

    Args:
        sums: (capacity, 512, 5) int32.
        slots: (8,) where the block and its neighbours live.
        index: (3,) lattice position of the block.
        voxel_size: map units.
        min_weight: of a voxel that counts as seen.

    Returns:
        the corners (T, 3, 3) float32 and their colours (T, 3, 3) uint8 of the triangles, in the kernel's order.
    """
    voxels = np.concatenate((sums, np.zeros((1, EDGE**3, 5), np.int32)))[slots].reshape(8, EDGE, EDGE, EDGE, 5)
    grid = np.zeros((2 * EDGE, 2 * EDGE, 2 * EDGE, 5))
    for block, (x, y, z) in zip(voxels, CORNERS * EDGE, strict=True):
        grid[x:x + EDGE, y:y + EDGE, z:z + EDGE] = block
    grid = grid[:SIDE, :SIDE, :SIDE]
    with np.errstate(divide='ignore', invalid='ignore'):
        means = np.where(grid[..., :1] >= min_weight, grid[..., 1:] / grid[..., :1], np.nan)  # distance, RGB
    means[..., 0] = means[..., 0].astype(np.float32)
    corners = np.stack([means[x:x + EDGE, y:y + EDGE, z:z + EDGE, 0] for x, y, z in CORNERS], axis=-1)  # (8, 8, 8, 8)
    case = ((corners < 0) << np.arange(8)).sum(axis=-1)
    case[np.isnan(corners).any(axis=-1)] = 0
    cells = np.argwhere(case > 0)  # (C, 3)
    edges = TRIANGLES[case[tuple(cells.T)]]  # (C, 5, 3)
    low = cells[:, None, None] + CORNERS[CELL_EDGES[edges, 0]]  # (C, 5, 3, 3)
    drawn = edges[..., 0] >= 0
    low, axis = low[drawn], CELL_EDGES[edges[drawn], 1]  # (T, 3, 3), (T, 3)
    high = low + np.eye(3, dtype=int)[axis]
    a, b = means[tuple(np.moveaxis(low, -1, 0))], means[tuple(np.moveaxis(high, -1, 0))]  # (T, 3, 4)
    t = np.clip(a[..., 0] / (a[..., 0] - b[..., 0]), CORNER_MARGIN, 1 - CORNER_MARGIN)[..., None]
    vertices = (np.asarray(index) * EDGE + low + t * (high - low)) * voxel_size
    colors = np.floor((1 - t) * a[..., 1:] + t * b[..., 1:] + 0.5)
    return vertices.astype(np.float32), colors.astype(np.uint8)
