# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Where the decoder's inputs put their frames."""

from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import Image

from slam3r_ros.nodes.base import OnDemand, PipelineNode
from slam3r_ros.transport.bus import create_publisher
from slam3r_ros.transport.images import to_image
from slam3r_ros.values import Frame


class FrameOutput:
    """`frames` and, for whoever asks, `image`."""

    def __init__(self, node: PipelineNode):
        """Make the publishers."""
        self._frame_id = node.parameters.camera_frame
        self._frames = create_publisher(node, Frame, 'frames', depth=4, frame_id=self._frame_id, lossless=True)
        self._image = OnDemand(node.create_publisher(Image, 'image', qos_profile_sensor_data))

    def publish(self, frame: Frame) -> None:
        """Hand a frame on; waits while those behind are busy."""
        self._frames.publish(frame)
        self._image.publish(lambda: to_image(frame.image, frame.stamp, self._frame_id))

    def wait_for_reader(self) -> bool:
        """Wait until somebody takes the frames; False when the node ends first."""
        return self._frames.wait_for_reader()
