# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The sparse SLAM of one map: frame in, camera pose out; decides on keyframes, loses the camera and finds it again."""

from typing import NamedTuple

import cv2
import numpy as np

from slam3r_ros.engines.geometric import local_mapping
from slam3r_ros.engines.geometric.initialise import FocalGuess, Initialiser, Sight
from slam3r_ros.engines.geometric.keyframe_policy import keyframe_due
from slam3r_ros.engines.geometric.merge import Link
from slam3r_ros.engines.geometric.placements import Placements
from slam3r_ros.engines.geometric.pose import CameraPose, estimate_pose
from slam3r_ros.engines.geometric.relocalise import Descriptor, considered, relocalise
from slam3r_ros.engines.geometric.sparse_map import Features, PointState, SparseKeyframe, SparseMap
from slam3r_ros.engines.geometric.tracks import Tracks
from slam3r_ros.mapping.frames import invert, rigid
from slam3r_ros.values import State

_FEW_GOOD = 40  # triangulated points: fewer, and borrowed depths help
_MIN_SHARE = 0.35
_DROP = 5.0  # pixels at which a track leaves its point
_WEAK = 0.3  # of the points before: fewer, and descriptors are asked too
_WEAK_SHARE = 0.5
_TRUSTED = 40  # inliers of a weak pose that is still better than none
_NEWEST = 8  # keyframes that relocalisation always considers
GIVE_UP = 30  # lost frames after which a young map is given up: it was a bad start
_FEATURES = 50  # in such a frame, at least
YOUNG = 10  # keyframes
_FINAL_ITERATIONS = 10
_JOIN_ITERATIONS = 8


