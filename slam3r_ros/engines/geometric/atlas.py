# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The maps of a stream: the one that the camera is in, and those that it was in before.

A camera that is lost is looked for in the present map and, in turn, in the others.  Meanwhile a new map is begun beside
them; once it is worth keeping, the camera is in that one, and the old ones wait.  When a keyframe shows a place that
another map knows, that is told by `Step.recognised`, and `join` makes one of the two.  Nothing that was mapped is
dropped but for memory: when all maps together hold too many keyframes, every other of the older half of the largest is
forgotten; of many small maps, the oldest is.
"""

from collections.abc import Callable

import numpy as np

from slam3r_ros.engines.geometric.merge import Link, recognise
from slam3r_ros.engines.geometric.relocalise import considered
from slam3r_ros.engines.geometric.sparse_map import SparseMap
from slam3r_ros.engines.geometric.tracker import GIVE_UP, YOUNG, Step, Tracker
from slam3r_ros.values import State

_MAPS_ASKED = 2  # for a new keyframe, taking turns


class Atlas:
    """Several maps of which one is the present one."""

    def __init__(self, make: Callable[[float], Tracker], max_keyframes: int, seed: int = 0) -> None:
        """Begin with an empty map.

        Args:
            make: returns a tracker; takes the focal length, pixels, 0 where it is unknown.
            max_keyframes: of all maps, beyond which they are thinned out.
            seed: of the order in which keyframes are looked at.
        """
        self.present = make(0.0)
        self.others: list[Tracker] = []
        self._make, self._max_keyframes = make, max_keyframes
        self._random = np.random.default_rng(seed)
        self._turn = 0
        self._beginner: Tracker | None = None
        self._begun: tuple = ()  # keyframes of the beginner, with their images
        self._link: tuple[Tracker, Link] | None = None

    def track(self, id: int, image: np.ndarray, candidate: bool = True) -> Step:
        """Take the next image; see `Tracker.track`."""
        step = self._track(id, image, candidate)
        if not step.inserted:
            return step
        self._thin_out()
        ask = self.present.state == State.TRACKING and not step.changed
        self._link = self._recognise() if ask else None
        return step._replace(recognised=self._link is not None)

    def _track(self, id: int, image: np.ndarray, candidate: bool) -> Step:
        """Take the next image in the present map or, when the camera is lost there, in another."""
        step = self.present.track(id, image, candidate)
        if self.present.state in (State.INITIALIZING, State.TRACKING):
            self._beginner = None
        elif not step.inserted:
            step = self._search(id, image, candidate) or self._begin(id, image, candidate) or step
        return step

    def _search(self, id: int, image: np.ndarray, candidate: bool) -> Step | None:
        """Look for the camera in one of the other maps."""
        if not self.others:
            return None
        self._turn = (self._turn + 1) % len(self.others)
        other = self.others[self._turn]
        step = other.track(id, image, candidate)
        if other.state != State.TRACKING:
            return None
        self.others[self._turn], self.present, self._beginner = self.present, other, None
        return step._replace(changed=True)

    def _begin(self, id: int, image: np.ndarray, candidate: bool) -> Step | None:
        """Map anew where the camera is, as soon as the old maps have had their chance."""
        if self.present.lost_for < GIVE_UP:
            return None
        if self._beginner is None:
            self._beginner, self._begun = self._make(self.present.map.focal), ()  # it is the same camera
        step = self._beginner.track(id, image, candidate)
        self._begun = () if step.abandoned else self._begun + step.inserted
        if self._beginner.state != State.TRACKING or not self._beginner.established:
            return None
        self.others.append(self.present)
        self._beginner.placements.take_lost(self.present.placements)
        self.present, self._beginner = self._beginner, None
        return step._replace(inserted=self._begun, adjusted=True, changed=True)

    def _recognise(self) -> tuple[Tracker, Link] | None:
        """Look for the newest keyframe in the other maps."""
        for _ in range(min(_MAPS_ASKED, len(self.others))):
            self._turn = (self._turn + 1) % len(self.others)
            other = self.others[self._turn]
            numbers = considered(len(other.map.keyframes), self._random)
            link = recognise(self.present.map, self.present.map.keyframes[-1], other.map, numbers)
            if link is not None:
                return other, link
        return None

    def join(self) -> None:
        """Make one of the present map and the one that was recognised."""
        other, link = self._link
        self.present.join(other, link)
        self.others.remove(other)
        self._link = None

    def load(self, maps: list[SparseMap]) -> None:
        """Take maps made before, the present one first, and look for the camera in them."""
        trackers = []
        for map in maps:
            trackers.append(self._make(0.0))
            trackers[-1].load(map)
        self.present, *self.others = trackers

    def _thin_out(self) -> None:
        """Forget something when there is too much; called for each new keyframe."""
        sizes = {tracker: len(tracker.map.keyframes) for tracker in (self.present, *self.others)}
        if sum(sizes.values()) <= self._max_keyframes:
            return
        largest = max(sizes, key=sizes.get)
        if self.others and sizes[largest] < YOUNG:
            oldest = min(self.others, key=lambda other: other.map.keyframes[-1].id)
            self.others.remove(oldest)
            oldest.map.forget(list(range(sizes[oldest])))
        else:
            largest.thin()
