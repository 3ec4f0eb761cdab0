# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The overview picture."""

import cv2
import numpy as np
import pytest
from meshing_scenes import keyframe, room_depth, room_poses

from slam3r_ros.meshing.export import ExportError
from slam3r_ros.meshing.mesher import BlockMesher
from slam3r_ros.meshing.render import render_overview

BLUE, RED = (30, 80, 230), (225, 35, 35)
EMPTY = np.empty((0, 3), np.float32), np.empty((0, 3), np.uint8), np.empty((0, 3), np.uint32)


def drawn(path):
    """Return the picture (H, W, 3) RGB."""
    return cv2.imread(str(path))[..., ::-1].astype(int)


def pixels_of(picture, color, tolerance=12):
    return int((np.abs(picture - color).max(axis=-1) <= tolerance).sum())


@pytest.fixture(scope='module')
def room():
    mesher = BlockMesher(0.05)
    poses = np.array(room_poses(20))
    for i, pose in enumerate(poses):
        mesher.integrate(keyframe(room_depth(pose), pose, id=i))
    return mesher.mesh(), poses


def test_room_shows_in_its_colours_with_the_path(tmp_path, room):
    mesh, poses = room
    render_overview(tmp_path / 'overview.png', *mesh, poses)
    picture = drawn(tmp_path / 'overview.png')
    assert picture.shape[1] == 1600 and 700 <= picture.shape[0] <= 1000
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 5000
    background = pixels_of(picture, (244, 245, 247), 2) / picture[..., 0].size
    assert 0.2 < background < 0.75
    for half in (picture[:, :640], picture[:, -480:]):
        assert pixels_of(half, BLUE) > 30 and pixels_of(half, RED) > 30


def test_stray_triangles_do_not_shrink_the_room(tmp_path, room):
    (vertices, colors, triangles), poses = room
    render_overview(tmp_path / 'clean.png', vertices, colors, triangles, poses)
    stray = np.array([[500, 0, 0], [501, 0, 0], [500, 1, 0]], np.float32)
    render_overview(tmp_path / 'stray.png', np.concatenate((vertices, stray)), np.concatenate((colors, colors[:3])),
                    np.concatenate((triangles, [[len(vertices) + i for i in range(3)]])), poses)
    clean, spoilt = drawn(tmp_path / 'clean.png'), drawn(tmp_path / 'stray.png')
    assert clean.shape == spoilt.shape and (np.abs(clean - spoilt).max(axis=-1) > 20).mean() < 0.1


@pytest.mark.parametrize('positions, visible', [
    (np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0.2], [0, 2, 0]]), True), (np.eye(4)[None], False),
    (np.zeros((5, 3)), False), (np.empty((0, 3)), False)], ids=['path', 'pose', 'rest', 'nothing'])
def test_no_mesh_shows_just_the_path(tmp_path, positions, visible):
    render_overview(tmp_path / 'path.png', *EMPTY, positions)
    picture = drawn(tmp_path / 'path.png')
    assert (pixels_of(picture, BLUE) > 30) == visible
    assert pixels_of(picture, (244, 245, 247), 2) > 0.8 * picture[..., 0].size


def test_the_mesh_hides_the_path_behind_it(tmp_path):
    """A path under a table top that faces up shines through only faintly."""
    vertices = np.array([[-1, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]], np.float32)
    triangles = np.array([[0, 1, 2], [0, 2, 3]], np.uint32)
    counts = []
    for height in (-0.1, 0.1):
        path = np.array([[-0.5, 0.05, height], [0, -0.05, height], [0.5, 0, height]])
        render_overview(tmp_path / 'table.png', vertices, np.full((4, 3), 240, np.uint8), triangles, path)
        counts.append(pixels_of(drawn(tmp_path / 'table.png'), BLUE, 60))
    assert counts[0] < 0.05 * counts[1]


def test_an_unwritable_place_is_an_error(tmp_path):
    with pytest.raises(ExportError, match='cannot be written'):
        render_overview(tmp_path / 'no' / 'overview.png', *EMPTY, np.zeros((2, 3)))
