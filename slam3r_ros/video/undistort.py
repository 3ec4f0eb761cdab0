# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Removal of lens distortion: behind the source every image is that of a pinhole camera."""

from collections.abc import Sequence
from typing import Protocol

import cv2
import numpy as np

from slam3r_ros.values import Intrinsics


class DistortionError(ValueError):
    """A lens cannot be undone; the message names the reason and the way out."""


class CameraInfo(Protocol):
    """The fields of sensor_msgs/CameraInfo that matter here."""

    width: int
    height: int
    distortion_model: str
    d: Sequence[float]
    k: Sequence[float]  # (9,)
    p: Sequence[float]  # (12,)


class Undistorter:
    """Undistorts images of one size."""

    intrinsics: Intrinsics  # of the undistorted images; no pixel of them lies outside the distorted ones

    def __init__(
        self, camera: Intrinsics, distortion: Sequence[float], width: int, height: int, model: str = 'plumb_bob'
    ) -> None:
        """Make the maps.

        Args:
            camera: Intrinsics of the distorted images.
            distortion: Coefficients in OpenCV's order; none leave images as they are.
            width: Of the images, pixels.
            height: Of the images, pixels.
            model: 'plumb_bob' and 'rational_polynomial' (k1 k2 p1 p2 k3 ...) or 'equidistant' (fisheye, k1 to k4),
                as sensor_msgs/CameraInfo names them.

        Raises:
            DistortionError: The model or its number of coefficients is unknown.
        """
        self.intrinsics, self._maps = camera, None
        coefficients, K, size = np.array(distortion, float).ravel(), camera.matrix().astype(float), (width, height)
        fisheye = model in ('equidistant', 'fisheye')
        if not len(coefficients) or not (coefficients.any() or fisheye):  # a fisheye of zeros still bends
            return
        if model in ('plumb_bob', 'rational_polynomial', '') and len(coefficients) in (4, 5, 8, 12, 14):
            after, _ = cv2.getOptimalNewCameraMatrix(K, coefficients, size, alpha=0)
            self._maps = cv2.initUndistortRectifyMap(K, coefficients, None, after, size, cv2.CV_16SC2)
        elif fisheye and len(coefficients) >= 4:
            coefficients = coefficients[:4]
            lens = K, coefficients
            after = cv2.fisheye.estimateNewCameraMatrixForUndistortRectify(*lens, size, np.eye(3), balance=0.0)
            self._maps = cv2.fisheye.initUndistortRectifyMap(*lens, np.eye(3), after, size, cv2.CV_16SC2)
        else:
            raise DistortionError(
                f'distortion model {model!r} with {len(coefficients)} coefficients is not supported; give plumb_bob, '
                'rational_polynomial or equidistant, or undistorted images'
            )
        self.intrinsics = Intrinsics(*(float(after[i]) for i in ((0, 0), (1, 1), (0, 2), (1, 2))))

    @classmethod
    def from_calibration(
        cls, info: CameraInfo, width: int, height: int, rectified: bool = False
    ) -> 'Undistorter | None':
        """Follow a sensor_msgs/CameraInfo, or anything with its fields; None when it says: uncalibrated (K is zero).

        Args:
            info: Calibration; scaled when it was made at another size.
            width: Of the images, pixels.
            height: Of the images, pixels.
            rectified: The images are undistorted already; then P tells their camera.
        """
        K = np.reshape(info.p, (3, 4))[:, :3] if rectified else np.reshape(info.k, (3, 3))
        if not K[0, 0] > 0:
            return None
        camera = Intrinsics(*(float(K[i]) for i in ((0, 0), (1, 1), (0, 2), (1, 2))))
        if info.width and info.height:
            camera = camera.scaled(width / info.width, height / info.height)
        return cls(camera, () if rectified else info.d, width, height, info.distortion_model)

    def __call__(self, image: np.ndarray, interpolation: int = cv2.INTER_LINEAR) -> np.ndarray:
        """Return the undistorted image, (H, W) or (H, W, 3)."""
        return image if self._maps is None else cv2.remap(image, *self._maps, interpolation)
