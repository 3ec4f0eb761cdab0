# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The pace of meshing, and what the mesher tells about its speed."""

from dataclasses import replace

import numpy as np
import pytest
from meshing_scenes import keyframe

from slam3r_ros.mapping.frames import rigid
from slam3r_ros.meshing.figures import MeshFigures
from slam3r_ros.meshing.pace import SLOWDOWN, Pace
from slam3r_ros.values import Pose


def at(seconds, x, **kwargs):
    """Return a keyframe of a camera x units along."""
    pose = Pose(int(seconds * 100), int(seconds * 1e9), rigid(np.eye(3), np.array([x, 0.0, 0.0])))
    return replace(keyframe(np.ones((2, 2))), pose=pose, **kwargs)


def drive(pace, speed, seconds=2.0, every=0.1, start=0.0):
    """Let the camera go along; return where it ends."""
    for t in np.arange(0, seconds, every):
        pace.see(at(start + t, speed * t))
    return start + seconds


def turns(pace, count=4 * SLOWDOWN):
    return [pace.due() for _ in range(count)]


def test_a_fast_camera_gets_every_fourth_turn():
    pace = Pace(1.0)
    assert all(turns(pace))
    drive(pace, 0.9)
    assert pace.speed == pytest.approx(0.9) and all(turns(pace))
    drive(pace, 1.1, start=10.0)
    assert pace.fast and turns(pace) == [False, False, False, True] * 4


def test_it_goes_on_at_once_when_the_camera_has_slowed_down():
    pace = Pace(1.0)
    end = drive(pace, 3.0)
    pace.due()
    drive(pace, 0.0, start=end + 1.0)
    assert pace.due()


def test_a_camera_that_rests_makes_no_keyframes_and_gets_the_rest_soon():
    pace = Pace(1.0)
    drive(pace, 3.0)
    assert any(turns(pace, SLOWDOWN))


def test_zero_is_never_fast():
    pace = Pace(0.0)
    drive(pace, 1e6)
    assert all(turns(pace))


@pytest.mark.parametrize('every', [0.033, 0.1, 2.0])
def test_the_speed_is_that_of_the_stamps_however_far_apart(every):
    pace = Pace(1.0)
    drive(pace, 0.7, seconds=8.0, every=every)
    assert pace.speed == pytest.approx(0.7)


def test_jitter_of_close_keyframes_is_no_speed():
    pace = Pace(1.0)
    for i in range(30):
        pace.see(at(i / 30, 0.05 * (i % 2)))  # 1.5 units a second from one to the next
    assert pace.speed < 0.2


def test_revisions_and_jumps_are_no_motion():
    pace = Pace(1.0)
    drive(pace, 0.5)
    pace.see(at(0.3, 500.0, revision=1))
    assert pace.speed == pytest.approx(0.5)
    pace.see(at(3.0, 100.0, relocalised=True))
    assert pace.speed == 0
    pace.see(at(4.0, 100.5))
    assert pace.speed == pytest.approx(0.5)
    pace.see(at(0.1, -100.0, map_id=1))
    assert pace.speed == 0


def test_figures_count_updates_and_time_from_the_oldest_keyframe():
    figures = MeshFigures()
    assert figures.values(0.0) == {'mesh_fps': 0.0, 'latency_ms': 0.0}
    for now in np.arange(0, 10, 0.5):
        figures.keyframe_came(now)
        figures.keyframe_came(now + 0.1)
        figures.published(now + 0.2)
    assert figures.values(10.0) == {'mesh_fps': 2.0, 'latency_ms': 200.0}
    assert figures.values(15.05)['mesh_fps'] == 1.0


def test_updates_of_long_ago_are_forgotten_though_nobody_reads_the_figures():
    figures = MeshFigures()
    for now in range(1000):
        figures.published(now)
    assert len(figures._updates) <= 11


def test_keyframes_that_nothing_shows_do_not_wait():
    figures = MeshFigures()
    figures.keyframe_came(0.0)
    figures.nothing_to_show()
    figures.keyframe_came(100.0)
    figures.published(100.1)
    assert figures.values(101.0)['latency_ms'] == 100.0
