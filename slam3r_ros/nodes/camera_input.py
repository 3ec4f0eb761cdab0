# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Topics of images and video as input of the decoder."""

import time
from collections.abc import Iterator
from functools import partial
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
from builtin_interfaces.msg import Time
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.exceptions import InvalidTopicNameException
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.subscription import Subscription
from rclpy.validate_topic_name import validate_topic_name
from sensor_msgs.msg import CompressedImage, Image

from slam3r_ros.nodes.base import PipelineNode
from slam3r_ros.nodes.calibration import Calibration
from slam3r_ros.nodes.frames import FrameOutput
from slam3r_ros.nodes.parameters import ParameterError
from slam3r_ros.nodes.process import reason_of
from slam3r_ros.transport.images import from_image
from slam3r_ros.transport.stamps import from_stamp
from slam3r_ros.values import Frame
from slam3r_ros.video.picture import Picture, SteadySize, VideoError
from slam3r_ros.video.pixels import PixelError
from slam3r_ros.video.topics import IMAGES, RAW, TRANSPORTS, VIDEO, base_topic, packet_of
from slam3r_ros.video.undistort import DistortionError

_NOTICE = 5.0  # seconds between two lines that say what is waited for
_DEPTH, _VIDEO_DEPTH = 5, 30  # messages that DDS keeps for us; a lost one of video costs all up to the next key picture


class _Arrival(NamedTuple):
    """An image as it came."""

    id: int
    stamp: int  # nanoseconds
    content: Image | CompressedImage | np.ndarray


