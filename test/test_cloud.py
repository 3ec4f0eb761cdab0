# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The bounded map cloud."""

from dataclasses import replace

import numpy as np
from meshing_scenes import HEIGHT, WIDTH, keyframe, room_depth, room_poses

from slam3r_ros.mapping.cloud import MapCloud, keyframe_points
from slam3r_ros.mapping.frames import rigid

PIXELS = WIDTH * HEIGHT


def frames(count=5):
    return [keyframe(room_depth(pose), pose, id=10 * i) for i, pose in enumerate(room_poses(count))]


def test_points_are_in_the_map_and_coloured():
    frame = frames(1)[0]
    frame.confidence[:10] = 0
    frame.pointmap[20] = np.nan
    xyz, rgb = keyframe_points(frame)
    assert len(xyz) == len(rgb) == PIXELS - 11 * WIDTH
    assert xyz.dtype == np.float32 and rgb.dtype == np.uint8
    pose = frame.pose.T_map_camera
    assert np.allclose(xyz[0], pose[:3, :3] @ frame.pointmap[10, 0] + pose[:3, 3], atol=1e-5)
    assert np.array_equal(rgb[0], frame.colors[10, 0])


def test_decimation():
    frame = frames(1)[0]
    assert len(keyframe_points(frame, stride=4)[0]) == (HEIGHT // 4) * (WIDTH // 4)
    xyz, _ = keyframe_points(frame, voxel_size=0.1)
    assert len(np.unique(np.floor(xyz / 0.1), axis=0)) == len(xyz) < PIXELS / 4
    assert len(keyframe_points(replace(frame, confidence=frame.confidence * 0.3), min_confidence=0.5)[0]) == 0
    assert len(keyframe_points(replace(frame, pointmap=None))[0]) == 0


def test_a_revision_replaces_and_a_duplicate_does_not():
    cloud, (one, two, *_) = MapCloud(), frames()
    assert cloud.insert(one) and cloud.insert(two) and not cloud.insert(one)
    moved = replace(one, revision=1, pose=replace(one.pose, T_map_camera=rigid(np.eye(3), np.array([0, 0, 50.0]))))
    assert cloud.insert(moved) and not cloud.insert(one) and not cloud.insert(replace(one, pointmap=None, revision=2))
    xyz, _ = cloud.points()
    assert len(cloud) == len(xyz) == 2 * PIXELS
    assert (xyz[:, 2] > 40).sum() == PIXELS


def test_oldest_keyframe_goes_first_and_stays_away():
    cloud, some = MapCloud(max_points=int(2.5 * PIXELS)), frames()
    for frame in some:
        cloud.insert(frame)
        assert len(cloud) <= 2.5 * PIXELS
    expected = np.concatenate([keyframe_points(frame)[0] for frame in some[-2:]])
    assert np.array_equal(cloud.points()[0], expected)
    assert not cloud.insert(replace(some[0], revision=9))
    assert np.array_equal(cloud.points()[0], expected)


def test_one_keyframe_beyond_the_bound_is_thinned():
    cloud = MapCloud(max_points=1000)
    cloud.insert(frames(1)[0])
    assert 500 < len(cloud) <= 1000


def test_changed_and_cached():
    cloud, (one, two, *_) = MapCloud(), frames()
    cloud.insert(one)
    assert cloud.changed
    first = cloud.points()
    assert not cloud.changed and cloud.points()[0] is first[0]
    cloud.insert(two)
    assert cloud.changed and len(cloud.points()[0]) == 2 * PIXELS and len(first[0]) == PIXELS


def test_another_map_clears():
    cloud, (one, two, *_) = MapCloud(), frames()
    cloud.insert(one)
    cloud.insert(replace(two, map_id=1))
    assert len(cloud.points()[0]) == PIXELS
    cloud.clear()
    assert cloud.changed and len(cloud) == len(cloud.points()[0]) == 0
