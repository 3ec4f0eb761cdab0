# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Plane sweep: every kernel against its plain twin, and the whole on scenes rendered exactly."""

import cv2
import numpy as np
import pytest

from slam3r_ros.engines.geometric import sweep as sweeping
from slam3r_ros.mapping.frames import invert, rigid
from slam3r_ros.values import Intrinsics

CAMERA = Intrinsics(100.0, 100.0, 47.5, 35.5)
SHAPE = (72, 96)


def warp_twin(source, rotate, shift, inverse_depth, shape):
    """Return the image of a plane and where it was seen; the twin of `warp`."""
    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float64)
    u, v, w = rotate.astype(np.float64) @ [x.ravel(), y.ravel(), np.ones(x.size)] + shift[:, None] * inverse_depth
    u, v = (u / w).reshape(shape), (v / w).reshape(shape)
    seen = (u >= 0) & (u <= source.shape[1] - 1) & (v >= 0) & (v <= source.shape[0] - 1)
    j = np.clip(np.floor(u), 0, source.shape[1] - 2).astype(int)
    i = np.clip(np.floor(v), 0, source.shape[0] - 2).astype(int)
    a, b = np.clip(u, 0, source.shape[1] - 1) - j, np.clip(v, 0, source.shape[0] - 1) - i
    top = source[i, j] * (1 - a) + source[i, j + 1] * a
    bottom = source[i + 1, j] * (1 - a) + source[i + 1, j + 1] * a
    return top * (1 - b) + bottom * b, seen


def correlate_twin(reference, source, rotate, shift, planes):
    """Return the cost of one neighbour, (D, H, W)."""

    def box(image):
        return cv2.boxFilter(image, cv2.CV_64F, (5, 5), borderType=cv2.BORDER_REPLICATE)

    costs = []
    reference = reference.astype(np.float64)
    for inverse_depth in planes:
        warped, seen = warp_twin(source, rotate, shift, inverse_depth, reference.shape)
        covariance = box(reference * warped) - box(reference) * box(warped)
        variances = [np.maximum(box(a * a) - box(a) ** 2, 0) + sweeping.NOISE for a in (reference, warped)]
        cost = np.clip(1 - covariance / np.sqrt(variances[0] * variances[1]), 0, 1) * sweeping.ONE
        costs.append(np.where(seen, cost, sweeping.UNSEEN))
    return np.array(costs)


def aggregate_twin(costs, image):
    """Sum the four path costs, one pixel after the other."""
    height, width, planes = costs.shape
    total = np.zeros(costs.shape, np.int64)
    for dy, dx in ((0, 1), (0, -1), (1, 0), (-1, 0)):
        path = np.zeros(costs.shape, np.int64)
        for y in range(height)[:: dy or 1]:
            for x in range(width)[:: dx or 1]:
                v, u = y - dy, x - dx
                path[y, x] = costs[y, x]
                if 0 <= v < height and 0 <= u < width:
                    contrast = abs(float(image[y, x]) - float(image[v, u]))
                    jump = int(max(sweeping.LARGE_JUMP / (1 + sweeping.EDGE_GAIN * contrast), 2 * sweeping.SMALL_JUMP))
                    before = path[v, u]
                    padded = np.pad(before, 1, constant_values=16384) + sweeping.SMALL_JUMP
                    ways = np.array([before, padded[:-2], padded[2:], np.full(planes, before.min() + jump)])
                    path[y, x] += ways.min(0) - before.min()
        total += path
    return total


