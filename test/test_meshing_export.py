# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Mesh and cloud files."""

import json
import os
import struct

import numpy as np
import pytest
import trimesh

from slam3r_ros.meshing.cleaning import weld
from slam3r_ros.meshing.export import ExportError, write_cloud, write_mesh


def two_triangles():
    """Return a mesh of two triangles that share an edge, and a far speck."""
    table = [[0, 0, 0], [1, 0, 0], [0, 0, 2], [1, 0, 0], [1, 0, 2], [0, 0, 2]]
    vertices = np.array(table + [[9, 9, 9], [9, 8, 9], [9, 9, 8]], np.float32)
    red, green, blue, other = [255, 0, 0], [0, 255, 0], [0, 0, 255], [10, 128, 200]
    colors = np.array([red, green, blue, green, other, blue] + [[7, 8, 9]] * 3, np.uint8)
    return weld(vertices, colors, np.arange(9, dtype=np.uint32).reshape(3, 3))


def looked_up(mesh, colors, position):
    """Return the colour of the vertex there."""
    return colors[np.argmin(np.linalg.norm(mesh.vertices - position, axis=1)), :3].tolist()


def test_ply_round_trip(tmp_path):
    write_mesh(tmp_path / 'mesh.ply', *two_triangles())
    assert (tmp_path / 'mesh.ply').read_bytes().startswith(b'ply\nformat binary_little_endian 1.0')
    mesh = trimesh.load_mesh(tmp_path / 'mesh.ply', process=False)
    assert mesh.vertices.shape == (7, 3) and mesh.faces.shape == (3, 3)
    assert looked_up(mesh, mesh.visual.vertex_colors, (1, 0, 2)) == [10, 128, 200]
    assert mesh.face_normals[0].tolist() == [0, -1, 0]


def test_glb_is_y_up_with_normals_and_linear_colours(tmp_path):
    write_mesh(tmp_path / 'mesh.glb', *two_triangles())
    mesh = trimesh.load_mesh(tmp_path / 'mesh.glb', process=False)
    up = looked_up(mesh, mesh.visual.vertex_colors, (0, 2, 1))  # map x forward, z up -> glTF z forward, y up
    assert np.abs(np.subtract(up, [1, 55, 147])).max() <= 1  # 10, 128, 200 without the sRGB curve
    assert mesh.face_normals[0].tolist() == [-1, 0, 0]  # map -y is right, glTF -x is right: not mirrored
    data = (tmp_path / 'mesh.glb').read_bytes()
    tree = json.loads(data[20:20 + struct.unpack('<I', data[12:16])[0]])
    assert 'NORMAL' in tree['meshes'][0]['primitives'][0]['attributes']


def test_cloud_round_trip(tmp_path):
    points = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    colors = np.random.default_rng(1).integers(0, 256, (50, 3)).astype(np.uint8)
    write_cloud(tmp_path / 'cloud.ply', points, colors)
    cloud = trimesh.load(tmp_path / 'cloud.ply')
    assert np.array_equal(cloud.vertices.astype(np.float32), points)
    assert np.array_equal(cloud.colors[:, :3], colors)


def test_a_full_disk_leaves_the_old_file_and_is_named(tmp_path, monkeypatch):
    path = tmp_path / 'mesh.ply'
    path.write_bytes(b'old')

    def fail(*_):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(os, 'fsync', fail)
    with pytest.raises(ExportError, match='No space left') as error:
        write_mesh(path, *two_triangles())
    assert str(path) in str(error.value)
    assert path.read_bytes() == b'old' and list(tmp_path.iterdir()) == [path]


def test_errors_name_the_file_and_the_way_out(tmp_path):
    nothing = np.empty((0, 3), np.float32), np.empty((0, 3), np.uint8), np.empty((0, 3), np.uint32)
    for path, mesh, hint in ((tmp_path / 'mesh.obj', two_triangles(), '.ply or .glb'),
                             (tmp_path / 'mesh', two_triangles(), '.ply or .glb'),
                             (tmp_path / 'mesh.ply', nothing, 'empty'),
                             (tmp_path / 'mesh.glb', nothing, 'empty'),
                             (tmp_path / 'no' / 'mesh.ply', two_triangles(), 'no folder')):
        with pytest.raises(ExportError, match=hint) as error:
            write_mesh(path, *mesh)
        assert str(path) in str(error.value)
    with pytest.raises(ExportError, match='use a name that ends in .ply$'):
        write_cloud(tmp_path / 'cloud.glb', *two_triangles()[:2])
    with pytest.raises(ExportError, match='empty'):
        write_cloud(tmp_path / 'cloud.ply', *nothing[:2])
    (tmp_path / 'folder.ply').mkdir()
    with pytest.raises(ExportError, match='directory'):
        write_mesh(tmp_path / 'folder.ply', *two_triangles())
    assert [path.name for path in tmp_path.iterdir()] == ['folder.ply']
