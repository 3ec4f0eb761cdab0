# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A picture of the mesh and of the camera's way through it, without a display or OpenGL."""

from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import trimesh
from trimesh.ray.ray_pyembree import RayMeshIntersector

from slam3r_ros.mapping.frames import rigid, transform
from slam3r_ros.meshing.cleaning import weld
from slam3r_ros.meshing.export import write_file
from slam3r_ros.meshing.normals import face_normals, vertex_normals

WIDTH = 1600  # pixels
HEIGHTS = 720, 960  # at least and at most
SHARES = 0.4, 0.7  # of the width, for the three-quarter view, at least and at most; the view from above has the rest
SUPERSAMPLING = 2
DISTANCE = 3.0  # of the eye, in radii of what it sees
FILL = 0.9  # of a view that the scene takes up
ELEVATION = np.radians(38)  # of the three-quarter view
BACKGROUND = np.array([244, 245, 247], np.float32)
AMBIENT = 0.7  # share of the light that does not depend on the slope; the rest comes from the eye
TOLERANCE = 0.01  # of the depth: a line that near behind a surface is not yet hidden
HIDDEN = 0.25  # opacity of the path behind the mesh
MOST_POSES = 2000  # a longer path is thinned
FRUSTUMS = 12
LEAP = 10  # median steps of the path


