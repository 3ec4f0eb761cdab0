# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Meshes, plain and compressed, to their messages and back."""

from typing import Any

import numpy as np

from slam3r_ros import msg
from slam3r_ros.meshing.draco import CompressedMesh
from slam3r_ros.transport.stamps import from_stamp, to_stamp
from slam3r_ros.values import MeshBlock, MeshUpdate

_TABLE = (('indices', np.int32), ('vertex_counts', np.uint32), ('triangle_counts', np.uint32))  # of a CompressedMesh


def mesh_to_message(update: MeshUpdate, frame_id: str) -> msg.MeshUpdate:
    """Return a mesh update as slam3r_ros/MeshUpdate."""
    message = msg.MeshUpdate(
        map_id=update.map_id, sequence=update.sequence, block_size=float(update.block_size), full=update.full
    )
    message.header.stamp = to_stamp(update.stamp)
    message.header.frame_id = frame_id
    message.blocks = [_block_to_message(block) for block in update.blocks]
    return message


def mesh_from_message(message: msg.MeshUpdate) -> MeshUpdate:
    """Return the mesh update in a slam3r_ros/MeshUpdate.

    Raises:
        ValueError: A block's parts do not fit together, or a number makes no sense.
    """
    _check_block_size(message.block_size)
    blocks = tuple(map(_block_from_message, message.blocks))
    stamp = from_stamp(message.header.stamp)
    return MeshUpdate(stamp, message.map_id, message.sequence, message.block_size, message.full, blocks)


def compressed_to_message(mesh: CompressedMesh, frame_id: str) -> msg.CompressedMesh:
    """Return a compressed mesh as slam3r_ros/CompressedMesh."""
    message = msg.CompressedMesh(
        map_id=mesh.map_id,
        sequence=mesh.sequence,
        block_size=float(mesh.block_size),
        full=mesh.full,
        format='draco',
    )
    message.header.stamp = to_stamp(mesh.stamp)
    message.header.frame_id = frame_id
    for name, dtype in _TABLE:
        _fill(getattr(message, name), getattr(mesh, name), dtype)
    message.data.frombytes(mesh.data)
    return message


def compressed_from_message(message: msg.CompressedMesh) -> CompressedMesh:
    """Return the compressed mesh in a slam3r_ros/CompressedMesh, for `slam3r_ros.meshing.draco.decompress`.

    Raises:
        ValueError: It is of another format, its table does not hold together, or a number makes no sense.
    """
    _check_block_size(message.block_size)
    if message.format != 'draco':
        raise ValueError(f'the compressed mesh has the format {message.format!r}; only draco can be read')
    indices, vertex_counts, triangle_counts = (np.array(getattr(message, name), dtype) for name, dtype in _TABLE)
    if not len(indices) == 3 * len(vertex_counts) == 3 * len(triangle_counts):
        lengths = f'{len(indices)} indices, {len(vertex_counts)} and {len(triangle_counts)} counts'
        raise ValueError(f'the table has {lengths}')
    return CompressedMesh(
        from_stamp(message.header.stamp),
        message.map_id,
        message.sequence,
        message.block_size,
        message.full,
        indices.reshape(-1, 3),
        vertex_counts,
        triangle_counts,
        bytes(message.data),
    )


def _block_to_message(block: MeshBlock) -> msg.MeshBlock:
    message = msg.MeshBlock(index=np.array(block.index, np.int32))
    for name, dtype in (('vertices', np.float32), ('colors', np.uint8), ('triangles', np.uint32)):
        _fill(getattr(message, name), getattr(block, name), dtype)
    return message


def _block_from_message(message: msg.MeshBlock) -> MeshBlock:
    vertices = np.array(message.vertices, np.float32).reshape(-1, 3)
    colors = np.array(message.colors, np.uint8).reshape(-1, 3)
    triangles = np.array(message.triangles, np.uint32).reshape(-1, 3)
    count = len(vertices)
    if len(colors) != count or not np.isfinite(vertices).all() or len(triangles) and triangles.max() >= count:
        raise ValueError(f'a block of {count} vertices, {len(colors)} colours, {len(triangles)} triangles is broken')
    return MeshBlock(tuple(int(i) for i in message.index), vertices, colors, triangles)


def _check_block_size(size: float) -> None:
    if not (np.isfinite(size) and size > 0):
        raise ValueError(f'blocks of {size} map units make no sense')


def _fill(field: Any, values: np.ndarray, dtype: type) -> None:
    """Fill an empty field of primitives at once."""
    values = np.ascontiguousarray(values, dtype)
    if values.size:  # memoryview cannot cast an empty array
        field.frombytes(memoryview(values).cast('B'))
