# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A small ray caster for scenes of textured rectangles, with soft light baked into the textures."""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import cv2
import numba
import numpy as np

from slam3r_ros.values import Intrinsics


class Rectangle(NamedTuple):
    """A flat surface that is seen from the side its normal, `across` x `up`, points to."""

    corner: np.ndarray  # (3,) metres: the texture's bottom left
    across: np.ndarray  # (3,) the edge along the texture's columns
    up: np.ndarray  # (3,) the edge along the texture's rows, from the bottom
    texture: np.ndarray  # (H, W, 3) float32, sRGB in [0, 1]
    glow: float = 0.0  # light that it gives off itself, in units of its texture


class Light(NamedTuple):
    """A rectangular lamp."""

    corner: np.ndarray  # (3,) metres
    across: np.ndarray  # (3,)
    up: np.ndarray  # (3,)
    power: np.ndarray  # (3,) linear RGB


class Scene:
    """Objects made of rectangles, ready to be looked at."""

    def __init__(self, objects: Sequence[Sequence[Rectangle]], lights: Sequence[Light], ambient: float = 0.25) -> None:
        """Bake the light into the textures.

        Args:
            objects: Each a list of rectangles that lie close together; a ray meets their bounding box first.
            lights: The lamps; they shine, but cannot be seen.
            ambient: Light from everywhere, where nothing near shades it.
        """
        rectangles = [rectangle for parts in objects for rectangle in parts]
        corner = np.array([r.corner for r in rectangles], float)
        across = np.array([r.across for r in rectangles], float)
        up = np.array([r.up for r in rectangles], float)
        normal = np.cross(across, up)
        normal /= np.linalg.norm(normal, axis=1, keepdims=True)
        dual_across = across / np.square(across).sum(axis=1, keepdims=True)
        dual_up = up / np.square(up).sum(axis=1, keepdims=True)
        first = np.cumsum([0] + [len(parts) for parts in objects])
        vertices = np.stack([corner, corner + across, corner + up, corner + across + up], axis=1)  # (N, 4, 3)
        parts = [vertices[a:b] for a, b in pairwise(first)]
        bounds = np.array([(part.min(axis=(0, 1)), part.max(axis=(0, 1))) for part in parts])  # (objects, 2, 3)
        bounds += np.array([[-1e-6], [1e-6]])  # a flat object has a box too
        self._geometry = (first, bounds, corner, dual_across, dual_up, normal)
        lit = [self._bake(i, rectangle, lights, ambient) for i, rectangle in enumerate(rectangles)]
        sizes = np.array([texture.shape[:2] for texture in lit])
        offsets = np.concatenate([[0], np.cumsum(sizes.prod(axis=1))[:-1]])
        self._textures = (np.concatenate([texture.reshape(-1, 3) for texture in lit]), offsets, sizes)

    def render(self, T_world_camera: np.ndarray, camera: Intrinsics, width: int, height: int) -> np.ndarray:
        """Return the image seen from a pose (optical frame): (H, W, 3) float32 linear RGB, four rays a pixel."""
        image = np.empty((height, width, 3), np.float32)
        _render(T_world_camera, *camera, self._geometry, self._textures, image)
        return image

    def depth(self, T_world_camera: np.ndarray, camera: Intrinsics, width: int, height: int) -> np.ndarray:
        """Return z along the optical axis through each pixel's centre, (H, W) metres; inf where there is nothing."""
        depth = np.empty((height, width))
        _depth(T_world_camera, *camera, self._geometry, depth)
        return depth

    def _bake(self, index: int, rectangle: Rectangle, lights: Sequence[Light], ambient: float) -> np.ndarray:
        """Return the rectangle's texture under the lamps: (H, W, 3) float32 linear RGB."""
        albedo = rectangle.texture.astype(np.float32) ** 2.2
        if rectangle.glow:
            return albedo * rectangle.glow
        spacing = 0.08  # metres between the points where light is gathered
        rows, columns = (max(int(np.linalg.norm(edge) / spacing), 2) for edge in (rectangle.up, rectangle.across))
        light = np.empty((rows, columns, 3), np.float32)
        normal = self._geometry[-1][index]
        tangent = rectangle.across / np.linalg.norm(rectangle.across)
        hemisphere = _cosine_hemisphere(48) @ np.stack([tangent, np.cross(normal, tangent), normal])
        for row in range(rows):
            for column in range(columns):
                a, b = (column + 0.5) / columns, 1 - (row + 0.5) / rows
                point = rectangle.corner + a * rectangle.across + b * rectangle.up + 1e-4 * normal
                open_share = _unshaded(point, hemisphere, 1.5, self._geometry)
                light[row, column] = ambient * (0.3 + 0.7 * open_share)
                for lamp in lights:
                    light[row, column] += lamp.power * _received(
                        point, normal, lamp.corner, lamp.across, lamp.up, self._geometry
                    )
        return albedo * cv2.resize(light, albedo.shape[1::-1], interpolation=cv2.INTER_LINEAR)


