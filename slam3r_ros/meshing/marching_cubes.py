# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Marching cubes over the blocks of a `BlockVolume` (Lorensen and Cline, SIGGRAPH 1987).

A cell belongs to its lowest corner, so a block's cells read the block and its seven neighbours on the
positive side.  The triangle table is derived at import: on each face of a cell, inside corners are cut off one by
one, a rule that depends on that face alone, so neighbouring cells agree and the surface has no cracks.
"""

import numpy as np
from numba import njit

from slam3r_ros.meshing.lattice import EDGE, VOXELS

# Corner c of a cell lies at its bits: x = c & 1, y = c >> 1 & 1, z = c >> 2.  Edges run along an axis.
CORNERS = np.array([[c & 1, c >> 1 & 1, c >> 2] for c in range(8)])
CELL_EDGES = np.array([(c, axis) for axis in range(3) for c in range(8) if not c >> axis & 1])  # (12, 2)
CORNER_MARGIN = 0.01  # of an edge: vertices keep off its ends, lest triangles degenerate
SIDE = EDGE + 1
MAX_VERTICES = 3 * SIDE**3  # of a block
MAX_TRIANGLES = 5 * VOXELS  # of a block


def _faces() -> list[list[int]]:
    """Return the corners of each face of a cell, counterclockwise seen from outside."""
    faces = []
    for axis in range(3):
        u, v = 1 << (axis + 1) % 3, 1 << (axis + 2) % 3
        for side in (0, 1 << axis):
            ring = [side, side | u, side | u | v, side | v]
            faces.append(ring if side else ring[::-1])
    return faces


def _triangulations(polygon: list[int]) -> list[list[tuple[int, int, int]]]:
    """Return every way to cut a polygon into triangles along its diagonals."""
    if len(polygon) < 3:
        return [[]]
    return [[(polygon[0], polygon[k], polygon[-1]), *left, *right]
            for k in range(1, len(polygon) - 1)
            for left in _triangulations(polygon[:k + 1]) for right in _triangulations(polygon[k:])]


def triangle_table() -> np.ndarray:
    """Derive the triangles of every case: (256, 5, 3) int8 numbers of cell edges, -1 where there is none.

    Bit c of a case says that corner c is inside, behind the surface.  Triangles run counterclockwise
    seen from the outside.
    """
    number = {(c, c | 1 << axis): i for i, (c, axis) in enumerate(CELL_EDGES.tolist())}
    faces = [[(face[i], number[tuple(sorted((face[i], face[(i + 1) % 4])))]) for i in range(4)]
             for face in _faces()]  # each corner with the edge that follows it
    face_edges = [{edge for _, edge in face} for face in faces]

    def face_diagonals(triangles: list[tuple[int, int, int]], polygon: list[int]) -> int:
        sides = {frozenset(side) for side in zip(polygon, polygon[1:] + polygon[:1], strict=True)}
        return sum(frozenset(pair) not in sides and any(set(pair) <= edges for edges in face_edges)
                   for a, b, c in triangles for pair in ((a, b), (b, c), (c, a)))

    table = np.full((256, 5, 3), -1, np.int8)
    for case in range(256):
        follows = {}  # the surface enters a face by one edge and leaves it by another
        for face in faces:
            inside = [case >> corner & 1 for corner, _ in face]
            for i in range(4):
                j = (i + 1) % 4
                if not inside[i] and inside[j]:
                    while inside[(j + 1) % 4]:
                        j = (j + 1) % 4
                    follows[face[i][1]] = face[j][1]
        triangles = []
        while follows:
            polygon = [next(iter(follows))]
            while (edge := follows.pop(polygon[-1])) != polygon[0]:
                polygon.append(edge)
            # A diagonal on a face of the cell might coincide with one of the neighbour's: avoid them all.
            triangles += min(_triangulations(polygon), key=lambda cut: face_diagonals(cut, polygon))
        table[case, :len(triangles)] = np.reshape(triangles, (-1, 3))
    return table


TRIANGLES = triangle_table()
TRIANGLES.setflags(write=False)


def extract(sums: np.ndarray, slots: np.ndarray, indices: np.ndarray, voxel_size: float,
            min_weight: int = 1) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Return the surface within each of N blocks.

    Args:
        sums: (capacity, 512, 5) int32, of a `BlockVolume`.
        slots: (N, 8) where the block and its neighbours live, by corner bits (x = 1, y = 2, z = 4); -1 if nowhere.
        indices: (N, 3) the blocks' lattice positions.
        voxel_size: map units.
        min_weight: voxels of less weight count as unseen; a cell needs eight seen corners.

    Returns:
        for each block: vertices (V, 3) float32 in map units, colours (V, 3) uint8, triangles (T, 3) uint32.
    """
    surfaces = []
    for start in range(0, len(slots), 256):
        batch = slice(start, start + 256)
        vertices, colors, triangles, ends = march(sums, slots[batch], indices[batch], voxel_size, max(min_weight, 1))
        v = t = 0
        for v_end, t_end in ends.tolist():
            surfaces.append((vertices[v:v_end].copy(), colors[v:v_end].copy(), triangles[t:t_end].copy()))
            v, t = v_end, t_end
    return surfaces


