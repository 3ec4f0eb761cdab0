# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Dense depth: the choice of views, the check between depth maps, and the thread around them."""

import threading
import time

import cv2
import numpy as np
import pytest
from test_sweep import CAMERA, FRONTAL, SHAPE, STEP, camera_at, render

from slam3r_ros.engines.geometric import stereo
from slam3r_ros.engines.geometric.consistency import agreement
from slam3r_ros.engines.geometric.depth import LAG, DenseMapper, DepthError, View
from slam3r_ros.engines.geometric.views import choose_neighbours, choose_witnesses, shrink
from slam3r_ros.mapping.frames import invert, rigid, transform
from slam3r_ros.values import Intrinsics

STEPS = np.arange(8) * 0.12


def view_at(id, x, surfaces=STEP, keyframe=True):
    """Return a view and its true depth."""
    pose = camera_at(x, 0.02 * (id % 2))
    grey, depth = render(pose, surfaces)
    image = np.repeat((grey * 255).astype(np.uint8)[..., None], 3, axis=2)
    return View(id, image, pose, 1.4, 2.7, keyframe), depth


@pytest.fixture
def mapper():
    mappers = []

    def make(**options):
        mappers.append(DenseMapper(width=96, planes=48, **options))
        return mappers[-1]

    yield make
    for each in mappers:
        each.close()


def latest(maps):
    return {depth_map.id: depth_map for depth_map in maps}


def wait_until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, 'waited in vain'
        time.sleep(0.005)


def agreement_twin(depth, camera, others, tolerance):
    """Carry one pixel after the other."""
    count, total = np.zeros(depth.shape, int), depth.astype(float)
    for (y, x), z in np.ndenumerate(depth.astype(float)):
        if z <= 0:
            continue
        point = np.array([(x - camera.cx) / camera.fx * z, (y - camera.cy) / camera.fy * z, z])
        for other_depth, other_camera, T in others:
            there = transform(T, point)
            u, v, w = other_camera.matrix() @ there
            column, row = int(np.floor(u / w + 0.5)), int(np.floor(v / w + 0.5))
            if 0 <= row < other_depth.shape[0] and 0 <= column < other_depth.shape[1]:
                other = float(other_depth[row, column])
                if other > 0 and abs(other - there[2]) < tolerance * there[2]:
                    count[y, x] += 1
                    total[y, x] += transform(invert(T), there * other / there[2])[2]
    return count, total / (count + 1)


def test_agreement_equals_its_twin():
    random = np.random.default_rng(3)
    depth = (2 + 0.1 * random.random((12, 16))).astype(np.float32)
    depth[2:4, 5:9] = 0
    others = []
    for x in (0.1, -0.2):
        turn = cv2.Rodrigues(np.array([0.02, x / 5, 0.01]))[0]
        other = (2 + 0.1 * random.random((10, 14))).astype(np.float32)
        others.append((other, Intrinsics(18.0, 18.0, 6.5, 4.5), rigid(turn, np.array([x, 0.02, 0.05]))))
    count, mean = agreement(depth, Intrinsics(20.0, 20.0, 7.5, 5.5), others, 0.03)
    expected_count, expected_mean = agreement_twin(depth, Intrinsics(20.0, 20.0, 7.5, 5.5), others, 0.03)
    np.testing.assert_array_equal(count, expected_count)
    np.testing.assert_allclose(mean, expected_mean, rtol=1e-5)
    assert {0, 1, 2} <= set(count.ravel().tolist())


def test_neighbours_have_a_good_baseline_and_stand_apart():
    xs = [0.001, 0.13, 0.14, -0.13, 0.3, 1.0]
    poses = np.array([camera_at(x) for x in xs])
    assert choose_neighbours(np.eye(4), poses, 1.0, 4) == [1, 3, 4]
    turned = np.array([rigid(cv2.Rodrigues(np.array([0, 0.6, 0]))[0], np.array([0.13, 0, 0]))])
    assert choose_neighbours(np.eye(4), turned, 1.0, 4) == []
    assert choose_neighbours(np.eye(4), np.empty((0, 4, 4)), 1.0, 4) == []


def test_witnesses_are_the_nearest():
    poses = np.array([camera_at(x) for x in (0.5, 0.1, -0.2)])
    assert choose_witnesses(np.eye(4), poses, 1.0, 2) == [1, 2]