class _Camera(NamedTuple):
    T_camera_map: np.ndarray  # (4, 4), optical frame
    focal: float  # pixels
    cx: float
    cy: float
    width: int
    height: int

    @property
    def eye(self) -> np.ndarray:
        return -self.T_camera_map[:3, :3].T @ self.T_camera_map[:3, 3]

    def rays(self) -> np.ndarray:
        """Return the direction of every pixel, (H * W, 3) float32 map, of z depth 1."""
        right, down, forward = self.T_camera_map[:3, :3].astype(np.float32)
        x = (np.arange(self.width, dtype=np.float32)[:, None] - np.float32(self.cx)) / np.float32(self.focal)
        y = (np.arange(self.height, dtype=np.float32)[:, None] - np.float32(self.cy)) / np.float32(self.focal)
        return ((y * down + forward)[:, None] + x * right).reshape(-1, 3)

    def project(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return pixels (N, 2) and depths (N,) of map points (N, 3)."""
        local = transform(self.T_camera_map, points)
        return self.focal * local[:, :2] / local[:, 2:] + [self.cx, self.cy], local[:, 2]


def render_overview(path: str | Path, vertices: np.ndarray, colors: np.ndarray, triangles: np.ndarray,
                    camera_path: np.ndarray) -> None:
    """Draw the mesh from a three-quarter view and from above, with the camera path from blue to red.

    Faces seen from behind are left out, so that near walls and the ceiling do not hide the room.

    Args:
        path: of the PNG.
        vertices: (N, 3) map; may be empty.
        colors: (N, 3) uint8.
        triangles: (M, 3).
        camera_path: (P, 3) positions or, for small frustums along the path, (P, 4, 4) poses T_map_camera.

    Raises:
        ExportError: the picture cannot be written.
    """
    vertices, colors, triangles = weld(vertices, colors, triangles)
    vertices = vertices.astype(np.float64)
    poses = np.asarray(camera_path, np.float64)
    poses = poses[::-(-len(poses) // MOST_POSES) or 1]
    positions = poses[:, :3, 3] if poses.ndim == 3 else poses.reshape(-1, 3)
    shape = _main_points(vertices, positions)
    lines = _path_lines(positions)
    if poses.ndim == 3:
        lines += _frustum_lines(poses, 0.025 * np.linalg.norm(np.ptp(shape, axis=0)))

    direction = _best_direction(vertices, triangles)
    oblique, above = _look(shape, direction, np.array([0, 0, 1])), _look(shape, np.array([0, 0, 1]), -direction)
    aspects = [np.divide(*np.ptp(_extent(T, shape), axis=0)) for T in (oblique, above)]  # width / height
    size = WIDTH, round(np.clip(WIDTH / sum(aspects), *HEIGHTS))
    width, height = np.multiply(size, SUPERSAMPLING).tolist()
    split = round(width * np.clip(aspects[0] / sum(aspects), *SHARES))
    panels = []
    for T, columns in ((oblique, split), (above, width - split)):
        camera = _fit(T, shape, columns, height)
        image, depth = _cast(camera, vertices, colors, triangles)
        _draw(image, depth, camera, lines)
        panels.append(image)
    picture = cv2.resize(np.concatenate(panels, axis=1), size, interpolation=cv2.INTER_AREA)
    png = cv2.imencode('.png', np.clip(picture[..., ::-1], 0, 255).astype(np.uint8))[1]
    write_file(Path(path), png.tobytes())


def _main_points(vertices: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Return points (N, 3) that a picture must show: the path, and of the mesh what does not stray."""
    if len(vertices):
        vertices = vertices[::max(len(vertices) // 20000, 1)]
        low, high = np.percentile(vertices, [2, 98], axis=0)
        margin = 0.15 * (high - low)
        vertices = vertices[((vertices >= low - margin) & (vertices <= high + margin)).all(axis=1)]
    points = np.concatenate((vertices, positions))
    return points if len(points) else np.zeros((1, 3))


def _best_direction(vertices: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """Return the direction (3,) from the scene to the eye, among those around it, that shows most surface."""
    around = np.linspace(0, 2 * np.pi, 24, endpoint=False) + np.pi / 7  # not along an axis: walls would be edge-on
    candidates = np.stack((np.cos(around) * np.cos(ELEVATION), np.sin(around) * np.cos(ELEVATION),
                           np.full(24, np.sin(ELEVATION))), axis=-1)  # (24, 3)
    if not len(triangles):
        return candidates[0]
    normals = face_normals(vertices, triangles)  # as long as twice the area
    return candidates[np.argmax([np.maximum(normals @ direction, 0).sum() for direction in candidates])]


def _look(points: np.ndarray, direction: np.ndarray, up: np.ndarray) -> np.ndarray:
    """Return T_camera_map (4, 4) of an eye that sees points (N, 3) from a direction, with `up` upward."""
    low, high = points.min(axis=0), points.max(axis=0)
    right = np.cross(up, direction)
    right /= np.linalg.norm(right)
    rotation = np.stack((right, np.cross(right, direction), -direction))
    distance = DISTANCE * max(np.linalg.norm(high - low) / 2, 1e-6)
    return rigid(rotation, -rotation @ ((low + high) / 2 + direction * distance))


def _extent(T_camera_map: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Return the least and the greatest x and y at depth 1, (2, 2), of points (N, 3); never quite alike."""
    local = transform(T_camera_map, points)
    image = local[:, :2] / local[:, 2:]
    return np.stack((image.min(axis=0) - 1e-3, image.max(axis=0) + 1e-3))


def _fit(T_camera_map: np.ndarray, points: np.ndarray, width: int, height: int) -> _Camera:
    """Return the camera there whose picture the points just fill."""
    low, high = _extent(T_camera_map, points)
    focal = FILL * min((width, height) / (high - low))
    cx, cy = ((width, height) - focal * (low + high)) / 2
    return _Camera(T_camera_map, focal, cx, cy, width, height)


def _cast(camera: _Camera, vertices: np.ndarray, colors: np.ndarray,
          triangles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the picture (H, W, 3) float32 and its depth (H, W), infinite where there is nothing."""
    image = np.tile(BACKGROUND, (camera.height * camera.width, 1))
    depth = np.full(len(image), np.inf)
    if len(triangles):
        normals, smooth = face_normals(vertices, triangles), vertex_normals(vertices, triangles)
        facing = np.einsum('ij,ij->i', normals, camera.eye - vertices[triangles[:, 0]]) > 0
        triangles, normals = triangles[facing], normals[facing]
    if len(triangles):
        rays = camera.rays()
        mesh = trimesh.Trimesh(vertices, triangles, process=False)
        first = RayMeshIntersector(mesh).intersects_first(np.broadcast_to(camera.eye, rays.shape), rays)
        hit = np.flatnonzero(first >= 0)
        first, ray = first[hit], rays[hit]
        # The point where a ray meets the triangle a b c, by its depth and its shares of b and c.
        a, ab, ac = (vertices[triangles[:, 0]], vertices[triangles[:, 1]] - vertices[triangles[:, 0]],
                     vertices[triangles[:, 2]] - vertices[triangles[:, 0]])
        squared = np.einsum('ij,ij->i', normals, normals)
        depth[hit] = np.einsum('ij,ij->i', normals, a - camera.eye)[first] / np.einsum('ij,ij->i', normals[first], ray)
        point = camera.eye + ray * depth[hit, None] - a[first]
        b = np.einsum('ij,ij->i', point, (np.cross(ac, normals) / squared[:, None])[first])
        c = np.einsum('ij,ij->i', point, (np.cross(normals, ab) / squared[:, None])[first])
        shares = np.clip(np.stack((1 - b - c, b, c), axis=-1), 0, 1).astype(np.float32)  # (R, 3)
        color, normal = (np.einsum('ri,rij->rj', shares, corner.astype(np.float32)[triangles][first])
                         for corner in (colors, smooth))
        cosine = np.abs(np.einsum('ij,ij->i', normal, ray)) / (np.linalg.norm(normal, axis=1)
                                                               * np.linalg.norm(ray, axis=1) + 1e-12)
        image[hit] = color * (AMBIENT + (1 - AMBIENT) * cosine[:, None])
    return image.reshape(camera.height, camera.width, 3), depth.reshape(camera.height, camera.width)


Line = tuple[np.ndarray, np.ndarray, float]  # two ends (2, 3) map, RGB (3,), width in pixels of the picture


def _path_lines(positions: np.ndarray) -> list[Line]:
    colors = _blue_to_red(len(positions))
    steps = np.linalg.norm(np.diff(positions, axis=0), axis=1)
    longest = LEAP * np.median(steps) if len(steps) else 0  # beyond, the camera was lost in between
    return [(positions[i:i + 2], colors[i], 3.0) for i in range(len(steps)) if steps[i] <= longest]


def _frustum_lines(poses: np.ndarray, size: float) -> list[Line]:
    """Return the lines of small camera pyramids along the path."""
    corners = size * np.array([[0, 0, 0], [-0.6, -0.45, 1], [0.6, -0.45, 1], [0.6, 0.45, 1], [-0.6, 0.45, 1]])
    edges = [(0, 1), (0, 2), (0, 3), (0, 4), (1, 2), (2, 3), (3, 4), (4, 1)]
    colors = _blue_to_red(len(poses))
    return [(transform(poses[i], corners)[list(edge)], colors[i], 1.6)
            for i in np.unique(np.linspace(0, len(poses) - 1, min(FRUSTUMS, len(poses))).astype(int)) for edge in edges]


def _blue_to_red(count: int) -> np.ndarray:
    """Return `count` colours (N, 3), blue first, over violet, to red."""
    t = np.linspace(0, 1, count)[:, None]
    return (1 - t) * [30, 80, 230] + t * [225, 35, 35]


def _draw(image: np.ndarray, depth: np.ndarray, camera: _Camera, lines: list[Line]) -> None:
    """Draw lines into the picture in place; where the mesh hides them they shine through faintly."""
    for ends, color, width in lines:
        pixels, _ = camera.project(ends)
        count = int(np.ceil(np.linalg.norm(pixels[1] - pixels[0]))) + 1
        ends = ends[0] + np.linspace(0, 1, count)[:, None] * (ends[1] - ends[0])
        pixels, z = camera.project(ends)
        reach = round(width * SUPERSAMPLING / 2)
        v, u = np.mgrid[-reach:reach + 1, -reach:reach + 1].reshape(2, -1)
        disc = np.hypot(u, v) <= reach
        columns = (np.round(pixels[:, :1]).astype(int) + u[disc]).ravel()
        rows = (np.round(pixels[:, 1:]).astype(int) + v[disc]).ravel()
        z = np.repeat(z, disc.sum())
        inside = (columns >= 0) & (columns < camera.width) & (rows >= 0) & (rows < camera.height) & (z > 0)
        rows, columns, z = rows[inside], columns[inside], z[inside]
        first = np.unique(rows * camera.width + columns, return_index=True)[1]
        rows, columns, z = rows[first], columns[first], z[first]
        opacity = np.where(z < depth[rows, columns] * (1 + TOLERANCE), 1.0, HIDDEN)[:, None]
        image[rows, columns] = opacity * color + (1 - opacity) * image[rows, columns]
