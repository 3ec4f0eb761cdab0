# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The networks know pointmaps only; here they become intrinsics, poses, and the place and unit of the map."""

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from slam3r_ros.engines.slam3r.pointmaps import relative
from slam3r_ros.engines.slam3r.scene import View
from slam3r_ros.mapping.frames import T_MAP_OPTICAL, invert, rigid, transform
from slam3r_ros.mapping.pointmap_pose import CameraPose, PoseError, estimate_focal, estimate_pose
from slam3r_ros.values import Intrinsics

MIN_VALID = 0.1  # share of confident points in each of the first keyframes
FOCALS = 30  # estimates that make the focal length
WIDEST, NARROWEST = 0.1, 10.0  # focal lengths that can be, in sides of the square


class Pointmaps(NamedTuple):
    """What the networks say of a frame, out of their device; see `scene.View`."""

    world: np.ndarray  # (H, W, 3) float32
    valid: np.ndarray  # (H, W) bool, where the world map has a point
    confidence: np.ndarray  # (H, W) float32, of the world map, 1 or more
    local: np.ndarray | None  # (H, W, 3) float32, None for first keyframes other than the world's
    local_confidence: np.ndarray  # (H, W) float32

    @classmethod
    def of(cls, view: View) -> 'Pointmaps':
        """Take the maps of a registered view."""
        world, confidence, local, local_confidence = (
            tensor.float().cpu().numpy()
            for tensor in (view.world, view.confidence, view.local, view.local_confidence)
        )
        distance = np.abs(world[..., 0]) + np.abs(world[..., 1]) + np.abs(world[..., 2])  # of a kind, and quick
        valid = np.isfinite(distance) & (distance > 0)
        return cls(world, valid, confidence, local if local.any() else None, local_confidence)


class MapFrame(NamedTuple):
    """How the networks' world lies in the map."""

    T_map_world: np.ndarray  # (4, 4), takes the world in map units
    scale: float  # map units per unit of the networks' world

    def place(self, T_world_camera: np.ndarray) -> np.ndarray:
        """Return T_map_camera, (4, 4), of a camera in the networks' world."""
        return self.T_map_world @ _scaled(T_world_camera, self.scale)

    def seen(self, world: np.ndarray, T_map_camera: np.ndarray) -> np.ndarray:
        """Return points (..., 3) of the networks' world in a camera's optical frame and map units."""
        return transform(invert(T_map_camera) @ self.T_map_world, world.astype(float) * self.scale)


class Cameras:
    """Finds the camera of frames: intrinsics as given, or as the local maps tell so far, and pose."""

    def __init__(self, side: int) -> None:
        """Know nothing of squares of `side` pixels."""
        self._side = side
        self._focals: deque[float] = deque(maxlen=FOCALS)  # pixels of the square

    def learn(self, maps: Pointmaps) -> None:
        """Let a local map tell its focal length; after the first ones it stays as it is."""
        if len(self._focals) == FOCALS or maps.local is None:
            return
        weights = relative(maps.local_confidence) * maps.local.any(axis=-1)
        middle = (self._side - 1) / 2
        try:
            focal = estimate_focal(maps.local, (middle, middle), weights)
        except PoseError:
            return
        if WIDEST * self._side < focal < NARROWEST * self._side:
            self._focals.append(focal)

    def intrinsics(self, given: Intrinsics | None) -> Intrinsics:
        """Return the camera of the square: the given one, else what was learnt."""
        if given:
            return given
        middle = (self._side - 1) / 2
        focal = float(np.median(self._focals)) if self._focals else float(self._side)
        return Intrinsics(focal, focal, middle, middle)

    def locate(self, maps: Pointmaps, given: Intrinsics | None) -> CameraPose:
        """Find where a frame was taken.

        Raises:
            PoseError: its maps do not tell.
        """
        confidence = np.where(maps.valid, maps.confidence, 0)
        return estimate_pose(maps.world, confidence, self.intrinsics(given), maps.local)

    def begin(self, keyframes: Sequence[tuple[Pointmaps, Intrinsics | None]]) -> MapFrame:
        """Put the map frame at the first keyframe, and make the median depth of all of them the unit.

        Raises:
            PoseError: too little was seen.
        """
        if min(maps.valid.mean() for maps, _ in keyframes) < MIN_VALID:
            raise PoseError('the first keyframes have hardly any confident points')
        cameras = [self.locate(maps, given).T_world_camera for maps, given in keyframes]
        seen = (maps.world[maps.valid].astype(float) for maps, _ in keyframes)
        depths = [transform(invert(T), points)[:, 2] for T, points in zip(cameras, seen)]
        depth = float(np.median(np.concatenate(depths)))
        if depth <= 0:
            raise PoseError('most points of the first keyframes lie behind the camera')
        return MapFrame(T_MAP_OPTICAL @ _scaled(invert(cameras[0]), 1 / depth), 1 / depth)


def _scaled(T: np.ndarray, scale: float) -> np.ndarray:
    """Return the transform in units that are `scale` times as many."""
    return rigid(T[:3, :3], T[:3, 3] * scale)