def test_shrink_keeps_the_aspect_and_never_enlarges():
    view = View(0, np.zeros((480, 640, 3), np.uint8), np.eye(4), 1, 2)
    assert shrink(view, 224).grey.shape == (168, 224)
    assert shrink(View(0, view.image.transpose(1, 0, 2), np.eye(4), 1, 2), 224).grey.shape == (224, 168)
    assert shrink(view, 1000).scale == (1, 1)


def test_depth_of_a_step(mapper):
    dense = mapper()
    truth = {}
    maps = []
    for id, x in enumerate(STEPS):
        view, truth[id] = view_at(id, x)
        dense.add(view, CAMERA)
        maps += dense.collect()
    maps += dense.finish()
    assert set(latest(maps)) == set(truth)
    assert len(maps) <= 2 * len(truth)
    for id, depth_map in latest(maps).items():
        believed = depth_map.confidence > 0
        error = np.abs(depth_map.depth / truth[id] - 1)[believed]
        assert believed.mean() > 0.5
        assert np.median(error) < 0.01
        assert np.quantile(error, 0.97) < 0.05
        assert depth_map.confidence.max() <= 1
        assert depth_map.depth.dtype == depth_map.confidence.dtype == np.float32
        assert depth_map.intrinsics == CAMERA
        flying = believed & (depth_map.depth > 1.6) & (depth_map.depth < 2.4)  # between the two surfaces
        assert flying.mean() < 0.002
        window = np.ones((5, 5), np.uint8)
        farthest = cv2.dilate(np.where(believed, depth_map.depth, 0), window)
        nearest = cv2.erode(np.where(believed, depth_map.depth, 9), window)
        assert (farthest < 1.2 * nearest)[believed].all()  # no pixel beside a jump
    assert dense.milliseconds['sweep'] > 0


def test_what_no_neighbour_sees_has_no_confidence(mapper):
    dense = mapper()
    maps = []
    for id, x in enumerate(STEPS[:5]):
        dense.add(view_at(id, x)[0], CAMERA)
    maps = latest(dense.finish())
    # the first camera stands leftmost: its left columns are out of sight of every other, by more than the first step
    gone = int(CAMERA.fx * STEPS[1] / 2.6) - 1
    assert gone >= 3
    assert not (maps[0].confidence[:, :gone] > 0).any()


def test_a_wall_without_texture_has_no_confidence(mapper):
    dense = mapper()
    for id, x in enumerate(STEPS[:5]):
        dense.add(view_at(id, x, [(FRONTAL, 2.0, -np.inf, False)])[0], CAMERA)
    maps = dense.finish()
    assert maps
    assert not any((depth_map.confidence > 0).any() for depth_map in maps)


def test_depth_comes_when_later_keyframes_have_come(mapper):
    dense = mapper()
    maps = []
    for id, x in enumerate(STEPS):
        dense.add(view_at(id, x)[0], CAMERA)
        wait_until(lambda: not dense._ready())
        new = dense.collect()
        assert all(depth_map.id <= id - LAG for depth_map in new)
        maps += new
    assert maps
    assert not set(latest(maps)) & set(range(len(STEPS) - LAG, len(STEPS)))
    assert {len(STEPS) - 1, len(STEPS) - 2} <= set(latest(dense.finish()))
    assert dense.finish() == []


def test_other_views_serve_as_neighbours_only(mapper):
    dense = mapper()
    for id, x in enumerate(STEPS):
        dense.add(view_at(id, x, keyframe=id % 2 == 0)[0], CAMERA)
    assert set(latest(dense.finish())) == {0, 2, 4, 6}


def test_moved_poses_count(mapper):
    """Neighbours that stand wrong give depth only after `move` has put them right."""
    wrong, right = mapper(queue=len(STEPS)), mapper(queue=len(STEPS))
    for dense in (wrong, right):
        poses = {}
        for id, x in enumerate(STEPS):
            view, _ = view_at(id, x)
            poses[id] = view.T_world_camera
            shifted = camera_at(x, 0.1 * (id % 3))
            dense.add(View(id, view.image, shifted, view.near, view.far, keyframe=False), CAMERA)
        if dense is right:
            dense.move({**poses, 99: np.eye(4)}, CAMERA)
        for id in range(len(STEPS), len(STEPS) + 4):
            dense.add(view_at(id, STEPS[id - 6] + 0.05)[0], CAMERA)
    shares = [np.mean([(depth_map.confidence > 0).mean() for depth_map in d.finish()]) for d in (wrong, right)]
    assert shares[1] > 0.4
    assert shares[1] > 1.3 * shares[0]


