# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The calibration beside an image topic: behind it every image is that of a pinhole camera."""

import time

import numpy as np
from rclpy.callback_groups import CallbackGroup
from rclpy.qos import QoSProfile
from sensor_msgs.msg import CameraInfo

from slam3r_ros.nodes.base import PipelineNode
from slam3r_ros.values import Intrinsics
from slam3r_ros.video.topics import camera_info_topic, is_rectified
from slam3r_ros.video.undistort import Undistorter

_PATIENCE = 2.0  # seconds that images wait for the first CameraInfo when somebody publishes one


class Calibration:
    """Follows the CameraInfo of a camera and undistorts its images."""

    def __init__(self, node: PipelineNode, images: str):
        """Prepare; nothing is subscribed yet.

        Args:
            node: Whose log says what is wrong; its parameter `rectified` may say that nothing is to be undone.
            images: The topic of the images.
        """
        self._node, self._topic = node, camera_info_topic(images)
        self._rectified = node.parameters.rectified or is_rectified(node.resolve_topic_name(images))
        self._newest: CameraInfo | None = None
        self._used: tuple | None = None
        self._undistorter: Undistorter | None = None
        self._size: tuple[int, int] | None = None  # width, height of the images that go out; None before the first
        self._warned = False

    def subscribe(self, qos: QoSProfile, group: CallbackGroup) -> None:
        """Begin to listen."""
        self._node.create_subscription(CameraInfo, self._topic, self._take, qos, callback_group=group)

    def is_awaited(self, since: float) -> bool:
        """Return whether images should wait for it.

        Args:
            since: When the first image came, as `time.monotonic()` counts.
        """
        node = self._node
        return (
            self._newest is None
            and self._size is None
            and time.monotonic() - since < _PATIENCE
            and node.count_publishers(node.resolve_topic_name(self._topic)) > 0
        )

    def undistort(self, image: np.ndarray) -> tuple[np.ndarray, Intrinsics | None]:
        """Return an image, (H, W, 3) uint8, without distortion, and its camera; None where that is not known.

        The calibration stays while the size does: the map depends on it.

        Raises:
            DistortionError: The lens cannot be undone.
        """
        height, width = image.shape[:2]
        if self._size != (width, height):
            info, self._undistorter = self._newest, None
            if info is not None:
                self._undistorter = Undistorter.from_calibration(info, width, height, self._rectified)
                self._used = _lens(info)
            self._size = width, height
        if self._undistorter is None:
            return image, None
        return self._undistorter(image), self._undistorter.intrinsics

    def _take(self, message: CameraInfo) -> None:
        self._newest = message
        if self._size is not None and not self._warned and _lens(message) != self._used:
            self._warned = True
            self._node.get_logger().warning(
                f'{self._topic}: the calibration has changed, which is ignored; start this node again to use it'
            )


def _lens(info: CameraInfo) -> tuple:
    return info.width, info.height, info.distortion_model, tuple(info.d), tuple(info.k), tuple(info.p)
