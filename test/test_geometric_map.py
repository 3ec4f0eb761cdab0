# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The start from two views, and the map: triangulation, borrowed depth, merged points, adjustment."""

import numpy as np
import pytest
from geometric_scenes import FOCAL, camera, make_map, project

from slam3r_ros.engines.geometric import local_mapping
from slam3r_ros.engines.geometric.adjust import FocalPrior
from slam3r_ros.engines.geometric.initialise import Initialiser, Sight
from slam3r_ros.engines.geometric.local_mapping import adjust_all, extend, thin
from slam3r_ros.engines.geometric.sparse_map import Features, PointState, SparseKeyframe, SparseMap, triangulate
from slam3r_ros.mapping.frames import transform

PRIOR = FocalPrior(0.85 * 640, 0.25 * 0.85 * 640)


@pytest.fixture
def random():
    """Return a generator with a fixed seed."""
    return np.random.default_rng(0)


@pytest.fixture
def points(random):
    """Return a cloud between 2 and 6 units ahead, (N, 3)."""
    z = random.uniform(2, 6, 300)
    return np.column_stack([random.uniform(-0.5, 0.5, (300, 2)) * z[:, None], z])


def first_map(path: list[np.ndarray], points: np.ndarray, random: np.random.Generator, focals: list[float],
              prior: FocalPrior | None) -> tuple[SparseMap | None, int]:
    """Feed cameras to an initialiser until it has a map; return it and the number of frames."""
    start = Initialiser(640)
    for id, T in enumerate(path):
        pixels = project(T, points) + random.normal(0, 0.2, (len(points), 2))
        sight = Sight(id, np.arange(len(points)), pixels, np.zeros((8, 8, 3), np.uint8))
        if start.faded(sight):
            start.restart(sight)
            continue
        found = start.add(sight, focals, prior, len(points))
        if found is not None:
            return found, id
    return None, len(path)


def test_start_with_known_focal_length(random, points):
    path = [camera((0, -0.01 * i, 0), (0.06 * i, 0, 0)) for i in range(20)]
    sparse, last = first_map(path, points, random, [FOCAL], None)
    assert 2 <= last < 16
    assert sparse.focal == FOCAL
    np.testing.assert_array_equal(sparse.keyframes[0].T_camera_world, np.eye(4))
    assert 3 <= len(sparse.keyframes) <= 5
    assert np.median(np.concatenate([sparse.depths(k)[1] for k in sparse.keyframes])) == pytest.approx(1)
    good = sparse.good(np.arange(300))
    scale = np.median(points[good, 2] / sparse.positions[:300][good, 2])
    error = np.linalg.norm(scale * sparse.positions[:300] - points, axis=1)[good]
    assert good.sum() > 250 and np.median(error) < 0.1


def test_start_with_unknown_focal_length(random, points):
    path = [camera((0.03 * np.sin(i), -0.05 * i, 0.02 * i), (0.1 * i, 0.02 * i, 0.05 * i)) for i in range(20)]
    sparse, _ = first_map(path, points, random, [384.0, 544.0, 768.0], PRIOR)
    assert sparse.focal == pytest.approx(FOCAL, rel=0.15)


@pytest.mark.parametrize('path', [
    [camera((0, 0, 0), (0, 0, 0))] * 40,  # stands still
    [camera((0, -0.01 * i, 0), (0, 0, 0)) for i in range(40)],  # turns on the spot
], ids=['still', 'turning'])
def test_no_start_without_parallax(random, points, path):
    assert first_map(path, points, random, [FOCAL], None)[0] is None


def test_waiting_keeps_few_images():
    start = Initialiser(640)
    for id in range(1500):
        sight = Sight(id, np.arange(100), np.zeros((100, 2)), np.zeros((8, 8, 3), np.uint8))
        if start.faded(sight):
            start.restart(sight)
        else:
            assert start.add(sight, [FOCAL], None, 100) is None
    assert sum(sight.image is not None for sight in start.sights) <= 33
    assert len(start.sights) <= 601 and start.sights[0].id == 0 and start.sights[-1].id == 1499


def test_triangulated_points(points):
    a, b = camera((0, 0, 0), (0, 0, 0)), camera((0, -0.1, 0), (0.4, 0, 0))
    found, sound = triangulate(a, b, project(a, points), project(b, points), FOCAL)
    assert sound.mean() > 0.95
    np.testing.assert_allclose(found, points, atol=1e-9)
    near = camera((0, 0, 0), (0.01, 0, 0))  # too near for an angle
    assert not triangulate(a, near, project(a, points), project(near, points), FOCAL)[1].any()
    assert not triangulate(a, b, project(a, points), project(b, points) + [0, 9], FOCAL)[1].any()


def test_map_triangulates_then_lends(points):
    sparse = make_map(points, [camera((0, 0, 0), (0.2 * i, 0, 0)) for i in range(3)])
    newest = sparse.keyframes[-1]
    for keyframe in sparse.keyframes[:2]:  # forty tracks began in the newest keyframe only
        keyframe.ids, keyframe.pixels = keyframe.ids[40:], keyframe.pixels[40:]
    sparse.triangulate(newest)
    assert sparse.good(np.arange(40, 300)).all()
    np.testing.assert_allclose(sparse.positions[40:300], points[40:], atol=1e-9)
    sparse.lend_depth(newest)
    assert (sparse.states[:40] == PointState.BORROWED).all()
    np.testing.assert_allclose(project(newest.T_camera_world, sparse.positions[:40]), newest.pixels[:40], atol=1e-6)
    assert 2 <= transform(newest.T_camera_world, sparse.positions[:40])[:, 2].min() <= 6


