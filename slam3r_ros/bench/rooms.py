# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""An endless row of furnished rooms, each like the one before, and a walk through them: keyframes for the mesher.

All is made of boxes, so that depth and distance to the true surface are exact and NumPy alone renders them.  A room
is 15 blocks of 5 cm voxels long: what the camera sees repeats from room to room to the bit, only the map grows.
"""

from functools import cache

import numpy as np

from slam3r_ros.mapping.frames import invert, rigid, transform
from slam3r_ros.meshing.lattice import pack
from slam3r_ros.values import Intrinsics, Keyframe, Pose

SIZE = 224  # pixels
CAMERA = Intrinsics(180.0, 180.0, 111.5, 111.5)
LENGTH, WIDTH, HEIGHT = 6.0, 5.0, 2.7  # metres, of a room along x, y and z
STEPS = 50  # keyframes a room
SIGHT = 16.0  # metres: beyond, there is no depth
VOXEL = 0.05  # metres
CORNER = np.array([0.013, 0.021, 0.017])  # metres, of the first room: no surface lies on voxels, as seldom in life
# Least and greatest corners of what stands in a room, whose near wall has its middle at x = 0.
BOXES = np.array([
    # wall
    ((-0.1, 0.0, 0.0), (0.1, 2.0, 2.7)), ((-0.1, 3.0, 0.0), (0.1, 5.0, 2.7)), ((-0.1, 2.0, 2.1), (0.1, 3.0, 2.7)),
    ((0.8, 0.0, 0.0), (2.0, 0.45, 1.9)),  # cupboard
    ((2.6, 0.05, 0.7), (4.2, 0.9, 0.76)), ((2.7, 0.1, 0.0), (2.76, 0.85, 0.7)), ((4.04, 0.1, 0.0), (4.1, 0.85, 0.7)),
    ((3.1, 0.2, 0.76), (3.6, 0.5, 1.1)),  # a screen on that desk
    ((4.8, 0.3, 0.0), (5.4, 0.9, 0.5)),  # carton
    ((1.0, 4.1, 0.0), (3.2, 5.0, 0.45)), ((1.0, 4.8, 0.45), (3.2, 5.0, 0.9)),  # sofa
    ((3.9, 4.65, 0.4), (5.5, 5.0, 0.44)), ((3.9, 4.65, 1.1), (5.5, 5.0, 1.14)), ((3.9, 4.65, 1.8), (5.5, 5.0, 1.84)),
    ((4.3, 4.7, 0.44), (4.9, 4.95, 0.8)), ((4.5, 4.7, 1.14), (5.2, 4.95, 1.5)),  # on those boards
])  # (B, 2, 3) metres


def keyframe(step: int, noise: float = 0.0, seed: int = 0) -> Keyframe:
    """Return what the camera sees at a step of the walk.

    Args:
        step: counts from 0, `STEPS` to a room.
        noise: of depth, as a share of it: this much from pixel to pixel, and as much again in patches.
        seed: of the noise, which is another at every step.
    """
    depth, colors = _view(step % STEPS)
    if noise:
        rng = np.random.default_rng([seed, step])
        patches = np.kron(rng.standard_normal((SIZE // 16, SIZE // 16)), np.ones((16, 16)))
        depth = depth * (1 + noise * (rng.standard_normal(depth.shape) + patches))
    pointmap = (_rays(np.eye(3)) * depth[..., None]).astype(np.float32)
    return Keyframe(Pose(step, step * 100_000_000, pose(step)), CAMERA, pointmap,
                    np.isfinite(depth).astype(np.float32), colors)


def pose(step: int) -> np.ndarray:
    """Return T_map_camera (4, 4) at a step: forward along x, through the doors, looking about."""
    turn = 2 * np.pi * (step % STEPS) / STEPS
    yaw, pitch = 0.95 * np.sin(2 * turn), -0.1 + 0.3 * np.sin(3 * turn)
    forward = np.array([np.cos(yaw) * np.cos(pitch), np.sin(yaw) * np.cos(pitch), np.sin(pitch)])
    right = np.array([np.sin(yaw), -np.cos(yaw), 0.0])
    position = CORNER + (LENGTH * step / STEPS, WIDTH / 2 + 0.6 * np.sin(turn), 1.5)
    return rigid(np.stack((right, np.cross(forward, right), forward), axis=-1), position)


def distance(points: np.ndarray) -> np.ndarray:
    """Return how far points (N, 3) are from the nearest true surface, (N,) metres."""
    points = np.array(points, np.float64) - CORNER
    points[:, 0] %= LENGTH
    y, z = points[:, 1], points[:, 2]
    outside = np.maximum.reduce([-y, y - WIDTH, -z, z - HEIGHT])  # of the rooms' shell; negative within
    for box in np.concatenate((BOXES, BOXES[:3] + [LENGTH, 0, 0])):  # the far wall is the next room's
        beyond = np.maximum(box[0] - points, points - box[1])  # (N, 3)
        signed = np.linalg.norm(np.maximum(beyond, 0), axis=1) + np.minimum(beyond.max(axis=1), 0)
        outside = np.maximum(outside, -signed)
    return np.abs(outside)


def seen(steps: range, spacing: float) -> np.ndarray:
    """Return points of the true surface (N, 3) that the walk sees, one for each cube of `spacing` metres."""
    points = []
    for step in steps:
        T = pose(step)
        depth, _ = _view(step % STEPS)
        known = np.isfinite(depth)
        points.append(T[:3, 3] + _rays(T[:3, :3])[known] * depth[known, None])
    every = np.concatenate(points)
    return every[np.unique(pack(np.floor(every / spacing)), return_index=True)[1]]


def _rays(rotation: np.ndarray) -> np.ndarray:
    """Return each pixel's direction (H, W, 3), of z depth 1 in the camera, turned by a rotation (3, 3)."""
    v, u = np.mgrid[:SIZE, :SIZE]
    local = np.stack(((u - CAMERA.cx) / CAMERA.fx, (v - CAMERA.cy) / CAMERA.fy, np.ones(u.shape)), axis=-1)
    return local @ rotation.T


