# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The kernels of the mesher compiled for the CPU by Numba: the twin of `reference`, bit for bit."""

import numpy as np
from numba import njit

from slam3r_ros.meshing.lattice import BITS, EDGE, OFFSET, VOXELS
from slam3r_ros.meshing.marching_cubes import CELL_EDGES, CORNER_MARGIN, SIDE, TRIANGLES
from slam3r_ros.meshing.reference import as_array  # noqa: F401
from slam3r_ros.meshing.tsdf import BAND_SAMPLES, DISTANCE_STEPS, FADE

xp = np  # the array module of these kernels
BATCH = 64  # blocks to march at once: freeing large arrays makes the C library keep more memory for later
_MAX_VERTICES = 3 * SIDE**3  # of a block
_MAX_TRIANGLES = 5 * VOXELS  # of a block


def band_keys(depth: np.ndarray, weight: np.ndarray, camera: np.ndarray, block_size: float,
              truncation: float) -> np.ndarray:
    """Do as `reference.band_keys`."""
    return np.unique(_band_keys(depth, weight, camera, block_size, truncation))


@njit(nogil=True, cache=True)
def _band_keys(depth, weight, camera, block_size, truncation):
    """Return the keys (N,), some of them repeated."""
    height, width = depth.shape
    fx, fy, cx, cy = camera[0], camera[1], camera[2], camera[3]
    T = camera[4:]
    keys = np.empty(height * width * BAND_SAMPLES, np.int64)
    count = 0
    latest = np.full(BAND_SAMPLES, -1, np.int64)  # neighbouring pixels mostly fall into the same block
    for v in range(height):
        for u in range(width):
            if weight[v, u] == 0:
                continue
            x, y = (u - cx) / fx, (v - cy) / fy
            along_x = T[0] * x + T[1] * y + T[2]
            along_y = T[4] * x + T[5] * y + T[6]
            along_z = T[8] * x + T[9] * y + T[10]
            for sample in range(BAND_SAMPLES):
                z = depth[v, u] + truncation * (2.0 * sample / (BAND_SAMPLES - 1) - 1.0)
                if z <= 0:
                    continue
                i = np.floor((along_x * z + T[3]) / block_size)
                j = np.floor((along_y * z + T[7]) / block_size)
                k = np.floor((along_z * z + T[11]) / block_size)
                if not max(abs(i), abs(j), abs(k)) < OFFSET - 1:
                    continue
                key = (int(i) + OFFSET << 2 * BITS) | (int(j) + OFFSET << BITS) | (int(k) + OFFSET)
                if key != latest[sample]:
                    latest[sample] = key
                    keys[count] = key
                    count += 1
    return keys[:count]


@njit(nogil=True, cache=True)
def fuse(sums: np.ndarray, slots: np.ndarray, indices: np.ndarray, depth: np.ndarray, weight: np.ndarray,
         colors: np.ndarray, camera: np.ndarray, voxel_size: float, truncation: float, sign: int,
         max_weight: int) -> tuple[np.ndarray, np.ndarray]:
    """Do as `reference.fuse`."""
    height, width = depth.shape
    fx, fy, cx, cy = camera[0], camera[1], camera[2], camera[3]
    T = camera[4:]
    filled = np.zeros(len(slots), np.bool_)
    read = np.zeros((len(slots), 8), np.bool_)
    for n in range(len(slots)):
        block = sums[slots[n]]
        for voxel in range(VOXELS):
            total = block[voxel]
            i, j, k = voxel // (EDGE * EDGE), voxel // EDGE % EDGE, voxel % EDGE
            gx = (indices[n, 0] * EDGE + i) * voxel_size
            gy = (indices[n, 1] * EDGE + j) * voxel_size
            gz = (indices[n, 2] * EDGE + k) * voxel_size
            z = T[8] * gx + T[9] * gy + T[10] * gz + T[11]
            if z > 0:
                x = T[0] * gx + T[1] * gy + T[2] * gz + T[3]
                y = T[4] * gx + T[5] * gy + T[6] * gz + T[7]
                u, v = np.floor(fx * x / z + cx + 0.5), np.floor(fy * y / z + cy + 0.5)
                if 0 <= u < width and 0 <= v < height:
                    row, column = int(v), int(u)
                    distance = (depth[row, column] - z) / truncation
                    share = int(np.ceil(weight[row, column] * min((1.0 + distance) / FADE, 1.0)))
                    if share > 0:
                        w = sign * share
                        total[0] += w
                        total[1] += w * int(np.floor(min(distance, 1.0) * DISTANCE_STEPS + 0.5))
                        for channel in range(3):
                            total[2 + channel] += w * int(colors[row, column, channel])
                        if total[0] > max_weight:
                            for part in range(5):
                                total[part] = total[part] >> 1
                        elif total[0] <= 0:
                            total[:] = 0
                        read[n, 0] = True
                        if i == 0 or j == 0 or k == 0:
                            for corner in range(1, 8):
                                if not (corner & 1 and i) and not (corner & 2 and j) and not (corner & 4 and k):
                                    read[n, corner] = True
            if total[0] > 0:
                filled[n] = True
    return filled, read


