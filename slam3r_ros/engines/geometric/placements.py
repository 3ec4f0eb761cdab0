# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Where the frames are: each stands by a keyframe, and moves with it; those that were lost wait to be placed.

Every frame of a stream is kept, so what is kept of one is small, and lies in arrays.
"""

from array import array
from bisect import bisect_left
from collections import deque
from collections.abc import Iterable

import numpy as np

from slam3r_ros.engines.geometric.relocalise import relocalise
from slam3r_ros.engines.geometric.sparse_map import Features, SparseKeyframe, SparseMap
from slam3r_ros.mapping.frames import invert, rigid
from slam3r_ros.mapping.rows import Rows

_ROW = np.dtype([('frame', np.int64), ('keyframe', np.int64), ('T', np.float64, (3, 4))])  # T_camera_keyframe
_LOST_KEPT = 40  # frames whose features are kept, to place them later
_TRIED = 8  # keyframes that a lost frame is matched with, the nearest in time


class Stamps:
    """When frames were taken, nanoseconds by their ids."""

    def __init__(self, stamps: Iterable[int] = ()) -> None:
        """Begin with the stamps of frames 0, 1 and so on."""
        self._stamps = array('q', stamps)
        self._ids = array('q', range(len(self._stamps)))

    def __len__(self) -> int:
        """Return the number of frames."""
        return len(self._ids)

    def __contains__(self, id: int) -> bool:
        """Tell whether the stamp of a frame is known."""
        place = bisect_left(self._ids, id)
        return place < len(self._ids) and self._ids[place] == id

    def __getitem__(self, id: int) -> int:
        """Return the stamp of a frame."""
        return self._stamps[bisect_left(self._ids, id)]

    def __setitem__(self, id: int, stamp: int) -> None:
        """Note the stamp of a frame."""
        place = bisect_left(self._ids, id)
        if id in self:
            self._stamps[place] = stamp
        else:
            self._ids.insert(place, id)
            self._stamps.insert(place, stamp)

    @property
    def ids(self) -> np.ndarray:
        """The frames whose stamps are known, (N,) int64, rising."""
        return np.array(self._ids)

    def thin(self) -> None:
        """Forget every other frame of the older half."""
        half = len(self._ids) // 2
        del self._ids[1:half:2], self._stamps[1:half:2]


class Placements:
    """The frames of one map, each in the frame of a keyframe that may still move."""

    def __init__(self) -> None:
        """Begin with none."""
        self._lost: deque[tuple[int, Features]] = deque(maxlen=_LOST_KEPT)
        self.clear()

    def clear(self) -> None:
        """Forget where frames are."""
        self._rows = Rows(_ROW)

    def put(self, id: int, T_camera_world: np.ndarray, keyframe: SparseKeyframe) -> None:
        """Place a frame by a keyframe."""
        T = T_camera_world @ invert(keyframe.T_camera_world)
        row = np.array([(id, keyframe.id, T[:3])], _ROW)
        if self._rows and self._rows.all['frame'][-1] == id:
            self._rows.all[-1:] = row
        else:
            self._rows.append(row)

    def poses(self, map: SparseMap) -> list[tuple[int, np.ndarray]]:
        """Return the ids of the frames, in order, with their T_world_camera (4, 4) as known now."""
        rows = self._rows.all
        newest = {frame: row for row, frame in enumerate(rows['frame'].tolist())}  # the later of two places counts
        T_keyframe_world = {keyframe.id: keyframe.T_camera_world for keyframe in map.keyframes}
        poses = []
        for frame, row in sorted(newest.items()):
            _, keyframe, T = rows[row]
            poses.append((frame, invert(rigid(T[:, :3], T[:, 3]) @ T_keyframe_world[int(keyframe)])))
        return poses

    def rescale(self, factor: float) -> None:
        """Multiply all lengths."""
        self._rows.all['T'][:, :, 3] *= factor

    def lean(self, pairs: Iterable[tuple[SparseKeyframe, SparseKeyframe]]) -> None:
        """Let the frames by the first keyframe of each pair stand by the second from now on, where they are.

        No keyframe is the first of one pair and the second of another.
        """
        rows = self._rows.all
        order = np.argsort(rows['keyframe'], kind='stable')
        keyframes = rows['keyframe'][order]
        for gone, kept in pairs:
            moved = order[slice(*np.searchsorted(keyframes, (gone.id, gone.id + 1)))]
            rows['T'][moved] = rows['T'][moved] @ (gone.T_camera_world @ invert(kept.T_camera_world))
            rows['keyframe'][moved] = kept.id

    def keep(self, frames: np.ndarray) -> None:
        """Forget where all frames are but these (N,)."""
        self._rows.keep(np.isin(self._rows.all['frame'], frames))

    def take(self, other: 'Placements') -> None:
        """Take over the frames of another map in the same world, lost ones too."""
        self._rows.append(other._rows.all)
        self.take_lost(other)

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
            order = np.argsort([abs(keyframe.id - id) for keyframe in map.keyframes], kind='stable')
            found = relocalise(map, order[:_TRIED], features.descriptors, features.pixels)
            if found is not None:
                self.put(id, found.pose.T_camera_world, map.keyframes[order[0]])
        self._lost.clear()
