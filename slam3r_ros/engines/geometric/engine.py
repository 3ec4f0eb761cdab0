# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The engine without learned weights: sparse SLAM tracks the camera, plane sweeps give keyframes their depth."""

import logging
import time
from collections import defaultdict, deque
from pathlib import Path

import numpy as np

from slam3r_ros.engines import MAX_KEYFRAMES
from slam3r_ros.engines.geometric import storage
from slam3r_ros.engines.geometric.adjust import warm_up
from slam3r_ros.engines.geometric.atlas import Atlas
from slam3r_ros.engines.geometric.optional_depth import OptionalDepth
from slam3r_ros.engines.geometric.placements import Stamps
from slam3r_ros.engines.geometric.records import Records, pose_in_map
from slam3r_ros.engines.geometric.stream import Stream, UnsuitableError
from slam3r_ros.engines.geometric.tracker import Step, Tracker
from slam3r_ros.engines.protocol import EngineError, EngineOutput, OneByOne
from slam3r_ros.mapping.map_file import MapFileError
from slam3r_ros.mapping.rows import MAX_FRAMES
from slam3r_ros.values import Frame, Keyframe, Pose, State

_REVISIONS = 3  # keyframes sent again per frame, at most
_RESENT = 4  # keyframes of a map that is announced anew, per frame
_TIMES = 500  # samples per stage
_log = logging.getLogger(__package__)


