# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What was said of the keyframes: each is sent again when it has got depth, has moved, or belongs to another map.

Inside, a map has a unit of its own; what is sent is in metres once the map knows how many a unit has.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from slam3r_ros.engines.geometric.depth import DepthMap
from slam3r_ros.engines.geometric.sparse_map import SparseKeyframe, SparseMap
from slam3r_ros.mapping.frames import T_MAP_OPTICAL, invert
from slam3r_ros.values import Intrinsics, Keyframe, Pose

_MOVED = 0.01  # of the median depth: a keyframe is sent again
_TURNED = 0.5  # degrees: a keyframe is sent again
_FEW = 10  # points: too few to tell how depth has grown


class Depth(NamedTuple):
    """What was sent of a keyframe's depth, in a third of the room."""

    depth: np.ndarray  # (H, W) float16 the map's own units, NaN where unknown
    confidence: np.ndarray  # (H, W) uint8, 255 = 1
    colors: np.ndarray  # (H, W, 3) uint8 RGB
    seen: tuple[np.ndarray, np.ndarray]  # the sparse points in it, by their places, and their depths at that time


@dataclass
class Record:
    """A keyframe and what was said of it."""

    sparse: SparseKeyframe
    map: SparseMap  # that it belongs to
    sent: Keyframe  # but its arrays
    told: np.ndarray  # (4, 4) T_camera_world that the dense mapper knows
    sent_T: np.ndarray  # (4, 4) T_camera_world that `sent` shows
    depth: Depth | None = None

    def seen(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the triangulated points by their places in the image, x + iy, and their depths, (N,) each."""
        known = self.map.good(self.sparse.ids)
        return self.sparse.pixels[known] @ [1, 1j], self.map.depths(self.sparse)[1]

    def growth(self) -> float:
        """Return by how much the points are deeper than when the keyframe was sent."""
        then, now = self.depth.seen, self.seen()
        _, a, b = np.intersect1d(then[0], now[0], return_indices=True)
        return float(np.median(now[1][b] / then[1][a])) if len(a) >= _FEW else 1.0

    def amount(self, growth: float) -> float:
        """Return how far the keyframe has moved since it was sent, 1 being worth sending it again."""
        step = self.sparse.T_camera_world @ invert(self.sent_T)
        angle = np.degrees(np.arccos(np.clip((np.trace(step[:3, :3]) - 1) / 2, -1, 1)))
        depth = self.map.median_depth(self.sparse)
        return max(np.linalg.norm(step[:3, 3]) / (_MOVED * depth), angle / _TURNED, abs(growth - 1) / _MOVED)


def pose_in_map(id: int, stamp: int, T_world_camera: np.ndarray, map: SparseMap) -> Pose:
    """Return a pose as the map frame and its unit have it."""
    T = T_MAP_OPTICAL @ T_world_camera
    T[:3, 3] *= map.metres or 1.0
    return Pose(id, stamp, T)


class Records(dict[int, Record]):
    """The records of all maps, by the keyframes' ids."""

    def __init__(self) -> None:
        """Begin with none."""
        super().__init__()
        self._announced: list[Keyframe] = []
        self._waiting: dict[int, None] = {}  # of the present map, to be sent again with their depth

    def insert(self, sparse: SparseKeyframe, map: SparseMap, stamp: int, intrinsics: Intrinsics, map_id: int,
               relocalised: bool) -> Keyframe:
        """Return a new keyframe, without depth yet."""
        pose = pose_in_map(sparse.id, stamp, invert(sparse.T_camera_world), map)
        before = next(reversed(self), sparse.id - 1)
        keyframe = Keyframe(pose, intrinsics, map_id=map_id, stride=max(1, sparse.id - before),
                            relocalised=relocalised)
        self[sparse.id] = Record(sparse, map, keyframe, sparse.T_camera_world, sparse.T_camera_world)
        return keyframe

    def forget(self) -> None:
        """Drop the keyframes that their maps have forgotten."""
        for id in [id for id, record in self.items() if record.sparse.features is None]:
            del self[id]
            self._waiting.pop(id, None)

    def tell(self) -> Mapping[int, np.ndarray]:
        """Return T_world_camera (4, 4) of the keyframes that have moved since this was asked before."""
        moved = [record for record in self.values() if record.told is not record.sparse.T_camera_world]
        for record in moved:
            record.told = record.sparse.T_camera_world
        return {record.sparse.id: invert(record.told) for record in moved}

    def with_depth(self, maps: Iterable[DepthMap]) -> list[Keyframe]:
        """Return keyframes with their new depth; of two depth maps of one keyframe, the later."""
        newest = {depth_map.id: depth_map for depth_map in maps if depth_map.id in self}
        return [self._send(self[id], each.intrinsics, np.where(each.confidence > 0, each.depth, np.float32(np.nan)),
                           each.confidence, each.colors) for id, each in newest.items()]

    def revise(self, most: int) -> list[Keyframe]:
        """Return keyframes with depth that have moved noticeably since they were sent, the most moved first."""
        moved = []
        for record in self.values():
            if record.depth is not None and record.sent_T is not record.sparse.T_camera_world:
                growth = record.growth()
                if (amount := record.amount(growth)) > 1:
                    moved.append((amount, growth, record))
        moved.sort(key=lambda item: -item[0])
        return [self._send_again(record, growth) for _, growth, record in moved[:most]]

    def announce(self, map: SparseMap, map_id: int) -> None:
        """Let all keyframes of a map come out again by `resend`, under its new id."""
        self._waiting = {}
        self._announced = []
        for id in sorted(keyframe.id for keyframe in map.keyframes if keyframe.id in self):
            record = self[id]
            record.map = map
            pose = pose_in_map(id, record.sent.pose.stamp, invert(record.sparse.T_camera_world), map)
            record.sent = replace(record.sent, pose=pose, map_id=map_id, revision=record.sent.revision + 1)
            self._announced.append(record.sent)
            if record.depth is not None:
                self._waiting[id] = None

    def resend(self, most: int) -> list[Keyframe]:
        """Return the keyframes that were announced: all at once without depth, then so many with it, oldest first."""
        announced, self._announced = self._announced, []
        records = [self[id] for id in list(self._waiting)[:most]]
        return announced + [self._send_again(record, record.growth()) for record in records]

    def _send_again(self, record: Record, growth: float) -> Keyframe:
        return self._send(record, record.sent.intrinsics, growth * np.float32(record.depth.depth),
                          np.float32(record.depth.confidence) / 255, record.depth.colors)

    def _send(self, record: Record, intrinsics: Intrinsics, depth: np.ndarray, confidence: np.ndarray,
              colors: np.ndarray) -> Keyframe:
        """Return a keyframe anew, with its depth (H, W) float32 and where it is now."""
        id, map = record.sparse.id, record.map
        record.depth = Depth(depth.astype(np.float16), np.uint8(np.rint(255 * confidence)), colors, record.seen())
        record.sent_T = record.sparse.T_camera_world
        pose = pose_in_map(id, record.sent.pose.stamp, invert(record.sent_T), map)
        record.sent = replace(record.sent, pose=pose, intrinsics=intrinsics, revision=record.sent.revision + 1)
        self._waiting.pop(id, None)
        depth = depth * np.float32(map.metres or 1.0)
        x = np.float32((np.arange(depth.shape[1]) - intrinsics.cx) / intrinsics.fx)
        y = np.float32((np.arange(depth.shape[0]) - intrinsics.cy) / intrinsics.fy)
        pointmap = np.dstack([x * depth, y[:, None] * depth, depth])  # (H, W, 3) map units, optical frame
        return replace(record.sent, pointmap=pointmap, confidence=confidence, colors=colors)
