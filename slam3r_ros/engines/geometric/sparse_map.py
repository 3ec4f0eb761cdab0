# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The sparse map: keyframes, the points they see, and how points come to be.

World is the optical frame of the first keyframe.  Pixels count from the principal point and are square,
so that one focal length is the whole camera.
"""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from slam3r_ros.engines.geometric.adjust import FocalPrior, adjust
from slam3r_ros.mapping.frames import invert, rigid, transform
from slam3r_ros.mapping.registration import Similarity

MIN_ANGLE = 1.2  # degrees between the two rays of a new point
_MAX_ERROR = 2.0  # pixels of a new point
_OUTLIER = 4.0  # pixels at which an adjustment drops an observation
_REACH = 12  # keyframes back that a new point is triangulated with


class PointState(IntEnum):
    """What is known of a point."""

    BAD = -1  # an outlier
    UNSEEN = 0  # no position
    GOOD = 1  # triangulated
    BORROWED = 2  # depth of its neighbours, for tracking only


@dataclass(eq=False)
class Features:
    """What a keyframe is recognised by; the arrays go together."""

    ids: np.ndarray  # (N,) of the points
    pixels: np.ndarray  # (N, 2)
    descriptors: np.ndarray  # (N, D) uint8


@dataclass(eq=False)
class SparseKeyframe:
    """A camera of the map with what it observes."""

    id: int  # of the frame
    T_camera_world: np.ndarray  # (4, 4)
    ids: np.ndarray  # (N,) of the points, each once
    pixels: np.ndarray  # (N, 2)
    features: Features | None = None

    @property
    def centre(self) -> np.ndarray:
        """The camera's position in the world, (3,)."""
        return -self.T_camera_world[:3, :3].T @ self.T_camera_world[:3, 3]

    @property
    def axis(self) -> np.ndarray:
        """The camera's viewing direction in the world, (3,)."""
        return self.T_camera_world[2, :3]

    def forget(self) -> None:
        """Drop what it observes and is recognised by: its map has forgotten it."""
        self.ids, self.pixels, self.features = np.zeros(0, int), np.zeros((0, 2)), None


