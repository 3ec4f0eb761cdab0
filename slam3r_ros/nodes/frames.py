# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Where the decoder's inputs put their frames."""

from collections.abc import Callable

from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import Image

from slam3r_ros.nodes.base import OnDemand, PipelineNode
from slam3r_ros.transport.bus import create_publisher
from slam3r_ros.transport.images import to_image
from slam3r_ros.values import Frame
from slam3r_ros.video.stamps import StampFilter

_NOTICE = 5.0  # seconds between two lines that say what is waited for


class FrameOutput:
    """`frames` and, for whoever asks, `image`; their stamps rise until another stream begins.

    Attributes:
        stamps: What judges them, and counts the frames that it drops.
    """

    def __init__(self, node: PipelineNode):
        """Make the publishers."""
        self.stamps = StampFilter()
        self._node, self._frame_id = node, node.parameters.camera_frame
        self._frames = create_publisher(node, Frame, 'frames', depth=4, frame_id=self._frame_id, lossless=True)
        self._image = OnDemand(node.create_publisher(Image, 'image', qos_profile_sensor_data))
        self._stamp = 0  # nanoseconds, of the frame handed on last

    def publish(self, frame: Frame, is_due: Callable[[Frame], bool] = lambda frame: True) -> None:
        """Hand a frame on if its stamp makes sense; waits while those behind are busy.

        Args:
            frame: The next one of the source.
            is_due: Asked about each frame with a sensible stamp; False drops it.
        """
        for each in self.stamps.pass_on(frame):
            if each.stamp < self._stamp:
                seconds = (self._stamp - each.stamp) * 1e-9
                self._node.get_logger().warning(f'the stamps have gone back by {seconds:.1f} s: another stream begins')
            self._stamp = each.stamp
            if is_due(each):
                self._frames.publish(each)
                self._image.publish(lambda frame=each: to_image(frame.image, frame.stamp, self._frame_id))

    def now(self) -> int:
        """Return the time of the node's clock, nanoseconds; 0, and a line in the log, before the first /clock."""
        now = self._node.get_clock().now().nanoseconds
        if not now:
            reason = 'use_sim_time is set, but nothing has come on /clock: waiting for it'
            self._node.get_logger().warning(reason, throttle_duration_sec=_NOTICE)
        return now

    def wait_for_reader(self) -> bool:
        """Wait until somebody takes the frames; False when the node ends first."""
        return self._frames.wait_for_reader()