class GeometricEngine(OneByOne):
    """Streaming reconstruction on the CPU; implements `protocol.Engine`."""

    name = 'geometric'
    device = 'cpu'
    model_license = ''
    can_save = True
    degraded = ''

    def __init__(self, focal: float = 0.0, max_features: int = 700, window: int = 7, dense: bool = True,
                 lossless: bool = True, seed: int = 0, map_id: int = 0, max_keyframes: int = MAX_KEYFRAMES) -> None:
        """Compile what is to be compiled and start the depth thread.

        Args:
            focal: pixels of the frames, for frames that come without intrinsics; 0 = estimate it.
            max_features: tracks in an image, about.
            window: keyframes adjusted together.
            dense: give keyframes depth.
            lossless: wait while the depth queue is full; else keyframes go without depth, counted in `depth_skipped`.
            seed: of the order in which relocalisation looks at keyframes.
            map_id: of the first map.
            max_keyframes: kept in memory, 0.3 MB each with depth, of all maps together; of more, every other of the
                older half is forgotten.
        """
        self._focal, self._max_features, self._window, self._seed = focal, max_features, window, seed
        self._max_keyframes, self._map_id = max_keyframes, map_id
        self._times: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=_TIMES))
        self._waited = 0.0  # seconds of this frame, for the depth queue
        self._depth = OptionalDepth(dense, lossless)
        warm_up()
        self._begin()

    def _begin(self) -> None:
        """Start with nothing known."""
        self._atlas: Atlas | None = None
        self._stream: Stream | None = None
        self._first = 0  # id of frame 0: the keyframes of a loaded map come before
        self._stamps = Stamps()
        self._records = Records()
        self._depth.reset()

    @property
    def map_id(self) -> int:
        """The id of the map that the next keyframes belong to."""
        return self._map_id

    @property
    def state(self) -> State:
        """What the engine was doing when the last frame was through."""
        return self._tracker.state if self._atlas else State.INITIALIZING

    @property
    def scale_known(self) -> bool:
        """Whether poses and keyframes are in metres."""
        return bool(self._atlas) and self._tracker.map.metres is not None

    @property
    def milliseconds(self) -> dict[str, float]:
        """Median time of each stage; `keyframe` is all that comes with one, but the wait for the depth queue."""
        own = {stage: float(np.median(list(times))) for stage, times in list(self._times.items())}
        return own | self._depth.milliseconds

    @property
    def depth_skipped(self) -> int:
        """Keyframes that got no depth because the depth queue was full, or because depth has failed."""
        return self._depth.skipped

    @property
    def focal(self) -> float:
        """The focal length as known now, pixels of the frames; 0 before the first frame."""
        return self._tracker.map.focal / self._stream.scale[0] if self._atlas else 0.0

    @property
    def _tracker(self) -> Tracker:
        return self._atlas.present

    def process(self, frame: Frame) -> EngineOutput:
        """Take the next frame of the stream.

        When the size changes, images of the same shape are scaled to what it was, and all goes on; with another shape
        another stream begins, and nothing is known any more.

        Raises:
            EngineError: the image is no RGB image, or too small.
        """
        try:
            if self._atlas is not None and not self._stream.shows(frame):
                _log.warning('frames were %d x %d pixels and are %d x %d now: another map begins',
                             *self._stream.frame_size[::-1], *frame.image.shape[1::-1])
                self.reset()
            if self._atlas is None:
                self._open(Stream.of(frame, self._focal))
            image = self._stream.fit(frame)
        except UnsuitableError as error:
            raise EngineError(str(error)) from error
        start, self._waited = time.perf_counter(), 0.0
        id = self._first + frame.id
        self._stamps[id] = frame.stamp
        if len(self._stamps) > MAX_FRAMES:
            self._thin_frames()
        step = self._atlas.track(id, image, frame.candidate)
        keyframes = []
        if step.abandoned:
            self._map_id += 1
            self._records = Records()
            self._depth.renew()
        if step.changed:
            keyframes += self._change_map()
        keyframes += self._records.resend(_RESENT) + self._insert(step)
        if step.adjusted:
            self._tell_poses()
        keyframes += self._collect()
        if step.adjusted:
            keyframes += self._records.revise(_REVISIONS)
        T = step.T_world_camera
        if step.recognised:
            keyframes += self._collect(wait=True)  # as long as its unit is that of the map
            self._atlas.join()
            keyframes += self._change_map() + self._records.resend(_RESENT)
            T = self._tracker.T_world_camera
        seconds = time.perf_counter() - start - self._waited
        self._times['keyframe' if step.inserted else 'tracking'].append(1000 * seconds)
        pose = None if T is None else pose_in_map(frame.id, frame.stamp, T, self._tracker.map)
        return EngineOutput(pose, tuple(keyframes))

    def finish(self) -> EngineOutput:
        """Wait for the depth in the background, then adjust the whole map once more; return what is still to come.

        The adjustment takes well under a second for 60 keyframes, and about three for 200 or more.
        """
        if self._atlas is None or not self._records:
            return EngineOutput(None)
        keyframes = self._records.resend(len(self._records)) + self._collect(wait=True)
        self._tracker.finish()
        keyframes += self._records.revise(len(self._records))
        return EngineOutput(None, tuple(keyframes))

    def resend(self, most: int = 2 * _RESENT) -> EngineOutput:
        """Return some of the keyframes that wait to be sent again; none when nothing waits."""
        return EngineOutput(None, tuple(self._records.resend(most)))

    def trajectory(self) -> list[Pose]:
        """Return the best known pose of every frame of the present map, in order, those back-filled included."""
        return self._poses(self._tracker) if self._atlas else []

    def other_trajectories(self) -> list[list[Pose]]:
        """Return the same of the maps that are not the present one, each in a frame and a unit of its own."""
        return [self._poses(tracker) for tracker in self._atlas.others] if self._atlas else []

    def _poses(self, tracker: Tracker) -> list[Pose]:
        poses = tracker.placements.poses(tracker.map)
        return [pose_in_map(id, self._stamps[id], T, tracker.map) for id, T in poses if id in self._stamps]

    def _thin_frames(self) -> None:
        """Forget when and where every other frame of the older half was."""
        self._stamps.thin()
        for tracker in (self._tracker, *self._atlas.others):
            tracker.placements.keep(self._stamps.ids)

    def set_scale(self, metres_per_unit: float) -> None:
        """Say how many metres a unit of the present map has, as it is now; all is announced anew by the next `map_id`.

        Raises:
            EngineError: there is no map yet, or the number makes no sense.
        """
        if not (np.isfinite(metres_per_unit) and metres_per_unit > 0):
            raise EngineError(f'a unit of {metres_per_unit} metres makes no sense: give a number above 0')
        if self._atlas is None or not self._tracker.map.keyframes:
            raise EngineError('there is no map yet whose scale could be set: map something first')
        map = self._tracker.map
        map.metres = (map.metres or 1.0) * metres_per_unit
        self._announce()

    def save(self, path: Path) -> None:
        """Write all maps to a file, in one step: whatever happens, the old file or the new one is there.

        Raises:
            EngineError: there is no map yet.
            OSError: it cannot be written.
        """
        if self._atlas is None or not self._tracker.map.keyframes:
            raise EngineError('there is no map yet, nothing was written: map something first')
        maps = [tracker.map for tracker in (self._tracker, *self._atlas.others)]
        storage.save(path, self._stream, maps, self._records)

    def load(self, path: Path) -> None:
        """Forget everything, take the maps of a file, and look for the camera in them.

        The keyframes come out again by the next `map_id`, numbered from 0; the numbers of frames count on from there.

        Raises:
            EngineError: the file cannot be read, or is no map of this engine; then all stays as it was.
        """
        try:
            stored = storage.load(path)
        except MapFileError as error:
            raise EngineError(str(error)) from error
        self._begin()
        self._open(stored.stream)
        self._atlas.load(stored.maps)
        self._records, self._stamps, self._first = stored.records, stored.stamps, len(stored.stamps)
        self._announce()

    def reset(self) -> None:
        """Forget everything; the next keyframes carry the next `map_id`."""
        self._map_id += 1
        self._begin()

    def close(self) -> None:
        """Stop the depth thread."""
        self._depth.close()

    def _open(self, stream: Stream) -> None:
        """Settle on the size and the camera of the stream."""
        self._stream = stream
        height, width = stream.size
        centre = stream.camera.cx, stream.camera.cy

        def make(focal: float) -> Tracker:
            focal = focal or stream.camera.fx
            return Tracker(width, height, centre, focal, self._max_features, self._window, self._seed)

        self._atlas = Atlas(make, self._max_keyframes, self._seed)

    def _change_map(self) -> list[Keyframe]:
        """Announce the present map, to which the camera has come or another was joined; return the last of the old."""
        keyframes = self._collect(wait=True)
        self._depth.renew()
        self._announce()
        return keyframes

    def _announce(self) -> None:
        """Let all keyframes of the present map come out again under its next id."""
        self._map_id += 1
        self._records.announce(self._tracker.map, self._map_id)

    def _insert(self, step: Step) -> list[Keyframe]:
        """Make the new keyframes known, without depth yet."""
        new = []
        map, intrinsics = self._tracker.map, self._stream.with_focal(self._tracker.map.focal)
        whole = intrinsics.scaled(1 / self._stream.scale[0], 1 / self._stream.scale[1])
        for sparse, image in step.inserted:
            stamp = self._stamps[sparse.id]
            new.append(self._records.insert(sparse, map, stamp, whole, self._map_id, step.relocalised))
            self._waited += self._depth.add(sparse, image, map, intrinsics)
        self._records.forget()
        return new

    def _tell_poses(self) -> None:
        """Tell the dense mapper which keyframes have moved."""
        self._depth.move(self._records.tell(), self._stream.with_focal(self._tracker.map.focal))

    def _collect(self, wait: bool = False) -> list[Keyframe]:
        """Return the keyframes that have got depth."""
        return self._records.with_depth(self._depth.collect(wait))
