# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Focal length and pose of a pointmap, with noise, wrong points, and confidences that tell them."""

import cv2
import numpy as np
import pytest
from scipy.optimize import least_squares
from scipy.spatial.transform import Rotation

from slam3r_ros.mapping import pointmap_pose, registration
from slam3r_ros.mapping.frames import rigid, transform
from slam3r_ros.mapping.pointmap_pose import PoseError, estimate_focal, estimate_pose, median_focal, pixel_grid
from slam3r_ros.values import Intrinsics

SIDE, FOCAL = 64, 60.0  # pixels
MIDDLE = (SIDE - 1) / 2
CAMERA = Intrinsics(FOCAL, FOCAL, MIDDLE, MIDDLE)
T_WORLD_CAMERA = rigid(Rotation.from_rotvec([0.2, -0.5, 0.1]).as_matrix(), [0.4, -0.3, 1.0])
SURE = np.ones((SIDE, SIDE))


@pytest.fixture
def random():
    return np.random.default_rng(0)


@pytest.fixture
def local():
    pixels = pixel_grid(SIDE, SIDE)
    depth = 2 + 0.5 * np.sin(pixels[..., 0] / 7) + 0.4 * np.cos(pixels[..., 1] / 5)
    return np.dstack([(pixels - MIDDLE) / FOCAL * depth[..., None], depth])


@pytest.fixture
def world(local):
    return transform(T_WORLD_CAMERA, local)


def errors(found):
    """Return the error of place, and of the turn in degrees."""
    turn = found.T_world_camera[:3, :3].T @ T_WORLD_CAMERA[:3, :3]
    place = np.linalg.norm(found.T_world_camera[:3, 3] - T_WORLD_CAMERA[:3, 3])
    return place, np.degrees(Rotation.from_matrix(turn).magnitude())


def spoilt(points, where, random):
    """Replace points by others that lie around."""
    return np.where(where[..., None], points.mean(axis=(0, 1)) + random.normal(size=points.shape), points)


@pytest.mark.parametrize('with_local', [False, True])
def test_the_pose_is_exact_without_noise(local, world, with_local):
    found = estimate_pose(world, SURE, CAMERA, 3 * local if with_local else None)
    assert max(errors(found)) < 1e-5
    assert found.inliers == 1 and found.error < 1e-4


@pytest.mark.parametrize('with_local', [False, True])
def test_the_pose_stands_wrong_points(local, world, random, with_local):
    wrong = random.random((SIDE, SIDE)) < 0.6
    found = estimate_pose(spoilt(world, wrong, random), SURE, CAMERA, local if with_local else None)
    assert max(errors(found)) < 0.05
    assert found.inliers == pytest.approx(0.4, abs=0.03)


def test_the_local_map_helps_where_pixels_alone_do_not(local, world):
    """Three right matches make a registration, but PnP draws four: with so many wrong points less often right ones."""
    alone, helped = [], []
    for seed in range(40):
        random = np.random.default_rng(seed)
        wrong = random.random((SIDE, SIDE)) < 0.8
        spoiled = spoilt(world, wrong, random)
        alone.append(max(errors(estimate_pose(spoiled, SURE, CAMERA))))
        helped.append(max(errors(estimate_pose(spoiled, SURE, CAMERA, 0.3 * local))))
    assert np.greater(helped, 0.1).sum() < np.greater(alone, 0.1).sum()


def wall(random, noise):
    """Return a plane seen aslant from the origin, 128 pixels square, and its camera."""
    rays = np.dstack([(pixel_grid(128, 128) - 63.5) / 140, np.ones((128, 128))])
    depth = 1 / (0.5 + 0.3 * rays[..., :1])
    return depth * (rays + noise * random.normal(size=rays.shape)), Intrinsics(140.0, 140.0, 63.5, 63.5)


def test_a_wall_tells_the_camera():
    """Of points on a plane EPnP, with which OpenCV ends AP3P, makes a wrong camera."""
    turned = rigid(Rotation.from_rotvec([0, 0.1, 0]).as_matrix(), np.array([0.3, 0, 0.1]))
    for seed in range(10):
        random = np.random.default_rng(seed)
        points, camera = wall(random, 0.003)
        away = random.random((128, 128)) < 0.3
        points[away] = transform(turned, points[away])
        found = estimate_pose(points, np.ones((128, 128)), camera)
        assert np.abs(found.T_world_camera - np.eye(4)).max() < 0.01


def test_guesses_are_refined_before_one_is_taken():
    off = []
    for seed in range(10):
        random = np.random.default_rng(seed)
        points, camera = wall(random, 0.02)
        points = spoilt(points, random.random((128, 128)) < 0.45, random)
        off.append(np.linalg.norm(estimate_pose(points, np.ones((128, 128)), camera).T_world_camera[:3, 3]))
    assert np.median(off) < 0.04


def test_a_wrong_local_map_does_no_harm(local, world, random):
    found = estimate_pose(world, SURE, CAMERA, random.normal(size=local.shape))
    assert max(errors(found)) < 1e-5
    found = estimate_pose(world, SURE, CAMERA, local * (1, 1, 2))  # of a wrong focal length
    assert max(errors(found)) < 1e-5


def test_confidence_tells_which_points_count(local, world, random):
    wrong = random.random((SIDE, SIDE)) < 0.4
    found = estimate_pose(spoilt(world, wrong, random), np.where(wrong, 1.5, 20.0), CAMERA)
    assert max(errors(found)) < 1e-5 and found.inliers == 1


