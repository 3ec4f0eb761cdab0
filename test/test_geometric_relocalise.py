# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Poses from known points, and cameras found again by descriptors."""

import numpy as np
import pytest
from geometric_scenes import FOCAL, make_map, project, texture

from slam3r_ros.engines.geometric.adjust import rotate
from slam3r_ros.engines.geometric.pose import estimate_pose
from slam3r_ros.engines.geometric.relocalise import Descriptor, considered, match, relocalise
from slam3r_ros.engines.geometric.sparse_map import PointState, SparseMap
from slam3r_ros.mapping.frames import rigid

TRUTH = rigid(rotate(np.eye(3), [0.1, -0.2, 0.05]), np.array([0.2, -0.1, 0.3]))


@pytest.fixture
def random():
    """Return a generator with a fixed seed."""
    return np.random.default_rng(0)


@pytest.fixture
def points(random):
    """Return points in front of the cameras, (N, 3)."""
    return random.uniform(-1, 1, (200, 3)) * [1, 1, 0.5] + [0, 0, 2]


@pytest.mark.parametrize('guess', [None, np.eye(4), rigid(rotate(np.eye(3), [0, 1.5, 0]), np.zeros(3))])
def test_pose_despite_outliers(random, points, guess):
    pixels = project(TRUTH, points) + random.normal(0, 0.3, (200, 2))
    wrong = random.random(200) < 0.3
    pixels[wrong] = random.uniform(-250, 250, (wrong.sum(), 2))
    pose = estimate_pose(points, pixels, FOCAL, guess)
    np.testing.assert_allclose(pose.T_camera_world, TRUTH, atol=5e-3)
    assert pose.inliers[~wrong].mean() > 0.99
    assert pose.inliers[wrong].mean() < 0.1


def test_one_wild_point_does_not_pull(points):
    points[0] = np.linalg.inv(TRUTH)[:3] @ [0.5, 0.5, 0.02, 1]  # all but in the camera's plane
    pixels = project(TRUTH, points)
    pixels[0] = 0
    guess = rigid(rotate(TRUTH[:3, :3], [0.02, 0.01, 0]), TRUTH[:3, 3] + 0.02)
    np.testing.assert_allclose(estimate_pose(points, pixels, FOCAL, guess).T_camera_world, TRUTH, atol=1e-6)


def test_too_few_or_senseless_points_give_no_pose(random, points):
    assert estimate_pose(points[:8], project(TRUTH, points)[:8], FOCAL) is None
    assert estimate_pose(points, random.uniform(-250, 250, (200, 2)), FOCAL) is None


def test_where_there_are_many_keyframes_the_newest_and_some_others_are_considered(random):
    assert considered(16, random, 8).tolist() == list(range(16))
    drawn = [considered(100, random, 8) for _ in range(50)]
    assert all(len(set(each.tolist())) == 16 and each[-8:].tolist() == list(range(92, 100)) for each in drawn)
    assert len(np.unique(drawn)) > 90


def test_matches_are_mutual_and_distinct(random):
    a = random.integers(0, 100, (50, 128)).astype(np.uint8)
    order = random.permutation(50)
    b = np.clip(a[order] + random.integers(-3, 4, a.shape), 0, 255).astype(np.uint8)
    rows, columns = match(a, b)
    np.testing.assert_array_equal(order[columns], rows)
    assert len(rows) == 50
    twins = np.concatenate([b, b])
    assert len(match(a, twins)[0]) == 0
    assert len(match(a, b, allowed=np.zeros((50, 50), bool))[0]) == 0
    assert len(match(a[:0], b)[0]) == len(match(a, b[:0])[0]) == 0


def known_map(random, points: np.ndarray) -> SparseMap:
    """Return a map of the points with two keyframes at the origin."""
    sparse = make_map(points, [np.eye(4)] * 2, random)
    sparse.positions[:len(points)], sparse.states[:len(points)] = points, PointState.GOOD
    return sparse


def test_camera_is_found_again(random, points):
    sparse = known_map(random, points)
    order = random.permutation(len(points))
    descriptors = np.clip(sparse.keyframes[0].features.descriptors[order] + random.integers(-4, 5, (200, 128)), 0, 255)
    pixels = project(TRUTH, points[order]) + random.normal(0, 0.5, (200, 2))
    found = relocalise(sparse, np.array([1, 0]), descriptors.astype(np.uint8), pixels)
    np.testing.assert_allclose(found.pose.T_camera_world, TRUTH, atol=0.02)
    np.testing.assert_array_equal(found.ids, order[found.rows])
    assert len(found.ids) > 150


def test_camera_elsewhere_is_not_found(random, points):
    sparse = known_map(random, points)
    descriptors = random.integers(0, 100, (200, 128)).astype(np.uint8)
    assert relocalise(sparse, np.array([0, 1]), descriptors, project(TRUTH, points)) is None
    lying = sparse.keyframes[0].features.descriptors  # the right patches at senseless places
    assert relocalise(sparse, np.array([0]), lying, random.uniform(-250, 250, (200, 2))) is None


def test_descriptors_tell_corners_apart(random):
    image = texture()
    pixels = random.uniform([30, 30], [290, 210], (40, 2))
    descriptor = Descriptor()
    here = descriptor.describe(image, pixels)
    there = descriptor.describe(np.roll(image, 6, axis=1), pixels + [6, 0])
    rows, columns = match(here, there)
    assert here.shape == (40, 128) and here.dtype == np.uint8
    assert (rows == columns).all() and len(rows) > 35
    assert descriptor.describe(image, pixels, scales=True).shape == (120, 128)
    assert descriptor.describe(image, pixels[:0]).shape == (0, 128)
