# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The truth about a video: trajectory, camera, and depth at some of its frames."""

import json
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np

from slam3r_ros.evaluation.metrics import CLOUD_VOXEL, STAMP_TOLERANCE, thin
from slam3r_ros.mapping.frames import invert, transform
from slam3r_ros.mapping.trajectory import associate, read_tum
from slam3r_ros.values import Intrinsics, Keyframe, Pose
from slam3r_ros.video.undistort import Undistorter

EDGE = 1.1  # ratio of depths of neighbouring pixels that lie on different surfaces


class GroundTruthError(ValueError):
    """Ground truth cannot be used; the message names the file, the reason and the way out."""


class Camera:
    """The true camera of a video."""

    def __init__(self, path: Path) -> None:
        """Read an intrinsics.json.

        Args:
            path: JSON with width, height, `rgb` (fx, fy, cx, cy and, where the lens distorts, `dist`), and for depth
                images fps, depth_every (frames) and depth_scale (units in a metre).

        Raises:
            GroundTruthError: The file cannot be read or lacks a field.
        """
        try:
            content = json.loads(path.read_text(encoding='utf-8'))
            self.width, self.height = int(content['width']), int(content['height'])
            self.intrinsics = Intrinsics(*(float(content['rgb'][name]) for name in ('fx', 'fy', 'cx', 'cy')))
            self.distortion = [float(value) for value in content['rgb'].get('dist', ())]
            self.fps = float(content.get('fps', 30))
            self.depth_every = int(content.get('depth_every', 1))
            self.depth_scale = float(content.get('depth_scale', 1000))
        except OSError as error:
            raise GroundTruthError(f'{path}: cannot be read: {error.strerror}') from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            what = f'lacks the field {error}' if isinstance(error, KeyError) else f'is no intrinsics file ({error})'
            raise GroundTruthError(f'{path}: {what}; it needs width, height and rgb with fx, fy, cx, cy') from error

    def undistorter(self) -> Undistorter:
        """Make what turns the video's images into those of a pinhole camera."""
        return Undistorter(self.intrinsics, self.distortion, self.width, self.height)

    def pinhole(self, undistorted: bool) -> Intrinsics:
        """Return the intrinsics of the images that the engine was given."""
        return self.undistorter().intrinsics if undistorted else self.intrinsics

    def grid(self, width: int, height: int) -> tuple[float, float, float, float]:
        """Return (x scale, y scale, x offset, y offset): image pixel = (grid pixel + 0.5) * scale + offset - 0.5.

        A grid of the image's own shape covers all of it; another is taken to be cut from its middle.
        """
        x, y = self.width / width, self.height / height
        if not 0.97 < x / y < 1.03:
            x = y = min(x, y)
        return x, y, (self.width - x * width) / 2, (self.height - y * height) / 2

    def on_image(self, camera: Intrinsics, width: int, height: int) -> Intrinsics:
        """Return the whole image's intrinsics for those of a grid."""
        x, y, left, top = self.grid(width, height)
        whole = camera.scaled(x, y)
        return whole._replace(cx=whole.cx + left, cy=whole.cy + top)