@njit(nogil=True, cache=True)
def march(sums: np.ndarray, slots: np.ndarray, indices: np.ndarray, voxel_size: float,
          min_weight: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Extract the blocks one after the other into common arrays; arguments as for `extract`.

    Returns:
        vertices, colours, triangles of all blocks, and (N, 2) the ends of each block's vertices and triangles.
    """
    blocks = len(slots)
    # Generous, but memory that is never written costs nothing.
    vertices = np.empty((blocks * MAX_VERTICES, 3), np.float32)
    colors = np.empty((blocks * MAX_VERTICES, 3), np.uint8)
    triangles = np.empty((blocks * MAX_TRIANGLES, 3), np.uint32)
    ends = np.empty((blocks, 2), np.int64)
    values = np.empty((SIDE, SIDE, SIDE), np.float32)
    vertex_on = np.empty((SIDE, SIDE, SIDE, 3), np.int32)  # the vertex on the lattice edge from there along an axis
    v_count = t_count = 0
    for n in range(blocks):
        first = v_count
        if _sample(sums, slots[n], min_weight, values):
            vertex_on[:] = -1
            for x in range(EDGE):
                for y in range(EDGE):
                    for z in range(EDGE):
                        case = _case(values, x, y, z)
                        for triangle in range(5):
                            if TRIANGLES[case, triangle, 0] < 0:
                                break
                            for side in range(3):
                                corner, axis = CELL_EDGES[TRIANGLES[case, triangle, side]]
                                a, b, c = x + (corner & 1), y + (corner >> 1 & 1), z + (corner >> 2)
                                if vertex_on[a, b, c, axis] < 0:
                                    vertex_on[a, b, c, axis] = v_count - first
                                    low = values[a, b, c]
                                    high = values[a + (axis == 0), b + (axis == 1), c + (axis == 2)]
                                    t = min(max(low / (low - high), CORNER_MARGIN), 1 - CORNER_MARGIN)
                                    vertices[v_count, 0] = (indices[n, 0] * EDGE + a + t * (axis == 0)) * voxel_size
                                    vertices[v_count, 1] = (indices[n, 1] * EDGE + b + t * (axis == 1)) * voxel_size
                                    vertices[v_count, 2] = (indices[n, 2] * EDGE + c + t * (axis == 2)) * voxel_size
                                    _mix(sums, slots[n], a, b, c, axis, t, colors[v_count])
                                    v_count += 1
                                triangles[t_count, side] = vertex_on[a, b, c, axis]
                            t_count += 1
        ends[n] = v_count, t_count
    return vertices, colors, triangles, ends


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
def _case(values, x, y, z):
    """Return the case of a cell, for the table; 0, which is empty, when a corner is unseen."""
    case = 0
    for corner in range(8):
        value = values[x + (corner & 1), y + (corner >> 1 & 1), z + (corner >> 2)]
        if np.isnan(value):
            return 0
        if value < 0:
            case |= 1 << corner
    return case


@njit(nogil=True, cache=True)
def _mix(sums, slots, x, y, z, axis, t, color):
    """Fill in the colour (3,) at the share t of the lattice edge from there along an axis."""
    slot, voxel = _place(slots, x, y, z)
    start = sums[slot, voxel]
    slot, voxel = _place(slots, x + (axis == 0), y + (axis == 1), z + (axis == 2))
    end = sums[slot, voxel]
    for i in range(3):
        mixed = (1 - t) * start[2 + i] / start[0] + t * end[2 + i] / end[0]
        color[i] = int(min(max(mixed, 0.0), 255.0) + 0.5)
