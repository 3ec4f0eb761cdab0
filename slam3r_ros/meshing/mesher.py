# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Keyframes in, changed pieces of the mesh out."""

from collections import OrderedDict
from collections.abc import Iterable
from functools import cache
from typing import NamedTuple

import numpy as np

from slam3r_ros.meshing.lattice import EDGE, OFFSET, step, unpack
from slam3r_ros.meshing.marching_cubes import CORNERS, extract
from slam3r_ros.meshing.tsdf import BLOCK_BYTES, WEIGHT_STEPS, BlockVolume, View, view_of
from slam3r_ros.values import Intrinsics, Keyframe, MeshBlock, MeshUpdate

FEWEST_BLOCKS = 64  # any memory cap allows these
_NEIGHBOURS = [step(*corner) for corner in CORNERS.tolist()]  # of the lowest corner, itself first


class _Entry(NamedTuple):
    """A keyframe that is in the volume."""

    view: View
    entered: int  # the volume's clock


class BlockMesher:
    """Fuses keyframes into a block TSDF and keeps its surface, block by block.

    What an update costs depends on what changed, not on how large the map is.  To be used by one thread at a time.

    Attributes:
        map_id: of the map being built.
        sequence: of the last update handed out; 0 before the first.
        duplicates: keyframes ignored because they came at that or a later revision before.
        late: revisions ignored because their keyframe had left the ring.
        rejected: keyframes ignored because their pose was no rigid transform, or far out of the lattice.
        far_points: points ignored because a pixel spans too many voxels there.
    """

    def __init__(self, voxel_size: float = 0.02, truncation_voxels: float = 4.0, max_blocks: int | None = None,
                 min_weight: float = 0.0, ring: int = 300) -> None:
        """Make an empty mesher.

        Args:
            voxel_size: map units; 0.02 suits a unit of the scene's median depth.
            truncation_voxels: half the width of the band that is fused about a surface.
            max_blocks: of 8 x 8 x 8 voxels each; None means 65536, 640 MiB.  `blocks_within` turns megabytes into it.
            min_weight: what a voxel must reach to be meshed, in views of confidence 1 from nearby.
            ring: how many of the newest keyframes can still be revised; 0.3 MB each at 224 x 168.
        """
        _compile()
        self.voxel_size = float(voxel_size)
        self.min_weight = min_weight
        self.ring = ring
        self.volume = BlockVolume(self.voxel_size, truncation_voxels, 65536 if max_blocks is None else max_blocks)
        self.sequence = 0
        self._forget(0)

    @staticmethod
    def blocks_within(megabytes: float) -> int:
        """Return how many blocks fit into so much memory."""
        return max(int(megabytes * 1e6 / BLOCK_BYTES), FEWEST_BLOCKS)

    @property
    def block_size(self) -> float:
        """Edge of a block, map units."""
        return EDGE * self.voxel_size

    @property
    def counters(self) -> dict[str, int]:
        """What there is and what was left out."""
        surfaces = self._surfaces.values()
        return {
            'blocks': len(self.volume.slots),
            'vertices': sum(len(block.vertices) for block in surfaces),
            'triangles': sum(len(block.triangles) for block in surfaces),
            'dropped': self.volume.dropped,
            'duplicates': self.duplicates,
            'late': self.late,
            'rejected': self.rejected,
            'far_points': self.far_points,
        }

    def reset(self, map_id: int) -> None:
        """Forget the map and begin another; the next update is a full one, even if it is empty."""
        self.volume.clear()
        self._forget(map_id)

    def _forget(self, map_id: int) -> None:
        self.map_id = map_id
        self.duplicates = self.late = self.rejected = self.far_points = 0
        self._stamp = 0
        self._revisions: dict[int, int] = {}  # of every keyframe that was ever fused
        self._entries: OrderedDict[int, _Entry] = OrderedDict()
        self._surfaces: dict[int, MeshBlock] = {}
        self._changed: set[int] = set()  # keys of surfaces to be told
        self._full_due = self.sequence > 0

    def integrate(self, keyframe: Keyframe) -> None:
        """Fuse a keyframe; a higher revision of a known one is put in its place.

        A keyframe without a pointmap is ignored.  One of another map resets the mesher.
        """
        if keyframe.pointmap is None:
            return
        if keyframe.map_id != self.map_id:
            self.reset(keyframe.map_id)
        if not self._is_usable(keyframe.pose.T_map_camera):
            self.rejected += 1
            return
        if keyframe.revision <= self._revisions.get(keyframe.id, -1):
            self.duplicates += 1
            return
        if keyframe.id in self._revisions and keyframe.id not in self._entries:
            self.late += 1  # its earlier self can no longer be taken out
            return
        if keyframe.id in self._entries:
            self.volume.remove(*self._entries.pop(keyframe.id))
        view, far_points = view_of(keyframe, self.voxel_size)
        self.far_points += far_points
        self._entries[keyframe.id] = _Entry(view, self.volume.add(view))
        self._revisions[keyframe.id] = keyframe.revision
        self._stamp = max(self._stamp, keyframe.pose.stamp)
        if len(self._entries) > self.ring:
            self._entries.popitem(last=False)

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

    def _is_usable(self, T_map_camera: np.ndarray) -> bool:
        rotation, translation = T_map_camera[:3, :3], T_map_camera[:3, 3]
        return bool(np.isfinite(T_map_camera).all() and np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-3)
                    and np.abs(translation).max() < OFFSET / 2 * self.block_size)

    def _remesh(self) -> None:
        slots = self.volume.slots
        stale = sorted({key - neighbour for key in self.volume.dirty for neighbour in _NEIGHBOURS})
        self.volume.dirty.clear()
        alive = [key for key in stale if key in slots]
        surfaces = extract(
            self.volume.sums,
            np.array([[slots.get(key + neighbour, -1) for neighbour in _NEIGHBOURS] for key in alive]).reshape(-1, 8),
            unpack(alive), self.voxel_size, round(self.min_weight * WEIGHT_STEPS))
        fresh = {key: MeshBlock(tuple(index), *surface)
                 for key, index, surface in zip(alive, unpack(alive).tolist(), surfaces, strict=True)
                 if len(surface[2])}
        for key in stale:
            old, new = self._surfaces.pop(key, None), fresh.get(key)
            if new is not None:
                self._surfaces[key] = new
            if not _same(old, new):
                self._changed.add(key)


@cache
def _compile() -> None:
    """Compile the kernels, or load them, before the first keyframe has to wait for them."""
    volume = BlockVolume(1.0, max_blocks=FEWEST_BLOCKS)
    volume.add(View(np.ones((1, 1), np.float32), np.ones((1, 1), np.uint8), np.zeros((1, 1, 3), np.uint8),
                    Intrinsics(1.0, 1.0, 0.0, 0.0), np.eye(4)))
    extract(volume.sums, np.zeros((1, 8), np.int64), np.zeros((1, 3), np.int64), 1.0)


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
    return all(x.tobytes() == y.tobytes() for x, y in zip(a[1:], b[1:], strict=True))
