# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The Poisson surface; Open3D is faked where its absence and its crashes are what matters."""

import signal

import numpy as np
import pytest
from meshing_scenes import around, keyframe, sphere_depth
from open3d_mark import NEEDS_OPEN3D

from slam3r_ros.meshing.cleaning import weld
from slam3r_ros.meshing.mesher import BlockMesher
from slam3r_ros.meshing.normals import face_normals
from slam3r_ros.meshing.poisson import PoissonError, reconstruct, smooth


def ball(number=20_000, noise=0.0):
    """Return points of the unit sphere, their normals, and colours that tell up from down."""
    normals = np.random.default_rng(0).normal(size=(number, 3))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    points = normals * (1 + noise * np.random.default_rng(1).normal(size=(number, 1)))
    return points, normals, np.where(normals[:, 2:] > 0, [[250, 0, 0]], [[0, 0, 250]]).astype(np.uint8)


@NEEDS_OPEN3D
def test_noisy_points_of_a_ball_become_a_smooth_closed_one():
    vertices, colors, triangles = reconstruct(*ball(noise=0.02), depth=6)
    assert vertices.dtype == np.float32 and colors.dtype == np.uint8 and triangles.dtype == np.uint32
    radius = np.linalg.norm(vertices, axis=1)
    assert abs(radius.mean() - 1) < 0.003 and radius.std() < 0.01
    edges = np.sort(triangles[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), axis=1)
    assert (np.unique(edges, axis=0, return_counts=True)[1] == 2).all()  # closed
    outward = face_normals(vertices, triangles)
    assert (np.einsum('ij,ij->i', outward, vertices[triangles[:, 0]]) > 0).mean() > 0.999
    high, low = vertices[:, 2] > 0.2, vertices[:, 2] < -0.2
    assert np.abs(colors[high].mean(axis=0) - [250, 0, 0]).max() < 3
    assert np.abs(colors[low].mean(axis=0) - [0, 0, 250]).max() < 3


@NEEDS_OPEN3D
def test_what_nobody_saw_stays_open_and_bad_points_do_no_harm():
    points, normals, colors = ball()
    seen = points[:, 0] < 0.7
    points, normals, colors = points[seen], normals[seen], colors[seen]
    points[0], points[1], normals[2], normals[3] = np.nan, np.inf, np.nan, 0
    vertices, *_ = reconstruct(points, normals, colors, depth=6)
    assert 0.65 < vertices[:, 0].max() < 0.8  # no lid
    assert np.abs(np.linalg.norm(vertices, axis=1) - 1).max() < 0.05


@NEEDS_OPEN3D
def test_a_mesh_from_views_is_smoothed():
    mesher = BlockMesher(0.05, device='cpu')
    rng = np.random.default_rng(0)
    for i, pose in enumerate(around(30, 2.0)):
        depth = sphere_depth(pose)
        mesher.integrate(keyframe(depth + 0.02 * rng.standard_normal(depth.shape), pose, id=i))
    mesh = weld(*mesher.mesh())
    vertices, _, triangles = smooth(*mesh, mesher.voxel_size)
    assert len(triangles) > 0.3 * len(mesh[2])  # cells as large as voxels
    rough, even = (np.linalg.norm(each, axis=1) for each in (mesh[0], vertices))
    assert even.std() < 0.8 * rough.std() and abs(even.mean() - rough.mean()) < 0.02 * mesher.voxel_size


@pytest.mark.parametrize('points', [np.empty((0, 3)), np.zeros((99, 3)), np.full((500, 3), np.nan), np.ones((500, 3))])
def test_too_few_points_are_an_error(points):
    with pytest.raises(PoissonError, match='map more first'):
        reconstruct(points, np.ones_like(points), np.zeros(points.shape, np.uint8), depth=6)
    with pytest.raises(PoissonError, match='map more first'):
        smooth(np.empty((0, 3), np.float32), np.empty((0, 3), np.uint8), np.empty((0, 3), np.uint32), 0.05)


@pytest.mark.parametrize('code, message', [
    ("raise ModuleNotFoundError('no', name='open3d')", 'pip install open3d-cpu'),
    ("raise ModuleNotFoundError('no', name='dash')", 'dash; pip install open3d-cpu'),
    ("raise ImportError('libusb-1.0.so.0: cannot open shared object file')", 'apt install libusb-1.0-0'),
    ('import os; os.abort()', 'status -6 on 20000 points at depth 6'),
    ('import sys, numpy as np; np.savez(sys.argv[2], vertices=[], colors=[], triangles=[]); sys.exit()', 'no surface'),
], ids=['absent', 'partly', 'libusb', 'crash', 'nothing'])
def test_what_is_missing_or_fails_is_said(tmp_path, monkeypatch, code, message):
    (tmp_path / 'open3d').mkdir()
    (tmp_path / 'open3d' / '__init__.py').write_text(code)
    monkeypatch.setenv('PYTHONPATH', str(tmp_path))
    with pytest.raises(PoissonError, match=message):
        reconstruct(*ball(), depth=6)


def test_an_interrupt_ends_it_even_when_whoever_started_it_ignores_them(tmp_path, monkeypatch):
    (tmp_path / 'open3d.py').write_text('import os, signal; os.kill(os.getpid(), signal.SIGINT)')
    monkeypatch.setenv('PYTHONPATH', str(tmp_path))
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a node that is ending does
    try:
        with pytest.raises(PoissonError, match='status -2 on'):
            reconstruct(*ball(), depth=6)
    finally:
        signal.signal(signal.SIGINT, before)