def test_points_grow_as_needed():
    sparse = SparseMap(FOCAL)
    ids = np.concatenate([sparse.allocate(3000) for _ in range(5)])
    np.testing.assert_array_equal(ids, np.arange(15000))
    assert len(sparse.positions) == len(sparse.states) >= 15000
    assert not sparse.states[ids].any()


def test_merged_points_are_one(random, points):
    sparse = make_map(points, [np.eye(4), np.eye(4)], random)
    first = sparse.keyframes[0]
    first.ids, first.pixels = first.ids[10:], first.pixels[10:]  # sees 10.., so 0 can stand for 10 but there only
    table = sparse.merge(np.array([10]), np.array([0]))
    assert table[10] == 0 and table[11] == 11
    assert 0 in first.ids and 10 not in first.ids
    for keyframe in sparse.keyframes:
        assert len(set(keyframe.ids)) == len(keyframe.ids) == len(keyframe.pixels)
    assert sparse.states[10] == PointState.BAD


def test_outliers_leave_the_map(random, points):
    sparse = make_map(points, [camera((0, -0.03 * i, 0), (0.2 * i, 0, 0)) for i in range(5)])
    sparse.positions[:300], sparse.states[:300] = points, PointState.GOOD
    sparse.keyframes[2].pixels[:5] += 30  # wrong in one keyframe
    for keyframe in sparse.keyframes:
        keyframe.pixels[5:8] += random.uniform(-60, 60, (3, 2))  # wrong everywhere
    rms = sparse.adjust([1, 2, 3, 4], [0], 20)
    assert rms < 1
    assert not np.isin(np.arange(5), sparse.keyframes[2].ids).any()
    assert np.isin(np.arange(5), sparse.keyframes[1].ids).all()
    assert (sparse.states[5:8] == PointState.BAD).all()
    assert sparse.good(np.arange(8, 300)).all()


def test_wide_adjustment_keeps_gauge_and_scale(random, points):
    path = [camera((0, -0.03 * i, 0), (0.2 * i, 0, 0)) for i in range(8)]
    sparse = make_map(points, path)
    sparse.positions[:300], sparse.states[:300] = points, PointState.GOOD
    for keyframe in sparse.keyframes[1:]:
        keyframe.T_camera_world = camera(random.normal(0, 0.01, 3), random.normal(0, 0.03, 3)) @ keyframe.T_camera_world
    adjust_all(sparse, None, 20)
    np.testing.assert_array_equal(sparse.keyframes[0].T_camera_world, np.eye(4))
    for keyframe, T in zip(sparse.keyframes, path):
        np.testing.assert_allclose(keyframe.T_camera_world, T, atol=0.05)


def test_work_and_memory_of_a_keyframe_do_not_grow(random, monkeypatch):
    monkeypatch.setattr(local_mapping, 'MAX_WIDE', 15)
    monkeypatch.setattr(local_mapping, 'WIDE_AT', range(1, 10))
    points = random.uniform([-1, -1, 2], [13, 1, 5], (600, 3))
    descriptors = random.integers(0, 100, (600, 128)).astype(np.uint8)
    sparse, known = SparseMap(FOCAL), np.full(len(points), -1)  # the points' ids
    for number in range(60):
        T = camera((0, 0, 0), (0.2 * number, 0, 0))
        if number == 40:  # tracks are lost: from here on known points are found by their descriptors
            known[:] = -1
        pixels = project(T, points)
        seen = np.flatnonzero((np.abs(pixels) < 300).all(1))
        new = seen[known[seen] < 0]
        known[new] = sparse.allocate(len(new))
        features = Features(known[seen], pixels[seen], descriptors[seen])
        table = extend(sparse, SparseKeyframe(number, T, known[seen], pixels[seen], features), 7, None)
        known = np.where(known < 0, -1, table[known])
        if len(sparse.keyframes) > 30:
            assert all(gone.features is None and not len(gone.ids) for gone, _ in thin(sparse))
            known = np.where(known < 0, -1, sparse.compact()[known])
            held = np.concatenate([part.ids for k in sparse.keyframes for part in (k, k.features)])
            assert set(held) == set(range(sparse.count)) and len(sparse.states) == sparse.count < 600
        assert len(sparse.keyframes) <= 30 and len(sparse.keyframes) + sparse.forgotten == number + 1
        there = {keyframe.id for keyframe in sparse.keyframes}
        assert set(range(max(0, number - 14), number + 1)) <= there  # an adjustment may still move these
    by_id = {keyframe.id: keyframe for keyframe in sparse.keyframes}
    before = np.concatenate([keyframe.ids for id, keyframe in by_id.items() if id < 40])
    assert np.isin(by_id[46].ids, before).any()  # joined to what was seen before
    adjust_all(sparse, None, 3)
    steps = np.diff([by_id[id].centre for id in range(50, 60)], axis=0)
    np.testing.assert_allclose(steps, [[0.2, 0, 0]] * 9, atol=0.01)
