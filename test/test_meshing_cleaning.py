# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Normals, specks, and fewer triangles."""

import numpy as np
import pytest
from meshing_scenes import ROOM, keyframe, room_depth, room_poses

from slam3r_ros.meshing.cleaning import decimate, remove_small_components, weld
from slam3r_ros.meshing.mesher import BlockMesher
from slam3r_ros.meshing.normals import face_normals, vertex_normals


def grid(side=20):
    """Return a flat square facing up, of unit edge, red on the left and blue on the right, and its triangles."""
    x, y = np.meshgrid(np.linspace(0, 1, side + 1), np.linspace(0, 1, side + 1), indexing='ij')
    vertices = np.stack((x, y, 0 * x), axis=-1).reshape(-1, 3).astype(np.float32)
    colors = np.where(vertices[:, :1] < 0.5, [[200, 0, 0]], [[0, 0, 200]]).astype(np.uint8)
    corner = (np.arange(side)[:, None] * (side + 1) + np.arange(side)).ravel()
    along, up = corner + side + 1, corner + 1
    triangles = np.concatenate((np.stack((corner, along, up), axis=-1), np.stack((along, along + 1, up), axis=-1)))
    return vertices, colors, triangles.astype(np.uint32)


def area(vertices, triangles):
    return np.linalg.norm(face_normals(vertices.astype(float), triangles), axis=1).sum() / 2


def test_a_plane_keeps_its_shape_its_border_and_its_colours():
    vertices, colors, triangles = decimate(*grid(), 100)  # of 800
    assert 2 <= len(triangles) <= 100 and len(colors) == len(vertices) < 100
    assert triangles.max() == len(vertices) - 1
    assert area(vertices, triangles) == pytest.approx(1, abs=0.05)  # corners may be cut
    assert (face_normals(vertices, triangles)[:, 2] > 0).all()  # none is turned over
    left, right = colors[vertices[:, 0] < 0.3].mean(axis=0), colors[vertices[:, 0] > 0.7].mean(axis=0)
    assert np.abs(left - [200, 0, 0]).max() < 20 and np.abs(right - [0, 0, 200]).max() < 20


def test_a_room_with_a_tenth_of_its_triangles_is_still_that_room():
    mesher = BlockMesher(0.05, device='cpu')
    for i, pose in enumerate(room_poses(20)):
        mesher.integrate(keyframe(room_depth(pose), pose, id=i))
    mesh = weld(*mesher.mesh())
    fewer = decimate(*mesh, len(mesh[2]) // 10)
    assert len(fewer[2]) <= len(mesh[2]) // 10
    assert area(fewer[0], fewer[2]) == pytest.approx(area(mesh[0], mesh[2]), rel=0.05)
    off = np.abs(fewer[0][:, None] - ROOM).min(axis=(1, 2))  # of the walls
    assert off.mean() < 0.2 * mesher.voxel_size
    assert [part.dtype for part in fewer] == [part.dtype for part in mesh]


def test_what_is_small_enough_stays_as_it_is():
    mesh = grid(3)
    assert all(a is b for a, b in zip(decimate(*mesh, 18), mesh, strict=True))
    empty = mesh[0][:0], mesh[1][:0], mesh[2][:0]
    assert len(decimate(*empty, 5)[2]) == 0
    with pytest.raises(ValueError, match='ask for one at least'):
        decimate(*mesh, 0)


def test_vertex_normals_weigh_by_area_and_know_of_none():
    vertices = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 3], [5, 5, 5]], np.float32)
    triangles = np.array([[0, 1, 2], [0, 2, 3], [4, 4, 4]], np.uint32)
    normals = vertex_normals(vertices, triangles)
    np.testing.assert_allclose(normals[1], [0, 0, 1])
    np.testing.assert_allclose(normals[0], np.array([3, 0, 1]) / np.sqrt(10))  # the second is three times as large
    assert not normals[4].any()


def test_pieces_of_few_triangles_go_with_their_vertices():
    vertices, colors, triangles = grid(3)
    speck = vertices[triangles[0]] + 5
    together = weld(np.concatenate((speck, vertices)), np.concatenate((colors[:3], colors)),
                    np.concatenate(([[0, 1, 2]], triangles + 3)))
    kept = remove_small_components(*together, 2)
    assert len(kept[0]) == len(kept[1]) == len(vertices) and len(kept[2]) == len(triangles)
    assert kept[0].max() == 1 and area(kept[0], kept[2]) == pytest.approx(1)
    assert len(remove_small_components(*together, 1)[2]) == len(triangles) + 1
    assert not any(map(len, remove_small_components(*together, 100)))
