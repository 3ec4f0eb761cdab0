# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The sparse SLAM: frame in, camera pose out; decides on keyframes, loses the camera and finds it again."""

from collections import deque
from typing import NamedTuple

import cv2
import numpy as np

from slam3r_ros.engines.geometric import local_mapping
from slam3r_ros.engines.geometric.adjust import FocalPrior
from slam3r_ros.engines.geometric.initialise import Initialiser, Sight
from slam3r_ros.engines.geometric.pose import CameraPose, estimate_pose
from slam3r_ros.engines.geometric.relocalise import Descriptor, relocalise
from slam3r_ros.engines.geometric.sparse_map import Features, PointState, SparseKeyframe, SparseMap
from slam3r_ros.engines.geometric.tracks import Tracks
from slam3r_ros.mapping.frames import invert
from slam3r_ros.values import State

_FOCAL_GUESS = 0.85  # of the longer side, a usual camera
_FOCAL_SPREAD = 0.25  # of the guess, one sigma
_FIRST_SPREAD = 0.08  # at the start: so few frames say more of their noise than of the focal length
_FOCAL_HYPOTHESES = (0.6, 0.85, 1.2)  # of the longer side
_FEW_GOOD = 40  # triangulated points: fewer, and borrowed depths help
_MIN_SHARE = 0.35
_DROP = 5.0  # pixels at which a track leaves its point
_FLOW = 0.06  # of the longer side since the last keyframe: time for one
_KEPT = 0.75  # of the last keyframe's points in sight: time for one
_FEW_POINTS = 80  # triangulated points: time for a keyframe
_FEW_TRACKS = 0.4  # of the wanted number: time for a keyframe
_STILL = 0.2  # of that motion, with most points kept: no keyframe, however few points there are
_STILL_KEPT = 0.9
_URGENT_KEPT = 0.5
_URGENT_POINTS = 50
_WEAK = 0.3  # of the points before: fewer, and descriptors are asked too
_WEAK_SHARE = 0.5
_TRUSTED = 40  # inliers of a weak pose that is still better than none
_NEWEST = 8  # keyframes that relocalisation always considers
_CONSIDERED = 16  # keyframes in all, the others drawn by chance
_GIVE_UP = 30  # lost frames after which a young map is given up: it was a bad start
_FEATURES = 50  # in such a frame, at least
_YOUNG = 10  # keyframes
_FINAL_ITERATIONS = 10
_LOST_KEPT = 40  # lost frames whose features are kept, to place them later


class Step(NamedTuple):
    """What one frame brought."""

    T_world_camera: np.ndarray | None  # (4, 4)
    inserted: tuple[tuple[SparseKeyframe, np.ndarray], ...] = ()  # new keyframes with their images
    adjusted: bool = False  # keyframes have moved
    relocalised: bool = False
    abandoned: bool = False  # the map is given up; frames begin a new one


class Placement(NamedTuple):
    """Where a frame is, in the frame of a keyframe that may still move."""

    keyframe: SparseKeyframe
    T_camera_keyframe: np.ndarray  # (4, 4)

    @property
    def T_world_camera(self) -> np.ndarray:
        """The pose as known now, (4, 4)."""
        return invert(self.T_camera_keyframe @ self.keyframe.T_camera_world)


