# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Analytic scenes for the mesher's tests: what a camera sees of a sphere, a plane or a room."""

import numpy as np

from slam3r_ros.mapping.frames import T_MAP_OPTICAL, rigid
from slam3r_ros.meshing.lattice import NEIGHBOURS, pack
from slam3r_ros.meshing.tsdf import DISTANCE_STEPS
from slam3r_ros.values import Intrinsics, Keyframe, Pose

CAMERA = Intrinsics(95.0, 95.0, 55.5, 41.5)
WIDTH, HEIGHT = 112, 84
ROOM = np.array([[-1.5, -1.2, -0.8], [1.5, 1.2, 0.9]])  # opposite corners


def look_at(eye, target) -> np.ndarray:
    """Return T_map_camera (4, 4) of an upright camera."""
    forward = np.subtract(target, eye) / np.linalg.norm(np.subtract(target, eye))
    right = np.cross(forward, [0, 0, 1])
    right /= np.linalg.norm(right)
    return rigid(np.stack((right, np.cross(forward, right), forward), axis=-1), eye)


def rays(T_map_camera) -> np.ndarray:
    """Return the direction (H, W, 3) of every pixel in the map, of z depth 1."""
    v, u = np.mgrid[:HEIGHT, :WIDTH]
    local = np.stack(((u - CAMERA.cx) / CAMERA.fx, (v - CAMERA.cy) / CAMERA.fy, np.ones(u.shape)), axis=-1)
    return local @ T_map_camera[:3, :3].T


def sphere_depth(T_map_camera, radius=0.5) -> np.ndarray:
    """Return the depth (H, W) of a ball about the origin; NaN beside it."""
    ray, eye = rays(T_map_camera), T_map_camera[:3, 3]
    a, b, c = (ray**2).sum(axis=-1), ray @ eye, eye @ eye - radius**2
    with np.errstate(invalid='ignore'):
        return (-b - np.sqrt(b * b - a * c)) / a


def room_depth(T_map_camera) -> np.ndarray:
    """Return the depth (H, W) of the walls of `ROOM` seen from within."""
    ray, eye = rays(T_map_camera), T_map_camera[:3, 3]
    with np.errstate(divide='ignore'):
        return np.maximum((ROOM[0] - eye) / ray, (ROOM[1] - eye) / ray).min(axis=-1)


def keyframe(depth, T_map_camera=T_MAP_OPTICAL, id=0, revision=0, map_id=0, confidence=1.0, colors=None) -> Keyframe:
    """Return a keyframe of a depth picture (H, W), coloured by map direction unless told."""
    v, u = np.mgrid[:depth.shape[0], :depth.shape[1]]
    pointmap = np.stack(((u - CAMERA.cx) / CAMERA.fx * depth, (v - CAMERA.cy) / CAMERA.fy * depth, depth), axis=-1)
    if colors is None:
        colors = np.stack((u * 2, v * 3, u + v), axis=-1)
    return Keyframe(Pose(id, id * 100, T_map_camera), CAMERA, pointmap.astype(np.float32),
                    np.where(np.isfinite(depth), confidence, 0).astype(np.float32), colors.astype(np.uint8),
                    revision, map_id)


def around(count: int, distance: float) -> list[np.ndarray]:
    """Return `count` poses evenly about the origin (Fibonacci's spiral), looking at it."""
    z = np.linspace(-0.95, 0.95, count)
    angle = np.pi * (3 - np.sqrt(5)) * np.arange(count)
    ring = np.sqrt(1 - z**2)
    eyes = distance * np.stack((ring * np.cos(angle), ring * np.sin(angle), z), axis=-1)
    return [look_at(eye, (0, 0, 0)) for eye in eyes]


def room_poses(count: int) -> list[np.ndarray]:
    """Return poses that turn once about the middle of the room, nodding."""
    angle = np.linspace(0, 2 * np.pi, count, endpoint=False)
    return [look_at((0.3 * np.cos(a), 0.3 * np.sin(a), 0.1), (np.cos(a + 0.3), np.sin(a + 0.3), 0.4 * np.sin(3 * a)))
            for a in angle]


def blocks_of(distance, color=None, weight=None):
    """Cut a field (8 X, 8 Y, 8 Z), distance 1 being the truncation, into what kernels extract.

    Returns:
        sums (N, 512, 5) int32, slots (N, 8), indices (N, 3).
    """
    weight = np.full(distance.shape, 100) if weight is None else weight
    color = np.full((*distance.shape, 3), 90) if color is None else color
    sums = np.concatenate((weight[..., None], (weight * np.round(distance * DISTANCE_STEPS))[..., None],
                           weight[..., None] * color), axis=-1).astype(np.int32)
    shape = np.array(distance.shape) // 8
    sums = sums.reshape(shape[0], 8, shape[1], 8, shape[2], 8, 5).transpose(0, 2, 4, 1, 3, 5, 6).reshape(-1, 512, 5)
    indices = np.stack(np.meshgrid(*map(np.arange, shape), indexing='ij'), axis=-1).reshape(-1, 3) - 1
    number = {key: i for i, key in enumerate(pack(indices).tolist())}
    slots = np.array([[number.get(key + step, -1) for step in NEIGHBOURS.tolist()] for key in number])
    return np.ascontiguousarray(sums), slots, indices


def random_blocks():
    """Return the blocks of a rough field with holes and random colours, as `blocks_of`."""
    random = np.random.default_rng(3)
    x, y, z = np.mgrid[:24, :16, :16]
    distance = np.clip(np.sin(x / 3) + np.cos(y / 4) + np.sin(z / 2) + random.normal(0, 0.2, x.shape), -1, 1)
    weight = random.integers(-10, 100, x.shape).clip(0)
    return blocks_of(distance, random.integers(0, 256, (*x.shape, 3)), weight)