class Step(NamedTuple):
    """What one frame brought."""

    T_world_camera: np.ndarray | None  # (4, 4)
    inserted: tuple[tuple[SparseKeyframe, np.ndarray], ...] = ()  # new keyframes with their images
    adjusted: bool = False  # keyframes have moved
    relocalised: bool = False
    abandoned: bool = False  # the map is given up; frames begin a new one
    changed: bool = False  # the camera is in another map from here on
    recognised: bool = False  # another map knows the newest keyframe


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
        self._focals, self._first_prior, self._prior = FocalGuess.of(focal, self._longer)
        self._descriptor = Descriptor()
        self.placements = Placements()
        self._begin()

    def _begin(self) -> None:
        """Start with nothing known of the scene."""
        self.map = SparseMap(self._focals[0])
        self.state = State.INITIALIZING
        self.placements.clear()
        self._tracks = Tracks(self._max_features, lambda number: self.map.allocate(number))
        self._initialiser = Initialiser(self._longer)
        self.lost_for = 0  # frames that showed something
        self._loaded = False
        self._T = np.eye(4)  # camera_world, of the newest placed frame
        self._motion = np.eye(4)  # from the camera before to the camera now
        self._points_at_keyframe = 0
        self._newest: tuple[int, np.ndarray] | None = None  # id and image of the newest frame

    @property
    def T_world_camera(self) -> np.ndarray:
        """Where the camera was last, (4, 4)."""
        return invert(self._T)

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
                pose = self._follow()  # the map has been adjusted
            step = self._relocalise(id, image, pose)
            if step is not None:
                return step._replace(inserted=secured + step.inserted, adjusted=bool(secured) or step.adjusted)
        self._motion = pose.T_camera_world @ invert(self._T)
        self._T = pose.T_camera_world
        self.state = State.TRACKING
        self.placements.put(id, self._T, self.map.keyframes[-1])
        tracks = self._tracks
        good = int(self.map.good(tracks.ids).sum())
        if not keyframe_due(self.map.keyframes[-1], tracks.ids, self._pixels, self._longer, good,
                            self._points_at_keyframe, len(tracks) / tracks.limit, candidate):
            return Step(invert(self._T), secured, adjusted=bool(secured))
        self._insert(id, image)
        return Step(invert(self._T), (*secured, (self.map.keyframes[-1], image)), adjusted=True)

    def _secure(self, id: int, image: np.ndarray, ids: np.ndarray, pixels: np.ndarray
                ) -> tuple[tuple[SparseKeyframe, np.ndarray], ...]:
        """Make the frame before a keyframe: of all sights it is the nearest to one that tracking fails on."""
        now = self._tracks.ids, self._tracks.pixels
        self._tracks.ids, self._tracks.pixels = ids, pixels
        table = self._insert(id, image, detect=False)
        self._tracks.ids, self._tracks.pixels = now
        self._rename(table)
        return ((self.map.keyframes[-1], image),)

    def _initialise(self, id: int, image: np.ndarray) -> Step:
        """Wait for parallax; then make the map and place the frames waited for."""
        sight = Sight(id, self._tracks.ids, self._pixels, image)
        if self._initialiser.faded(sight):
            for waiting in self._initialiser.sights:
                if waiting.image is not None:
                    descriptors = self._descriptor.describe(waiting.image, waiting.pixels + self._centre, scales=True)
                    self.placements.add_lost(waiting.id, Features(waiting.ids, waiting.pixels, descriptors))
            self._tracks.clear()
            self.map.count = 0  # nobody holds these ids
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
                self.placements.put(earlier.id, pose.T_camera_world, nearest)
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

    def _insert(self, id: int, image: np.ndarray, detect: bool = True, tracked: bool = True) -> np.ndarray:
        """Make the frame of the tracks and the pose a keyframe; return the table old point id -> new id."""
        if detect:
            self._tracks.detect()
        keyframe = SparseKeyframe(id, self._T, self._tracks.ids.copy(), self._pixels)
        self._describe(keyframe, image)
        table = local_mapping.extend(self.map, keyframe, self._window, self._prior, tracked)
        self._rename(table)
        self._T = keyframe.T_camera_world
        self.placements.put(id, self._T, keyframe)
        self._keyframe_made()
        return table

    def _rename(self, table: np.ndarray) -> None:
        """Give the tracks their points' new ids; of two that are one now, one goes."""
        self._tracks.ids = table[self._tracks.ids]
        _, first = np.unique(self._tracks.ids, return_index=True)
        keep = np.zeros(len(self._tracks), bool)
        keep[first] = True
        self._tracks.keep(keep & (self.map.states[self._tracks.ids] != PointState.BAD))

    def _keyframe_made(self) -> None:
        self._points_at_keyframe = int(self.map.good(self._tracks.ids).sum())

    def _relocalise(self, id: int, image: np.ndarray, tracked: CameraPose | None) -> Step | None:
        """Look for the camera among the keyframes, the newest and some others; None if `tracked` is the better."""
        count, tracks = self.map.count, (self._tracks.pixels, self._tracks.ids)
        self._tracks.clear()
        self._tracks.detect()
        features = Features(self._tracks.ids, self._pixels,
                            self._descriptor.describe(image, self._tracks.pixels, scales=True))
        known = len(self.map.keyframes)
        numbers = np.arange(known)[-_NEWEST:] if tracked else considered(known, self._random, _NEWEST)
        found = relocalise(self.map, numbers, features.descriptors, features.pixels,
                           lenient=self.state != State.TRACKING)
        trusted = tracked and tracked.inliers.sum() >= _TRUSTED
        if trusted and (found is None or len(found.ids) < tracked.inliers.sum()):
            self._tracks.pixels, self._tracks.ids = tracks
            self.map.count = count  # nobody holds these ids
            return None
        if found is None:
            self.state = State.LOST if self.state == State.TRACKING else State.RELOCALIZING
            self.placements.add_lost(id, features)
            self.lost_for += len(features.ids) >= _FEATURES  # a blind camera says nothing against the map
            if self.lost_for >= GIVE_UP and not self.established:
                self._begin()
                return Step(None, abandoned=True)
            self._tracks.clear()
            self.map.count = count
            return Step(None)
        lost = self.state != State.TRACKING
        self.lost_for = 0
        there, unique = np.unique(found.ids, return_index=True)
        self._tracks.ids = self._tracks.ids.copy()
        self._tracks.ids[found.rows[unique]] = there
        self._T, self._motion = found.pose.T_camera_world, np.eye(4)
        self.state = State.TRACKING
        self._insert(id, image, tracked=False)
        return Step(invert(self._T), ((self.map.keyframes[-1], image),), adjusted=True, relocalised=lost)

    @property
    def established(self) -> bool:
        """Whether the map is worth keeping."""
        return self._loaded or len(self.map.keyframes) >= YOUNG

    def thin(self) -> None:
        """Forget every other keyframe of the older half of the map; frames that stood by one stay where they are."""
        self.placements.lean(local_mapping.thin(self.map))
        self._tracks.ids = self.map.compact()[self._tracks.ids]
        self._tracks.keep(self._tracks.ids >= 0)

    def load(self, map: SparseMap) -> None:
        """Take a map made before, and look for the camera in it."""
        self.map, self.state, self._loaded = map, State.LOST, True
        for keyframe in map.keyframes:
            self.placements.put(keyframe.id, keyframe.T_camera_world, keyframe)

    def join(self, other: 'Tracker', link: Link) -> None:
        """Make one map of this and the other's, in the world of the older."""
        if self.map.keyframes[0].id > other.map.keyframes[0].id:
            moved, kept, similarity = self, other, link.similarity
        else:
            moved, kept, similarity = other, self, link.similarity.inverse()
        T_camera_keyframe = self._T @ invert(self.map.keyframes[-1].T_camera_world)
        if moved is self:
            T_camera_keyframe[:3, 3] *= similarity.scale
            self._motion = rigid(self._motion[:3, :3], similarity.scale * self._motion[:3, 3])
        moved.map.transform(similarity)
        moved.placements.rescale(similarity.scale)
        metres = kept.map.metres or (moved.map.metres and moved.map.metres / similarity.scale)
        rise = other.map.absorb(self.map)
        self.map, self._prior = other.map, self._prior or other._prior
        self.map.metres = metres
        self.placements.take(other.placements)
        self._tracks.ids = self._tracks.ids + rise
        self._rename(self.map.merge(link.here + rise, link.there))
        local_mapping.adjust_all(self.map, self._prior, _JOIN_ITERATIONS)
        self._T = T_camera_keyframe @ self.map.keyframes[-1].T_camera_world
        self._keyframe_made()

    def finish(self) -> None:
        """Adjust the whole map, focal length included, and place lost frames by it."""
        if self.map.keyframes:
            local_mapping.adjust_all(self.map, self._prior, _FINAL_ITERATIONS)
            self.placements.place_lost(self.map)
