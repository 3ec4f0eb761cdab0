# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Marching cubes over blocks."""

from collections import Counter

import numpy as np
import pytest
import trimesh
from meshing_scenes import blocks_of, random_blocks

from slam3r_ros.meshing import kernels_cpu, marching_cubes, reference
from slam3r_ros.meshing.cleaning import weld
from slam3r_ros.meshing.lattice import CORNERS
from slam3r_ros.meshing.marching_cubes import CELL_EDGES, TRIANGLES

VOXEL = 0.05


def extract(*blocks):
    return list(marching_cubes.extract(kernels_cpu, *blocks, VOXEL))


def joined(surfaces):
    start, parts = 0, []
    for vertices, _, triangles in surfaces:
        parts.append(triangles.astype(int) + start)
        start += len(vertices)
    return weld(np.concatenate([s[0] for s in surfaces]), np.concatenate([s[1] for s in surfaces]),
                np.concatenate(parts))


def test_table_uses_just_the_crossed_edges_and_faces_outward():
    for case in range(256):
        inside = case >> np.arange(8) & 1
        used = TRIANGLES[case][TRIANGLES[case, :, 0] >= 0]
        crossed = {i for i, (corner, axis) in enumerate(CELL_EDGES) if inside[corner] != inside[corner | 1 << axis]}
        assert set(used.ravel().tolist()) == crossed
        middle = CORNERS[CELL_EDGES[:, 0]] + 0.5 * np.eye(3)[CELL_EDGES[:, 1]]  # (12, 3)
        a, b, c = np.moveaxis(middle[used], 1, 0)
        toward_outside = np.where(inside[CELL_EDGES[:, 0]] == 1, 1, -1)[:, None] * np.eye(3)[CELL_EDGES[:, 1]]
        normals = np.cross(b - a, c - a)
        assert np.linalg.norm(normals, axis=-1).min(initial=1) > 0.01
        assert (np.einsum('tj,tij->t', normals, toward_outside[used]) > 0).all()


def test_random_fields_give_closed_surfaces():
    """All 256 cases, next to each other in every way: each edge has two triangles, one in each direction."""
    distance = np.random.default_rng(0).uniform(-1, 1, (24, 24, 24))
    distance[[0, -1]] = distance[:, [0, -1]] = distance[:, :, [0, -1]] = 0.5
    _, _, triangles = joined(extract(*blocks_of(distance)))
    assert len(triangles) > 10000
    edges = Counter(map(tuple, triangles[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2).tolist()))
    assert set(edges.values()) == {1}
    assert all((b, a) in edges for a, b in edges)


def test_sphere_is_watertight_and_true():
    x, y, z = np.mgrid[:32, :32, :32]
    radius = 9.7
    distance = np.sqrt((x - 15.3)**2 + (y - 16.1)**2 + (z - 14.9)**2) - radius
    vertices, _, triangles = joined(extract(*blocks_of(np.clip(distance / 4, -1, 1))))
    mesh = trimesh.Trimesh(vertices, triangles, process=False)
    assert mesh.is_watertight and mesh.is_winding_consistent and mesh.euler_number == 2
    assert mesh.volume == pytest.approx(4 / 3 * np.pi * (radius * VOXEL)**3, rel=0.02)  # positive: normals outward
    centre = (np.array([15.3, 16.1, 14.9]) - 8) * VOXEL
    assert np.abs(np.linalg.norm(vertices - centre, axis=1) - radius * VOXEL).max() < 0.05 * VOXEL


def test_surface_exactly_through_corners_stays_closed():
    x, y, z = np.mgrid[:24, :24, :24] - 12
    cube = np.maximum(np.maximum(abs(x), abs(y)), abs(z)) - 5
    vertices, _, triangles = joined(extract(*blocks_of(cube / 8)))
    mesh = trimesh.Trimesh(vertices, triangles, process=False)
    assert mesh.is_watertight and mesh.area_faces.min() > 0


@pytest.mark.parametrize('min_weight', [1, 30])
def test_extraction_is_that_of_the_twin(min_weight):
    sums, slots, indices = random_blocks()
    ours = kernels_cpu.march(sums, slots, indices, VOXEL, min_weight)
    for one, other in zip(ours, reference.march(sums, slots, indices, VOXEL, min_weight), strict=True):
        assert one.dtype == other.dtype and np.array_equal(one, other)
    assert len(ours[2]) > 50


def test_vertices_are_shared_inside_a_block():
    for vertices, _, triangles in extract(*random_blocks()):
        assert len(np.unique(vertices, axis=0)) == len(vertices) == len(np.unique(triangles))


def test_color_is_interpolated():
    x = np.mgrid[:8, :8, :8][0]
    surface = extract(*blocks_of((x - 3.25) / 8, np.where(x < 3.5, 100, 200)[..., None] * [1, 0, 1]))[0]
    assert np.allclose(surface[0][:, 0], (3.25 - 8) * VOXEL)
    assert (np.abs(surface[1].astype(int) - [125, 0, 125]) <= 1).all()
