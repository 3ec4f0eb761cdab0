# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Analytic scenes for the mesher's tests: what a camera sees of a sphere, a plane or a room."""

import numpy as np

from slam3r_ros.mapping.frames import T_MAP_OPTICAL, rigid
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