def test_the_newest_intrinsics_count(mapper):
    dense = mapper()
    for id, x in enumerate(STEPS):
        dense.add(view_at(id, x)[0], CAMERA)
    dense.move({}, CAMERA._replace(fx=101.0))
    assert latest(dense.finish())[len(STEPS) - 1].intrinsics.fx == 101


def test_depth_made_with_a_wrong_focal_length_is_made_anew(mapper):
    dense = mapper()
    maps = []
    for id, x in enumerate(STEPS):
        dense.add(view_at(id, x)[0], CAMERA._replace(fx=90.0, fy=90.0))
    wait_until(lambda: not dense._ready())
    maps = latest(dense.collect())
    assert maps
    dense.move({}, CAMERA)
    maps.update(latest(dense.finish()))
    anew = [depth_map for depth_map in maps.values() if depth_map.intrinsics == CAMERA]
    assert len(anew) >= stereo.ANEW_AT_ONCE + LAG


def test_memory_is_bounded(mapper):
    dense = mapper(neighbours=1)
    blank = np.zeros((*SHAPE, 3), np.uint8)
    for id in range(150):
        dense.add(View(id, blank, camera_at(0.12 * id), 1.4, 2.7, keyframe=id % 2 == 0), CAMERA)
    assert len(dense._views) == len(dense._poses) < 80
    dense.finish()
    assert len(dense._stereo._estimates) <= len(dense._views)


@pytest.fixture
def gate(monkeypatch):
    """Hold every sweep until the event is set."""
    event = threading.Event()
    sweep = stereo.sweep

    def held(*arguments):
        event.wait(60)
        return sweep(*arguments)

    def close():
        monkeypatch.setattr(stereo, 'sweep', held)
        return event

    yield close
    event.set()


def test_a_full_queue_skips_and_counts(mapper, gate):
    dense = mapper(queue=2, lossless=False)
    event = gate()
    for id, x in enumerate(STEPS):
        dense.add(view_at(id, x)[0], CAMERA)
    assert dense.skipped == len(STEPS) - 2 - LAG
    event.set()
    assert set(latest(dense.finish())) == set(range(2 + LAG))


def test_what_waits_is_not_forgotten(mapper, gate):
    dense = mapper(lossless=False)
    event = gate()
    for id in range(60):
        dense.add(view_at(id, 0.12 * id)[0], CAMERA)
    event.set()
    assert 5 in latest(dense.finish())


def test_a_full_queue_blocks_when_lossless(mapper, gate):
    dense = mapper(queue=1)
    event = gate()
    added = []

    def feed():
        for id, x in enumerate(STEPS):
            dense.add(view_at(id, x)[0], CAMERA)
            added.append(id)

    feeder = threading.Thread(target=feed)
    feeder.start()
    wait_until(lambda: len(added) == 1 + LAG)
    feeder.join(0.2)
    assert feeder.is_alive()
    assert len(added) == 1 + LAG
    event.set()
    feeder.join(60)
    assert set(latest(dense.finish())) == set(range(len(STEPS)))
    assert dense.skipped == 0


def test_an_error_on_the_thread_reaches_the_caller(mapper, monkeypatch):
    dense = mapper()

    def fail(*_):
        raise MemoryError('no room for costs')

    monkeypatch.setattr(stereo, 'sweep', fail)
    with pytest.raises(DepthError, match='no room for costs'):
        for id, x in enumerate(STEPS):
            dense.add(view_at(id, x)[0], CAMERA)
        dense.finish()
    for call in (dense.collect, dense.finish, lambda: dense.move({}, CAMERA)):
        with pytest.raises(DepthError, match='no room for costs'):
            call()
    dense.close()
    assert not dense._thread.is_alive()


@pytest.mark.parametrize('near, far', [(0.0, 1.0), (2.0, 1.0), (float('nan'), 1.0), (1.0, float('inf'))])
def test_a_bad_depth_range_is_named(mapper, near, far):
    with pytest.raises(DepthError, match='view 7 has the depth range'):
        mapper().add(View(7, np.zeros((*SHAPE, 3), np.uint8), np.eye(4), near, far), CAMERA)


def test_close_leaves_no_thread_and_says_so():
    before = set(threading.enumerate())
    dense = DenseMapper(width=96, planes=48)
    for id, x in enumerate(STEPS[:4]):
        dense.add(view_at(id, x)[0], CAMERA)
    dense.close()
    dense.close()
    assert set(threading.enumerate()) <= before
    with pytest.raises(DepthError, match='closed'):
        dense.collect()


def test_finish_without_views_is_empty(mapper):
    assert mapper().finish() == []
