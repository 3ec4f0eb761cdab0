# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The map as a cloud of coloured points, bounded for ever."""

import numpy as np

from slam3r_ros.mapping.frames import transform
from slam3r_ros.values import Keyframe

Points = tuple[np.ndarray, np.ndarray]


def keyframe_points(keyframe: Keyframe, stride: int = 1, voxel_size: float = 0.0,
                    min_confidence: float = 0.0) -> Points:
    """Return the points of a keyframe.

    Args:
        keyframe: without a pointmap it has no points.
        stride: takes every so many rows and columns of the pointmap.
        voxel_size: keeps one point in each cube of that edge, map units; 0 keeps all.
        min_confidence: points must have more than that.

    Returns:
        xyz (N, 3) float32 map, rgb (N, 3) uint8.
    """
    if keyframe.pointmap is None:
        return np.empty((0, 3), np.float32), np.empty((0, 3), np.uint8)
    every = np.s_[::stride, ::stride]
    known = (keyframe.confidence[every] > min_confidence) & np.isfinite(keyframe.pointmap[every]).all(axis=-1)
    # In double precision up to here: far from the origin, float32 poses would shake the points.
    xyz = transform(keyframe.pose.T_map_camera, keyframe.pointmap[every][known].astype(np.float64)).astype(np.float32)
    rgb = np.full_like(xyz, 128, np.uint8) if keyframe.colors is None else keyframe.colors[every][known]
    if voxel_size > 0:
        first = np.unique(np.floor(xyz / voxel_size).astype(np.int64), axis=0, return_index=True)[1]
        xyz, rgb = xyz[first], rgb[first]
    return xyz, rgb


class MapCloud:
    """The points of the newest keyframes, each keyframe's replaced when it is revised.

    Attributes:
        changed: there are changes that `points` has not yet returned.
    """

    def __init__(self, max_points: int = 2_000_000, stride: int = 1, voxel_size: float = 0.0,
                 min_confidence: float = 0.0) -> None:
        """Make an empty cloud.

        Args:
            max_points: the oldest keyframes are dropped beyond that.
            stride: as for `keyframe_points`.
            voxel_size: as for `keyframe_points`.
            min_confidence: as for `keyframe_points`.
        """
        self.max_points = max_points
        self._options = stride, voxel_size, min_confidence
        self.clear()

    def clear(self) -> None:
        """Forget every point."""
        self._parts: dict[int, Points] = {}  # by keyframe, in the order in which they first came
        self._revisions: dict[int, int] = {}  # of the same
        self._left = -1  # the newest keyframe that was dropped
        self._map_id = 0
        self._count = 0
        self._cached: Points = np.empty((0, 3), np.float32), np.empty((0, 3), np.uint8)
        self.changed = True

    def __len__(self) -> int:
        """Return the number of points."""
        return self._count

    def insert(self, keyframe: Keyframe) -> bool:
        """Take a keyframe's points, or those of its higher revision in their place; return whether that changed any.

        A keyframe without a pointmap, an old revision, and one as old as those that were dropped are ignored.  A
        keyframe of another map clears the cloud first.
        """
        if keyframe.pointmap is None:
            return False
        if keyframe.map_id != self._map_id:
            self.clear()
            self._map_id = keyframe.map_id
        known = keyframe.id in self._parts
        if keyframe.revision <= self._revisions.get(keyframe.id, -1) or not known and keyframe.id <= self._left:
            return False
        xyz, rgb = keyframe_points(keyframe, *self._options)
        sparser = -(-len(xyz) // self.max_points) or 1  # one keyframe may exceed the bound alone
        self._count += len(xyz[::sparser]) - (len(self._parts[keyframe.id][0]) if known else 0)
        self._parts[keyframe.id] = xyz[::sparser], rgb[::sparser]
        self._revisions[keyframe.id] = keyframe.revision
        while self._count > self.max_points:
            oldest = min(self._parts)
            self._left = max(self._left, oldest)
            self._count -= len(self._parts.pop(oldest)[0])
            del self._revisions[oldest]
        self.changed = True
        return True

    def points(self) -> Points:
        """Return xyz (N, 3) float32 map and rgb (N, 3) uint8; the same arrays until something changes."""
        if self.changed:
            if self._parts:
                self._cached = tuple(np.concatenate(arrays) for arrays in zip(*self._parts.values(), strict=True))
            self.changed = False
        return self._cached
