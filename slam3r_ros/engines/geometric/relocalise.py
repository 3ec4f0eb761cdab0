# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Find the camera again, or old points in a new keyframe, by the descriptors of features.

RootSIFT (Arandjelovic and Zisserman, CVPR 2012) at one scale and upright: the corners are tracked ones.
"""

from typing import NamedTuple

import cv2
import numpy as np

from slam3r_ros.engines.geometric.adjust import MIN_DEPTH
from slam3r_ros.engines.geometric.pose import CameraPose, estimate_pose
from slam3r_ros.engines.geometric.sparse_map import PointState, SparseKeyframe, SparseMap
from slam3r_ros.mapping.frames import transform

_SHRINK = 0.5  # of the image; what tells patches apart is coarse
_SIZE = 7.0  # pixels of the shrunk image: SIFT describes about six times that
_SIZES = (5.0, 7.0, 10.0)  # of a camera to be found again: it may be nearer or farther
_UNIT = 512.0  # quantisation of a descriptor of norm 1
_RATIO = 0.85  # of the best distance to the second best
_SIMILAR = 0.75  # cosine below which two patches are different
_THRESHOLD = 4.0  # pixels
_MIN_MATCHES = 15
_MIN_INLIERS = 20
_EVIDENCE = 22.0  # inliers times their share: a wrong pose may have some, but a small share of them
_EVIDENCE_GUESSED = 8.0  # when the pose was known beforehand, or so many matches without a guess fit it:
_SURE, _SURE_SHARE = 16, 0.45  # the frames of five other scenes never had 12
_MIN_SHARE_FIRST = 0.15  # before points are sought near their projection
_CONSIDERED = 16  # keyframes
_VOTERS = 200  # descriptors
_ELECTED = 4  # keyframes
_PLENTY = 60  # inliers that end the search
_RADIUS = 20.0  # pixels around a point's projection in which its corner is sought


class Descriptor:
    """Describes corners of an image."""

    def __init__(self) -> None:
        """Make the SIFT extractor."""
        self._sift = cv2.SIFT_create()

    def describe(self, image: np.ndarray, pixels: np.ndarray, scales: bool = False) -> np.ndarray:
        """Describe pixels (N, 2) of an image (H, W[, 3]) uint8; (N, 128) uint8, or (S N, 128) at several scales."""
        if not len(pixels):
            return np.zeros((0, 128), np.uint8)
        small = cv2.resize(image, None, fx=_SHRINK, fy=_SHRINK, interpolation=cv2.INTER_AREA)
        corners = [cv2.KeyPoint(float(x), float(y), size, 0) for size in (_SIZES if scales else (_SIZE,))
                   for x, y in (pixels + 0.5) * _SHRINK - 0.5]
        _, raw = self._sift.compute(small, corners)
        root = np.sqrt(raw / np.maximum(raw.sum(1, keepdims=True), 1e-6))
        return np.clip(np.rint(root * _UNIT), 0, 255).astype(np.uint8)


def match(a: np.ndarray, b: np.ndarray, allowed: np.ndarray | None = None, ratio: float = _RATIO
          ) -> tuple[np.ndarray, np.ndarray]:
    """Return the numbers of mutual, distinct matches between descriptors (N, D) and (M, D) uint8.

    `allowed` (N, M) bool says which pairs may match.
    """
    if not len(a) or len(b) < 2:
        return np.zeros(0, int), np.zeros(0, int)
    a, b = a.astype(np.float32), b.astype(np.float32)
    a /= np.maximum(np.linalg.norm(a, axis=1, keepdims=True), 1)
    b /= np.maximum(np.linalg.norm(b, axis=1, keepdims=True), 1)
    cosine = a @ b.T
    if allowed is not None:
        cosine[~allowed] = -1
    rows = np.arange(len(a))
    best = cosine.argmax(1)
    mutual = cosine.argmax(0)[best] == rows
    first = cosine[rows, best]
    cosine[rows, best] = -1
    second = cosine.max(1)
    distinct = np.sqrt(np.maximum(2 - 2 * first, 0)) < ratio * np.sqrt(np.maximum(2 - 2 * second, 0))
    chosen = np.flatnonzero(mutual & distinct & (first > _SIMILAR))
    return chosen, best[chosen]


class Sighting(NamedTuple):
    """A camera placed by its matches."""

    pose: CameraPose
    rows: np.ndarray  # (N,) of the pixels that fit it
    ids: np.ndarray  # (N,) of the points they show


def sight(map: SparseMap, keyframe: SparseKeyframe, descriptors: np.ndarray, pixels: np.ndarray,
          usable: np.ndarray, guess: np.ndarray | None = None, lenient: bool = False) -> Sighting | None:
    """Place a camera by its matches with the points of one keyframe; None without a match.

    Args:
        map: of the keyframe.
        keyframe: to match with.
        descriptors: (S N, D) of the camera to place, at S scales.
        pixels: (N, 2) of the same.
        usable: (P,) bool, points that have a position.
        guess: T_camera_world (4, 4), good to `_RADIUS` pixels; without it all is matched with all.
        lenient: believe distinct matches though few more are found near them, as between views far apart; the pose is
            less exact then.
    """
    features = keyframe.features
    known = np.flatnonzero(usable[features.ids])
    if len(known) < _MIN_MATCHES:
        return None
    ids, there = features.ids[known], features.descriptors[known]
    evidence = _EVIDENCE_GUESSED
    if guess is None:
        evidence = _EVIDENCE
        rows, columns = match(descriptors, there)
        pose = estimate_pose(map.positions[ids[columns]], pixels[rows % len(pixels)], map.focal, threshold=_THRESHOLD)
        if pose is None or pose.share < _MIN_SHARE_FIRST:
            return None
        guess = pose.T_camera_world
        if lenient and pose.inliers.sum() >= _SURE and pose.share >= _SURE_SHARE:
            evidence = _EVIDENCE_GUESSED
    # near its projection a point needs no distinction from all others
    seen = transform(guess, map.positions[ids])
    projected = map.focal * seen[:, :2] / np.maximum(seen[:, 2:], MIN_DEPTH)
    near = (np.abs(pixels[:, :1] - projected[:, 0]) < _RADIUS) & (np.abs(pixels[:, 1:] - projected[:, 1]) < _RADIUS)
    rows, columns = match(descriptors, there, np.tile(near, (len(descriptors) // len(pixels), 1)), 1.0)
    rows = rows % len(pixels)
    pose = estimate_pose(map.positions[ids[columns]], pixels[rows], map.focal, guess, _THRESHOLD)
    if pose is None or pose.inliers.sum() < max(_MIN_INLIERS, evidence / pose.share):
        return None
    return Sighting(pose, rows[pose.inliers], ids[columns[pose.inliers]])


def considered(count: int, random: np.random.Generator, newest: int = 0) -> np.ndarray:
    """Return the numbers of keyframes to look among: where there are many, the newest and others drawn by chance."""
    numbers = np.arange(count)
    if count <= _CONSIDERED:
        return numbers
    drawn = random.choice(numbers[:count - newest], _CONSIDERED - newest, replace=False)
    return np.sort(np.concatenate([drawn, numbers[count - newest:]]))


def relocalise(map: SparseMap, numbers: np.ndarray, descriptors: np.ndarray, pixels: np.ndarray,
               lenient: bool = False) -> Sighting | None:
    """Place a camera by the keyframes of these numbers; the one that shows most of its points is taken.

    A sample of the descriptors votes for keyframes; only those with most votes are matched in full, as by `sight`.
    """
    best = None
    usable = map.states > PointState.UNSEEN
    sample = descriptors[::max(1, len(descriptors) // _VOTERS)]
    votes = [len(match(sample, map.keyframes[number].features.descriptors)[0]) for number in numbers]
    for number in numbers[np.argsort(votes, kind='stable')[::-1][:_ELECTED]]:
        found = sight(map, map.keyframes[number], descriptors, pixels, usable, lenient=lenient)
        if found is not None and (best is None or len(found.ids) > len(best.ids)):
            best = found
        if best is not None and len(best.ids) > _PLENTY:
            break
    return best
