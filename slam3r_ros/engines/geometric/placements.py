# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Where the frames are: each stands by a keyframe, and moves with it; those that were lost wait to be placed."""

from collections import deque
from typing import NamedTuple

import numpy as np

from slam3r_ros.engines.geometric.relocalise import relocalise
from slam3r_ros.engines.geometric.sparse_map import Features, SparseKeyframe, SparseMap
from slam3r_ros.mapping.frames import invert, rigid

_LOST_KEPT = 40  # frames whose features are kept, to place them later
_TRIED = 8  # keyframes that a lost frame is matched with, the nearest in time


class Placement(NamedTuple):
    """Where a frame is, in the frame of a keyframe that may still move."""

    keyframe: SparseKeyframe
    T_camera_keyframe: np.ndarray  # (4, 4)

    @property
    def T_world_camera(self) -> np.ndarray:
        """The pose as known now, (4, 4)."""
        return invert(self.T_camera_keyframe @ self.keyframe.T_camera_world)


class Placements(dict[int, Placement]):
    """The frames of one map by their ids."""

    def __init__(self) -> None:
        """Begin with none."""
        super().__init__()
        self._lost: deque[tuple[int, Features]] = deque(maxlen=_LOST_KEPT)

    def put(self, id: int, T_camera_world: np.ndarray, keyframe: SparseKeyframe) -> None:
        """Place a frame by a keyframe."""
        self[id] = Placement(keyframe, T_camera_world @ invert(keyframe.T_camera_world))

    def rescale(self, factor: float) -> None:
        """Multiply all lengths."""
        for id, (keyframe, T) in self.items():
            self[id] = Placement(keyframe, rigid(T[:3, :3], factor * T[:3, 3]))

    def add_lost(self, id: int, features: Features) -> None:
        """Remember what a frame without a place shows."""
        self._lost.append((id, features))

    def take_lost(self, other: 'Placements') -> None:
        """Take over the lost frames of another map."""
        self._lost.extendleft(reversed(other._lost))
        other._lost.clear()

    def place_lost(self, map: SparseMap) -> None:
        """Place the frames that were lost by the keyframes made since."""
        for id, features in self._lost:
            order = np.array(map.described)
            order = order[np.argsort([abs(map.keyframes[n].id - id) for n in order], kind='stable')]
            found = relocalise(map, order[:_TRIED], features.descriptors, features.pixels)
            if found is not None:
                self.put(id, found.pose.T_camera_world, map.keyframes[order[0]])
        self._lost.clear()
