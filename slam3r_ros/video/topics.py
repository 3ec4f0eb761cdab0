# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What ROS calls the topics of images and what they carry; the same in bags and in the live graph."""

from typing import Any, NamedTuple

RAW, COMPRESSED, CAMERA_INFO = (f'sensor_msgs/msg/{name}' for name in ('Image', 'CompressedImage', 'CameraInfo'))
FFMPEG, FOXGLOVE = 'ffmpeg_image_transport_msgs/msg/FFMPEGPacket', 'foxglove_msgs/msg/CompressedVideo'
VIDEO = (FFMPEG, FOXGLOVE)
IMAGES = (RAW, COMPRESSED, *VIDEO)  # the first are preferred
TRANSPORTS = {'/compressed': COMPRESSED, '/ffmpeg': FFMPEG, '/foxglove': FOXGLOVE}  # what image_transport appends


def base_topic(topic: str) -> str:
    """Return the name of an image topic without what image_transport appends."""
    for suffix in TRANSPORTS:
        topic = topic.removesuffix(suffix)
    return topic


def camera_info_topic(topic: str) -> str:
    """Return where the calibration is: <camera>/camera_info beside <camera>/image_raw[/...]."""
    camera, slash, _ = base_topic(topic).rpartition('/')
    return f'{camera}{slash}camera_info'


def is_rectified(topic: str) -> bool:
    """Return whether the images of a topic are undistorted already, by image_proc's names for it."""
    return base_topic(topic).rpartition('/')[2].startswith('image_rect')


class Packet(NamedTuple):
    """What a message of video says."""

    data: bytes
    encoding: str
    stamp: Any  # builtin_interfaces/Time


def packet_of(message: Any) -> Packet:
    """Return what an FFMPEGPacket or CompressedVideo says, of rclpy or of rosbags."""
    if hasattr(message, 'header'):
        return Packet(message.data.tobytes(), message.encoding, message.header.stamp)
    return Packet(message.data.tobytes(), message.format, message.timestamp)
