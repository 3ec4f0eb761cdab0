# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The engine without learned weights: sparse SLAM tracks the camera, plane sweeps give keyframes their depth."""

import logging
import time
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import cv2
import numpy as np

from slam3r_ros.engines.geometric.adjust import warm_up
from slam3r_ros.engines.geometric.depth import DenseMapper, DepthError, DepthMap, View
from slam3r_ros.engines.geometric.local_mapping import MAX_WIDE
from slam3r_ros.engines.geometric.sparse_map import SparseKeyframe
from slam3r_ros.engines.geometric.tracker import Step, Tracker
from slam3r_ros.engines.protocol import EngineError, EngineOutput
from slam3r_ros.mapping.frames import T_MAP_OPTICAL, invert
from slam3r_ros.values import Frame, Intrinsics, Keyframe, Pose, State

MIN_SIDE = 64  # pixels
_AREA = 640 * 480  # pixels at which images are tracked
_MAX_ENLARGED = 2.0  # times that a smaller image is enlarged for it, at most
_DEPTH_RANGE = (2, 98)  # percentiles of the sparse depths
_MOVED = 0.01  # of the median depth: a keyframe is sent again
_TURNED = 0.5  # degrees: a keyframe is sent again
_REVISIONS = 3  # keyframes sent again per frame, at most
_RECORDS_KEPT = MAX_WIDE + 50  # keyframes that can be sent again: no adjustment moves so many, and depth comes soon
_TIMES = 500  # samples per stage
_log = logging.getLogger(__package__)


class _Depth(NamedTuple):
    """What was sent of a keyframe's depth, in a third of the room."""

    depth: np.ndarray  # (H, W) float16 map units, NaN where unknown
    confidence: np.ndarray  # (H, W) uint8, 255 = 1
    colors: np.ndarray  # (H, W, 3) uint8 RGB
    seen: tuple[np.ndarray, np.ndarray]  # ids of the sparse points in it and their depths, when it was sent


@dataclass
class _Record:
    """A keyframe and what was said of it."""

    sparse: SparseKeyframe
    sent: Keyframe  # but its arrays
    told: np.ndarray  # (4, 4) T_camera_world that the dense mapper knows
    sent_T: np.ndarray  # (4, 4) T_camera_world that `sent` shows
    depth: _Depth | None = None


