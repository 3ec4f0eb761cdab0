# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""All blocks of a mesh update in one Draco buffer, quantised on a lattice of the map: 1/16 of a voxel.

The lattice is the same for every update, so that blocks of different updates meet without seams.  Marching cubes leaves
each vertex on an edge between two voxels, not at its ends.  Quantised it stays so, and hence a triangle stays in
its cell and never lies flat on the cell's side: the block of a triangle is the one that holds its centroid.  That is
how a reader parts the buffer into blocks again, for Draco reorders vertices and triangles.
"""

import importlib.util
from typing import NamedTuple

import numpy as np

from slam3r_ros.meshing.lattice import EDGE, pack, unpack
from slam3r_ros.meshing.mesher import join
from slam3r_ros.values import MeshBlock, MeshUpdate

STEPS = 16  # places for a vertex along a voxel
TABLE_BYTES = 20  # a block's row of the table
_BLOCK = EDGE * STEPS  # the same along a block
_LEVEL = 7  # of effort, up to 10; see `slam3r bench draco`


class DracoError(RuntimeError):
    """DracoPy is missing, or what came is no mesh of ours; the message says which."""


class CompressedMesh(NamedTuple):
    """A `MeshUpdate` whose surfaces are packed into one buffer."""

    stamp: int  # nanoseconds
    map_id: int
    sequence: int
    block_size: float  # edge of a block, map units
    full: bool  # forget what came before
    indices: np.ndarray  # (N, 3) int32, the blocks' lattice positions
    vertex_counts: np.ndarray  # (N,) uint32; 0: the block is gone
    triangle_counts: np.ndarray  # (N,) uint32
    data: bytes  # positions in map units, colours; empty when all blocks are gone

    @property
    def nbytes(self) -> int:
        """Return the size of the buffer and the table."""
        return len(self.data) + TABLE_BYTES * len(self.indices)


def is_installed() -> bool:
    """Return whether DracoPy is there."""
    return importlib.util.find_spec('DracoPy') is not None


def compress(update: MeshUpdate) -> CompressedMesh:
    """Pack an update.

    Positions move by at most a tenth of a voxel, half a step but for those next to a voxel; colours by at most 3 of
    255.  Exact while the blocks of the update span less than 8192 blocks, 3 km of 5 cm voxels.

    Args:
        update: Of a `BlockMesher`: vertices lie on the edges of the voxel lattice.

    Raises:
        DracoError: DracoPy is missing.
    """
    draco = _draco()
    blocks = update.blocks
    vertices, colors, triangles = join(blocks)
    data = b''
    if len(triangles):
        step = _step(update.block_size)
        places = _to_lattice(vertices, step)
        origin = places.min(axis=0) // _BLOCK * _BLOCK
        bits = int((places - origin).max()).bit_length()
        data = draco.encode(
            (places * step).astype(np.float32), triangles, colors=_coarse(colors), compression_level=_LEVEL,
            quantization_bits=bits, quantization_range=(2**bits - 1) * step, quantization_origin=origin * step,
        )  # fmt: skip
    return CompressedMesh(
        update.stamp, update.map_id, update.sequence, update.block_size, update.full,
        np.array([block.index for block in blocks], np.int32).reshape(-1, 3),
        np.array([len(block.vertices) for block in blocks], np.uint32),
        np.array([len(block.triangles) for block in blocks], np.uint32),
        data,
    )  # fmt: skip


def decompress(mesh: CompressedMesh) -> MeshUpdate:
    """Unpack an update; within a block, vertices and triangles are in another order.

    Raises:
        DracoError: DracoPy is missing, or the buffer is damaged.
    """
    blocks = {index: MeshBlock(index, *join(())) for index in map(tuple, mesh.indices.tolist())}
    if mesh.data:
        blocks |= {block.index: block for block in _unpack(mesh)}
    counts = [(len(block.vertices), len(block.triangles)) for block in blocks.values()]
    if counts != list(zip(mesh.vertex_counts.tolist(), mesh.triangle_counts.tolist(), strict=True)):
        raise DracoError('the Draco buffer does not hold the blocks of its table; it was damaged on its way')
    return MeshUpdate(mesh.stamp, mesh.map_id, mesh.sequence, mesh.block_size, mesh.full, tuple(blocks.values()))


def _unpack(mesh: CompressedMesh) -> list[MeshBlock]:
    """Return the blocks that have a surface, in no certain order."""
    draco = _draco()
    try:
        decoded = draco.decode(mesh.data)
    except draco.FileTypeException as error:
        raise DracoError(f'the data is no Draco buffer: {error}; it was damaged on its way') from None
    step = _step(mesh.block_size)
    places = np.rint(np.asarray(decoded.points, float) / step).astype(np.int64)  # (V, 3)
    triangles = decoded.faces.astype(np.int64)  # (M, 3)
    keys = pack(places[triangles].sum(axis=1) // (3 * _BLOCK))  # (M,) of the triangles' blocks
    order = np.argsort(keys, kind='stable')
    found, starts, number = np.unique(keys[order], return_index=True, return_inverse=True)
    # Draco splits a vertex where the surface is no manifold; on the border of two blocks it becomes one of each.
    _, place = np.unique(pack(places - places.min(axis=0)), return_inverse=True)
    corners = triangles[order].reshape(-1)
    pairs = np.repeat(number, 3) * len(places) + place[corners]  # of block and place
    pairs, first, vertex = np.unique(pairs, return_index=True, return_inverse=True)
    vertices = (places[corners[first]] * step).astype(np.float32)
    colors = decoded.colors[corners[first]]
    ends = np.searchsorted(pairs, np.arange(len(found) + 1) * len(places))
    parts = np.split(vertex.reshape(-1, 3), starts[1:])
    return [
        MeshBlock(tuple(index), vertices[a:b], colors[a:b], (part - a).astype(np.uint32))
        for index, a, b, part in zip(unpack(found).tolist(), ends[:-1], ends[1:], parts, strict=True)
    ]


def _step(block_size: float) -> float:
    """Return the distance of two places, map units; the same from a message, where the block size is a float32."""
    return float(np.float32(block_size)) / _BLOCK


def _to_lattice(vertices: np.ndarray, step: float) -> np.ndarray:
    """Return the places (N, 3) int64 of vertices (N, 3), strictly between the two voxels that each lies between."""
    voxels = vertices.astype(float) / (STEPS * step)
    nearest = np.rint(voxels)
    places = (STEPS * nearest).astype(np.int64)
    rows, axis = np.arange(len(voxels)), np.abs(voxels - nearest).argmax(axis=1)  # of the edge
    start = np.floor(voxels[rows, axis])
    share = np.clip(np.rint(STEPS * (voxels[rows, axis] - start)), 1, STEPS - 1)
    places[rows, axis] = STEPS * start + share
    return places


def _coarse(colors: np.ndarray) -> np.ndarray:
    """Round colours to multiples of four: a seventh fewer bytes."""
    return np.minimum(colors, 253) + 2 & 0xFC


def _draco():
    if not is_installed():
        raise DracoError('DracoPy is missing; pip install DracoPy')
    import DracoPy

    return DracoPy
