# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Marching cubes over the blocks of a `BlockVolume` (Lorensen and Cline, SIGGRAPH 1987).

A cell belongs to its lowest corner, so a block's cells read the block and its seven neighbours on the
positive side.  The triangle table is derived at import: on each face of a cell, inside corners are cut off one by
one, a rule that depends on that face alone, so neighbouring cells agree and the surface has no cracks.
"""

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np

from slam3r_ros.meshing.lattice import EDGE

# A cell's edges: the corner of `lattice.CORNERS` where they start, and their axis.
CELL_EDGES = np.array([(c, axis) for axis in range(3) for c in range(8) if not c >> axis & 1])  # (12, 2)
CORNER_MARGIN = 0.01  # of an edge: vertices keep off its ends, lest triangles degenerate
SIDE = EDGE + 1


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


def extract(kernels: ModuleType, sums: Any, slots: np.ndarray, indices: np.ndarray, voxel_size: float,
            min_weight: int = 1) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield the surface within each of N blocks.

    Args:
        kernels: of the device where the sums are.
        sums: (capacity, 512, 5) int32, of a volume.
        slots: (N, 8) int64, where each block and its neighbours at `CORNERS` live in `sums`; -1 for none.
        indices: (N, 3) int64, the blocks' lattice positions.
        voxel_size: map units.
        min_weight: of a voxel that counts as seen.

    Yields:
        vertices (V, 3) float32 in map units, colours (V, 3) uint8, triangles (T, 3) uint32, counterclockwise
        from outside.  Vertices are shared inside a block.
    """
    for start in range(0, len(slots), kernels.BATCH):
        batch = slice(start, start + kernels.BATCH)
        vertices, colors, triangles, ends = kernels.march(
            sums, slots[batch], indices[batch], voxel_size, max(min_weight, 1))
        v = t = 0
        for v_end, t_end in ends.tolist():
            # Copies: a block that stays must not keep the whole batch.
            yield vertices[v:v_end].copy(), colors[v:v_end].copy(), triangles[t:t_end].copy()
            v, t = v_end, t_end
