# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The node that turns a video file, a bag or an image topic into the stream of undistorted frames."""

import re
import sys
from pathlib import Path
from typing import Any

from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import Image

from slam3r_ros import msg
from slam3r_ros.nodes.base import OnDemand, PipelineNode, run
from slam3r_ros.nodes.camera_input import CameraInput
from slam3r_ros.nodes.parameters import ParameterError
from slam3r_ros.nodes.playback import Playback
from slam3r_ros.transport.bus import create_publisher
from slam3r_ros.transport.images import to_image
from slam3r_ros.transport.messages import status_to_message
from slam3r_ros.values import Frame, SlamStatus, State


class VideoDecoder(PipelineNode):
    """Publishes `frames` and, for whoever asks, `image`."""

    def __init__(self, **kwargs: Any):
        """Begin to read; what is wrong with the input fails the node soon afterwards.

        Raises:
            ParameterError: A parameter makes no sense.
        """
        super().__init__('video_decoder', **kwargs)
        frame_id = self.parameters.camera_frame
        self._frames = create_publisher(self, Frame, 'frames', depth=4, frame_id=frame_id, lossless=True)
        self._status = OnDemand(self.create_publisher(msg.SlamStatus, 'status', 10))
        self._image = OnDemand(self.create_publisher(Image, 'image', qos_profile_sensor_data))
        topic = topic_of(self.parameters.input)
        try:
            self._source = Playback(self) if topic is None else CameraInput(self, topic)
        except ParameterError:
            self.destroy_node()  # else a half-made node stays in the graph
            raise
        self.closing.callback(self._source.close)
        self.start_diagnostics()
        self._source.start()

    def publish(self, frame: Frame) -> None:
        """Hand a frame on; waits while those behind are busy."""
        self._frames.publish(frame)
        self._image.publish(lambda: to_image(frame.image, frame.stamp, self.parameters.camera_frame))

    def wait_for_reader(self) -> bool:
        """Wait until somebody takes the frames; False when the node ends first."""
        return self._frames.wait_for_reader()

    def diagnostics(self) -> dict[str, Any]:
        """Return what was counted."""
        source = self._source
        return {'input': self.parameters.input, 'received': source.received, 'dropped': source.dropped}

    def tell_failure(self) -> None:
        """Say on `status` too that the node failed."""
        super().tell_failure()
        stamp = self.get_clock().now().nanoseconds
        status = SlamStatus(stamp, State.ERROR, frames_in=self._source.received, last_error=self.last_error)
        self._status.publish(lambda: status_to_message(status, self.parameters.camera_frame))


def topic_of(name: str) -> str | None:
    """Return the image topic that the parameter `input` means; None when it means a file or a bag."""
    if not name:
        return 'image_raw'
    if name.startswith('topic:'):
        return name.removeprefix('topic:')
    if re.fullmatch(r'(/[A-Za-z_]\w*)+', name, re.ASCII) and not Path(name).exists():
        return name
    return None


def main(arguments: list[str] | None = None) -> int:
    """Run the node alone."""
    return run(VideoDecoder, arguments)


if __name__ == '__main__':
    sys.exit(main())