def _cosine_hemisphere(count: int) -> np.ndarray:
    """Return unit vectors about +z, denser towards it as a Lambertian surface receives them, (count, 3)."""
    i = np.arange(count)
    radius, turn = np.sqrt((i + 0.5) / count), i * np.pi * (3 - np.sqrt(5))  # sunflower spiral
    return np.column_stack([radius * np.cos(turn), radius * np.sin(turn), np.sqrt(1 - radius**2)])


@numba.njit(nogil=True, cache=True, error_model='numpy')  # 1 / 0 is infinite, as the box test wants it
def _nearest(origin, direction, geometry):
    """Return the rectangle hit first (-1: none), the distance in units of `direction`, and where on it, in [0, 1]."""
    first, bounds, corner, dual_across, dual_up, normal = geometry
    best, best_t, best_a, best_b = -1, np.inf, 0.0, 0.0
    inverse = (1 / direction[0], 1 / direction[1], 1 / direction[2])
    for part in range(len(bounds)):
        near, far = 0.0, best_t
        for axis in range(3):
            one = (bounds[part, 0, axis] - origin[axis]) * inverse[axis]
            other = (bounds[part, 1, axis] - origin[axis]) * inverse[axis]
            near, far = max(near, min(one, other)), min(far, max(one, other))
        if near > far:
            continue
        for i in range(first[part], first[part + 1]):
            facing = normal[i, 0] * direction[0] + normal[i, 1] * direction[1] + normal[i, 2] * direction[2]
            if facing >= 0.0:  # seen from behind
                continue
            x, y, z = corner[i, 0] - origin[0], corner[i, 1] - origin[1], corner[i, 2] - origin[2]
            t = (normal[i, 0] * x + normal[i, 1] * y + normal[i, 2] * z) / facing
            if t <= 1e-9 or t >= best_t:
                continue
            x, y, z = t * direction[0] - x, t * direction[1] - y, t * direction[2] - z
            a = x * dual_across[i, 0] + y * dual_across[i, 1] + z * dual_across[i, 2]
            b = x * dual_up[i, 0] + y * dual_up[i, 1] + z * dual_up[i, 2]
            if 0.0 <= a <= 1.0 and 0.0 <= b <= 1.0:
                best, best_t, best_a, best_b = i, t, a, b
    return best, best_t, best_a, best_b


@numba.njit(nogil=True, cache=True)
def _ray(T, fx, fy, cx, cy, u, v, direction):
    """Set the direction, in the world and with z = 1 in the camera, in which pixel (u, v) looks."""
    x, y = (u - cx) / fx, (v - cy) / fy
    for axis in range(3):
        direction[axis] = T[axis, 0] * x + T[axis, 1] * y + T[axis, 2]


@numba.njit(nogil=True, cache=True)
def _depth(T, fx, fy, cx, cy, geometry, depth):
    origin, direction = T[:3, 3].copy(), np.empty(3)
    for v in range(depth.shape[0]):
        for u in range(depth.shape[1]):
            _ray(T, fx, fy, cx, cy, u, v, direction)
            depth[v, u] = _nearest(origin, direction, geometry)[1]


@numba.njit(nogil=True, cache=True)
def _render(T, fx, fy, cx, cy, geometry, textures, image):
    texels, offsets, sizes = textures
    origin, direction = T[:3, 3].copy(), np.empty(3)
    for v in range(image.shape[0]):
        for u in range(image.shape[1]):
            image[v, u] = 0.0
            for sample in range(4):
                # A grid turned by atan(1/2) spreads four rays best over rows and columns.
                du, dv = (-0.375, -0.125, 0.375, 0.125)[sample], (0.125, -0.375, -0.125, 0.375)[sample]
                _ray(T, fx, fy, cx, cy, u + du, v + dv, direction)
                i, _, a, b = _nearest(origin, direction, geometry)
                if i < 0:
                    continue
                rows, columns = sizes[i]
                x = min(max(a * columns - 0.5, 0.0), columns - 1.0)
                y = min(max((1.0 - b) * rows - 0.5, 0.0), rows - 1.0)
                left, top = min(int(x), columns - 2), min(int(y), rows - 2)
                x, y = x - left, y - top
                start = offsets[i] + top * columns + left
                for channel in range(3):
                    image[v, u, channel] += 0.25 * (
                        (1 - y) * ((1 - x) * texels[start, channel] + x * texels[start + 1, channel])
                        + y * ((1 - x) * texels[start + columns, channel] + x * texels[start + columns + 1, channel])
                    )


@numba.njit(nogil=True, cache=True)
def _unshaded(point, directions, reach, geometry):
    """Return the share of directions in which nothing stands within `reach` metres."""
    count = 0
    for i in range(len(directions)):
        count += _nearest(point, directions[i], geometry)[1] > reach
    return count / len(directions)


@numba.njit(nogil=True, cache=True)
def _received(point, normal, corner, across, up, geometry):
    """Return the light that a point receives from a lamp of unit power, shadows included."""
    total, samples = 0.0, 5
    for row in range(samples):
        for column in range(samples):
            ray = corner + (column + 0.5) / samples * across + (row + 0.5) / samples * up - point
            cosine = (normal * ray).sum()
            if cosine > 0.0 and _nearest(point, ray, geometry)[1] > 0.999:
                total += cosine / (ray * ray).sum() ** 1.5
    return total / samples**2
