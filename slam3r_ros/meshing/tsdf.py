# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A truncated signed distance field in hashed blocks, into which depth views go and out of which they come.

After Curless and Levoy (SIGGRAPH 1996) and the voxel hashing of Niessner et al. (SIGGRAPH Asia 2013).
A voxel keeps five integer sums over its views: the weight, weight x distance, and weight x red, green,
blue.  Integers make the order of the views irrelevant and taking a view out exact.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from itertools import islice
from types import ModuleType
from typing import Any, NamedTuple, TypeVar

import numpy as np

from slam3r_ros.gpu_memory import give_back_gpu_memory
from slam3r_ros.mapping.frames import invert
from slam3r_ros.meshing.backend import DeviceError, to_host
from slam3r_ros.meshing.backend import kernels as kernels_of
from slam3r_ros.meshing.lattice import EDGE, NEIGHBOURS, VOXELS, unpack
from slam3r_ros.values import Intrinsics, Keyframe

log = logging.getLogger(__name__)
T = TypeVar('T')

WEIGHT_STEPS = 255  # the weight of a view of confidence 1
DISTANCE_STEPS = 32767  # the signed distance at the truncation
FADE = 0.25  # truncations: over the last part of the band behind a surface a view's weight falls to nothing
FINE_PIXEL = 0.25  # voxels: up to there a pixel has its full weight
COARSEST_PIXEL = 2.0  # voxels: beyond, depth is too coarse to fuse, and blocks would be without number
BLOCK_BYTES = VOXELS * 5 * 4  # of memory
BAND_SAMPLES = 5  # along a ray through the truncation band; fewer than a block apart
BLOCKS_PER_PIXEL = 3 * (COARSEST_PIXEL / EDGE) ** 2  # three layers of blocks behind the coarsest pixels
FEWEST_BLOCKS = 64  # always allowed
_MOVED = 64  # blocks that move at once when the volume shrinks: 0.7 MB, since there is hardly any room then


class View(NamedTuple):
    """What of a keyframe goes into the field; arrays of the kernels' module, on their device."""

    depth: Any  # (H, W) float32, map units along the optical axis; 0 where there is none
    weight: Any  # (H, W) uint8, 0 where there is no depth
    colors: Any  # (H, W, 3) uint8 RGB
    intrinsics: Intrinsics
    T_map_camera: np.ndarray  # (4, 4) float64

    @property
    def memory(self) -> int:
        """Bytes that the arrays take."""
        return self.depth.nbytes + self.weight.nbytes + self.colors.nbytes


def view_of(keyframe: Keyframe, voxel_size: float, kernels: ModuleType) -> tuple[View, int]:
    """Return the view of a keyframe that has a pointmap, and how many of its points lie too far away.

    The weight is the confidence, falling with the square of the depth where pixels are no longer much finer than
    voxels: so does the precision of depth from parallax.

    Args:
        keyframe: points that are not finite, behind the camera or without confidence count as unknown.  Its arrays
            may be NumPy's, CuPy's or torch's.
        voxel_size: map units.
        kernels: of the device where the view is needed.
    """
    xp = kernels.xp
    pointmap = kernels.as_array(keyframe.pointmap)  # (H, W, 3)
    confidence = kernels.as_array(keyframe.confidence)  # (H, W)
    x, y, depth = (pointmap[..., i].astype(xp.float32, order='C') for i in range(3))
    known = xp.isfinite(x) & xp.isfinite(y) & xp.isfinite(depth) & (depth > 0)
    known &= xp.isfinite(confidence) & (confidence > 0)
    confidence = xp.where(known, confidence, 0).astype(xp.float32, order='C')
    depth = xp.where(known, depth, 0)
    footprint = depth / np.float32(keyframe.intrinsics.fx * voxel_size)  # (H, W) voxels that a pixel spans
    near = known & (footprint <= COARSEST_PIXEL)
    share = FINE_PIXEL / xp.maximum(footprint, FINE_PIXEL)
    weight = xp.ceil(xp.minimum(confidence, 1) * (share * share) * WEIGHT_STEPS) * near
    if keyframe.colors is None:
        colors = xp.full((*depth.shape, 3), 128, xp.uint8)
    else:
        # A copy of one layout and type, else the kernels would be compiled anew for read-only or transposed arrays.
        colors = xp.array(kernels.as_array(keyframe.colors), xp.uint8, order='C')
    view = View(depth * near, weight.astype(xp.uint8), colors, Intrinsics(*map(float, keyframe.intrinsics)),
                np.array(keyframe.pose.T_map_camera, np.float64, order='C'))
    return view, int((known & ~near).sum())


