# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Points, cameras that see them, maps made of both, and rendered rooms, for the tests of the geometric engine."""

from functools import cache

import cv2
import numpy as np

from slam3r_ros.engines.geometric.adjust import rotate
from slam3r_ros.engines.geometric.sparse_map import Features, SparseKeyframe, SparseMap
from slam3r_ros.mapping.frames import invert, rigid, transform
from slam3r_ros.values import Frame, Intrinsics

FOCAL = 500.0
WIDTH, HEIGHT, CAMERA_FOCAL = 320, 240, 280.0  # of rendered images
INTRINSICS = Intrinsics(CAMERA_FOCAL, CAMERA_FOCAL, (WIDTH - 1) / 2, (HEIGHT - 1) / 2)
PANEL = 4.0  # units, the part of a room that repeats along x, each time with other patterns


def texture(height: int = 240, width: int = 320, seed: int = 0) -> np.ndarray:
    """Return a smooth random image, (H, W) uint8."""
    noise = np.random.default_rng(seed).uniform(0, 255, (height, width)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 2)
    return cv2.normalize(smooth, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)


def camera(turn: tuple, centre: tuple) -> np.ndarray:
    """Return T_camera_world (4, 4) of a camera at `centre` turned by a rotation vector."""
    return invert(rigid(rotate(np.eye(3), turn), np.array(centre, float)))


def project(T: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Return the pixels (N, 2) at which a camera T_camera_world sees points (N, 3)."""
    seen = transform(T, points)
    return FOCAL * seen[:, :2] / seen[:, 2:]


def make_map(points: np.ndarray, path: list[np.ndarray], random: np.random.Generator | None = None) -> SparseMap:
    """Return a map in which every keyframe sees every point, without positions; `random` adds descriptors."""
    sparse = SparseMap(FOCAL)
    ids = sparse.allocate(len(points))
    for number, T in enumerate(path):
        sparse.keyframes.append(SparseKeyframe(number, T, ids.copy(), project(T, points)))
        if random is not None:
            descriptors = random.integers(0, 100, (len(points), 128)).astype(np.uint8)
            sparse.keyframes[-1].features = Features(ids.copy(), project(T, points), descriptors)
    return sparse


@cache
def _pattern(seed: int) -> np.ndarray:
    return np.dstack([texture(512, 640, 3 * seed + channel) for channel in range(3)])


class Room:
    """Patterned planes before the camera: a wall, a sloping floor and cards, panel after panel along x."""

    def __init__(self, seed: int = 0, panels: int = 6) -> None:
        """Make a room from x = -4 on; rooms of other seeds have nothing in common."""
        self.planes = []  # origin, edge along the pattern's width, edge along its height; far ones first
        for number in range(panels):
            x = PANEL * (number - 1)
            self.planes += [((x, -3, 4), (PANEL, 0, 0), (0, 6, 0)), ((x, 1.2, 5), (PANEL, 0, 0), (0, 0.4, -3))]
        for number in range(panels):
            x = PANEL * (number - 1)
            self.planes += [((x + 0.3, -0.7, 2.4), (0.9, 0, 0.2), (0, 0.8, 0)),
                            ((x + 2.2, -0.2, 2.9), (0.8, 0, -0.2), (0, 0.9, 0))]
        self.seed = 1000 * seed

    def render(self, T_world_camera: np.ndarray) -> np.ndarray:
        """Draw the room as a camera sees it, (H, W, 3) uint8 RGB."""
        image = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
        T, K = invert(T_world_camera), INTRINSICS.matrix()
        for number, (origin, u, v) in enumerate(self.planes):
            corners = np.array([origin, np.add(origin, u), np.add(np.add(origin, u), v), np.add(origin, v)], float)
            corners = transform(T, corners)
            if corners[:, 2].min() < 0.1:
                continue
            pixels = (corners @ K.T)[:, :2] / corners[:, 2:]
            if (pixels.max(0) < 0).any() or (pixels.min(0) > (WIDTH, HEIGHT)).any():
                continue
            H = cv2.getPerspectiveTransform(np.float32([[0, 0], [639, 0], [639, 511], [0, 511]]), np.float32(pixels))
            drawn = cv2.warpPerspective(_pattern(self.seed + number), H, (WIDTH, HEIGHT), flags=cv2.INTER_AREA)
            mask = cv2.warpPerspective(np.full((512, 640), 255, np.uint8), H, (WIDTH, HEIGHT)) > 127
            image[mask] = drawn[mask]
        return image


def walk(x: float, step: float, count: int) -> list[np.ndarray]:
    """Return T_world_camera (4, 4) of a walk along x that sways a little, `step` units a frame."""
    poses = []
    for i in range(count):
        turn = [0.03 * np.sin(i / 9), 0.04 * np.sin(i / 13), 0.01 * np.sin(i / 5)]
        position = np.array([x + step * i, 0.1 * np.sin(i / 8), 0.1 * np.sin(i / 11)])
        poses.append(rigid(rotate(np.eye(3), turn), position))
    return poses


def stream(images: list[np.ndarray], first: int = 0, intrinsics: Intrinsics | None = INTRINSICS) -> list[Frame]:
    """Wrap images as a stream of 30 frames a second whose ids begin with `first`."""
    return [Frame(first + i, (first + i) * 33_000_000, image, intrinsics) for i, image in enumerate(images)]