@njit(nogil=True, cache=True)
def march(sums: np.ndarray, slots: np.ndarray, indices: np.ndarray, voxel_size: float,
          min_weight: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Do as `reference.march`."""
    blocks = len(slots)
    # Generous, but memory that is never written costs nothing.
    vertices = np.empty((blocks * _MAX_VERTICES, 3), np.float32)
    colors = np.empty((blocks * _MAX_VERTICES, 3), np.uint8)
    triangles = np.empty((blocks * _MAX_TRIANGLES, 3), np.uint32)
    ends = np.empty((blocks, 2), np.int64)
    values = np.empty((SIDE, SIDE, SIDE), np.float64)
    cases = np.empty((EDGE, EDGE, EDGE), np.int64)
    vertex_on = np.empty((SIDE, SIDE, SIDE, 3), np.int64)  # the vertex on the lattice edge from there along an axis
    v_count = t_count = 0
    for n in range(blocks):
        if _sample(sums, slots[n], min_weight, values):
            _classify(values, cases, vertex_on)
            first = v_count
            for a in range(SIDE):
                for b in range(SIDE):
                    for c in range(SIDE):
                        for axis in range(3):
                            if vertex_on[a, b, c, axis] < 0:
                                continue
                            vertex_on[a, b, c, axis] = v_count - first
                            start = values[a, b, c]
                            t = start / (start - values[a + (axis == 0), b + (axis == 1), c + (axis == 2)])
                            t = min(max(t, CORNER_MARGIN), 1 - CORNER_MARGIN)
                            vertices[v_count, 0] = (indices[n, 0] * EDGE + a + t * (axis == 0)) * voxel_size
                            vertices[v_count, 1] = (indices[n, 1] * EDGE + b + t * (axis == 1)) * voxel_size
                            vertices[v_count, 2] = (indices[n, 2] * EDGE + c + t * (axis == 2)) * voxel_size
                            _mix(sums, slots[n], a, b, c, axis, t, colors[v_count])
                            v_count += 1
            for x in range(EDGE):
                for y in range(EDGE):
                    for z in range(EDGE):
                        for triangle in TRIANGLES[cases[x, y, z]]:
                            if triangle[0] < 0:
                                break
                            for side in range(3):
                                corner, axis = CELL_EDGES[triangle[side]]
                                triangles[t_count, side] = vertex_on[
                                    x + (corner & 1), y + (corner >> 1 & 1), z + (corner >> 2), axis]
                            t_count += 1
        ends[n] = v_count, t_count
    return vertices[:v_count], colors[:v_count], triangles[:t_count], ends


@njit(nogil=True, cache=True)
def _place(slots, x, y, z):
    """Return the slot and the voxel there of a corner of the block's cells, 0 to 8 along each axis."""
    return slots[x // EDGE + 2 * (y // EDGE) + 4 * (z // EDGE)], (x % EDGE * EDGE + y % EDGE) * EDGE + z % EDGE


@njit(nogil=True, cache=True)
def _sample(sums, slots, min_weight, values):
    """Fill in the signed distances (9, 9, 9), NaN where unseen; return whether there are both signs."""
    any_inside = any_outside = False
    for x in range(SIDE):
        for y in range(SIDE):
            for z in range(SIDE):
                slot, voxel = _place(slots, x, y, z)
                values[x, y, z] = np.nan
                if slot >= 0 and sums[slot, voxel, 0] >= min_weight:
                    values[x, y, z] = sums[slot, voxel, 1] / sums[slot, voxel, 0]
                    any_inside |= values[x, y, z] < 0
                    any_outside |= values[x, y, z] >= 0
    return any_inside and any_outside


@njit(nogil=True, cache=True)
def _classify(values, cases, vertex_on):
    """Fill in the cells' cases for the table (8, 8, 8), and 0 for each lattice edge with a vertex, else -1."""
    vertex_on[:] = -1
    for x in range(EDGE):
        for y in range(EDGE):
            for z in range(EDGE):
                case = 0
                for corner in range(8):
                    value = values[x + (corner & 1), y + (corner >> 1 & 1), z + (corner >> 2)]
                    if np.isnan(value):
                        case = 0  # empty
                        break
                    case |= (value < 0) << corner
                cases[x, y, z] = case
                for triangle in TRIANGLES[case]:
                    if triangle[0] < 0:
                        break
                    for side in range(3):
                        corner, axis = CELL_EDGES[triangle[side]]
                        vertex_on[x + (corner & 1), y + (corner >> 1 & 1), z + (corner >> 2), axis] = 0


@njit(nogil=True, cache=True)
def _mix(sums, slots, x, y, z, axis, t, color):
    """Fill in the colour (3,) at the share t of the lattice edge from there along an axis."""
    slot, voxel = _place(slots, x, y, z)
    start = sums[slot, voxel]
    slot, voxel = _place(slots, x + (axis == 0), y + (axis == 1), z + (axis == 2))
    end = sums[slot, voxel]
    for i in range(3):
        mixed = (1 - t) * (start[2 + i] / start[0]) + t * (end[2 + i] / end[0])
        color[i] = int(min(max(mixed, 0.0), 255.0) + 0.5)
