# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A smooth surface without small holes through oriented points: screened Poisson reconstruction, by Open3D.

After Kazhdan and Hoppe (ACM Transactions on Graphics, 2013).  It runs in a process of its own, because Open3D keeps
the interpreter lock all the while, and takes the whole process with it on some points (its issues 6828 and 7229).

    python -m slam3r_ros.meshing.poisson points.npz mesh.npz depth
"""

import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType

import numpy as np

from slam3r_ros.meshing.normals import vertex_normals

FEWEST_POINTS = 100
DEEPEST = 12  # an octree of 4096 cells along an edge
MARGIN = 1.1  # edge of the octree, in edges of the points' box: Open3D's default
SPARSE = 1.0  # depths: where points lie half as densely along a line as is usual, the surface is made up


class PoissonError(RuntimeError):
    """There is no surface; the message names the reason and the way out."""


def load_open3d() -> ModuleType:
    """Import Open3D, which is large and optional.

    Raises:
        ImportError: the package, or the system's libusb that it links to, is missing; the message says how to get it.
    """
    try:
        import open3d
    except ModuleNotFoundError as error:
        raise ImportError(f'Open3D needs the Python package {error.name}; pip install open3d-cpu') from None
    except ImportError as error:
        hint = 'apt install libusb-1.0-0' if 'libusb' in str(error) else 'pip install --force-reinstall open3d-cpu'
        raise ImportError(f'Open3D cannot be loaded: {error}; {hint}') from None
    return open3d


def reconstruct(points: np.ndarray, normals: np.ndarray, colors: np.ndarray,
                depth: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the surface that has the points' normals as its own, without what lies far from any point.

    Args:
        points: (N, 3), about evenly dense; those that are not finite are left out.
        normals: (N, 3), outward; the same for those that are not finite, or zero.
        colors: (N, 3) uint8.
        depth: of the octree, 1 to 12; each more halves the cells.

    Returns:
        vertices (V, 3) float32, colours (V, 3) uint8, triangles (T, 3) uint32.

    Raises:
        PoissonError: there are too few points, or Open3D is missing or fails.
    """
    usable = np.isfinite(points).all(axis=1) & np.isfinite(normals).all(axis=1) & normals.any(axis=1)
    points, normals, colors = points[usable], normals[usable], colors[usable]
    if len(points) < FEWEST_POINTS or not np.ptp(points, axis=0).any():
        raise PoissonError(f'{len(points)} points make no surface; map more first')
    with tempfile.TemporaryDirectory(prefix='slam3r-poisson-') as folder:
        given, made = Path(folder, 'points.npz'), Path(folder, 'mesh.npz')
        np.savez(given, points=points, normals=normals, colors=colors)
        command = [sys.executable, '-m', __name__, str(given), str(made), str(min(max(depth, 1), DEEPEST))]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            said = done.stderr.strip().splitlines()
            crash = (f'Open3D ended with status {done.returncode} on {len(points)} points at depth {depth}; '
                     'take the mesh without it (method tsdf)')
            raise PoissonError(said[-1] if said and done.returncode == 1 else crash)
        with np.load(made) as mesh:
            vertices, colors, triangles = mesh['vertices'], mesh['colors'], mesh['triangles']
    if not len(triangles):
        raise PoissonError(f'{len(points)} points at depth {depth} make no surface; map more first')
    return vertices, colors, triangles


def smooth(vertices: np.ndarray, colors: np.ndarray, triangles: np.ndarray,
           voxel_size: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the Poisson surface of a welded mesh from a TSDF, with cells of about the size of its voxels.

    Its vertices and their normals are the points: they lie evenly, and the field has already averaged the views.

    Args:
        vertices: (N, 3) float32.
        colors: (N, 3) uint8.
        triangles: (M, 3).
        voxel_size: of the field, in the unit of the vertices.

    Raises:
        PoissonError: as `reconstruct`.
    """
    edge = MARGIN * np.ptp(vertices, axis=0).max() if len(vertices) else 0.0
    depth = round(float(np.log2(max(edge / voxel_size, 2.0))))
    return reconstruct(vertices, vertex_normals(vertices, triangles), colors, depth)


def main(given: str, made: str, depth: str) -> None:
    """Reconstruct from one file into another."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it at once, though Open3D keeps the interpreter lock
    try:
        open3d = load_open3d()
    except ImportError as error:
        sys.exit(str(error))
    vectors = open3d.utility.Vector3dVector
    with np.load(given) as arrays:
        cloud = open3d.geometry.PointCloud(vectors(arrays['points'].astype(np.float64)))
        cloud.normals = vectors(arrays['normals'].astype(np.float64))
        cloud.colors = vectors(arrays['colors'] / 255)
    # Several threads are hardly faster, and the cause of most crashes.
    mesh, depths = open3d.geometry.TriangleMesh.create_from_point_cloud_poisson(
        cloud, depth=int(depth), scale=MARGIN, n_threads=1)
    depths = np.asarray(depths)  # of the octree at which the points lie densely enough, (V,)
    if len(depths):
        mesh.remove_vertices_by_mask(depths < np.median(depths) - SPARSE)
    np.savez(made, vertices=np.asarray(mesh.vertices, np.float32), triangles=np.asarray(mesh.triangles, np.uint32),
             colors=np.round(np.asarray(mesh.vertex_colors).clip(0, 1) * 255).astype(np.uint8))


if __name__ == '__main__':
    main(*sys.argv[1:])