class GeometricEngine:
    """Streaming reconstruction on the CPU; implements `protocol.Engine`."""

    name = 'geometric'
    device = 'cpu'
    model_license = ''

    def __init__(self, focal: float = 0.0, max_features: int = 700, window: int = 7, dense: bool = True,
                 lossless: bool = True, seed: int = 0, map_id: int = 0) -> None:
        """Compile what is to be compiled and start the depth thread.

        Args:
            focal: pixels of the frames, for frames that come without intrinsics; 0 = estimate it.
            max_features: tracks in an image, about.
            window: keyframes adjusted together.
            dense: give keyframes depth.
            lossless: wait while the depth queue is full; else keyframes go without depth, counted in `depth_skipped`.
            seed: of the order in which relocalisation looks at keyframes.
            map_id: of the first map.
        """
        self._focal, self._max_features, self._window, self._seed = focal, max_features, window, seed
        self._dense_wanted, self._lossless = dense, lossless
        self._map_id = map_id
        self._times: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=_TIMES))
        self._waited = 0.0  # seconds of this frame, for the depth queue
        self._dense: DenseMapper | None = None
        warm_up()
        self._begin()

    def _begin(self) -> None:
        """Start with nothing known."""
        self._tracker: Tracker | None = None
        self._size: tuple[int, int] | None = None
        self._camera: Intrinsics | None = None  # of the tracked images; the focal length may be a guess
        self._scale = (1.0, 1.0)  # tracked images to frames, x and y
        self._stamps: dict[int, int] = {}
        self._forget_keyframes()

    def _forget_keyframes(self) -> None:
        """Forget the keyframes and their depth."""
        self.close()
        self._records: dict[int, _Record] = {}
        self._without_depth = 0  # keyframes, counted here once depth has failed
        if self._dense_wanted:
            self._dense = DenseMapper(lossless=self._lossless)

    @property
    def state(self) -> State:
        """What the engine was doing when the last frame was through."""
        return self._tracker.state if self._tracker else State.INITIALIZING

    @property
    def milliseconds(self) -> dict[str, float]:
        """Median time of each stage; `keyframe` is all that comes with one, but the wait for the depth queue."""
        own = {stage: float(np.median(times)) for stage, times in self._times.items()}
        return {**own, **(self._dense.milliseconds if self._dense else {})}

    @property
    def depth_skipped(self) -> int:
        """Keyframes that got no depth because the depth queue was full, or because depth has failed."""
        return self._dense.skipped if self._dense else self._without_depth

    @property
    def focal(self) -> float:
        """The focal length as known now, pixels of the frames; 0 before the first frame."""
        return self._tracker.map.focal / self._scale[0] if self._tracker else 0.0

    def process(self, frame: Frame) -> EngineOutput:
        """Take the next frame of the stream.

        Raises:
            EngineError: the image is no RGB image, too small, or of another size than those before.
        """
        self._check(frame)
        if self._tracker is None:
            self._open(frame)
        start, self._waited = time.perf_counter(), 0.0
        self._stamps[frame.id] = frame.stamp
        image = np.ascontiguousarray(frame.image)
        if image.shape[:2] != self._size:
            smaller = self._size < image.shape[:2]
            image = cv2.resize(image, self._size[::-1], interpolation=cv2.INTER_AREA if smaller else cv2.INTER_LINEAR)
        step = self._tracker.track(frame.id, image, frame.candidate)
        if step.abandoned:
            self._map_id += 1
            self._forget_keyframes()
        keyframes = self._insert(step)
        if step.adjusted:
            self._tell_poses()
        keyframes += self._collect()
        if step.adjusted:
            keyframes += self._revise(_REVISIONS)
        seconds = time.perf_counter() - start - self._waited
        self._times['keyframe' if step.inserted else 'tracking'].append(1000 * seconds)
        if step.T_world_camera is None:
            return EngineOutput(None, tuple(keyframes))
        return EngineOutput(Pose(frame.id, frame.stamp, T_MAP_OPTICAL @ step.T_world_camera), tuple(keyframes))

    def finish(self) -> EngineOutput:
        """Wait for the depth in the background, then adjust the whole map once more; return what is still to come.

        The adjustment takes well under a second for 60 keyframes, and about three for 200 or more.
        """
        if self._tracker is None or not self._records:
            return EngineOutput(None)
        keyframes = self._collect(wait=True)
        self._tracker.finish()
        return EngineOutput(None, tuple(keyframes + self._revise(len(self._records))))

    def trajectory(self) -> list[Pose]:
        """Return the best known pose of every frame that has one, in order, those back-filled included."""
        if self._tracker is None:
            return []
        return [Pose(id, self._stamps[id], T_MAP_OPTICAL @ placement.T_world_camera)
                for id, placement in sorted(self._tracker.placements.items())]

    def reset(self) -> None:
        """Forget everything; the next keyframes carry the next `map_id`."""
        self._map_id += 1
        self._begin()

    def close(self) -> None:
        """Stop the depth thread."""
        if self._dense:
            self._dense.close()
            self._dense = None

    def _check(self, frame: Frame) -> None:
        shape = frame.image.shape
        if frame.image.dtype != np.uint8 or len(shape) != 3 or shape[2] != 3:
            raise EngineError(f'frame {frame.id} is {frame.image.dtype} of shape {shape}: give (H, W, 3) uint8 RGB')
        if min(shape[:2]) < MIN_SIDE:
            raise EngineError(f'frame {frame.id} is {shape[1]} x {shape[0]} pixels, too small to track: '
                              f'give at least {MIN_SIDE} x {MIN_SIDE}')
        if self._tracker and shape[:2] != self._frame_size:
            raise EngineError(f'frame {frame.id} is {shape[1]} x {shape[0]} pixels, those before were '
                              f'{self._frame_size[1]} x {self._frame_size[0]}: reset the engine for another video')

    def _open(self, frame: Frame) -> None:
        """Settle on the size and the camera of the stream, by its first frame."""
        height, width = self._frame_size = frame.image.shape[:2]
        given = frame.intrinsics
        if given is None:
            given = Intrinsics(self._focal, self._focal, (width - 1) / 2, (height - 1) / 2)
        factor = min(_MAX_ENLARGED, (_AREA / (width * height)) ** 0.5)
        squeeze = given.fx / given.fy if given.fy else 1.0  # the tracked pixels are square
        self._size = max(MIN_SIDE, round(height * factor * squeeze)), max(MIN_SIDE, round(width * factor))
        self._scale = self._size[1] / width, self._size[0] / height
        self._camera = given.scaled(*self._scale)
        self._tracker = Tracker(self._size[1], self._size[0], (self._camera.cx, self._camera.cy), self._camera.fx,
                                self._max_features, self._window, self._seed)

    def _intrinsics(self) -> Intrinsics:
        """Return the camera of the tracked images, with the focal length as known now."""
        focal = self._tracker.map.focal
        return self._camera._replace(fx=focal, fy=focal)

    def _insert(self, step: Step) -> list[Keyframe]:
        """Make the new keyframes known, without depth yet."""
        new = []
        intrinsics = self._intrinsics()
        for sparse, image in step.inserted:
            pose = Pose(sparse.id, self._stamps[sparse.id], T_MAP_OPTICAL @ invert(sparse.T_camera_world))
            before = next(reversed(self._records), sparse.id - 1)
            keyframe = Keyframe(pose, intrinsics.scaled(1 / self._scale[0], 1 / self._scale[1]), map_id=self._map_id,
                                stride=max(1, sparse.id - before), relocalised=step.relocalised)
            self._records[sparse.id] = _Record(sparse, keyframe, sparse.T_camera_world, sparse.T_camera_world)
            if len(self._records) > _RECORDS_KEPT:
                del self._records[next(iter(self._records))]
            new.append(keyframe)
            _, depths = self._tracker.map.depths(sparse)
            depths = depths[depths > 0]
            if self._dense and len(depths):
                near, far = np.percentile(depths, _DEPTH_RANGE)
                view = View(sparse.id, image, invert(sparse.T_camera_world), float(near), float(far))
                self._waited += self._call(self._dense.add, view, intrinsics) or 0.0
            if self._dense_wanted and not self._dense:
                self._without_depth += 1
        return new

    def _tell_poses(self) -> None:
        """Tell the dense mapper which keyframes have moved."""
        moved = [r for r in self._records.values() if r.told is not r.sparse.T_camera_world]
        for record in moved:
            record.told = record.sparse.T_camera_world
        if self._dense and moved:
            self._call(self._dense.move, {r.sparse.id: invert(r.told) for r in moved}, self._intrinsics())

    def _collect(self, wait: bool = False) -> list[Keyframe]:
        """Return the keyframes that have got depth."""
        if not self._dense:
            return []
        maps = self._call(self._dense.finish if wait else self._dense.collect) or []
        return [self._with_map(self._records[depth_map.id], depth_map)
                for depth_map in {m.id: m for m in maps}.values() if depth_map.id in self._records]

    def _with_map(self, record: _Record, depth_map: DepthMap) -> Keyframe:
        """Return a keyframe with its new depth."""
        depth = np.where(depth_map.confidence > 0, depth_map.depth, np.float32(np.nan))
        return self._send(record, depth_map.intrinsics, depth, depth_map.confidence, depth_map.colors)

    def _revise(self, most: int) -> list[Keyframe]:
        """Return keyframes with depth that have moved noticeably since they were sent, the most moved first."""
        moved = []
        for record in self._records.values():
            if record.depth is None or record.sent_T is record.sparse.T_camera_world:
                continue
            step = record.sparse.T_camera_world @ invert(record.sent_T)
            angle = np.degrees(np.arccos(np.clip((np.trace(step[:3, :3]) - 1) / 2, -1, 1)))
            depth = self._tracker.map.median_depth(record.sparse)
            growth = self._growth(record)
            amount = max(np.linalg.norm(step[:3, 3]) / (_MOVED * depth), angle / _TURNED, abs(growth - 1) / _MOVED)
            if amount > 1:
                moved.append((amount, growth, record))
        moved.sort(key=lambda item: -item[0])
        return [self._send(record, record.sent.intrinsics, growth * np.float32(record.depth.depth),
                           np.float32(record.depth.confidence) / 255, record.depth.colors)
                for _, growth, record in moved[:most]]

    def _growth(self, record: _Record) -> float:
        """Return by how much the sparse points of a keyframe are deeper than when it was sent."""
        then, now = record.depth.seen, self._tracker.map.depths(record.sparse)
        _, a, b = np.intersect1d(then[0], now[0], assume_unique=True, return_indices=True)
        return float(np.median(now[1][b] / then[1][a])) if len(a) >= 10 else 1.0

    def _send(self, record: _Record, intrinsics: Intrinsics, depth: np.ndarray, confidence: np.ndarray,
              colors: np.ndarray) -> Keyframe:
        """Return a keyframe anew, with its depth (H, W) float32 and where it is now."""
        record.depth = _Depth(depth.astype(np.float16), np.uint8(np.rint(255 * confidence)), colors,
                              self._tracker.map.depths(record.sparse))
        record.sent_T = record.sparse.T_camera_world
        pose = replace(record.sent.pose, T_map_camera=T_MAP_OPTICAL @ invert(record.sent_T))
        record.sent = replace(record.sent, pose=pose, intrinsics=intrinsics, revision=record.sent.revision + 1)
        x = np.float32((np.arange(depth.shape[1]) - intrinsics.cx) / intrinsics.fx)
        y = np.float32((np.arange(depth.shape[0]) - intrinsics.cy) / intrinsics.fy)
        pointmap = np.dstack([x * depth, y[:, None] * depth, depth])  # (H, W, 3) map units, optical frame
        return replace(record.sent, pointmap=pointmap, confidence=confidence, colors=colors)

    def _call(self, function: Callable, *arguments: object) -> Any:
        """Call the dense mapper; once it has failed, say so, track on without it and return None."""
        try:
            return function(*arguments)
        except DepthError as error:
            _log.error('%s; tracking goes on without depth until the engine is reset', error)
            self._without_depth = self._dense.skipped
            self.close()
            return None
