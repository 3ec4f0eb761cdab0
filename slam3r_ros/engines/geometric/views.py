# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Posed views for stereo: what is kept of them, and which go well together."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np

from slam3r_ros.values import Intrinsics

BASELINE = 0.13  # best distance of a neighbour, in median depths
MIN_BASELINE, MAX_BASELINE = 0.03, 0.4
SPREAD = 0.05  # least distance between two neighbours, in median depths
MAX_ANGLE = 30.0  # degrees between optical axes


@dataclass(frozen=True)
class View:
    """A posed image; as a keyframe it asks for depth."""

    id: int
    image: np.ndarray  # (H, W, 3) uint8 RGB
    T_world_camera: np.ndarray  # (4, 4) float64
    near: float  # robust range of the depth of its sparse points, along the optical axis
    far: float
    keyframe: bool = True


@dataclass(frozen=True)
class SmallView:
    """What is kept of a view."""

    grey: np.ndarray  # (h, w) float32 from 0 to 1
    colors: np.ndarray  # (h, w, 3) uint8 RGB
    scale: tuple[float, float]  # of the small image to the full one, x and y
    near: float
    far: float
    keyframe: bool

    @property
    def depth(self) -> float:
        """A typical depth."""
        return float(np.sqrt(self.near * self.far))


class Scene(NamedTuple):
    """All views that are known at a time, and where they are believed to stand."""

    views: Mapping[int, SmallView]  # by id
    poses: Mapping[int, np.ndarray]  # T_world_camera (4, 4) of each
    camera: Intrinsics  # of the full images

    def intrinsics(self, id: int) -> Intrinsics:
        """Return the camera of a view's small image."""
        return self.camera.scaled(*self.views[id].scale)


def shrink(view: View, width: int) -> SmallView:
    """Make the small image of a view, its longer side at most `width` pixels."""
    rows, columns = view.image.shape[:2]
    factor = min(1.0, width / max(rows, columns))
    size = (max(2, round(columns * factor)), max(2, round(rows * factor)))
    colors = cv2.resize(view.image, size, interpolation=cv2.INTER_AREA)
    grey = cv2.cvtColor(colors, cv2.COLOR_RGB2GRAY).astype(np.float32) / 255
    return SmallView(grey, colors, (size[0] / columns, size[1] / rows), view.near, view.far, view.keyframe)


def choose_neighbours(T_world_camera: np.ndarray, T_world_others: np.ndarray, depth: float, count: int) -> list[int]:
    """Choose the views to match a view with.

    A long baseline makes depth exact, a short one and a like direction make matching safe.

    Args:
        T_world_camera: pose of the view, (4, 4).
        T_world_others: poses of the candidates, (N, 4, 4), the nearest in time first.
        depth: typical depth of the view.
        count: how many to choose, at most.

    Returns:
        Indices of candidates, best first.
    """
    baselines, angles = _apart(T_world_camera, T_world_others, depth)
    usable = (baselines > MIN_BASELINE) & (baselines < MAX_BASELINE) & (angles < MAX_ANGLE)
    age = np.arange(len(baselines)) / 100
    badness = np.abs(np.log(np.maximum(baselines, 1e-9) / BASELINE)) + angles / 25 + age
    centres = T_world_others[:, :3, 3]
    chosen: list[int] = []
    for i in np.argsort(badness, kind='stable'):
        if usable[i] and all(np.linalg.norm(centres[i] - centres[j]) > SPREAD * depth for j in chosen):
            chosen.append(int(i))
        if len(chosen) == count:
            break
    return chosen


def choose_witnesses(T_world_camera: np.ndarray, T_world_others: np.ndarray, depth: float, count: int) -> list[int]:
    """Choose the views that see most of what a view sees; arguments as for `choose_neighbours`."""
    baselines, angles = _apart(T_world_camera, T_world_others, depth)
    return np.argsort(baselines + 2 * (1 - np.cos(np.radians(angles))), kind='stable')[:count].tolist()


def _apart(T_world_camera: np.ndarray, T_world_others: np.ndarray, depth: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the distances, in depths, and the angles between optical axes, degrees: each (N,)."""
    baselines = np.linalg.norm(T_world_others[:, :3, 3] - T_world_camera[:3, 3], axis=1) / depth
    cosines = T_world_others[:, :3, 2] @ T_world_camera[:3, 2]
    return baselines, np.degrees(np.arccos(np.clip(cosines, -1, 1)))
