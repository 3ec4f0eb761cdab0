# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A bag that is read directly gives the frames and stamps that it gives when it is played on topics."""

import numpy as np
import pytest
from rclpy.serialization import deserialize_message
from ros_helpers import ros_fixture, wait_for_match, wait_until  # noqa: F401
from rosbags.highlevel import AnyReader
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from test_video_bag import COUNT, compressed, info, raw, record, video

from slam3r_ros.bench.damage import encode
from slam3r_ros.nodes.video_decoder import VideoDecoder
from slam3r_ros.transport.bus import create_subscription
from slam3r_ros.values import Frame
from slam3r_ros.video.source import open_source
from slam3r_ros.video.topics import FFMPEG, FOXGLOVE, base_topic

WHY = 'apt install ros-jazzy-ffmpeg-image-transport-msgs ros-jazzy-foxglove-msgs'
FFMPEGPacket = pytest.importorskip('ffmpeg_image_transport_msgs.msg', reason=WHY).FFMPEGPacket
CompressedVideo = pytest.importorskip('foxglove_msgs.msg', reason=WHY).CompressedVideo
LENS = (-0.3, 0.1, 0.001, -0.002, 0.0)
KINDS = {'sensor_msgs/msg/Image': Image, 'sensor_msgs/msg/CompressedImage': CompressedImage,
         'sensor_msgs/msg/CameraInfo': CameraInfo, FFMPEG: FFMPEGPacket, FOXGLOVE: CompressedVideo}  # fmt: skip
PACKETS = encode({'bf': '0'}, COUNT)


@pytest.mark.parametrize('topic, make', [
    ('/cam/image_raw', lambda i: raw(i, 'bgr8', padding=8)), ('/cam/image_raw', lambda i: raw(i, 'mono8')),
    ('/cam/image_raw/compressed', lambda i: compressed(i, '.jpg')), ('/cam/image_rect', raw),
    ('/cam/image_raw/ffmpeg', video(FFMPEG, PACKETS, 'h264')), ('/cam/video', video(FOXGLOVE, PACKETS, 'h264')),
], ids=['bgr8', 'mono8', 'jpeg', 'rectified', 'ffmpeg', 'foxglove'])  # fmt: skip
def test_direct_reading_is_like_playing(ros, tmp_path, topic, make):
    path = record(tmp_path / 'bag', {'/cam/camera_info': lambda i: info(i, LENS), topic: make})
    direct = list(open_source(path))

    played = []
    create_subscription(ros.node(node_name='watcher'), Frame, 'frames', played.append, depth=2, lossless=True)
    decoder = ros.node(VideoDecoder, parameters={'input': base_topic(topic)})
    player = ros.apart().node(node_name='player')
    with AnyReader([tmp_path / 'bag']) as reader:
        publishers = {c.topic: player.create_publisher(KINDS[c.msgtype], c.topic, 10) for c in reader.connections}
        wait_for_match(player, decoder, *publishers)
        for number, (connection, _, data) in enumerate(reader.messages()):
            publishers[connection.topic].publish(deserialize_message(bytes(data), KINDS[connection.msgtype]))
            wait_until(lambda: decoder._source._calibration._newest)  # the calibration, which comes first
            wait_until(lambda: len(played) >= number // 2 + number % 2)  # noqa: B023 - nothing is dropped

    assert len(direct) == len(played) == COUNT
    for ours, theirs in zip(direct, played):
        assert (ours.id, ours.stamp) == (theirs.id, theirs.stamp)
        assert ours.intrinsics == theirs.intrinsics
        np.testing.assert_array_equal(ours.image, theirs.image)