def test_the_refinement_weighs_by_confidence(local, world, random):
    """Some points are shifted by half a pixel, which is no outlier; those that are surer hold against them."""
    kind = random.random((SIDE, SIDE))
    shifted = kind < 0.75
    half_a_pixel = 0.5 * local[..., 2:] / FOCAL * (1, 0, 0)
    moved = np.where(shifted[..., None], transform(T_WORLD_CAMERA, local + half_a_pixel), world)
    even = errors(estimate_pose(moved, SURE, CAMERA))
    # The more confident half, which alone counts, are 30 % that are shifted and 25 % that are not.
    weighed = errors(estimate_pose(moved, np.select([kind < 0.45, shifted], [0.1, 1.0], 20.0), CAMERA))
    assert max(weighed) < 0.2 * max(even)


def test_points_that_are_unknown_are_left_out(world):
    holes = world.copy()
    holes[::2], holes[1::2, ::3] = np.nan, np.inf
    assert max(errors(estimate_pose(holes, SURE, CAMERA))) < 1e-5


@pytest.mark.parametrize('count', [0, 29])
def test_too_few_points_are_refused(world, count):
    confidence = 0 * SURE
    confidence.flat[:count] = 1
    with pytest.raises(PoseError, match=f'takes 30 points, the map has {count}'):
        estimate_pose(world, confidence, CAMERA)


def test_points_that_coincide_are_refused():
    with pytest.raises(PoseError, match='no camera'):
        estimate_pose(np.ones((SIDE, SIDE, 3)), SURE, CAMERA)


@pytest.mark.parametrize('estimate', [estimate_focal, median_focal])
def test_focal(local, estimate, random):
    assert estimate(local, (MIDDLE, MIDDLE)) == pytest.approx(FOCAL, rel=1e-6)
    wrong = random.random((SIDE, SIDE)) < 0.2
    assert estimate(spoilt(local, wrong, random), (MIDDLE, MIDDLE)) == pytest.approx(FOCAL, rel=0.02)
    with pytest.raises(PoseError, match='before the camera'):
        estimate(np.zeros((SIDE, SIDE, 3)), (MIDDLE, MIDDLE))


def test_the_focal_length_is_weighed(local):
    left = pixel_grid(SIDE, SIDE)[..., 0] < 0.7 * SIDE
    stretched = np.where(left[..., None], local * (1, 1, 2), local)
    assert estimate_focal(stretched, (MIDDLE, MIDDLE), np.where(left, 0.0, 1.0)) == pytest.approx(FOCAL, rel=1e-6)
    assert estimate_focal(stretched, (MIDDLE, MIDDLE)) != pytest.approx(FOCAL, rel=0.01)


def test_a_clear_pose_draws_nothing(local, world, random, monkeypatch):
    """Drawing takes tens of milliseconds, and each frame would."""
    for name in ('_solve_pnp', '_register'):
        monkeypatch.setattr(pointmap_pose, name, None)
    wrong = random.random((SIDE, SIDE)) < 0.2
    noise = 1 + 0.003 * random.normal(size=world.shape)
    found = estimate_pose(spoilt(world, wrong, random) * noise, SURE, CAMERA, 3 * local)
    assert max(errors(found)) < 0.05 and found.inliers > 0.75


def test_a_pose_in_doubt_is_drawn_by_few_points(monkeypatch):
    """What is drawn is judged by 500 of the 4000 points: to look at each takes nearly all the time."""
    pixels = pixel_grid(128, 128)
    points = np.dstack([(pixels - 63.5) / 120, np.ones((128, 128))]) * (2 + np.sin(pixels[..., :1] / 9))
    random = np.random.default_rng(4)
    wrong = random.random((128, 128)) < 0.6
    looked = 0
    solve, residuals = cv2.solvePnPRansac, registration._residuals

    def count_solve(*arguments, **options):
        nonlocal looked
        looked += len(arguments[0]) * options['iterationsCount']
        return solve(*arguments, **options)

    def count_residuals(*arguments):
        nonlocal looked
        looked += (found := residuals(*arguments)).size
        return found

    monkeypatch.setattr(cv2, 'solvePnPRansac', count_solve)
    monkeypatch.setattr(registration, '_residuals', count_residuals)
    camera = Intrinsics(120.0, 120.0, 63.5, 63.5)
    found = estimate_pose(spoilt(points, wrong, random), np.ones((128, 128)), camera, 3 * points)
    assert np.abs(found.T_world_camera - np.eye(4)).max() < 0.01
    assert found.inliers == pytest.approx(0.4, abs=0.03)
    assert 0 < looked < 300_000  # all points would be eight times that


def test_the_refined_pose_is_where_the_cost_is_least(local, world, random):
    """Huber's cost of the residuals, each pixel's column and row apart, beside what a general solver finds."""
    moved = world + 0.01 * random.normal(size=world.shape)
    found = estimate_pose(moved, SURE, CAMERA, local)
    points, pixels = moved.reshape(-1, 3)[::2], pixel_grid(SIDE, SIDE).reshape(-1, 2)[::2]
    guess = np.linalg.inv(found.T_world_camera)

    def residuals(step):
        T = rigid(Rotation.from_rotvec(step[:3]).as_matrix(), step[3:]) @ guess
        seen = transform(T, points)
        return (FOCAL * seen[:, :2] / seen[:, 2:] + MIDDLE - pixels).ravel()

    assert np.abs(residuals(np.zeros(6))).max() < 6  # so all of them count
    best = least_squares(residuals, np.zeros(6), loss='huber', xtol=1e-12, ftol=1e-12, gtol=1e-12)
    assert np.abs(best.x).max() < 1e-5