class SparseMap:
    """Points, keyframes and the focal length; grows as needed."""

    def __init__(self, focal: float) -> None:
        """Start an empty map; `focal` in pixels."""
        self.focal = focal
        self.metres: float | None = None  # in a unit, once that is known
        self.keyframes: list[SparseKeyframe] = []
        self.forgotten = 0  # keyframes that were here once
        self.count = 0  # of points, UNSEEN ones included
        self.positions = np.zeros((4096, 3))
        self.states = np.zeros(4096, np.int8)

    def allocate(self, number: int) -> np.ndarray:
        """Return the ids of so many new points."""
        ids = np.arange(self.count, self.count + number)
        self.count += number
        if self.count > len(self.states):
            room = max(self.count, 2 * len(self.states)) - len(self.states)
            self.positions = np.concatenate([self.positions, np.zeros((room, 3))])
            self.states = np.concatenate([self.states, np.zeros(room, np.int8)])
        return ids

    def good(self, ids: np.ndarray) -> np.ndarray:
        """Tell which points (N,) are triangulated."""
        return self.states[ids] == PointState.GOOD

    def depths(self, keyframe: SparseKeyframe) -> tuple[np.ndarray, np.ndarray]:
        """Return the ids (N,) of the triangulated points that a keyframe sees, and their depths (N,)."""
        ids = keyframe.ids[self.good(keyframe.ids)]
        return ids, transform(keyframe.T_camera_world, self.positions[ids])[:, 2]

    def median_depth(self, keyframe: SparseKeyframe) -> float:
        """Return the median depth in a keyframe, 1 while it sees hardly any point."""
        _, depths = self.depths(keyframe)
        return float(np.median(depths)) if len(depths) >= 5 else 1.0

    def rescale(self, factor: float) -> None:
        """Multiply all lengths."""
        self.transform(Similarity(factor, np.eye(3), np.zeros(3)))

    def transform(self, similarity: Similarity) -> None:
        """Move everything, cameras included."""
        self.positions[:self.count] = similarity.apply(self.positions[:self.count])
        for keyframe in self.keyframes:
            rotation = keyframe.T_camera_world[:3, :3] @ similarity.rotation.T
            translation = similarity.scale * keyframe.T_camera_world[:3, 3] - rotation @ similarity.translation
            keyframe.T_camera_world = rigid(rotation, translation)

    def forget(self, numbers: list[int]) -> None:
        """Drop keyframes, by their numbers; the later ones move up."""
        for number in numbers:
            self.keyframes[number].forget()
        self.keyframes = [keyframe for keyframe in self.keyframes if keyframe.features is not None]
        self.forgotten += len(numbers)

    def compact(self) -> np.ndarray:
        """Drop the points that no keyframe holds; return the table old point id -> new id, -1 for those dropped."""
        parts = [part for keyframe in self.keyframes for part in (keyframe, keyframe.features)]
        held = np.zeros(self.count, bool)
        for part in parts:
            held[part.ids] = True
        table = np.where(held, np.cumsum(held) - 1, -1)
        for part in parts:
            part.ids = table[part.ids]
        positions, states = self.positions[:self.count][held], self.states[:self.count][held]
        self.positions, self.states, self.count = np.zeros((0, 3)), np.zeros(0, np.int8), 0
        ids = self.allocate(len(states))
        self.positions[ids], self.states[ids] = positions, states
        return table

    def absorb(self, other: 'SparseMap') -> int:
        """Take in all points and keyframes of another map in the same world; return what its point ids rise by."""
        ids = self.allocate(other.count)
        rise = self.count - other.count
        self.positions[ids], self.states[ids] = other.positions[:other.count], other.states[:other.count]
        for keyframe in other.keyframes:
            keyframe.ids = keyframe.ids + rise
            keyframe.features.ids = keyframe.features.ids + rise
        self.keyframes += other.keyframes
        self.forgotten += other.forgotten
        return rise

    def triangulate(self, keyframe: SparseKeyframe) -> None:
        """Give a position to the points of a keyframe that older ones see at enough of an angle."""
        wanted = np.zeros(self.count, bool)
        wanted[keyframe.ids] = np.isin(self.states[keyframe.ids], (PointState.UNSEEN, PointState.BORROWED))
        row = np.zeros(self.count, int)
        row[keyframe.ids] = np.arange(len(keyframe.ids))
        last = self.keyframes.index(keyframe)
        for other in self.keyframes[max(0, last - _REACH):last]:  # oldest first: the widest angle
            shared = np.flatnonzero(wanted[other.ids])
            if not len(shared):
                continue
            ids = other.ids[shared]
            points, ok = triangulate(other.T_camera_world, keyframe.T_camera_world, other.pixels[shared],
                                     keyframe.pixels[row[ids]], self.focal)
            self.positions[ids[ok]] = points[ok]
            self.states[ids[ok]] = PointState.GOOD
            wanted[ids[ok]] = False

    def lend_depth(self, keyframe: SparseKeyframe) -> None:
        """Let points without position borrow the depth of their nearest neighbours in a keyframe."""
        good = self.good(keyframe.ids)
        poor = (self.states[keyframe.ids] == PointState.UNSEEN) | (self.states[keyframe.ids] == PointState.BORROWED)
        if good.sum() < 8 or not poor.any():
            return
        depths = transform(keyframe.T_camera_world, self.positions[keyframe.ids[good]])[:, 2]
        here, there = keyframe.pixels[poor], keyframe.pixels[good]
        square = (here[:, :1] - there[:, 0]) ** 2 + (here[:, 1:] - there[:, 1]) ** 2
        nearest = np.argpartition(square, 4, axis=1)[:, :5]
        depth = 1 / np.median(1 / np.maximum(depths, 1e-3)[nearest], axis=1)
        rays = np.column_stack([keyframe.pixels[poor] / self.focal, np.ones(poor.sum())])
        ids = keyframe.ids[poor]
        self.positions[ids] = transform(invert(keyframe.T_camera_world), rays * depth[:, None])
        self.states[ids] = PointState.BORROWED

    def merge(self, ids: np.ndarray, into: np.ndarray) -> np.ndarray:
        """Let points `ids` (N,) be the points `into` (N,) from now on; return the table old id -> new id."""
        table = np.arange(self.count)
        table[ids] = into
        for keyframe in self.keyframes:
            for part in (keyframe, keyframe.features):
                if not (table[part.ids] != part.ids).any():
                    continue
                part.ids = table[part.ids]
                first = np.sort(np.unique(part.ids, return_index=True)[1])
                part.ids, part.pixels = part.ids[first], part.pixels[first]
                if isinstance(part, Features):
                    part.descriptors = part.descriptors[first]
        self.states[ids] = PointState.BAD
        return table

    def adjust(self, free: list[int], fixed: list[int], iterations: int, prior: FocalPrior | None = None) -> float:
        """Adjust the keyframes numbered `free` and their points; return the root mean square error, pixels.

        Args:
            free: numbers of the keyframes that move.
            fixed: numbers of those that hold the gauge.
            iterations: at most so many.
            prior: with one the focal length is adjusted too.
        """
        numbers = sorted({*free, *fixed})
        moving = np.zeros(self.count, bool)
        for number in free:
            moving[self.keyframes[number].ids] = True
        moving &= self.states[:self.count] == PointState.GOOD
        kept = [np.flatnonzero(moving[self.keyframes[n].ids]) for n in numbers]
        camera = np.repeat(np.arange(len(numbers)), [len(k) for k in kept])
        ids = np.concatenate([self.keyframes[n].ids[k] for n, k in zip(numbers, kept)])
        pixels = np.concatenate([self.keyframes[n].pixels[k] for n, k in zip(numbers, kept)])
        row = np.concatenate(kept)
        twice = np.bincount(ids, minlength=self.count)[ids] >= 2
        camera, ids, pixels, row = camera[twice], ids[twice], pixels[twice], row[twice]
        unique, point = np.unique(ids, return_inverse=True)
        if len(unique) < 20:
            return 0.0
        T = np.stack([self.keyframes[n].T_camera_world for n in numbers])
        done = adjust(T[:, :3, :3], T[:, :3, 3], self.positions[unique], self.focal, camera, point, pixels,
                      np.isin(numbers, fixed), iterations, prior)
        self.focal = done.focal
        self.positions[unique] = done.points
        for i, number in enumerate(numbers):
            if number not in fixed:
                self.keyframes[number].T_camera_world = rigid(done.rotations[i], done.translations[i])
        outlier = done.errors > _OUTLIER
        for i, number in enumerate(numbers):
            drop = row[outlier & (camera == i)]
            if len(drop):
                keyframe = self.keyframes[number]
                keyframe.ids, keyframe.pixels = np.delete(keyframe.ids, drop), np.delete(keyframe.pixels, drop, axis=0)
        seen = np.bincount(point, minlength=len(unique))
        wrong = np.bincount(point, weights=outlier, minlength=len(unique))
        self.states[unique[wrong > 0.5 * seen]] = PointState.BAD
        return float(np.sqrt((np.minimum(done.errors, _OUTLIER) ** 2).mean()))


