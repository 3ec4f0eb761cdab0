# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A video and an engine of known answers, for the tests of the nodes."""

import threading

import numpy as np

from slam3r_ros.engines.protocol import EngineOutput, SingleMap
from slam3r_ros.mapping.frames import T_MAP_OPTICAL, rigid
from slam3r_ros.values import Frame, Intrinsics, Keyframe, Pose, State

FRAMES = 40
EVERY = 10  # frames between keyframes
INTRINSICS = Intrinsics(40.0, 40.0, 31.5, 23.5)


def images(count=FRAMES, missing=()):
    """Return frames of noise; those in `missing` were lost before."""
    rng = np.random.default_rng(0)
    for i in range(count):
        image = rng.integers(0, 255, (96, 128, 3)).astype(np.uint8)
        if i not in missing:
            yield Frame(i, 1_000_000_000 + i * 33_000_000, image, last=i == count - 1)


class StubSource:
    """A source as `open_source` returns it."""

    name, fps, frames, skipped = 'stub', 30.0, FRAMES, 0

    def __init__(self, frames=None):
        self._frames = iter(images() if frames is None else frames)
        self.closed = False

    def __iter__(self):
        return self._frames

    def close(self):
        self.closed = True


class StubClock:
    """Stands in for the module `time` where somebody keeps a pace: time passes while it sleeps, and at once."""

    def __init__(self):
        self._nanoseconds, self._lock = 10**12, threading.Lock()

    def monotonic_ns(self):
        return self._nanoseconds

    def monotonic(self):
        return self._nanoseconds * 1e-9

    def sleep(self, seconds):
        with self._lock:
            self._nanoseconds += round(seconds * 1e9)


def pose_at(i):
    """Return where the stub engine sees the camera: 1 cm forward each frame."""
    return T_MAP_OPTICAL @ rigid(np.eye(3), np.array([0.0, 0.0, 0.01 * i]))


def wall(frame, revision=0, map_id=0, shift=0.0):
    """Return a keyframe that sees a wall across the map's x axis, one unit before the first camera.

    Args:
        frame: That it is made from.
        revision: Of the keyframe.
        map_id: Of the keyframe.
        shift: Units that the camera stands farther left.
    """
    v, u = np.mgrid[:48, :64]
    depth = np.full(u.shape, 1.0 - 0.01 * frame.id)
    x, y = (u - INTRINSICS.cx) / INTRINSICS.fx * depth, (v - INTRINSICS.cy) / INTRINSICS.fy * depth
    T_map_camera = rigid(np.eye(3), np.array([0.0, shift, 0.0])) @ pose_at(frame.id)
    return Keyframe(
        Pose(frame.id, frame.stamp, T_map_camera),
        INTRINSICS,
        np.stack([x, y, depth], axis=-1).astype(np.float32),
        np.ones(u.shape, np.float32),
        np.full((*u.shape, 3), (200, 100, 50), np.uint8),
        revision=revision,
        map_id=map_id,
    )


class StubEngine(SingleMap):
    """Takes two frames to initialise, then tracks; every tenth frame is a keyframe, whose depth comes one later."""

    name, device, model_license = 'stub', 'cpu', ''
    depth_skipped = 0
    degraded = ''

    def __init__(self, fail_at=None, finish=None):
        self._finish, self.lossless = finish, None
        self.state, self.milliseconds = State.INITIALIZING, {'track': 1.0}
        self.frames, self.closed, self.finished = [], False, 0
        self._poses, self.map_id, self._fail_at, self._waiting = [], 0, fail_at, None

    def made(self, name, checkpoints, map_id=0, lossless=True, max_keyframes=400, precision='auto', cuda_graphs=True):
        """Stand in for create_engine."""
        self.map_id, self.lossless, self.precision, self.cuda_graphs = map_id, lossless, precision, cuda_graphs
        return self

    def process(self, frame):
        self.frames.append(frame)
        if frame.id == self._fail_at:
            raise RuntimeError('this frame is cursed')
        if len(self.frames) < 3:
            return EngineOutput(None)
        self.state = State.TRACKING
        pose = Pose(frame.id, frame.stamp, pose_at(frame.id))
        self._poses.append(pose)
        keyframes = []
        if frame.id % EVERY == 0:
            keyframes = [Keyframe(pose, INTRINSICS, map_id=self.map_id)]
            if self._waiting:
                keyframes.append(wall(self._waiting, 1, self.map_id))
            self._waiting = frame
        return EngineOutput(pose, tuple(keyframes))

    def finish(self):
        self.finished += 1
        if self._finish:
            self._finish()
        return EngineOutput(None, (wall(self._waiting, 1, self.map_id),) if self._waiting else ())

    def trajectory(self):
        return list(self._poses)

    def reset(self):
        self._poses, self._waiting = [], None
        self.map_id += 1
        self.state = State.INITIALIZING

    def close(self):
        self.closed = True
