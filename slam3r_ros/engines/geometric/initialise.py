# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The start: two views with enough parallax, a few frames between, and the focal length among guesses.

The five-point method (Nister, PAMI 2004) needs a focal length.  When it is unknown, several are tried;
each map is adjusted, focal length included, and the one that explains the tracks best is taken.
"""

from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np

from slam3r_ros.engines.geometric.adjust import FocalPrior
from slam3r_ros.engines.geometric.pose import estimate_pose, pinhole
from slam3r_ros.engines.geometric.sparse_map import PointState, SparseKeyframe, SparseMap, triangulate
from slam3r_ros.mapping.frames import rigid

_FOCAL_GUESS = 0.85  # of the longer side, a usual camera
_FOCAL_SPREAD = 0.25  # of the guess, one sigma
_FIRST_SPREAD = 0.08  # at the start: so few frames say more of their noise than of the focal length
_FOCAL_HYPOTHESES = (0.6, 0.85, 1.2)  # of the longer side
_FEW = 60  # tracks: too few to go on
_FADED = 0.35  # share of the first frame's tracks: too few to go on
_FLOW = 0.03  # of the image's longer side, median: less is not worth a try
_PARALLAX = 2.5  # degrees, median
_PARALLAX_FADING = 1.5  # degrees, enough when more than _FADING of the tracks are gone
_FADING = 0.45
_SHARE = 0.6  # inliers of the essential matrix
_MIN_POINTS = 50
_FRAMES = 5  # adjusted together
_MAX_RMS = 1.2  # pixels
_MAX_IMAGES = 32  # kept while waiting
_MAX_SIGHTS = 600  # kept while waiting, to place them later
_FAR = 100.0  # median depths: points further away are noise


class FocalGuess(NamedTuple):
    """What is known of the focal length beforehand."""

    focals: list[float]  # to start with, pixels
    first_prior: FocalPrior | None  # at the start; None where it is known
    prior: FocalPrior | None  # from then on

    @classmethod
    def of(cls, focal: float, longer_side: int) -> 'FocalGuess':
        """Take a focal length, or guess by the longer side of the images where it is 0; all in pixels."""
        if focal:
            return cls([focal], None, None)
        usual = _FOCAL_GUESS * longer_side
        priors = (FocalPrior(usual, spread * usual) for spread in (_FIRST_SPREAD, _FOCAL_SPREAD))
        return cls([share * longer_side for share in _FOCAL_HYPOTHESES], *priors)


@dataclass
class Sight:
    """A frame and its tracks."""

    id: int
    ids: np.ndarray  # (N,)
    pixels: np.ndarray  # (N, 2) from the principal point
    image: np.ndarray | None  # (H, W, 3) uint8 RGB; dropped where too many wait


class Initialiser:
    """Gathers the tracks of frames until two of them give a map."""

    def __init__(self, longer_side: int) -> None:
        """Take the longer side of the images, pixels."""
        self._longer_side = longer_side
        self.sights: list[Sight] = []

    def restart(self, sight: Sight) -> None:
        """Begin anew with this frame as the first."""
        self.sights = [sight]

    def faded(self, sight: Sight) -> bool:
        """Tell whether too little is left of the first frame."""
        return not self.sights or len(sight.ids) < max(_FEW, _FADED * len(self.sights[0].ids))

    def _thin(self) -> None:
        """Forget every other frame, or image, of those between first and last when there are too many."""
        with_image = [sight for sight in self.sights if sight.image is not None]
        if len(with_image) > _MAX_IMAGES:
            for sight in with_image[1:-1:2]:
                sight.image = None
        if len(self.sights) > _MAX_SIGHTS:
            del self.sights[1:-1:2]

    def add(self, sight: Sight, focals: list[float], prior: FocalPrior | None, count: int) -> SparseMap | None:
        """Add a frame and try to make a map of `count` point ids; None until there is enough parallax.

        Args:
            sight: tracks of the newest frame, all of them begun in the first frame.
            focals: focal lengths to try, pixels.
            prior: of the focal length when it is unknown.
            count: of all ids given out so far.
        """
        self.sights.append(sight)
        self._thin()
        first = self.sights[0]
        _, rows_a, rows_b = np.intersect1d(first.ids, sight.ids, assume_unique=True, return_indices=True)
        a, b = first.pixels[rows_a], sight.pixels[rows_b]
        if len(a) < _FEW or np.median(np.linalg.norm(a - b, axis=1)) < _FLOW * self._longer_side:
            return None
        faded = len(sight.ids) / len(first.ids)
        best, best_cost = None, np.inf
        for focal in focals:
            start = _two_views(a, b, focal, _PARALLAX if faded > 1 - _FADING else _PARALLAX_FADING)
            if start is None:
                continue
            T, points, sound = start
            map = SparseMap(focal)
            map.allocate(count)
            map.positions[sight.ids[rows_b][sound]] = points[sound]
            map.states[sight.ids[rows_b][sound]] = PointState.GOOD
            cost = self._adjust(map, T, prior)
            if cost < best_cost:
                best, best_cost = map, cost
        return best

    def _adjust(self, map: SparseMap, T_last: np.ndarray, prior: FocalPrior | None) -> float:
        """Place about five frames in the map and adjust all; return its error in pixels, inf if it is bad."""
        sights = [sight for sight in self.sights if sight.image is not None]
        numbers = np.unique(np.linspace(0, len(sights) - 1, _FRAMES).astype(int))
        T = np.eye(4)
        for number in numbers:
            sight = sights[number]
            if number == numbers[-1]:
                T = T_last
            elif number > 0:
                good = map.good(sight.ids)
                pose = estimate_pose(map.positions[sight.ids[good]], sight.pixels[good], map.focal, T)
                if pose is None:
                    continue
                T = pose.T_camera_world
            map.keyframes.append(SparseKeyframe(sight.id, T, sight.ids.copy(), sight.pixels.astype(float)))
        if len(map.keyframes) < 2:
            return np.inf
        others = list(range(1, len(map.keyframes)))
        rms = map.adjust(others, [0], 15)
        if prior:
            rms = map.adjust(others, [0], 15, prior)
        if rms > _MAX_RMS or (map.states == PointState.GOOD).sum() < _MIN_POINTS:
            return np.inf
        map.rescale(1 / np.median(np.concatenate([map.depths(k)[1] for k in map.keyframes])))
        return rms


def _two_views(a: np.ndarray, b: np.ndarray, focal: float, parallax: float
               ) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Find T_b_a (4, 4) and points (N, 3) in camera a, unit median depth, with the sound ones (N,)."""
    K = pinhole(focal)
    E, mask = cv2.findEssentialMat(a, b, K, cv2.RANSAC, 0.999, 1.0)
    if E is None or E.shape != (3, 3):
        return None
    _, R, t, mask = cv2.recoverPose(E, a, b, K, mask=mask.copy())
    inlier = mask[:, 0] > 0
    if inlier.sum() < _MIN_POINTS or inlier.mean() < _SHARE:
        return None
    turned = np.column_stack([a / focal, np.ones(len(a))]) @ R.T
    ray = np.column_stack([b / focal, np.ones(len(b))])
    cosine = (turned * ray).sum(1) / np.linalg.norm(turned, axis=1) / np.linalg.norm(ray, axis=1)
    if np.median(np.degrees(np.arccos(np.clip(cosine[inlier], -1, 1)))) < parallax:
        return None
    points, sound = triangulate(np.eye(4), rigid(R, t[:, 0]), a, b, focal, min_angle=0)
    sound &= inlier
    if sound.sum() < _MIN_POINTS:
        return None
    unit = np.median(points[sound, 2])
    sound &= points[:, 2] < _FAR * unit
    return rigid(R, t[:, 0] / unit), points / unit, sound
