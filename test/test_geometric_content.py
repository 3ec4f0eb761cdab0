# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What cameras show when they show nothing good: black, white, blur, a still view, turns on the spot, people."""

import os
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import pytest
from geometric_scenes import HEIGHT, WIDTH, Room, stream, texture, walk

from slam3r_ros.engines.geometric import keyframe_policy
from slam3r_ros.engines.geometric.adjust import rotate
from slam3r_ros.engines.geometric.engine import GeometricEngine
from slam3r_ros.mapping.frames import rigid
from slam3r_ros.mapping.registration import similarity
from slam3r_ros.values import State
from slam3r_ros.video.source import open_source

MISC = Path(os.environ.get('SLAM3R_DATA', '/nonexistent')) / 'videos_misc'
STEP = 0.05  # units a frame


@pytest.fixture(scope='module')
def room():
    """Return the room that all look at."""
    return Room()


@pytest.fixture(scope='module')
def images(room):
    """Return forty images of a walk."""
    return [room.render(T) for T in walk(0, STEP, 40)]


@pytest.fixture
def engine():
    """Return an engine without depth."""
    return GeometricEngine(dense=False, max_features=350)


def run(engine, images, first: int = 0) -> tuple[list, list]:
    """Return poses, None where there is none, and states; the frames are numbered from `first`."""
    poses, states = [], []
    for frame in stream(images, first):
        poses.append(engine.process(frame).pose)
        states.append(engine.state)
    return poses, states


def worst(poses, path) -> float:
    """Return the largest distance of the poses there are to the true ones, after a similarity."""
    there = [i for i, pose in enumerate(poses) if pose is not None]
    found = np.array([poses[i].T_map_camera[:3, 3] for i in there])
    truth = np.array([path[i][:3, 3] for i in there])
    return float(np.linalg.norm(similarity(found, truth).apply(found) - truth, axis=1).max())


@pytest.mark.parametrize('value', [0, 255])
def test_blind_camera_says_nothing_against_a_young_map(engine, images, value):
    blind = [np.full_like(images[0], value)] * 45
    poses, states = run(engine, images[:12] + blind + images[14:20])
    assert states[12] == State.LOST and set(states[13:57]) == {State.RELOCALIZING}
    assert engine.map_id == 0 and set(states[57:]) == {State.TRACKING}
    path = walk(0, STEP, 40)
    assert worst(poses, path[:12] + path[:1] * 45 + path[14:20]) < 0.02


@pytest.mark.parametrize('value', [0, 255])
def test_start_in_the_dark_or_in_glare(engine, images, value):
    poses, states = run(engine, [np.full_like(images[0], value)] * 20 + images[:15])
    assert set(states[:20]) == {State.INITIALIZING} and states[-1] == State.TRACKING
    assert len(engine._tracker._initialiser.sights) == 0 and poses[-1] is not None


def test_still_camera_makes_no_keyframes_and_does_not_drift(engine, images, monkeypatch):
    monkeypatch.setattr(keyframe_policy, '_FEW_POINTS', 1000)  # even where points are few
    random = np.random.default_rng(0)
    still = [np.clip(images[24] + random.normal(0, 4, images[24].shape), 0, 255).astype(np.uint8) for _ in range(50)]
    poses, states = run(engine, images[:25] + still)
    assert set(states[25:]) == {State.TRACKING}
    assert engine._tracker.map.keyframes[-1].id <= 30
    places = np.array([pose.T_map_camera[:3, 3] for pose in poses[30:]])
    assert np.linalg.norm(places - poses[24].T_map_camera[:3, 3], axis=1).max() < 0.01


def test_still_camera_never_starts(engine, images):
    random = np.random.default_rng(0)
    still = [np.clip(images[0] + random.normal(0, 4, images[0].shape), 0, 255).astype(np.uint8) for _ in range(60)]
    poses, states = run(engine, still)
    assert set(states) == {State.INITIALIZING} and not any(poses)
    assert sum(sight.image is not None for sight in engine._tracker._initialiser.sights) <= 33
    _, states = run(engine, images, 60)  # and starts as soon as it moves
    assert states[-1] == State.TRACKING and len(engine.trajectory()) > 60


