# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Keyframes in, changed pieces of the mesh out."""

from collections.abc import Iterable
from functools import cache
from itertools import repeat
from typing import NamedTuple

import numpy as np

from slam3r_ros.meshing.backend import DeviceError, choose
from slam3r_ros.meshing.lattice import EDGE, NEIGHBOURS, OFFSET, unpack
from slam3r_ros.meshing.marching_cubes import extract
from slam3r_ros.meshing.tsdf import BLOCK_BYTES, FEWEST_BLOCKS, WEIGHT_STEPS, BlockVolume, View, view_of
from slam3r_ros.values import Intrinsics, Keyframe, MeshBlock, MeshUpdate

# What the memory cap has room for, per block beside its voxels.
SURFACE_BYTES = 4096  # rather more than a block has on average: half of them hold no surface
RING_BYTES = 2048
BOOK_BYTES = 512  # where it lives, and when it was born
_WORK_BYTES = 8e6  # between the steps of an update, and what the C library cannot give back
_OBJECT_BYTES = 800  # a surface's Python objects
_KEYS = 4  # per block: of blocks to be looked at or told, while nobody asks for an update


class _Entry(NamedTuple):
    """A keyframe that is in the volume."""

    view: View
    revision: int
    entered: int  # the volume's clock


class BlockMesher:
    """Fuses keyframes into a block TSDF and keeps its surface, block by block.

    What an update costs depends on what changed, not on how large the map is.  To be used by one thread at a time.

    Attributes:
        device: where it computes, 'cpu' or 'cuda' ('numpy' if that was asked for).
        map_id: of the map being built.
        sequence: of the last update handed out; 0 before the first.
        duplicates: keyframes ignored because they came at that or a later revision before.
        late: keyframes ignored because their place in the ring, or that of their earlier self, has gone to newer ones.
        rejected: keyframes ignored because their pose is no rigid transform, or far out of the lattice, because
            their focal length is not positive, or because their arrays differ in size.
        far_points: points ignored because a pixel spans too many voxels there.
    """

    def __init__(self, voxel_size: float = 0.02, truncation_voxels: float = 4.0, max_blocks: int | None = None,
                 min_weight: float = 0.0, ring: int = 300, device: str = 'auto') -> None:
        """Make an empty mesher.

        Args:
            voxel_size: map units; 0.02 suits a unit of the scene's median depth.
            truncation_voxels: half the width of the band that is fused about a surface.
            max_blocks: of 8 x 8 x 8 voxels each; None means 65536, 1.1 GB.  `blocks_within` turns megabytes into it.
            min_weight: what a voxel must reach to be meshed, in views of confidence 1 from nearby.
            ring: how many of the newest keyframes can still be revised, as far as memory allows: 0.3 MB each at
                224 x 168.
            device: 'cpu', 'cuda', 'auto' for the GPU where CuPy finds one, or 'numpy', the slow oracle.

        Raises:
            DeviceError: the device is not here, or has too little memory.
        """
        self.device = choose(device)
        _compile(self.device)
        self.voxel_size = float(voxel_size)
        self.min_weight = min_weight
        self.ring = ring
        max_blocks = 65536 if max_blocks is None else max_blocks
        try:
            self.volume = BlockVolume(self.voxel_size, truncation_voxels, max_blocks, device=self.device)
        except MemoryError as error:  # NumPy's or CuPy's
            raise DeviceError(f'device {self.device!r} has no room for {max_blocks * BLOCK_BYTES / 1e6:.0f} MB of '
                              f'voxels ({error}); allow less memory, or take another device') from None
        self.sequence = 0
        self._forget(0)

    @staticmethod
    def blocks_within(megabytes: float) -> int:
        """Return how many blocks fit into so much memory with their surfaces and the ring of keyframes."""
        block = BLOCK_BYTES + SURFACE_BYTES + RING_BYTES + BOOK_BYTES
        return max(int((megabytes * 1e6 - _WORK_BYTES) / block), FEWEST_BLOCKS)

    @property
    def block_size(self) -> float:
        """Edge of a block, map units."""
        return EDGE * self.voxel_size

    @property
    def memory(self) -> int:
        """Bytes that blocks, surfaces and the ring take; never more than `max_blocks` allows for."""
        return len(self.volume.slots) * (BLOCK_BYTES + BOOK_BYTES) + self._surface_bytes + self._ring_bytes

    @property
    def counters(self) -> dict[str, int]:
        """What there is and what was left out."""
        return {
            'blocks': len(self.volume.slots),
            'vertices': self._vertices,
            'triangles': self._triangles,
            'keyframes': len(self._entries),
            'memory_bytes': self.memory,
            'dropped': self.volume.dropped,
            'duplicates': self.duplicates,
            'late': self.late,
            'rejected': self.rejected,
            'far_points': self.far_points,
        }

    def reset(self, map_id: int, voxel_size: float | None = None) -> None:
        """Forget the map and begin another; the next update is a full one, even if it is empty.

        Args:
            map_id: of the new map.
            voxel_size: map units; None keeps it.
        """
        self.voxel_size = self.voxel_size if voxel_size is None else float(voxel_size)
        self.volume.clear(self.voxel_size)
        self._forget(map_id)

    def _forget(self, map_id: int) -> None:
        self.map_id = map_id
        self.duplicates = self.late = self.rejected = self.far_points = 0
        self._stamp = 0
        self._entries: dict[int, _Entry] = {}  # the ring
        self._ring_bytes = 0
        self._left = -1  # the newest keyframe that is no longer in the ring
        self._surfaces: dict[int, MeshBlock] = {}
        self._vertices = self._triangles = self._surface_bytes = 0
        self._changed: set[int] = set()  # keys of surfaces to be told
        self._full_due = self.sequence > 0

    def integrate(self, keyframe: Keyframe) -> None:
        """Fuse a keyframe; a higher revision of a known one is put in its place.

        A keyframe without a pointmap is ignored.  One of another map resets the mesher.

        Raises:
            DeviceError: the device is full; a later revision of the keyframe may be taken.
        """
        if keyframe.pointmap is None:
            return
        if keyframe.map_id != self.map_id:
            self.reset(keyframe.map_id)
        if not self._is_usable(keyframe):
            self.rejected += 1
            return
        if keyframe.id <= self._left and keyframe.id not in self._entries:
            self.late += 1
            return
        earlier = self._entries.get(keyframe.id)
        if earlier is not None and keyframe.revision <= earlier.revision:
            self.duplicates += 1
            return
        view, far_points = self.volume.with_room(lambda: view_of(keyframe, self.voxel_size, self.volume.kernels))
        self.far_points += far_points
        if earlier is not None:
            self.volume.remove(earlier.view, earlier.entered)  # first: when it raises, all is as it was
            self._leave(keyframe.id)
        self._entries[keyframe.id] = _Entry(view, keyframe.revision, self.volume.add(view))
        self._ring_bytes += view.memory
        self._stamp = max(self._stamp, keyframe.pose.stamp)
        while len(self._entries) > self.ring or self._ring_bytes > RING_BYTES * self.volume.max_blocks:
            oldest = min(self._entries)
            self._leave(oldest)
            self._left = max(self._left, oldest)
        if len(self.volume.dirty) > _KEYS * self.volume.max_blocks:
            self.volume.dirty &= self.volume.slots.keys() | self._surfaces.keys()  # the others came and went unseen

    def _leave(self, id: int) -> None:
        self._ring_bytes -= self._entries.pop(id).view.memory

    def update(self, full: bool = False) -> MeshUpdate | None:
        """Bring the mesh up to date and return what changed since the update before.

        Args:
            full: return every block there is.

        Returns:
            the changed blocks, those without vertices being gone; None when nothing changed.
        """
        self._remesh()
        full |= self._full_due
        if not full and not self._changed:
            return None
        keys = self._surfaces if full else self._changed
        blocks = tuple(self._surfaces.get(key) or _empty(key) for key in sorted(keys))
        self._changed.clear()
        self._full_due = False
        self.sequence += 1
        return MeshUpdate(self._stamp, self.map_id, self.sequence, self.block_size, full, blocks)

    def snapshot(self) -> MeshUpdate:
        """Return every block, for one late reader: what the next `update` tells the others stays as it is."""
        self._remesh()
        blocks = tuple(self._surfaces.values())
        return MeshUpdate(self._stamp, self.map_id, self.sequence, self.block_size, True, blocks)

    def mesh(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the whole mesh; vertices on the border of two blocks occur in both.

        Returns:
            vertices (N, 3) float32 in map units, colours (N, 3) uint8, triangles (M, 3) uint32.
        """
        self._remesh()
        return join(self._surfaces.values())

    def _is_usable(self, keyframe: Keyframe) -> bool:
        """Return whether pose, lens and sizes make sense; comparisons are so written that NaN does not."""
        shape, colors = (*keyframe.confidence.shape, 3), keyframe.colors
        if tuple(keyframe.pointmap.shape) != shape or not (colors is None or tuple(colors.shape) == shape):
            return False  # the kernels would read beyond the smaller one
        rotation, translation = keyframe.pose.T_map_camera[:3, :3], keyframe.pose.T_map_camera[:3, 3]
        return bool(np.abs(rotation @ rotation.T - np.eye(3)).max() < 1e-3 and np.linalg.det(rotation) > 0
                    and np.abs(translation).max() < OFFSET / 2 * self.block_size
                    and np.isfinite(keyframe.intrinsics).all() and min(keyframe.intrinsics[:2]) > 0)

    def _remesh(self) -> None:
        self.volume.with_room(self._extract)
        while self._surface_bytes > SURFACE_BYTES * self.volume.max_blocks:
            self.volume.drop(max(len(self.volume.slots) // 50, 1))
            self.volume.with_room(self._extract)
        if len(self._changed) > _KEYS * self.volume.max_blocks:  # only snapshots were asked for
            self._changed.clear()
            self._full_due = True

    def _extract(self) -> None:
        """Extract the blocks that are dirty once more."""
        slots = self.volume.slots
        stale = sorted(self.volume.dirty)
        alive = np.array([key for key in stale if key in slots], np.int64)
        around = (alive[:, None] + NEIGHBOURS).ravel().tolist()
        places = np.fromiter(map(slots.get, around, repeat(-1)), np.int64, len(around)).reshape(-1, 8)
        indices = unpack(alive)
        surfaces = extract(self.volume.kernels, self.volume.sums, places, indices, self.voxel_size,
                           round(self.min_weight * WEIGHT_STEPS))
        fresh = {key: MeshBlock(tuple(index), *surface)
                 for key, index, surface in zip(alive.tolist(), indices.tolist(), surfaces, strict=True)
                 if len(surface[2])}
        self.volume.dirty.clear()  # the device may have been full until here
        for key in stale:
            old, new = self._surfaces.get(key), fresh.get(key)
            if not _same(old, new):
                self._changed.add(key)
                self._replace(key, old, new)

    def _replace(self, key: int, old: MeshBlock | None, new: MeshBlock | None) -> None:
        if new is None:
            del self._surfaces[key]
        else:
            self._surfaces[key] = new
        for block, sign in ((old, -1), (new, 1)):
            if block is not None:
                self._vertices += sign * len(block.vertices)
                self._triangles += sign * len(block.triangles)
                self._surface_bytes += sign * (_OBJECT_BYTES + sum(array.nbytes for array in block[1:]))


@cache
def _compile(device: str) -> None:
    """Compile the kernels, or load them, before the first keyframe has to wait for them."""
    volume = BlockVolume(1.0, max_blocks=FEWEST_BLOCKS, device=device)
    xp = volume.kernels.xp
    volume.add(View(xp.ones((1, 1), np.float32), xp.ones((1, 1), np.uint8), xp.zeros((1, 1, 3), np.uint8),
                    Intrinsics(1.0, 1.0, 0.0, 0.0), np.eye(4)))
    list(extract(volume.kernels, volume.sums, np.zeros((1, 8), np.int64), np.zeros((1, 3), np.int64), 1.0))


def join(blocks: Iterable[MeshBlock]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the blocks' vertices (N, 3) float32, colours (N, 3) uint8 and triangles (M, 3) uint32 as one mesh."""
    blocks = list(blocks)
    if not blocks:
        return np.empty((0, 3), np.float32), np.empty((0, 3), np.uint8), np.empty((0, 3), np.uint32)
    starts = np.cumsum([0, *(len(block.vertices) for block in blocks[:-1])])
    return (np.concatenate([block.vertices for block in blocks]),
            np.concatenate([block.colors for block in blocks]),
            np.concatenate([block.triangles + np.uint32(start) for block, start in zip(blocks, starts, strict=True)]))


def _empty(key: int) -> MeshBlock:
    return MeshBlock(tuple(unpack([key])[0].tolist()), *join(()))


def _same(a: MeshBlock | None, b: MeshBlock | None) -> bool:
    if a is None or b is None:
        return a is b
    return all(len(x) == len(y) and x.tobytes() == y.tobytes() for x, y in zip(a[1:], b[1:], strict=True))
