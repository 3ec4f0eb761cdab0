# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The mesher's job done by Open3D's VoxelBlockGrid, with the same voxels, blocks and truncation."""

import time
from typing import Any

import numpy as np

from slam3r_ros.bench.rooms import CAMERA, SIGHT, VOXEL
from slam3r_ros.mapping.frames import invert
from slam3r_ros.meshing.lattice import EDGE
from slam3r_ros.meshing.poisson import load_open3d
from slam3r_ros.values import Keyframe

TRUNCATION = 4.0  # voxels
BLOCKS = 20_000  # room for them from the start


class Open3DGrid:
    """A voxel block grid on the CPU, whose every voxel that was seen counts."""

    def __init__(self) -> None:
        """Make an empty grid.

        Raises:
            ImportError: Open3D is missing.
        """
        self._open3d = load_open3d()
        core = self._open3d.core
        self._grid = self._open3d.t.geometry.VoxelBlockGrid(
            ('tsdf', 'weight', 'color'), (core.float32,) * 3, (1, 1, 3), VOXEL, EDGE, BLOCKS, core.Device('CPU:0'))
        # A voxel takes the pixel that its image, rounded down, falls into: with half a pixel more, the nearest one.
        self._camera = core.Tensor(CAMERA._replace(cx=CAMERA.cx + 0.5, cy=CAMERA.cy + 0.5).matrix())

    def prepare(self, keyframe: Keyframe) -> tuple[Any, Any, Any]:
        """Return the depth image, the colour image and the pose as Open3D wants them."""
        tensor, image = self._open3d.core.Tensor, self._open3d.t.geometry.Image
        depth = np.nan_to_num(keyframe.pointmap[..., 2])
        colors = keyframe.colors.astype(np.float32) / 255
        return image(tensor(depth)), image(tensor(colors)), tensor(invert(keyframe.pose.T_map_camera))

    def integrate(self, view: tuple[Any, Any, Any]) -> None:
        """Fuse what `prepare` returned."""
        depth, colors, T_camera_map = view
        limits = 1.0, SIGHT, TRUNCATION  # depth's unit in metres, the greatest depth, the truncation
        blocks = self._grid.compute_unique_block_coordinates(depth, self._camera, T_camera_map, *limits)
        self._grid.integrate(blocks, depth, colors, self._camera, self._camera, T_camera_map, *limits)

    def mesh(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the whole mesh: vertices (N, 3) float32 and triangles (M, 3)."""
        mesh = self._grid.extract_triangle_mesh(0.0)
        return mesh.vertex.positions.numpy(), mesh.triangle.indices.numpy()

    def update(self, keyframe: Keyframe) -> float:
        """Fuse a keyframe and extract the mesh, as far as there is a way to: all of it; return the seconds."""
        view = self.prepare(keyframe)
        start = time.perf_counter()
        self.integrate(view)
        self._grid.extract_triangle_mesh(0.0)
        return time.perf_counter() - start


def distances_to_mesh(points: np.ndarray, vertices: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """Return how far points (N, 3) are from the nearest triangle, (N,)."""
    open3d = load_open3d()
    scene = open3d.t.geometry.RaycastingScene()
    scene.add_triangles(open3d.core.Tensor(np.asarray(vertices, np.float32)),
                        open3d.core.Tensor(np.asarray(triangles, np.uint32)))
    return scene.compute_distance(open3d.core.Tensor(np.asarray(points, np.float32))).numpy()
