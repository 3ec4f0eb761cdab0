# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Dense depth of keyframes, worked out on a thread of its own while tracking goes on.

A keyframe waits until `LAG` more have come, so that it has neighbours on both sides, and is swept.  Its depth map is
handed out once it can be checked against those before it, a second time when those after it can speak as well, and
again when a later adjustment of poses or focal length has overturned it.
"""

import threading
import time
from collections import deque
from collections.abc import Mapping

import numpy as np

from slam3r_ros.engines.geometric.stereo import DepthMap, KeyframeStereo
from slam3r_ros.engines.geometric.views import Scene, SmallView, View, shrink
from slam3r_ros.values import Intrinsics

__all__ = ['DenseMapper', 'DepthError', 'DepthMap', 'View']

LAG = 2  # keyframes that must follow before a keyframe is swept
KEYFRAMES = 24  # the newest are kept as neighbours and witnesses, beside those that wait
OTHER_VIEWS = 40  # the newest are kept as neighbours


class DepthError(RuntimeError):
    """Dense depth has failed; the message names the cause."""


class DenseMapper:
    """Turns posed views into depth maps of the keyframes among them, in the background.

    An error on the thread ends it, and comes out of every later call as `DepthError`.
    """

    def __init__(
        self, width: int = 224, planes: int = 64, neighbours: int = 4, queue: int = 4, lossless: bool = True
    ) -> None:
        """Compile the kernels and start the thread.

        Args:
            width: longer side of the depth maps, pixels.
            planes: hypotheses of depth.
            neighbours: views that each keyframe is matched with, at most.
            queue: keyframes that may wait for the thread, beyond the `LAG` that wait for their neighbours.
            lossless: whether `add` blocks while the queue is full; else the keyframe gets no depth.
        """
        self.skipped = 0
        self._width = width
        self._room = queue + LAG  # keyframes that may wait
        self._lossless = lossless
        self._stereo = KeyframeStereo(planes, neighbours)  # the thread's own
        self._stereo.warm_up()
        self._changed = threading.Condition()  # guards all that follows
        self._views: dict[int, SmallView] = {}
        self._poses: dict[int, np.ndarray] = {}  # T_world_camera of the views
        self._intrinsics: Intrinsics | None = None  # of the full image
        self._keyframes = 0  # added so far
        self._waiting: deque[tuple[int, int]] = deque()  # how many keyframes must have come, id
        self._finished: list[DepthMap] = []
        self._draining = self._closing = False
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name='dense_depth', daemon=True)
        self._thread.start()

    @property
    def milliseconds(self) -> dict[str, float]:
        """Median time per keyframe of each stage."""
        return {stage: 1e3 * float(np.median(list(times))) for stage, times in self._stereo.times.items() if times}

    def add(self, view: View, intrinsics: Intrinsics) -> float:
        """Take the next view, in the order of time.

        Args:
            view: as a keyframe it gets depth; else it serves as a neighbour only.
            intrinsics: of its image, and from now on of all views.

        Returns:
            Seconds it waited for room in the queue.
        """
        waited = 0.0
        if not 0 < view.near <= view.far < np.inf:
            raise DepthError(f'view {view.id} has the depth range {view.near} to {view.far}; give 0 < near <= far')
        small = shrink(view, self._width)
        with self._changed:
            self._check()
            self._views[view.id] = small
            self._poses[view.id] = view.T_world_camera
            self._intrinsics = intrinsics
            if view.keyframe:
                self._keyframes += 1
                self._changed.notify_all()
                if self._lossless:
                    start = time.perf_counter()
                    self._changed.wait_for(lambda: len(self._waiting) < self._room or self._stopped)
                    waited = time.perf_counter() - start
                    self._check()
                if len(self._waiting) < self._room:
                    self._waiting.append((self._keyframes + LAG, view.id))
                else:
                    self.skipped += 1
            self._forget()
        return waited

    def move(self, poses: Mapping[int, np.ndarray], intrinsics: Intrinsics) -> None:
        """Correct poses after an adjustment, for sweeps and consistency checks to come.

        Depth maps that the adjustment overturns are made anew, and come again.

        Args:
            poses: T_world_camera (4, 4) by id; those of unknown or forgotten views are ignored.
            intrinsics: of the full image.
        """
        with self._changed:
            self._check()
            self._poses.update((id, pose) for id, pose in poses.items() if id in self._views)
            self._intrinsics = intrinsics

    def collect(self) -> list[DepthMap]:
        """Return the depth maps finished since the last call; a later one of the same id is the better."""
        with self._changed:
            self._check()
            finished, self._finished = self._finished, []
        return finished

    def finish(self) -> list[DepthMap]:
        """Sweep all that waits with the neighbours there are; return the depth maps not yet collected."""
        with self._changed:
            self._draining = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._draining or self._stopped)
        return self.collect()

    def close(self) -> None:
        """Stop the thread; what still waits is lost."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()

    @property
    def _stopped(self) -> bool:
        return self._closing or self._error is not None

    def _check(self) -> None:
        if self._error is not None:
            raise DepthError(f'dense depth failed: {self._error!r}') from self._error
        if self._closing:
            raise DepthError('dense depth is closed; make a new DenseMapper')

    def _forget(self) -> None:
        """Drop the oldest views, but those that wait."""
        waiting = {id for _, id in self._waiting}
        for keyframe, keep in ((True, KEYFRAMES + self._room), (False, OTHER_VIEWS)):
            for id in [id for id, view in self._views.items() if view.keyframe == keyframe][:-keep]:
                if id not in waiting:
                    del self._views[id], self._poses[id]

    def _ready(self) -> bool:
        return bool(self._waiting) and (self._keyframes >= self._waiting[0][0] or self._draining)

    def _run(self) -> None:
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._ready() or self._draining or self._closing)
                    if self._closing:
                        return
                    id = self._waiting[0][1] if self._waiting else None
                    scene = Scene(dict(self._views), dict(self._poses), self._intrinsics)
                if id is None:
                    maps = self._stereo.finish(scene)
                else:
                    maps = self._stereo.estimate(id, scene)
                with self._changed:
                    self._finished += maps
                    if id is None:
                        self._draining = False
                    else:
                        self._waiting.popleft()
                    self._changed.notify_all()
        except Exception as error:  # noqa: BLE001 - told to the caller by `_check`
            with self._changed:
                self._error = error
                self._changed.notify_all()