class BlockVolume:
    """The field, in blocks that exist only near surfaces.

    Attributes:
        sums: (max_blocks, 512, 5) int32: weight, weight x distance, weight x RGB of each voxel (x, y, z order).
            On the CPU the system gives the memory page by page as blocks are filled; on the GPU it is taken at once.
        slots: where in `sums` each block's key lives, the block longest untouched by a new view first.
        dirty: keys of the blocks of which a cell reads a voxel that changed or went, since the reader last
            cleared it: a touched block and up to seven on its negative side.
        dropped: blocks that had to go since the volume was full, or could not come.
        max_blocks: blocks held at most; halved when the device is full.
    """

    def __init__(self, voxel_size: float, truncation_voxels: float = 4.0, max_blocks: int = 65536,
                 max_views: int = 128, device: str = 'cpu') -> None:
        """Make an empty volume.

        Args:
            voxel_size: edge of a voxel, map units.
            truncation_voxels: where the signed distance is cut off.
            max_blocks: blocks held at most, `BLOCK_BYTES` each; the longest untouched go first.
            max_views: the weight cap, in views of confidence 1 (at most 256): above it a voxel's sums are
                halved, so that old views fade.  Up to there, taking a view out is exact.
            device: one that `backend.choose` returned.
        """
        self.truncation_voxels = truncation_voxels
        self.max_blocks = max_blocks
        self.max_weight = min(max_views, 256) * WEIGHT_STEPS
        self.kernels = kernels_of(device)
        self.clear(voxel_size)

    def clear(self, voxel_size: float) -> None:
        """Forget every block; voxels are of that size from now on."""
        self.voxel_size = float(voxel_size)
        self.truncation = float(self.truncation_voxels * voxel_size)
        self._make_room(self.max_blocks)
        self.slots: OrderedDict[int, int] = OrderedDict()
        self.dirty: set[int] = set()
        self.dropped = 0
        self.clock = 0  # counts the views

    def _make_room(self, blocks: int) -> None:
        """Take memory for so many blocks, all empty."""
        self.max_blocks = blocks
        self.sums = None  # lest both exist at once
        give_back_gpu_memory()
        self.sums = self.kernels.xp.zeros((blocks, VOXELS, 5), np.int32)
        self._unused = iter(range(blocks))
        self._freed: list[int] = []
        self._born = np.zeros(blocks, np.int64)  # clock

    def with_room(self, work: Callable[[], T]) -> T:
        """Do some work; when the device is full, again without what is kept for later, then in half the volume.

        Args:
            work: must leave everything as it was when it raises.

        Raises:
            DeviceError: there is no room even so.
        """
        for _ in range(2):
            try:
                return work()
            except MemoryError as error:  # NumPy's or CuPy's
                full = str(error)
            give_back_gpu_memory()
        try:
            self._shrink()
            log.warning('the memory of the device is full (%s): the mesh keeps %d blocks now', full, self.max_blocks)
            return work()
        except MemoryError as error:
            full = str(error)
        if self.sums is None:  # somebody else was faster than `_shrink`
            self.slots.clear()
            self._make_room(FEWEST_BLOCKS)
        give_back_gpu_memory()
        raise DeviceError(f'the memory of the device is full, even for {self.max_blocks} blocks ({full}): stop what '
                          'else uses it, or take mesh_device:=cpu')

    def _shrink(self) -> None:
        """Halve the volume; the blocks that are the longest untouched go."""
        xp = self.kernels.xp
        self.drop(max(len(self.slots) - self.max_blocks // 2, 0))
        old = np.fromiter(self.slots.values(), np.int64, len(self.slots))
        parts = [slice(start, start + _MOVED) for start in range(0, len(old), _MOVED)]
        kept = [to_host(xp, self.sums[xp.asarray(old[part])]) for part in parts]
        born = self._born[old]
        # By way of the host: there is no room for both.
        self._make_room(max(self.max_blocks // 2, len(old), FEWEST_BLOCKS))
        for part, blocks in zip(parts, kept):
            self.sums[part.start : part.start + len(blocks)] = xp.asarray(blocks)
        self.slots = OrderedDict(zip(self.slots, self._unused))
        self._born[: len(old)] = born

    def add(self, view: View) -> int:
        """Fuse a view into the blocks around its surface; return the clock to hand to `remove`.

        Raises:
            DeviceError: the device is full, and nothing of the view is in.
        """
        self.clock += 1
        keys, excess = self.with_room(lambda: self._band(view))
        self.dropped += excess
        new = []
        for key in keys:
            if key in self.slots:
                self.slots.move_to_end(key)
            else:
                new.append(key)
        self.with_room(lambda: self._allocate(new, len(keys) - len(new)))
        self._fuse(view, keys, 1)
        return self.clock

    def remove(self, view: View, entered: int) -> None:
        """Take a view out of the blocks it went into, as far as they still exist.

        Args:
            view: exactly what `add` was given.
            entered: what `add` returned.

        Raises:
            DeviceError: the device is full, and the view is in as before.
        """
        keys, _ = self.with_room(lambda: self._band(view))
        self._fuse(view, [key for key in keys if key in self.slots and self._born[self.slots[key]] <= entered], -1)

    def drop(self, count: int) -> None:
        """Drop the `count` blocks that are the longest untouched."""
        keys = list(islice(self.slots, count))
        self._free(keys)
        self.dirty.update((np.array(keys, np.int64)[:, None] - NEIGHBOURS).ravel().tolist())
        self.dropped += len(keys)

    def _band(self, view: View) -> tuple[list[int], int]:
        """Return the keys of a view's blocks, and how many more there are than any surface would need."""
        keys = self.kernels.band_keys(view.depth, view.weight, _camera(view.intrinsics, view.T_map_camera),
                                      EDGE * self.voxel_size, self.truncation)
        most = max(round(BLOCKS_PER_PIXEL * view.depth.size), FEWEST_BLOCKS)
        if len(keys) > most:  # noise: what is near is worth most
            here = np.floor(view.T_map_camera[:3, 3] / (EDGE * self.voxel_size))
            distance = np.abs(unpack(keys) - here).max(axis=1)
            return np.sort(keys[np.argsort(distance, kind='stable')[:most]]).tolist(), len(keys) - most
        return keys.tolist(), 0

    def _fuse(self, view: View, keys: list[int], sign: int) -> None:
        """Add a view to those of the blocks that exist, or take it out of them."""
        lattice, filled, read = self.with_room(lambda: self._run_fuse(view, keys, sign))
        self.dirty.update((lattice[:, None] - NEIGHBOURS)[read].tolist())
        empty = lattice[~filled].tolist()
        with suppress(DeviceError):  # the view is in, or out; blocks that stay though they are empty do no harm
            self.with_room(lambda: self._free([key for key in empty if key in self.slots]))

    def _run_fuse(self, view: View, keys: list[int], sign: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        keys = [key for key in keys if key in self.slots]
        lattice, slots = np.array(keys, np.int64), np.array([self.slots[key] for key in keys], np.int64)
        if not keys:
            return lattice, np.zeros(0, bool), np.zeros((0, 8), bool)
        return lattice, *self.kernels.fuse(
            self.sums, slots, unpack(lattice), view.depth, view.weight, view.colors,
            _camera(view.intrinsics, invert(view.T_map_camera)), self.voxel_size, self.truncation, sign,
            self.max_weight)

    def _allocate(self, keys: list[int], touched: int) -> None:
        """Make room for blocks and make them, without dropping the `touched` newest."""
        excess = len(self.slots) + len(keys) - self.max_blocks
        if excess > 0:
            # A few more than needed, so that a full volume need not drop some at every view.
            self.drop(max(min(max(excess, self.max_blocks // 50), len(self.slots) - touched), 0))
            room = self.max_blocks - len(self.slots)
            self.dropped += max(len(keys) - room, 0)
            keys = keys[:room]
        for key in keys:
            slot = self.slots[key] = self._freed.pop() if self._freed else next(self._unused)
            self._born[slot] = self.clock

    def _free(self, keys: list[int]) -> None:
        if keys:
            slots = [self.slots[key] for key in keys]
            self.sums[self.kernels.xp.asarray(slots)] = 0  # may raise: the books come after
            for key in keys:
                del self.slots[key]
            self._freed += slots


def _camera(intrinsics: Intrinsics, T: np.ndarray) -> np.ndarray:
    """Return what the kernels call a camera, (16,)."""
    return np.concatenate((intrinsics, T[:3].ravel()))