@cache
def _view(step: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the depth (H, W), NaN beyond sight, and the colours (H, W, 3) uint8 at a step in the first room."""
    T = pose(step)
    eye, rays = T[:3, 3] - CORNER, _rays(T[:3, :3])
    with np.errstate(divide='ignore'):
        inverse = 1 / rays
    shell = np.array([(0, 0), (WIDTH, HEIGHT)])
    depth = np.maximum(*((shell - eye[1:])[:, None, None] * inverse[..., 1:])).min(axis=-1)  # (H, W)
    for room in range(int(SIGHT / LENGTH) + 2):
        for box in BOXES + [room * LENGTH, 0, 0]:
            window = _window(T, box)
            near, far = np.sort((box - eye)[:, None, None] * inverse[window], axis=0)  # (h, w, 3) each
            near, far = near.max(axis=-1), far.min(axis=-1)
            hit = (near <= far) & (near > 0) & (near < depth[window])
            depth[window] = np.where(hit, near, depth[window])
    points = eye + rays * depth[..., None]
    colors = 128 + 60 * np.sin(5 * points) + 60 * np.sin(13 * points[..., [1, 2, 0]])
    return np.where(depth <= SIGHT, depth, np.nan), colors.astype(np.uint8)


def _window(T_map_camera: np.ndarray, box: np.ndarray) -> tuple[slice, slice]:
    """Return the rows and columns of the picture outside which a box (2, 3) is not seen."""
    corners = np.stack(np.meshgrid(*box.T), axis=-1).reshape(-1, 3)
    x, y, z = transform(invert(T_map_camera), corners + CORNER).T
    if z.min() <= 0:  # some of it is behind the camera, or all
        whole = slice(0, SIZE if z.max() > 0 else 0)
        return whole, whole
    u, v = CAMERA.fx * x / z + CAMERA.cx, CAMERA.fy * y / z + CAMERA.cy
    limits = [np.floor((c.min(), c.max() + 2)).clip(0, SIZE).astype(int) for c in (v, u)]
    return slice(*limits[0]), slice(*limits[1])