class DepthImages:
    """True depth along the optical axis at some frames of a video."""

    def __init__(self, folder: Path, camera: Camera, trajectory: list[Pose], undistorted: bool = False) -> None:
        """Find the images.

        Args:
            folder: 16 bit images named after the number of their frame, of any one size; 0 is unknown.
            camera: The video's camera.
            trajectory: The video's true poses.
            undistorted: The engine saw undistorted images.

        Raises:
            GroundTruthError: There are no such images.
        """
        self._camera, self._trajectory = camera, trajectory
        self._undistorter = camera.undistorter() if undistorted and any(camera.distortion) else None
        self._pinhole = camera.pinhole(undistorted)
        self._files = {int(path.stem): path for path in sorted(folder.glob('*.png')) if path.stem.isdigit()}
        if not self._files:
            raise GroundTruthError(f'{folder}: holds no depth images; they must be named <number of the frame>.png')
        ids = list(self._files)
        stamps = [round(1e9 * i / camera.fps) for i in ids]
        pairs = associate(stamps, [pose.stamp for pose in trajectory], STAMP_TOLERANCE)
        self._poses = {ids[i]: trajectory[j].T_map_camera for i, j in pairs}
        self.load = lru_cache(maxsize=8)(self._load)

    def seen_by(self, keyframe: Keyframe) -> tuple[np.ndarray, bool] | None:
        """Return the true depth on a keyframe's grid, (H, W) metres, 0 where unknown, and whether it is of that frame.

        Where the frame has no depth image, that of the nearest frame, at most half the interval between them away, is
        moved into its view by the true poses.
        """
        height, width = keyframe.pointmap.shape[:2]
        if keyframe.id in self._files:
            return self._resample(keyframe.id, width, height), True
        nearest = min(self._poses, key=lambda i: abs(i - keyframe.id), default=None)
        if nearest is None or abs(nearest - keyframe.id) > self._camera.depth_every / 2:
            return None
        pairs = associate([keyframe.pose.stamp], [pose.stamp for pose in self._trajectory], STAMP_TOLERANCE)
        if not len(pairs):
            return None
        return self._warp(nearest, self._trajectory[pairs[0, 1]].T_map_camera, width, height), False

    def cloud(self) -> np.ndarray:
        """Return all that the depth images show, (N, 3) metres, world; each image is thinned to CLOUD_VOXEL."""
        clouds = [thin(transform(T, self._points(i, step=2)), CLOUD_VOXEL) for i, T in self._poses.items()]
        return np.concatenate(clouds or [np.empty((0, 3))])

    def _load(self, frame: int) -> np.ndarray:
        """Return the depth image of a frame, (h, w) float32 metres, 0 where unknown."""
        path = self._files[frame]
        image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        if image is None or image.ndim != 2:
            raise GroundTruthError(f'{path}: is no depth image of one channel; give 16 bit PNG')
        depth = image.astype(np.float32) / self._camera.depth_scale
        if self._undistorter:
            size = self._camera.width, self._camera.height
            depth = self._undistorter(cv2.resize(depth, size, interpolation=cv2.INTER_NEAREST), cv2.INTER_NEAREST)
        return depth

    def _resample(self, frame: int, width: int, height: int) -> np.ndarray:
        x, y, left, top = self._camera.grid(width, height)
        u, v = np.meshgrid((np.arange(width) + 0.5) * x + left - 0.5, (np.arange(height) + 0.5) * y + top - 0.5)
        return self._sample(frame, u, v)

    def _warp(self, frame: int, T_world_camera: np.ndarray, width: int, height: int) -> np.ndarray:
        """Return a frame's depth as seen from another pose, z-buffered."""
        x, y, left, top = self._camera.grid(width, height)
        points = self._points(frame, min(x, y) / 2)  # two a pixel, lest what lies behind shine through
        points = transform(invert(T_world_camera) @ self._poses[frame], points)
        points = points[points[:, 2] > 1e-3]
        u = (self._pinhole.fx * points[:, 0] / points[:, 2] + self._pinhole.cx + 0.5 - left) / x - 0.5
        v = (self._pinhole.fy * points[:, 1] / points[:, 2] + self._pinhole.cy + 0.5 - top) / y - 0.5
        column, row = np.round(u).astype(int), np.round(v).astype(int)
        inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
        depth = np.full(width * height, np.inf)
        np.minimum.at(depth, (row * width + column)[inside], points[inside, 2])
        return np.where(np.isfinite(depth), depth, 0).reshape(height, width).astype(np.float32)

    def _points(self, frame: int, step: float) -> np.ndarray:
        """Return a point every `step` pixels of the video's image, (N, 3) metres in its camera."""
        u, v = np.meshgrid(np.arange(0, self._camera.width, step), np.arange(0, self._camera.height, step))
        z = self._sample(frame, u, v).astype(float)
        x, y = (u - self._pinhole.cx) / self._pinhole.fx, (v - self._pinhole.cy) / self._pinhole.fy
        return np.stack([x * z, y * z, z], axis=-1)[z > 0]

    def _sample(self, frame: int, u: np.ndarray, v: np.ndarray) -> np.ndarray:
        """Return depth at image pixels (u, v): linear in its inverse, as planes are, and nearest at edges."""
        depth = self.load(frame)
        x, y = depth.shape[1] / self._camera.width, depth.shape[0] / self._camera.height
        maps = ((u + 0.5) * x - 0.5).astype(np.float32), ((v + 0.5) * y - 0.5).astype(np.float32)
        smooth = (depth > 0) & (cv2.dilate(depth, np.ones((3, 3))) < EDGE * cv2.erode(depth, np.ones((3, 3))))
        border = {'borderMode': cv2.BORDER_REPLICATE}
        nearest = cv2.remap(depth, *maps, cv2.INTER_NEAREST, **border)
        inverse = cv2.remap(1 / np.maximum(depth, 1e-3), *maps, cv2.INTER_LINEAR, **border)
        smooth = cv2.remap(smooth.astype(np.uint8), *maps, cv2.INTER_NEAREST, **border)
        return np.where(smooth > 0, 1 / inverse, nearest)


def load(
    trajectory: Path | None, camera: Path | None, depth: Path | None, undistorted: bool = False
) -> tuple[list[Pose], Camera | None, DepthImages | None]:
    """Read what truth there is.

    Raises:
        GroundTruthError, TrajectoryError: A file is unreadable, or depth comes without trajectory or camera.
    """
    poses = read_tum(trajectory) if trajectory else []
    true_camera = Camera(Path(camera)) if camera else None
    if depth and not (poses and true_camera):
        raise GroundTruthError(f'{depth}: depth can be scored only with ground-truth poses and intrinsics; give both')
    return poses, true_camera, DepthImages(Path(depth), true_camera, poses, undistorted) if depth else None
