# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Write meshes and clouds to files, whole or not at all."""

from pathlib import Path

import numpy as np
import trimesh

from slam3r_ros.files import write_whole


class ExportError(RuntimeError):
    """A mesh or a cloud cannot be written; the message names the file and the reason."""


def write_mesh(path: str | Path, vertices: np.ndarray, colors: np.ndarray, triangles: np.ndarray) -> None:
    """Write a welded mesh as binary PLY or as GLB, by the suffix; a file that is there is replaced.

    PLY keeps the map's axes and sRGB colours.  GLB is turned to glTF 2.0's axes (y up, z forward, x left) and
    has vertex normals and, as glTF demands of vertices, linear colours.

    Args:
        path: ends in .ply or .glb.
        vertices: (N, 3) float32, map (z up).
        colors: (N, 3) uint8 sRGB.
        triangles: (M, 3).

    Raises:
        ExportError: unknown suffix, nothing to write, or the file cannot be written.
    """
    path = _checked(path, ('.ply', '.glb'))
    if not len(triangles):
        raise ExportError(f'{path}: the mesh is empty, nothing was written; map something first')
    mesh = trimesh.Trimesh(vertices, triangles, vertex_colors=colors, process=False)
    if path.suffix.lower() == '.ply':
        write_file(path, mesh.export(file_type='ply', vertex_normal=False))
        return
    mesh.vertices = mesh.vertices[:, [1, 2, 0]]
    mesh.visual.vertex_colors[:, :3] = _to_linear(colors)
    write_file(path, mesh.export(file_type='glb', include_normals=True))


def write_cloud(path: str | Path, points: np.ndarray, colors: np.ndarray) -> None:
    """Write a point cloud as binary PLY; a file that is there is replaced.

    Args:
        path: ends in .ply.
        points: (N, 3) float32, map.
        colors: (N, 3) uint8 sRGB.

    Raises:
        ExportError: unknown suffix, nothing to write, or the file cannot be written.
    """
    path = _checked(path, ('.ply',))
    if not len(points):
        raise ExportError(f'{path}: the cloud is empty, nothing was written; map something first')
    write_file(path, trimesh.PointCloud(points, colors).export(file_type='ply'))


def _checked(path: str | Path, suffixes: tuple[str, ...]) -> Path:
    path = Path(path)
    if path.suffix.lower() not in suffixes:
        raise ExportError(f'{path}: cannot write this kind of file; use a name that ends in {" or ".join(suffixes)}')
    if not path.parent.is_dir():
        raise ExportError(f'{path}: there is no folder {path.parent}; make it first')
    return path


def write_file(path: Path, data: bytes) -> None:
    """Write a file in one step, whatever is written.

    Raises:
        ExportError: it cannot be written; then what was there stays.
    """
    try:
        write_whole(path, data)
    except OSError as error:
        raise ExportError(f'{path}: cannot be written: {error.strerror}; choose another folder') from error


def _to_linear(colors: np.ndarray) -> np.ndarray:
    """Turn sRGB (N, 3) uint8 into the linear colours (N, 3) uint8 that glTF wants at vertices (IEC 61966-2-1)."""
    levels = np.arange(256) / 255
    linear = np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)
    return np.round(linear * 255).astype(np.uint8)[colors]