class Tracker:
    """Sparse SLAM on images of one size, pixels square and counted from `centre` on."""

    def __init__(self, width: int, height: int, centre: tuple[float, float], focal: float = 0.0,
                 max_features: int = 700, window: int = 7, seed: int = 0) -> None:
        """Start without a map; a focal length of 0 pixels is estimated."""
        self._longer = max(width, height)
        self._centre = np.array(centre)
        self._window = window
        self._random = np.random.default_rng(seed)
        self._max_features = max_features
        self._prior = self._first_prior = None
        self._focals = [focal]
        if not focal:
            guess = _FOCAL_GUESS * self._longer
            self._prior = FocalPrior(guess, _FOCAL_SPREAD * guess)
            self._first_prior = FocalPrior(guess, _FIRST_SPREAD * guess)
            self._focals = [share * self._longer for share in _FOCAL_HYPOTHESES]
        self._descriptor = Descriptor()
        self._begin()

    def _begin(self) -> None:
        """Start with nothing known of the scene."""
        self.map = SparseMap(self._focals[0])
        self.state = State.INITIALIZING
        self.placements: dict[int, Placement] = {}
        self._tracks = Tracks(self._max_features, lambda number: self.map.allocate(number))
        self._initialiser = Initialiser(self._longer)
        self._lost: deque[tuple[int, Features]] = deque(maxlen=_LOST_KEPT)
        self._lost_for = 0  # frames
        self._T = np.eye(4)  # camera_world, of the newest placed frame
        self._motion = np.eye(4)  # from the camera before to the camera now
        self._points_at_keyframe = 0
        self._newest: tuple[int, np.ndarray] | None = None  # id and image of the newest frame

    @property
    def _pixels(self) -> np.ndarray:
        return self._tracks.pixels.astype(float) - self._centre

    def track(self, id: int, image: np.ndarray, candidate: bool = True) -> Step:
        """Take the next image, (H, W, 3) uint8 RGB; `candidate` says whether it is worth a keyframe."""
        before, ids, pixels = self._newest, self._tracks.ids, self._tracks.pixels
        self._newest = id, image
        self._tracks.follow(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))
        if self.state == State.INITIALIZING:
            return self._initialise(id, image)
        pose = self._follow()
        secured = ()
        weak = pose is None or pose.inliers.sum() < _WEAK * self.map.good(ids).sum() or pose.share < _WEAK_SHARE
        if weak:
            if self.state == State.TRACKING and before[0] != self.map.keyframes[-1].id:
                secured = self._secure(*before, ids, pixels)
            step = self._relocalise(id, image, pose)
            if step is not None:
                return step._replace(inserted=secured + step.inserted, adjusted=bool(secured) or step.adjusted)
        self._motion = pose.T_camera_world @ invert(self._T)
        self._T = pose.T_camera_world
        self.state = State.TRACKING
        self._place(id, self._T, self.map.keyframes[-1])
        if not self._keyframe_due(candidate):
            return Step(invert(self._T), secured, adjusted=bool(secured))
        self._insert(id, image)
        return Step(invert(self._T), (*secured, (self.map.keyframes[-1], image)), adjusted=True)

    def _secure(self, id: int, image: np.ndarray, ids: np.ndarray, pixels: np.ndarray
                ) -> tuple[tuple[SparseKeyframe, np.ndarray], ...]:
        """Make the frame before a keyframe: of all sights it is the nearest to one that tracking fails on."""
        now = self._tracks.ids, self._tracks.pixels
        self._tracks.ids, self._tracks.pixels = ids, pixels
        self._insert(id, image, detect=False)
        self._tracks.ids, self._tracks.pixels = now
        return ((self.map.keyframes[-1], image),)

    def _initialise(self, id: int, image: np.ndarray) -> Step:
        """Wait for parallax; then make the map and place the frames waited for."""
        sight = Sight(id, self._tracks.ids, self._pixels, image)
        if self._initialiser.faded(sight):
            self._tracks.clear()
            self._tracks.detect()
            self._initialiser.restart(Sight(id, self._tracks.ids, self._pixels, image))
            return Step(None)
        map = self._initialiser.add(sight, self._focals, self._first_prior, self.map.count)
        if map is None:
            return Step(None)
        self.map = map
        sights = {sight.id: sight for sight in self._initialiser.sights}
        for keyframe in map.keyframes:
            self._describe(keyframe, sights[keyframe.id].image)
        map.described = list(range(len(map.keyframes)))
        for number in range(1, len(map.keyframes)):
            map.triangulate(map.keyframes[number])
        newest = map.keyframes[-1]
        inserted = tuple((keyframe, sights[keyframe.id].image) for keyframe in map.keyframes)
        self.state = State.TRACKING
        for earlier in sights.values():
            good = map.good(earlier.ids)
            nearest = min(map.keyframes, key=lambda k: abs(k.id - earlier.id))
            pose = estimate_pose(map.positions[earlier.ids[good]], earlier.pixels[good], map.focal,
                                 nearest.T_camera_world)
            if pose is not None:
                self._place(earlier.id, pose.T_camera_world, nearest)
        self._T, self._motion = newest.T_camera_world, np.eye(4)
        self._initialiser.sights = []
        self._tracks.detect()
        newest.ids, newest.pixels = self._tracks.ids.copy(), self._pixels
        self._describe(newest, image)
        map.lend_depth(newest)
        self._keyframe_made()
        return Step(invert(self._T), inserted, adjusted=True)

    def _describe(self, keyframe: SparseKeyframe, image: np.ndarray) -> None:
        descriptors = self._descriptor.describe(image, keyframe.pixels + self._centre)
        keyframe.features = Features(keyframe.ids.copy(), keyframe.pixels.copy(), descriptors)

    def _follow(self) -> CameraPose | None:
        """Place the camera by the tracked points, None when it is lost; drop tracks that do not fit."""
        ids = self._tracks.ids
        usable = self.map.good(ids)
        if usable.sum() < _FEW_GOOD:
            usable = self.map.states[ids] > PointState.UNSEEN
        pose = estimate_pose(self.map.positions[ids[usable]], self._pixels[usable], self.map.focal,
                             self._motion @ self._T)
        if pose is None or pose.share < _MIN_SHARE:
            return None
        keep = np.ones(len(ids), bool)
        keep[np.flatnonzero(usable)[pose.errors > _DROP]] = False
        self._tracks.keep(keep)
        return pose

    def _keyframe_due(self, candidate: bool) -> bool:
        """Tell whether the view has changed, or points have gone, enough for a keyframe."""
        last = self.map.keyframes[-1]
        good = int(self.map.good(self._tracks.ids).sum())
        _, then, now = np.intersect1d(last.ids, self._tracks.ids, assume_unique=True, return_indices=True)
        flow = np.inf
        if len(then) > 10:
            flow = np.median(np.linalg.norm(last.pixels[then] - self._pixels[now], axis=1)) / self._longer
        kept = good / max(self._points_at_keyframe, 1)
        if flow < _STILL * _FLOW and kept > _STILL_KEPT:
            return False
        due = flow > _FLOW or kept < _KEPT or good < _FEW_POINTS or len(self._tracks) < _FEW_TRACKS * self._tracks.limit
        urgent = flow > 2 * _FLOW or kept < _URGENT_KEPT or good < _URGENT_POINTS
        return urgent or (due and candidate)

    def _insert(self, id: int, image: np.ndarray, detect: bool = True) -> None:
        """Make the frame of the tracks and the pose a keyframe."""
        if detect:
            self._tracks.detect()
        keyframe = SparseKeyframe(id, self._T, self._tracks.ids.copy(), self._pixels)
        self._describe(keyframe, image)
        table = local_mapping.extend(self.map, keyframe, self._window, self._prior)
        self._tracks.ids = table[self._tracks.ids]
        _, first = np.unique(self._tracks.ids, return_index=True)
        keep = np.zeros(len(self._tracks), bool)
        keep[first] = True
        self._tracks.keep(keep & (self.map.states[self._tracks.ids] != PointState.BAD))
        self._T = keyframe.T_camera_world
        self._place(id, self._T, keyframe)
        self._keyframe_made()

    def _keyframe_made(self) -> None:
        self._points_at_keyframe = int(self.map.good(self._tracks.ids).sum())

    def _place(self, id: int, T_camera_world: np.ndarray, keyframe: SparseKeyframe) -> None:
        self.placements[id] = Placement(keyframe, T_camera_world @ invert(keyframe.T_camera_world))

    def _relocalise(self, id: int, image: np.ndarray, tracked: CameraPose | None) -> Step | None:
        """Look for the camera among the keyframes, the newest and some others; None if `tracked` is the better."""
        count, tracks = self.map.count, (self._tracks.pixels, self._tracks.ids)
        self._tracks.clear()
        self._tracks.detect()
        features = Features(self._tracks.ids, self._pixels,
                            self._descriptor.describe(image, self._tracks.pixels, scales=True))
        numbers = np.array(self.map.described)
        if len(numbers) > _CONSIDERED:
            others = self._random.choice(numbers[:-_NEWEST], _CONSIDERED - _NEWEST, replace=False)
            numbers = np.concatenate([numbers[-_NEWEST:], others])
        if tracked:
            numbers = numbers[-_NEWEST:]
        found = relocalise(self.map, numbers, features.descriptors, features.pixels)
        trusted = tracked and tracked.inliers.sum() >= _TRUSTED
        if trusted and (found is None or len(found.ids) < tracked.inliers.sum()):
            self._tracks.pixels, self._tracks.ids = tracks
            self.map.count = count  # nobody holds these ids
            return None
        if found is None:
            self.state = State.LOST if self.state == State.TRACKING else State.RELOCALIZING
            self._lost.append((id, features))
            self._lost_for += len(features.ids) >= _FEATURES  # a blind camera says nothing against the map
            if self._lost_for >= _GIVE_UP and len(self.map.keyframes) < _YOUNG:
                self._begin()
                return Step(None, abandoned=True)
            self._tracks.clear()
            self.map.count = count
            return Step(None)
        lost = self.state != State.TRACKING
        self._lost_for = 0
        there, unique = np.unique(found.ids, return_index=True)
        self._tracks.ids = self._tracks.ids.copy()
        self._tracks.ids[found.rows[unique]] = there
        self._T, self._motion = found.pose.T_camera_world, np.eye(4)
        self.state = State.TRACKING
        self._insert(id, image)
        return Step(invert(self._T), ((self.map.keyframes[-1], image),), adjusted=True, relocalised=lost)

    def place_lost(self) -> None:
        """Place the frames that were lost by the keyframes made since."""
        for id, features in self._lost:
            keyframes = self.map.keyframes
            order = np.array(self.map.described)
            order = order[np.argsort([abs(keyframes[n].id - id) for n in order], kind='stable')]
            found = relocalise(self.map, order[:_NEWEST], features.descriptors, features.pixels)
            if found is not None:
                self._place(id, found.pose.T_camera_world, keyframes[order[0]])
        self._lost.clear()

    def finish(self) -> None:
        """Adjust the whole map, focal length included, and place lost frames by it."""
        if self.map.keyframes:
            local_mapping.adjust_all(self.map, self._prior, _FINAL_ITERATIONS)
            self.place_lost()