def test_snow_leaves_nothing_behind(engine, images):
    random = np.random.default_rng(0)
    poses, states = run(engine, [random.integers(0, 255, images[0].shape, np.uint8) for _ in range(20)])
    assert set(states) == {State.INITIALIZING} and not any(poses)
    assert engine._tracker.map.count < 1000 and len(engine._tracker._initialiser.sights) < 5
    _, states = run(engine, images[:15], 20)
    assert states[-1] == State.TRACKING


def test_blur_is_survived(engine, images, room):
    blurred = [cv2.GaussianBlur(room.render(T), (0, 0), 14) for T in walk(20 * STEP, STEP, 12)]
    path = walk(0, STEP, 20) + walk(20 * STEP, STEP, 12) + walk(0, STEP, 40)[32:]
    poses, states = run(engine, images[:20] + blurred + images[32:])
    assert set(states[-5:]) == {State.TRACKING} and engine.map_id == 0
    assert worst(poses, path) < 0.05


def test_pause_is_survived(engine, images):
    path = walk(0, STEP, 40)
    poses, states = run(engine, images[:20] + images[34:])  # the camera was carried on meanwhile
    assert states[-1] == State.TRACKING and engine.map_id == 0
    assert any(keyframe.relocalised for keyframe in (record.sent for record in engine._records.values())) \
        or State.LOST not in states
    assert worst(poses, path[:20] + path[34:]) < 0.05


def turned(degrees: float) -> np.ndarray:
    """Return T_world_camera (4, 4) of a camera at the end of a walk that is turned to the side there."""
    end = walk(4, STEP, 25)[-1]
    return rigid(rotate(end[:3, :3], [0, np.radians(degrees), 0]), end[:3, 3])


def test_turn_on_the_spot_and_back(engine, room):
    angles = [*np.arange(0, 36, 1.5), *np.arange(36, -1, -1.5)]
    path = walk(4, STEP, 25) + [turned(angle) for angle in angles]
    poses, states = run(engine, [room.render(T) for T in path])
    assert set(states[25:]) == {State.TRACKING}
    assert worst(poses, path) < 0.05
    unit = np.linalg.norm(poses[24].T_map_camera[:3, 3] - poses[4].T_map_camera[:3, 3]) / (20 * STEP)
    places = np.array([pose.T_map_camera[:3, 3] for pose in poses[25:]]) / unit
    assert np.linalg.norm(places - places[0], axis=1).max() < 0.08
    map = engine._tracker.map
    walked, turned_ids = (np.concatenate([k.features.ids for k in map.keyframes if (k.id < 25) == walking])
                          for walking in (True, False))
    new = np.setdiff1d(turned_ids, walked)
    assert len(new) > 200 and map.good(new).mean() < 0.05  # nothing is mapped where nothing has parallax


def test_turn_on_the_spot_does_not_start(engine, room):
    path = [turned(angle) for angle in np.arange(0, 30, 1.0)]
    poses, states = run(engine, [room.render(T) for T in path])
    assert set(states) == {State.INITIALIZING} and not any(poses)


def test_people_who_pass_do_not_carry_the_camera_away(engine, images):
    person = np.dstack([texture(200, 110, seed) for seed in (7, 8, 9)])  # more than a quarter of the image
    passed = []
    for number, image in enumerate(images):
        x, image = 9 * number - 110, image.copy()
        left, right = max(x, 0), min(x + 110, WIDTH)
        if left < right:
            image[HEIGHT - 200:, left:right] = person[:, left - x:right - x]
        passed.append(image)
    poses, states = run(engine, passed)
    first = states.index(State.TRACKING)
    assert first < 15 and set(states[first:]) == {State.TRACKING}
    assert worst(poses, walk(0, STEP, 40)) < 0.04  # of 2 units


@pytest.mark.skipif(not MISC.is_dir(), reason='SLAM3R_DATA names no folder of real clips')
@pytest.mark.parametrize('name', ['skating_30fps.mp4', 'lady_running_davis_mpeg4.mp4', 'redkitchen_1fps.mp4'])
def test_clips_of_moving_people(engine, name):
    source = open_source(str(MISC / name))
    count = 0
    for frame in islice(source, 80):
        output = engine.process(frame)
        count += 1
        if output.pose is not None:
            assert np.isfinite(output.pose.T_map_camera).all()
            assert np.linalg.norm(output.pose.T_map_camera[:3, 3]) < 100  # median depths
    source.close()
    engine.finish()
    assert count > 10 and engine.map_id <= 2
