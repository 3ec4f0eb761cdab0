# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The block lattice: 8 x 8 x 8 voxels a block, each block named by one integer key.

Voxel g of the lattice is the point g * voxel_size of the map; block i holds the voxels 8 i to 8 i + 7.
A key packs the block's index, 21 bits an axis, so that the key of a neighbour is a plain sum.
"""

import numpy as np

EDGE = 8  # voxels along a block
VOXELS = EDGE**3
BITS = 21
OFFSET = 1 << (BITS - 1)  # makes indices positive: -OFFSET <= index < OFFSET
_MASK = (1 << BITS) - 1
# Corner c of a cell, or neighbour c of a block, lies at the bits of c: x = c & 1, y = c >> 1 & 1, z = c >> 2.
CORNERS = np.array([[c & 1, c >> 1 & 1, c >> 2] for c in range(8)])


def pack(indices: np.ndarray) -> np.ndarray:
    """Return the keys (N,) int64 of block indices (N, 3)."""
    x, y, z = (np.asarray(indices, np.int64) + OFFSET).T
    return (x << 2 * BITS) | (y << BITS) | z


def unpack(keys: np.ndarray) -> np.ndarray:
    """Return the block indices (N, 3) int64 of keys (N,)."""
    keys = np.asarray(keys, np.int64)
    return np.stack((keys >> 2 * BITS, keys >> BITS & _MASK, keys & _MASK), axis=-1) - OFFSET


def step(x: int, y: int, z: int) -> int:
    """Return what to add to a key to go that many blocks along each axis."""
    return (x << 2 * BITS) + (y << BITS) + z


NEIGHBOURS = np.array([step(*corner) for corner in CORNERS.tolist()])  # a block and its seven on the positive side