def select_twin(total, fused, costs, planes):
    """Return the arrays of `Sweep`, one pixel after the other."""
    depth, correlation, distinctness = (np.zeros(total.shape[:2]) for _ in range(3))
    inside = np.zeros(total.shape[:2], bool)
    for pixel in np.ndindex(total.shape[:2]):
        path = total[pixel].astype(float)
        best = int(path.argmin())
        others = np.abs(np.arange(len(path)) - best) > 2
        inside[pixel] = 0 < best < len(path) - 1
        offset = 0.0
        if inside[pixel]:
            curves = costs[(slice(None), slice(best - 1, best + 2), *pixel)].astype(float)
            a, b, c = curves[curves[:, 1] < sweeping.SUPPORT].sum(0)
            offset = np.clip((a - c) / (2 * (a + c - 2 * b)), -1, 1) if a + c > 2 * b else 0.0
        depth[pixel] = 1 / (planes[best] + offset * (planes[1] - planes[0]))
        correlation[pixel] = 1 - fused[pixel][best] / sweeping.ONE
        distinctness[pixel] = 1 - path[best] / max(path[others].min(), 1)
    return depth, correlation, distinctness, inside


def texture(u, v, seed=0):
    """Return a smooth random grey level in [0, 1] for surface coordinates in metres."""
    random = np.random.default_rng(seed)
    value = np.zeros(np.shape(u))
    for frequency in (4, 9, 17, 30):
        for _ in range(3):
            angle, phase = random.uniform(0, 2 * np.pi, 2)
            value += np.sin(frequency * (np.cos(angle) * u + np.sin(angle) * v) + phase) / frequency**0.5
    return np.clip(0.5 + 0.2 * value, 0, 1)


def render(T_world_camera, surfaces, camera=CAMERA, shape=SHAPE):
    """Ray-cast planes.

    Args:
        T_world_camera: pose, (4, 4).
        surfaces: (normal, offset, least x, textured) of each plane n.X = offset, which ends at the least x.

    Returns:
        Grey levels from 0 to 1 and depths, each (H, W).
    """
    y, x = np.mgrid[: shape[0], : shape[1]]
    rays = np.stack([(x - camera.cx) / camera.fx, (y - camera.cy) / camera.fy, np.ones(shape)], -1)
    rays = rays @ T_world_camera[:3, :3].T
    centre = T_world_camera[:3, 3]
    grey, depth = np.zeros(shape), np.full(shape, np.inf)
    for number, (normal, offset, least_x, textured) in enumerate(surfaces):
        z = (offset - centre @ normal) / (rays @ normal)
        point = centre + rays * z[..., None]
        hit = (z > 0) & (z < depth) & (point[..., 0] > least_x)
        shade = texture(point[..., 0], point[..., 1], number) if textured else np.full(shape, 0.5)
        depth = np.where(hit, z, depth)
        grey = np.where(hit, shade, grey)
    return grey.astype(np.float32), depth


FRONTAL = np.array([0.0, 0.0, 1.0])
SLANTED = [(np.array([0.4, -0.2, 1.0]), 2.0, -np.inf, True)]
STEP = [(FRONTAL, 1.5, 0.1, True), (FRONTAL, 2.6, -np.inf, True)]


def camera_at(x, y=0.0, z=0.0):
    """Return a pose that looks along z."""
    return rigid(np.eye(3), np.array([x, y, z]))


@pytest.fixture
def random():
    return np.random.default_rng(7)


@pytest.fixture
def pair(random):
    """Return two smooth images, a rotation-like homography and a shift."""
    images = [cv2.GaussianBlur(random.random((41, 53), np.float32), (0, 0), 1.2) for _ in range(2)]
    rotate = (np.eye(3) + random.normal(scale=[[0.02, 0.02, 2], [0.02, 0.02, 2], [1e-4, 1e-4, 0.01]])).astype(
        np.float32
    )
    return *images, rotate, np.float32([6, -2, 0.05])


def test_warp_equals_its_twin(pair):
    _, source, rotate, shift = pair
    warped, seen = np.empty((41, 53), np.float32), np.empty((41, 53), bool)
    sweeping.warp(source, rotate, shift, np.float32(0.7), warped, seen)
    expected, expected_seen = warp_twin(source, rotate, shift, 0.7, warped.shape)
    np.testing.assert_allclose(warped, expected, atol=2e-3)  # the kernel stops 0.001 pixels before the border
    assert (seen == expected_seen).mean() > 0.999
    assert 0.1 < seen.mean() < 0.95


