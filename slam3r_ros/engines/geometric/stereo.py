# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Depth maps of keyframes: planes swept, then the depth maps checked against each other.

What a sweep says of a pixel is believed only where the depth maps of other keyframes say the same: matching cost
alone is no measure of truth.
"""

import time
from collections import deque
from dataclasses import dataclass

import cv2
import numpy as np

from slam3r_ros.engines.geometric.consistency import agreement
from slam3r_ros.engines.geometric.sweep import inverse_depth_planes, sweep
from slam3r_ros.engines.geometric.views import BASELINE, Scene, SmallView, choose_neighbours, choose_witnesses
from slam3r_ros.mapping.frames import invert, rigid
from slam3r_ros.values import Intrinsics

NEAR_MARGIN, FAR_MARGIN = 0.6, 1.6  # widen the range of the sparse points
MIN_NEIGHBOURS = 2  # with fewer a sweep is put off until the keyframe is checked again
MIN_CORRELATION = 0.3
MIN_DISTINCTNESS = 0.005
WITNESSES = 8  # depth maps that one is checked against
TOLERANCE = 0.05  # relative difference of depths that agree
MIN_AGREEING = 3  # witnesses
EDGE_WINDOW = np.ones((5, 5), np.uint8)  # matching windows fatten what stands in front: doubt pixels beside a jump
EDGE_RATIO = 1.2  # of the greatest to the least depth in the window, that is a jump
REVISIT = 3  # keyframes after which one is checked again
STALE_FOCAL = 0.03  # relative change of the focal length that makes a sweep worth doing anew
STALE_BASELINE = 0.1  # change of the neighbours' poses that does, in baselines
ANEW_AT_ONCE = 4  # stale sweeps done anew with one keyframe, at most


@dataclass(frozen=True)
class DepthMap:
    """The depth of a keyframe.

    Confidence is 0 where the depth must not be used: too few other keyframes agree, or depth jumps close by.
    Elsewhere it is c * n / (n + 1) for a matching correlation c in [0.3, 1] and n other keyframes that agree.
    """

    id: int
    depth: np.ndarray  # (h, w) float32, along the optical axis, world units
    confidence: np.ndarray  # (h, w) float32 in [0, 1], 0 = no depth
    intrinsics: Intrinsics  # of the (h, w) grid
    colors: np.ndarray  # (h, w, 3) uint8 RGB


@dataclass(frozen=True)
class _Estimate:
    """What a sweep made of a keyframe."""

    depth: np.ndarray  # (h, w) float32, 0 where matching alone rules it out
    correlation: np.ndarray  # (h, w) float32 in [0, 1]
    intrinsics: Intrinsics  # of the (h, w) grid, as the sweep took them
    T_neighbours_this: dict[int, np.ndarray]  # (4, 4), by id, as the sweep took them

    def is_stale(self, id: int, scene: Scene) -> bool:
        """Say whether an adjustment since the sweep has overturned it."""
        if abs(scene.intrinsics(id).fx / self.intrinsics.fx - 1) > STALE_FOCAL:
            return True
        changes = []
        for other in self.T_neighbours_this.keys() & scene.poses.keys():
            before, now = self.T_neighbours_this[other], invert(scene.poses[other]) @ scene.poses[id]
            angle = np.linalg.norm(now[:3, :3] - before[:3, :3]) / np.sqrt(2)  # radians, while small
            shift = np.linalg.norm(now[:3, 3] - before[:3, 3]) + angle * scene.views[id].depth
            changes.append(shift / np.linalg.norm(before[:3, 3]))
        return bool(changes) and np.median(changes) > STALE_BASELINE


class KeyframeStereo:
    """Sweeps keyframes, one after the other, and checks their depth maps against each other."""

    def __init__(self, planes: int, neighbours: int) -> None:
        """Set the number of depth hypotheses, and of views matched with each keyframe."""
        self._planes = planes
        self._neighbours = neighbours
        self._estimates: dict[int, _Estimate] = {}
        self._unsettled: deque[int] = deque()  # keyframes to be checked once more
        self.times = {stage: deque[float](maxlen=100) for stage in ('sweep', 'consistency')}  # seconds

    def warm_up(self) -> None:
        """Compile the kernels, which takes seconds where they are not cached."""
        grey, colors = np.zeros((24, 32), np.float32), np.zeros((24, 32, 3), np.uint8)
        poses = {id: rigid(np.eye(3), np.array([id * BASELINE, 0, 0])) for id in range(MIN_AGREEING + 1)}
        views = {id: SmallView(grey, colors, (1.0, 1.0), 0.5, 2.0, True) for id in poses}
        trial = KeyframeStereo(self._planes, self._neighbours)
        for id in views:
            trial.estimate(id, Scene(views, poses, Intrinsics(32.0, 32.0, 15.5, 11.5)))

    def estimate(self, id: int, scene: Scene) -> list[DepthMap]:
        """Sweep a keyframe; return its depth map, and those of earlier ones that now have later witnesses.

        What was estimated for views that are no longer in the scene is forgotten.
        """
        self._forget(scene)
        self._unsettled.append(id)
        self._sweep_missing(scene, MIN_NEIGHBOURS)
        settled = [self._unsettled.popleft() for _ in range(len(self._unsettled) - REVISIT)]
        return self._check([*settled, id], scene)

    def finish(self, scene: Scene) -> list[DepthMap]:
        """Check the keyframes that were still to be checked again; return their depth maps."""
        self._forget(scene)
        self._sweep_missing(scene, 1)
        settled = list(self._unsettled)
        self._unsettled.clear()
        return self._check(settled, scene)

    def _forget(self, scene: Scene) -> None:
        """Drop estimates of views that are gone, and a few stale ones, the newest first, to be made anew."""
        self._unsettled = deque(id for id in self._unsettled if id in scene.views)
        self._estimates = {id: estimate for id, estimate in self._estimates.items() if id in scene.views}
        stale = [id for id, estimate in self._estimates.items() if estimate.is_stale(id, scene)]
        for id in sorted(stale, reverse=True)[:ANEW_AT_ONCE]:
            del self._estimates[id]
            if id not in self._unsettled:
                self._unsettled.appendleft(id)

    def _sweep_missing(self, scene: Scene, least: int) -> None:
        """Sweep the unsettled keyframes that have no estimate but at least so many neighbours."""
        for id in self._unsettled:
            if id in self._estimates:
                continue
            start = time.perf_counter()
            neighbours = self._choose_neighbours(id, scene)
            if len(neighbours) >= least:
                self._estimates[id] = self._sweep(id, scene, neighbours)
                self.times['sweep'].append(time.perf_counter() - start)

    def _choose_neighbours(self, id: int, scene: Scene) -> dict[int, np.ndarray]:
        """Return T_neighbour_this (4, 4) of the views to match with, by id."""
        others = sorted((other for other in scene.views if other != id), key=lambda other: abs(other - id))
        T_world_others = np.array([scene.poses[other] for other in others]).reshape(-1, 4, 4)
        T_world_this = scene.poses[id]
        chosen = choose_neighbours(T_world_this, T_world_others, scene.views[id].depth, self._neighbours)
        return {others[i]: invert(T_world_others[i]) @ T_world_this for i in chosen}

    def _sweep(self, id: int, scene: Scene, T_neighbours_this: dict[int, np.ndarray]) -> _Estimate:
        """Match a keyframe with its neighbours."""
        view, intrinsics = scene.views[id], scene.intrinsics(id)
        neighbours = [(scene.views[other].grey, T) for other, T in T_neighbours_this.items()]
        planes = inverse_depth_planes(NEAR_MARGIN * view.near, FAR_MARGIN * view.far, self._planes)
        result = sweep(view.grey, neighbours, intrinsics.matrix(), planes)
        likely = result.inside & (result.correlation > MIN_CORRELATION) & (result.distinctness > MIN_DISTINCTNESS)
        depth = np.where(likely, result.depth, np.float32(0))
        return _Estimate(depth, result.correlation, intrinsics, T_neighbours_this)

    def _check(self, ids: list[int], scene: Scene) -> list[DepthMap]:
        """Return the depth maps of keyframes, as far as there are others to check them against."""
        if len(self._estimates) <= MIN_AGREEING:
            return []
        return [self._believe(id, scene) for id in ids if id in self._estimates]

    def _believe(self, id: int, scene: Scene) -> DepthMap:
        """Believe what other depth maps agree with."""
        start = time.perf_counter()
        this, view, T_world_this = self._estimates[id], scene.views[id], scene.poses[id]
        others = [other for other in self._estimates if other != id]
        T_world_others = np.array([scene.poses[other] for other in others])
        witnesses = []
        for i in choose_witnesses(T_world_this, T_world_others, view.depth, WITNESSES):
            other = self._estimates[others[i]]
            witnesses.append((other.depth, other.intrinsics, invert(T_world_others[i]) @ T_world_this))
        count, depth = agreement(this.depth, this.intrinsics, witnesses, TOLERANCE)
        nearest = cv2.erode(np.where(count > 0, depth, np.float32(np.inf)), EDGE_WINDOW)
        farthest = cv2.dilate(np.where(count > 0, depth, np.float32(0)), EDGE_WINDOW)
        believed = (count >= MIN_AGREEING) & (farthest / EDGE_RATIO < nearest)
        confidence = np.where(believed, this.correlation * count / (count + 1), 0).astype(np.float32)
        self.times['consistency'].append(time.perf_counter() - start)
        return DepthMap(id, depth, confidence, this.intrinsics, view.colors)
