# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A truncated signed distance field in hashed blocks, into which depth views go and out of which they come.

After Curless and Levoy (SIGGRAPH 1996) and the voxel hashing of Niessner et al. (SIGGRAPH Asia 2013).
A voxel keeps five integer sums over its views: the weight, weight x distance, and weight x red, green,
blue.  Integers make the order of the views irrelevant and taking a view out exact.
"""

from typing import NamedTuple

import numpy as np
from numba import njit

from slam3r_ros.mapping.frames import invert
from slam3r_ros.meshing.lattice import BITS, EDGE, OFFSET, VOXELS, unpack
from slam3r_ros.values import Intrinsics, Keyframe

WEIGHT_STEPS = 255  # the weight of a view of confidence 1
DISTANCE_STEPS = 32767  # the signed distance at the truncation
FINE_PIXEL = 0.25  # voxels: up to there a pixel has its full weight
COARSEST_PIXEL = 2.0  # voxels: beyond, depth is too coarse to fuse, and blocks would be without number
BLOCK_BYTES = VOXELS * 5 * 4  # of memory
BAND_SAMPLES = 5  # along a ray through the truncation band; fewer than a block apart


class View(NamedTuple):
    """What of a keyframe goes into the field."""

    depth: np.ndarray  # (H, W) float32, map units along the optical axis; 0 where there is none
    weight: np.ndarray  # (H, W) uint8, 0 where there is no depth
    colors: np.ndarray  # (H, W, 3) uint8 RGB
    intrinsics: Intrinsics
    T_map_camera: np.ndarray  # (4, 4)


def view_of(keyframe: Keyframe, voxel_size: float) -> tuple[View, int]:
    """Return the view of a keyframe that has a pointmap, and how many of its points lie too far away.

    The weight is the confidence, falling with the square of the depth where pixels are no longer much finer than
    voxels: so does the precision of depth from parallax.

    Args:
        keyframe: points that are not finite, behind the camera or without confidence count as unknown.
        voxel_size: map units.
    """
    depth = np.ascontiguousarray(keyframe.pointmap[..., 2], np.float32)  # (H, W)
    confidence = np.nan_to_num(keyframe.confidence, nan=0, posinf=0, neginf=0)  # (H, W)
    known = np.isfinite(keyframe.pointmap).all(axis=-1) & (depth > 0) & (confidence > 0)
    depth = np.where(known, depth, np.float32(0))
    footprint = depth / np.float32(keyframe.intrinsics.fx * voxel_size)  # (H, W) voxels that a pixel spans
    near = known & (footprint <= COARSEST_PIXEL)
    precision = (FINE_PIXEL / np.maximum(footprint, FINE_PIXEL)) ** 2  # (H, W)
    weight = np.ceil(np.minimum(confidence, 1) * precision * WEIGHT_STEPS) * near
    colors = np.full((*depth.shape, 3), 128) if keyframe.colors is None else keyframe.colors
    # Copies of one layout and type, else the kernels would be compiled anew for read-only or transposed arrays.
    view = View(np.where(near, depth, np.float32(0)), weight.astype(np.uint8), np.array(colors, np.uint8, order='C'),
                Intrinsics(*map(float, keyframe.intrinsics)),
                np.array(keyframe.pose.T_map_camera, np.float64, order='C'))
    return view, int(known.sum() - near.sum())


class BlockVolume:
    """The field, in blocks that exist only near surfaces.

    Attributes:
        sums: (max_blocks, 512, 5) int32: weight, weight x distance, weight x RGB of each voxel (x, y, z order).
            The system gives the memory page by page as blocks are filled.
        slots: where in `sums` each block's key lives.
        dirty: keys of the blocks that changed or went since the reader last cleared it.
        dropped: blocks that had to go since the volume was full.
    """

    def __init__(self, voxel_size: float, truncation_voxels: float = 4.0, max_blocks: int = 65536,
                 max_views: int = 128) -> None:
        """Make an empty volume.

        Args:
            voxel_size: edge of a voxel, map units.
            truncation_voxels: where the signed distance is cut off.
            max_blocks: blocks held at most, `BLOCK_BYTES` each; the longest untouched go first.
            max_views: the weight cap, in views of confidence 1 (at most 256): above it a voxel's sums are
                halved, so that old views fade.  Up to there, taking a view out is exact.
        """
        self.voxel_size = float(voxel_size)
        self.truncation = float(truncation_voxels * voxel_size)
        self.max_blocks = max_blocks
        self.max_weight = min(max_views, 256) * WEIGHT_STEPS
        self.clear()

    def clear(self) -> None:
        """Forget every block."""
        self.sums = np.zeros((self.max_blocks, VOXELS, 5), np.int32)
        self.slots: dict[int, int] = {}
        self.dirty: set[int] = set()
        self.dropped = 0
        self.clock = 0  # counts the views
        self._unused = iter(range(self.max_blocks))
        self._freed: list[int] = []
        self._born = np.zeros(self.max_blocks, np.int64)  # clock
        self._touched = np.zeros(self.max_blocks, np.int64)  # clock

    def add(self, view: View) -> int:
        """Fuse a view into the blocks around its surface; return the clock to hand to `remove`."""
        self.clock += 1
        keys = self._band(view)
        self._touched[[self.slots[key] for key in keys if key in self.slots]] = self.clock
        self._allocate([key for key in keys if key not in self.slots])
        self._fuse(view, [key for key in keys if key in self.slots], 1)
        return self.clock

    def remove(self, view: View, entered: int) -> None:
        """Take a view out of the blocks it went into, as far as they still exist.

        Args:
            view: exactly what `add` was given.
            entered: what `add` returned.
        """
        self._fuse(view, [key for key in self._band(view)
                          if key in self.slots and self._born[self.slots[key]] <= entered], -1)

    def _band(self, view: View) -> list[int]:
        return np.unique(band_keys(view.depth, view.weight, np.array(view.intrinsics), view.T_map_camera,
                                   EDGE * self.voxel_size, self.truncation)).tolist()

    def _fuse(self, view: View, keys: list[int], sign: int) -> None:
        slots = np.array([self.slots[key] for key in keys], np.int64)
        filled = fuse(self.sums, slots, unpack(keys), view.depth, view.weight, view.colors, np.array(view.intrinsics),
                      invert(view.T_map_camera), self.voxel_size, self.truncation, sign, self.max_weight)
        self.dirty.update(keys)
        self._free([key for key, full in zip(keys, filled, strict=True) if not full])

    def _allocate(self, keys: list[int]) -> None:
        excess = len(self.slots) + len(keys) - self.max_blocks
        if excess > 0:
            # A few more than needed, so that a full volume does not sort its blocks at every view.
            old = sorted((self._touched[slot], key) for key, slot in self.slots.items())
            old = [key for touched, key in old[:max(excess, self.max_blocks // 50)] if touched < self.clock]
            self._free(old)
            self.dirty.update(old)
            room = self.max_blocks - len(self.slots)
            self.dropped += len(old) + max(len(keys) - room, 0)
            keys = keys[:room]
        for key in keys:
            slot = self.slots[key] = self._freed.pop() if self._freed else next(self._unused)
            self._born[slot] = self._touched[slot] = self.clock

    def _free(self, keys: list[int]) -> None:
        slots = [self.slots.pop(key) for key in keys]
        self.sums[slots] = 0
        self._freed += slots


@njit(nogil=True, cache=True)
def band_keys(depth: np.ndarray, weight: np.ndarray, camera: np.ndarray, T_map_camera: np.ndarray,
              block_size: float, truncation: float) -> np.ndarray:
    """Return the keys (N,) of the blocks that a view's truncation band crosses, some of them repeated.

    Args:
        depth: (H, W) float32.
        weight: (H, W) uint8.
        camera: fx, fy, cx, cy.
        T_map_camera: (4, 4).
        block_size: edge of a block, map units.
        truncation: half the width of the band, map units.
    """
    height, width = depth.shape
    fx, fy, cx, cy = camera
    T = T_map_camera
    keys = np.empty(height * width * BAND_SAMPLES, np.int64)
    count = 0
    latest = np.full(BAND_SAMPLES, -1, np.int64)  # neighbouring pixels mostly fall into the same block
    for v in range(height):
        for u in range(width):
            if weight[v, u] == 0:
                continue
            for sample in range(BAND_SAMPLES):
                z = depth[v, u] + truncation * (2.0 * sample / (BAND_SAMPLES - 1) - 1.0)
                if z <= 0:
                    continue
                x, y = (u - cx) / fx * z, (v - cy) / fy * z
                i = int(np.floor((T[0, 0] * x + T[0, 1] * y + T[0, 2] * z + T[0, 3]) / block_size)) + OFFSET
                j = int(np.floor((T[1, 0] * x + T[1, 1] * y + T[1, 2] * z + T[1, 3]) / block_size)) + OFFSET
                k = int(np.floor((T[2, 0] * x + T[2, 1] * y + T[2, 2] * z + T[2, 3]) / block_size)) + OFFSET
                key = (i << 2 * BITS) | (j << BITS) | k
                if key != latest[sample]:
                    latest[sample] = key
                    keys[count] = key
                    count += 1
    return keys[:count]


@njit(nogil=True, cache=True)
def fuse(sums: np.ndarray, slots: np.ndarray, indices: np.ndarray, depth: np.ndarray, weight: np.ndarray,
         colors: np.ndarray, camera: np.ndarray, T_camera_map: np.ndarray, voxel_size: float, truncation: float,
         sign: int, max_weight: int) -> np.ndarray:
    """Add a view to blocks or subtract it, in place.

    Each voxel takes the nearest pixel: interpolating would smear depth over discontinuities.

    Args:
        sums: (capacity, 512, 5) int32.
        slots: (N,) where the blocks live in `sums`.
        indices: (N, 3) the blocks' lattice positions.
        depth: (H, W) float32.
        weight: (H, W) uint8.
        colors: (H, W, 3) uint8.
        camera: fx, fy, cx, cy.
        T_camera_map: (4, 4).
        voxel_size: map units.
        truncation: map units.
        sign: 1 adds, -1 subtracts.
        max_weight: above it, sums are halved.

    Returns:
        (N,) bool: the block holds anything at all.
    """
    height, width = depth.shape
    fx, fy, cx, cy = camera
    T = T_camera_map
    filled = np.zeros(len(slots), np.bool_)
    for n in range(len(slots)):
        block = sums[slots[n]]
        for voxel in range(VOXELS):
            total = block[voxel]
            gx = (indices[n, 0] * EDGE + voxel // (EDGE * EDGE)) * voxel_size
            gy = (indices[n, 1] * EDGE + voxel // EDGE % EDGE) * voxel_size
            gz = (indices[n, 2] * EDGE + voxel % EDGE) * voxel_size
            z = T[2, 0] * gx + T[2, 1] * gy + T[2, 2] * gz + T[2, 3]
            if z > 0:
                x = T[0, 0] * gx + T[0, 1] * gy + T[0, 2] * gz + T[0, 3]
                y = T[1, 0] * gx + T[1, 1] * gy + T[1, 2] * gz + T[1, 3]
                u, v = np.floor(fx * x / z + cx + 0.5), np.floor(fy * y / z + cy + 0.5)
                if 0 <= u < width and 0 <= v < height:
                    row, column = int(v), int(u)
                    distance = (depth[row, column] - z) / truncation
                    w = sign * int(weight[row, column])
                    if w != 0 and distance >= -1:
                        total[0] += w
                        total[1] += w * int(np.floor(min(distance, 1.0) * DISTANCE_STEPS + 0.5))
                        for channel in range(3):
                            total[2 + channel] += w * int(colors[row, column, channel])
                        if total[0] > max_weight:
                            for i in range(5):
                                total[i] = total[i] >> 1
                        elif total[0] <= 0:
                            total[:] = 0
            if total[0] > 0:
                filled[n] = True
    return filled