def test_correlate_equals_its_twin(pair):
    reference, source, rotate, shift = pair
    planes = sweeping.inverse_depth_planes(0.5, 8, 5)
    costs = np.empty((5, 41, 53), np.int16)
    sweeping.correlate(reference, *sweeping.window_statistics(reference), source, rotate, shift, planes, costs)
    expected = correlate_twin(reference, source, rotate, shift, planes)
    assert (np.abs(costs - expected) <= 8).mean() > 0.999  # of 1024


@pytest.mark.parametrize('count', [1, 2, 3, 4, 5])
def test_fuse_equals_its_twin(random, count):
    costs = random.integers(0, sweeping.ONE, (count, 6, 9, 11)).astype(np.int16)
    half = (count + 1) // 2
    expected = np.sort(costs.astype(int), axis=0)[:half].sum(0) // half
    np.testing.assert_array_equal(sweeping.fuse(costs), expected.transpose(1, 2, 0))


def test_aggregate_equals_its_twin(random):
    costs = random.integers(0, sweeping.ONE, (9, 12, 8)).astype(np.int16)
    image = random.random((9, 12), np.float32)
    np.testing.assert_array_equal(sweeping.aggregate(costs, image), aggregate_twin(costs, image))


def test_select_equals_its_twin(random):
    total = random.integers(0, 5000, (9, 12, 16)).astype(np.int16)
    fused = random.integers(0, sweeping.ONE, total.shape).astype(np.int16)
    costs = random.integers(0, sweeping.ONE, (3, 16, 9, 12)).astype(np.int16)
    planes = sweeping.inverse_depth_planes(0.5, 4, 16)
    expected = select_twin(total, fused, costs, planes)
    for ours, theirs in zip(sweeping.select(total, fused, costs, planes), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def run(surfaces, baselines=(-0.2, -0.1, 0.1, 0.2), planes=64):
    """Sweep a view at the origin; return the result and the true depth."""
    reference, depth = render(camera_at(0), surfaces)
    neighbours = [
        (render(camera_at(x, 0.02), surfaces)[0], invert(camera_at(x, 0.02)) @ camera_at(0)) for x in baselines
    ]
    inverse_depths = sweeping.inverse_depth_planes(1, 5, planes)
    return sweeping.sweep(reference, neighbours, CAMERA.matrix(), inverse_depths), depth


def test_slanted_plane_is_exact_to_a_fraction_of_a_plane():
    result, depth = run(SLANTED)
    error = np.abs(result.depth / depth - 1)[6:-6, 6:-6]
    assert np.median(error) < 0.005
    assert np.quantile(error, 0.9) < 0.02
    assert result.inside.mean() > 0.99
    assert np.median(result.correlation) > 0.95


def test_step_keeps_its_edge():
    result, depth = run(STEP)
    error = np.abs(result.depth / depth - 1)
    edge = np.abs(np.diff(depth, axis=1, prepend=depth[:, :1])) > 0.5
    away = ~cv2.dilate(edge.astype(np.uint8), np.ones((9, 9))).astype(bool)
    away[:6] = away[-6:] = away[:, :6] = away[:, -6:] = False
    assert np.median(error[away]) < 0.005
    assert np.quantile(error[away], 0.97) < 0.025


def test_a_wall_without_texture_does_not_correlate():
    result, _ = run([(FRONTAL, 2.0, -np.inf, False)])
    assert result.correlation.max() <= 0.25  # where no neighbour sees it; less elsewhere


def test_planes_are_even_in_inverse_depth():
    planes = sweeping.inverse_depth_planes(0.5, 4, 8)
    assert planes.dtype == np.float32
    np.testing.assert_allclose([planes[0], planes[-1]], [0.25, 2])
    np.testing.assert_allclose(np.diff(planes), np.diff(planes)[0], rtol=1e-5)
