# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from slam3r_ros.mapping.frames import rigid
from slam3r_ros.mapping.trajectory import read_tum
from slam3r_ros.values import Intrinsics, Pose
from slam3r_ros.video.raycast import Light, Rectangle, Scene
from slam3r_ros.video.source import open_source
from slam3r_ros.video.synthetic import CAMERA, DEPTH_EVERY, DEPTH_SCALE, DEPTH_SHRINK, render, room, trajectory

ROOM = Path(__file__).parent / 'data' / 'room'


@pytest.fixture(scope='module')
def scene():
    return room(seed=0)


def depth_by_numpy(scene, T, camera, width, height):
    """The oracle of the ray caster: every ray against every rectangle."""
    _, _, corner, across, up, normal = scene._geometry
    u, v = np.meshgrid(np.arange(width), np.arange(height))
    rays = np.stack([(u - camera.cx) / camera.fx, (v - camera.cy) / camera.fy, np.ones(u.shape)], -1) @ T[:3, :3].T
    best = np.full(u.shape, np.inf)
    for c, a, b, n in zip(corner, across, up, normal):
        facing = rays @ n
        with np.errstate(divide='ignore', invalid='ignore'):
            t = (n @ (c - T[:3, 3])) / facing
            where = T[:3, 3] + t[..., None] * rays - c
        x, y = where @ a, where @ b
        hit = (facing < 0) & (t > 0) & (x >= 0) & (x <= 1) & (y >= 0) & (y <= 1) & (t < best)
        best[hit] = t[hit]
    return best


def psnr(image, other):
    return 10 * np.log10(255**2 / np.square(image.astype(float) - other).mean())


def test_depth_agrees_with_plain_numpy(scene):
    T = next(trajectory(1, seed=0))
    camera = CAMERA.scaled(1 / 16, 1 / 16)
    np.testing.assert_allclose(scene.depth(T, camera, 40, 30), depth_by_numpy(scene, T, camera, 40, 30), rtol=1e-9)


def test_a_picture_is_the_texture_where_the_light_is_even():
    texture = np.zeros((40, 40, 3), np.float32)
    texture[:20], texture[:, :20, 1] = (0.9, 0, 0), 0.5  # red above, green at the left
    wall = Rectangle(np.array([-1.0, 1, 2]), np.array([2.0, 0, 0]), np.array([0, -2.0, 0]), texture)
    scene = Scene([[wall]], [], ambient=1.0)
    image = scene.render(np.eye(4), Intrinsics(20, 20, 9.5, 9.5), 20, 20) ** (1 / 2.2)
    np.testing.assert_allclose(image[4, 4], (0.9, 0.5, 0), atol=1e-3)
    np.testing.assert_allclose(image[4, 15], (0.9, 0, 0), atol=1e-3)
    np.testing.assert_allclose(image[15, 4], (0, 0.5, 0), atol=1e-3)


def test_lamps_cast_shadows_and_obey_the_square_of_the_distance():
    def brightness(height, shade):
        grey = np.full((8, 8, 3), 0.5, np.float32)
        floor = Rectangle(np.array([-1.0, -1, 0]), np.array([2.0, 0, 0]), np.array([0, 2.0, 0]), grey)
        board = Rectangle(np.array([-1.0, -1, 0.5]), np.array([0, 2.0, 0]), np.array([2.0, 0, 0]), grey)  # faces down
        small = np.array([1e-3, 0, 0]), np.array([0, 1e-3, 0])
        lamp = Light(np.array([0, 0, height]), *small, np.full(3, 4.0))
        scene = Scene([[floor], [board]] if shade else [[floor]], [lamp], ambient=0.0)
        looking_down = rigid(np.diag([1.0, -1, -1]), np.array([0, 0, 0.4]))
        return scene.render(looking_down, Intrinsics(20, 20, 2, 2), 5, 5)[2, 2, 0]

    assert brightness(4.0, False) == pytest.approx(brightness(2.0, False) / 4, rel=0.05)
    assert brightness(2.0, True) == 0


def test_the_bundled_clip_is_small_and_of_the_promised_kind():
    files = [path for path in ROOM.rglob('*') if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 3_000_000
    content = json.loads((ROOM / 'intrinsics.json').read_text())
    assert Intrinsics(**content['rgb']) == CAMERA
    assert len(list((ROOM / 'depth').glob('*.png'))) == 30


def test_the_bundled_clip_is_what_the_script_makes(scene):
    poses = read_tum(ROOM / 'groundtruth.tum')
    expected = list(trajectory(300, seed=0))
    np.testing.assert_allclose([pose.T_map_camera for pose in poses], expected, atol=1e-8)
    frames = [frame for frame, _ in zip(open_source(str(ROOM / 'video.mp4')), range(42))][::20]
    assert [frame.stamp for frame in frames] == [pose.stamp for pose in poses[:42:20]]
    for frame, image in zip(frames, render(scene, [Pose(i, 0, expected[i]) for i in (0, 20, 40)], seed=0)):
        assert psnr(frame.image, image) > 30  # dB
    assert psnr(frames[1].image, next(render(scene, [Pose(21, 0, expected[21])], seed=0))) < 25  # one frame off
    shape = 640 // DEPTH_SHRINK, 480 // DEPTH_SHRINK
    depth = scene.depth(expected[DEPTH_EVERY], CAMERA.scaled(1 / DEPTH_SHRINK, 1 / DEPTH_SHRINK), *shape)
    image = cv2.imread(str(ROOM / 'depth' / '000010.png'), cv2.IMREAD_UNCHANGED)
    assert image.dtype == np.uint16
    np.testing.assert_allclose(image / DEPTH_SCALE, depth, atol=6e-4)


def test_the_walk_is_hand_held_and_starts_sideways():
    T = np.array(list(trajectory(300, seed=0)))
    steps = np.diff(T[:, :3, 3], axis=0)
    assert 8 < np.linalg.norm(steps, axis=1).sum() < 12
    moved = T[0, :3, :3].T @ (T[30, :3, 3] - T[0, :3, 3])  # in the first camera
    assert abs(moved[0]) > 0.3 and abs(moved[0]) > 2 * abs(moved[2])
    np.testing.assert_allclose(np.einsum('nij,nkj->nik', T[:, :3, :3], T[:, :3, :3]), np.tile(np.eye(3), (300, 1, 1)),
                               atol=1e-12)