class CameraInput:
    """Follows a topic of images or video and the calibration beside it; when others are busy, the newest images win.

    Attributes:
        received: Messages that came so far.
        error: Why there can be no images as things are; that none come is no error.
    """

    reconnects = 0  # DDS does that

    def __init__(self, node: PipelineNode, output: FrameOutput, topic: str):
        """Prepare; nothing is subscribed yet.

        Raises:
            ParameterError: The topic has no valid name.
        """
        try:
            validate_topic_name(topic)
            node.resolve_topic_name(topic)  # finds more
        except (InvalidTopicNameException, RuntimeError) as error:
            name = node.get_fully_qualified_name()
            raise ParameterError(f'parameter input of {name}: {reason_of(error)}') from None
        self.received, self.error = 0, ''
        self._node, self._output = node, output
        self._topics = [topic] if topic != base_topic(topic) else [topic, *(topic + suffix for suffix in TRANSPORTS)]
        self._calibration, self._fit = Calibration(node, topic), SteadySize()
        self._count = self._origin = 0  # of images, the lost ones too; the first of the present size
        self._unusable = self._missed = self._lost = 0
        self._last_packet = self._last_arrival = self._first_arrival = 0.0
        self._inbox = node.worker.inbox(self._convert, depth=2)
        self._group = MutuallyExclusiveCallbackGroup()
        self._followed: tuple[str, str] | None = None  # topic, type
        self._subscription: Subscription | None = None
        self._decoder = None  # of a video topic

    def start(self) -> None:
        """Subscribe, and say what is waited for."""
        node = self._node
        self._calibration.subscribe(self._qos(_DEPTH), self._group)
        self._choose()
        self._notice()
        node.worker.every(0.5, self._choose)
        node.worker.every(_NOTICE, self._notice)

    @property
    def dropped(self) -> int:
        """Images that were broken, or came while the others were busy or the node inactive."""
        return self._unusable + self._missed + self._lost + self._inbox.dropped

    @property
    def waiting(self) -> int:
        """Images that wait to be handed on."""
        return len(self._inbox)

    def close(self) -> None:
        """End decoding; the subscriptions end with their node."""
        if self._decoder is not None:
            self._decoder.close()

    def _qos(self, depth: int) -> QoSProfile:
        qos = QoSProfile(depth=depth)
        if self._node.parameters.input_qos == 'sensor_data':
            qos.reliability = ReliabilityPolicy.BEST_EFFORT
        return qos

    def _choose(self) -> None:
        """Follow the best of what is published; while nothing is, what was asked for."""
        topic, reason = self._topics[0], ''
        expected = next((kind for suffix, kind in TRANSPORTS.items() if topic.endswith(suffix)), RAW)
        for choice in [*self._published()] or [(topic, expected)]:
            try:
                self._follow(*choice)
            except VideoError as error:
                reason = reason or str(error)
            else:
                reason = ''
                break
        if reason and reason != self.error:
            self._node.get_logger().error(reason)
        self.error = reason

    def _published(self) -> Iterator[tuple[str, str]]:
        """Yield topics and what is published there; first what is preferred."""
        for topic in self._topics:
            publishers = self._node.get_publishers_info_by_topic(self._node.resolve_topic_name(topic))
            kinds = {publisher.topic_type for publisher in publishers}
            yield from ((topic, kind) for kind in (*IMAGES, *sorted(kinds - {*IMAGES})) if kind in kinds)

    def _follow(self, topic: str, kind: str) -> None:
        """Subscribe to a topic of this type, and to no other any more.

        Raises:
            VideoError: The type is no image, or its package is not installed.
        """
        if self._followed == (topic, kind):
            return
        node, message_type = self._node, _message_type(topic, kind)
        if self._subscription is not None:
            node.destroy_subscription(self._subscription)
        self.close()
        callback, depth = self._arrive, _DEPTH
        if kind in VIDEO:
            from slam3r_ros.nodes.video_topic import PacketDecoder  # one needs no PyAV for images

            self._decoder = PacketDecoder(topic, self._take_picture, self._complain, node.parameters.hardware)
            callback, depth = partial(self._arrive_packet, self._decoder), _VIDEO_DEPTH
        self._subscription = node.create_subscription(
            message_type, topic, callback, self._qos(depth), callback_group=self._group
        )
        self._followed = topic, kind

    def _notice(self) -> None:
        now, node = time.monotonic(), self._node
        if now - self._last_arrival <= _NOTICE:
            return
        if now - self._last_packet <= _NOTICE:
            node.get_logger().info(f'{self._followed[0]}: waiting for a key picture')
        else:
            names = ' or '.join(map(node.resolve_topic_name, self._topics))
            node.get_logger().info(f'waiting for images on {names}')

    def _complain(self, reason: str) -> None:
        self._node.get_logger().error(reason, throttle_duration_sec=5.0)

    def _stamp(self, stamp: Time) -> int:
        return from_stamp(stamp) or self._output.now()

    def _arrive(self, message: Image | CompressedImage) -> None:
        """Number and stamp an image, on a thread of the executor."""
        self._put(self._stamp(message.header.stamp), message)
        self.received += 1

    def _arrive_packet(self, decoder: Any, message: Any) -> None:
        """Stamp a packet and have it decoded, on a thread of the executor."""
        packet = packet_of(message)
        self._last_packet = time.monotonic()
        if not self._node.active:
            decoder.interrupt()
            taken = False
        else:
            taken = decoder.put(packet, self._stamp(packet.stamp))
        if not taken:
            self._count += 1
            self._missed += 1
        self.received += 1

    def _take_picture(self, picture: Picture | None) -> None:
        """Number a decoded picture, on the thread of the decoder."""
        if picture is None:
            self._count += 1
            self._lost += 1
        else:
            self._put(picture.stamp, picture.image)

    def _put(self, stamp: int, content: Image | CompressedImage | np.ndarray) -> None:
        self._last_arrival = time.monotonic()
        self._first_arrival = self._first_arrival or self._last_arrival
        arrival = _Arrival(self._count, stamp, content)
        self._count += 1
        if stamp and self._node.active:
            self._inbox.put(arrival)
        else:
            self._missed += 1

    def _convert(self, arrival: _Arrival) -> None:
        if self._calibration.is_awaited(self._first_arrival):
            self._unusable += 1
            return
        try:
            image = arrival.content if isinstance(arrival.content, np.ndarray) else from_image(arrival.content)
            image, begins_anew = self._fit(image)
            if begins_anew:
                self._origin = arrival.id
            image, intrinsics = self._calibration.undistort(image)
        except (PixelError, DistortionError) as error:
            self._unusable += 1
            self._complain(f'{self._topics[0]}: {error}')
            return
        self._output.publish(Frame(arrival.id - self._origin, arrival.stamp, image, intrinsics))


def _message_type(topic: str, kind: str) -> type:
    """Return the class of a message type by its ROS name.

    Raises:
        VideoError: It is no image, or its package is not installed.
    """
    if kind not in IMAGES:
        raise VideoError(f'{topic}: carries {kind}, no images; give an image topic')
    package, _, name = kind.split('/')
    try:
        return getattr(import_module(f'{package}.msg'), name)
    except (ImportError, AttributeError):
        remedy = f'apt install ros-jazzy-{package.replace("_", "-")}'
        raise VideoError(f'{topic}: carries {kind}, whose package {package} is not installed; {remedy}') from None
