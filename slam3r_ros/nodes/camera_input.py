# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Image topics as input of the decoder."""

import time
from typing import NamedTuple

from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.exceptions import InvalidTopicNameException
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.subscription import Subscription
from rclpy.validate_topic_name import validate_topic_name
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from slam3r_ros.nodes.base import PipelineNode
from slam3r_ros.nodes.frames import FrameOutput
from slam3r_ros.nodes.parameters import ParameterError
from slam3r_ros.transport.images import from_image
from slam3r_ros.transport.stamps import from_stamp
from slam3r_ros.values import Frame
from slam3r_ros.video.pixels import PixelError
from slam3r_ros.video.undistort import DistortionError, Undistorter, is_rectified

_INFO_PATIENCE = 2.0  # seconds that images wait for the first CameraInfo when somebody publishes one
_NOTICE = 5.0  # seconds between two lines that say what is waited for
_COMPRESSED = '/compressed'


class _Arrival(NamedTuple):
    """An image message as it came."""

    id: int
    stamp: int  # nanoseconds
    message: Image | CompressedImage


class CameraInput:
    """Follows an image topic and the calibration beside it; when the others are busy, the newest images win.

    Attributes:
        received: Images that came so far.
    """

    error = ''  # what a topic says, or why it says nothing, is no error

    def __init__(self, node: PipelineNode, output: FrameOutput, topic: str):
        """Prepare; nothing is subscribed yet.

        Raises:
            ParameterError: The topic has no valid name.
        """
        try:
            validate_topic_name(topic)
        except InvalidTopicNameException as error:
            reason = ' '.join(str(error).split())
            raise ParameterError(f'parameter input of {node.get_fully_qualified_name()}: {reason}') from None
        self.received = 0
        self._unusable = self._missed = 0
        self._node, self._output = node, output
        self._raw = topic.removesuffix(_COMPRESSED)
        self._topics = [topic] if topic.endswith(_COMPRESSED) else [topic, topic + _COMPRESSED]
        self._info: CameraInfo | None = None
        self._undistorter: Undistorter | None = None
        self._size: tuple[int, int] | None = None  # width, height of the images that go out; None before the first
        self._ignores_info = False
        self._last_arrival = self._first_arrival = 0.0
        self._inbox = node.worker.inbox(self._convert, depth=2)
        self._group = MutuallyExclusiveCallbackGroup()
        self._info_topic = self._raw.rpartition('/')[0] + '/camera_info' if '/' in self._raw else 'camera_info'
        self._subscription: Subscription | None = None

    def start(self) -> None:
        """Subscribe, and say what is waited for."""
        node = self._node
        node.create_subscription(
            CameraInfo, self._info_topic, self._take_info, self._qos(), callback_group=self._group
        )
        self._choose()
        self._notice()
        node.worker.every(0.5, self._choose)
        node.worker.every(_NOTICE, self._notice)

    @property
    def dropped(self) -> int:
        """Images that were broken, or came while the others were busy or the node inactive."""
        return self._unusable + self._missed + self._inbox.dropped

    def close(self) -> None:
        """Do nothing: the subscriptions end with their node."""

    def _qos(self) -> QoSProfile:
        qos = QoSProfile(depth=5)
        if self._node.parameters.input_qos == 'sensor_data':
            qos.reliability = ReliabilityPolicy.BEST_EFFORT
        return qos

    def _choose(self) -> None:
        """Read the raw topic or, while nobody publishes that, the compressed one."""
        node = self._node
        alive = [topic for topic in self._topics if node.count_publishers(node.resolve_topic_name(topic))]
        topic = (alive or self._topics)[0]
        if self._subscription is not None:
            if self._subscription.topic_name == node.resolve_topic_name(topic):
                return
            node.destroy_subscription(self._subscription)
        message_type = CompressedImage if topic.endswith(_COMPRESSED) else Image
        self._subscription = node.create_subscription(
            message_type, topic, self._arrive, self._qos(), callback_group=self._group
        )

    def _notice(self) -> None:
        if time.monotonic() - self._last_arrival > _NOTICE:
            names = ' or '.join(self._node.resolve_topic_name(topic) for topic in self._topics)
            self._node.get_logger().info(f'waiting for images on {names}')

    def _take_info(self, message: CameraInfo) -> None:
        """Keep the newest calibration until the first image goes out: the map depends on it from then on."""
        if self._size is None:
            self._info = message
        elif not self._ignores_info and (self._info is None or _lens(message) != _lens(self._info)):
            self._ignores_info = True
            self._node.get_logger().warning(
                f'{self._info_topic}: the calibration has changed, which is ignored; start this node again to use it'
            )

    def _arrive(self, message: Image | CompressedImage) -> None:
        """Number and stamp an image, on a thread of the executor."""
        self._last_arrival = time.monotonic()
        self._first_arrival = self._first_arrival or self._last_arrival
        stamp = from_stamp(message.header.stamp) or self._node.get_clock().now().nanoseconds
        arrival = _Arrival(self.received, stamp, message)
        self.received += 1
        if self._node.active:
            self._inbox.put(arrival)
        else:
            self._missed += 1

    def _convert(self, arrival: _Arrival) -> None:
        node = self._node
        if self._must_wait_for_info():
            self._unusable += 1
            return
        try:
            image = from_image(arrival.message)
            self._calibrate(*image.shape[1::-1])
        except (PixelError, DistortionError) as error:
            self._unusable += 1
            node.get_logger().error(f'{self._raw}: {error}', throttle_duration_sec=5.0)
            return
        intrinsics = None
        if self._undistorter is not None:
            image, intrinsics = self._undistorter(image), self._undistorter.intrinsics
        self._output.publish(Frame(arrival.id, arrival.stamp, image, intrinsics))

    def _must_wait_for_info(self) -> bool:
        node = self._node
        return (
            self._info is None
            and self._size is None
            and time.monotonic() - self._first_arrival < _INFO_PATIENCE
            and node.count_publishers(node.resolve_topic_name(self._info_topic)) > 0
        )

    def _calibrate(self, width: int, height: int) -> None:
        """Make the undistorter for images of this size."""
        if self._size == (width, height):
            return
        if self._info is not None:
            node = self._node
            rectified = node.parameters.rectified or is_rectified(node.resolve_topic_name(self._raw))
            self._undistorter = Undistorter.from_calibration(self._info, width, height, rectified)
        self._size = width, height


def _lens(info: CameraInfo) -> tuple:
    return info.width, info.height, info.distortion_model, tuple(info.d), tuple(info.k), tuple(info.p)