def triangulate(T_a: np.ndarray, T_b: np.ndarray, pixels_a: np.ndarray, pixels_b: np.ndarray, focal: float,
                min_angle: float = MIN_ANGLE) -> tuple[np.ndarray, np.ndarray]:
    """Intersect the rays of two cameras T_camera_world at their pixels (N, 2).

    Returns:
        Points (N, 3), world, and which of them are sound (N,): in front of both cameras, near both
        pixels, with rays at `min_angle` degrees or more.
    """
    T_b_a = T_b @ invert(T_a)
    ray_a = np.column_stack([pixels_a / focal, np.ones(len(pixels_a))])
    ray_b = np.column_stack([pixels_b / focal, np.ones(len(pixels_b))])
    # z_a * turned + t = z_b * ray_b, least squares in both depths
    turned, t = ray_a @ T_b_a[:3, :3].T, T_b_a[:3, 3]
    aa, ab, bb = (turned * turned).sum(1), (turned * ray_b).sum(1), (ray_b * ray_b).sum(1)
    at, bt = turned @ t, ray_b @ t
    determinant = np.maximum(aa * bb - ab * ab, 1e-12)
    z_a, z_b = (ab * bt - bb * at) / determinant, (aa * bt - ab * at) / determinant
    in_b = (z_a[:, None] * turned + t + z_b[:, None] * ray_b) / 2
    in_a = transform(invert(T_b_a), in_b)
    ok = (in_a[:, 2] > 0) & (in_b[:, 2] > 0) & (z_a > 0) & (z_b > 0)
    for seen, pixels in ((in_a, pixels_a), (in_b, pixels_b)):
        error = focal * seen[:, :2] / np.maximum(seen[:, 2:], 1e-9) - pixels
        ok &= np.linalg.norm(error, axis=1) < _MAX_ERROR
    angle = np.degrees(np.arccos(np.clip(ab / np.sqrt(aa * bb), -1, 1)))
    return transform(invert(T_a), in_a), ok & (angle > min_angle)
