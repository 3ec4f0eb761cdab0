# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Topics of video: FFMPEGPacket of ffmpeg_image_transport and CompressedVideo of Foxglove."""

import threading
import time
from collections import Counter

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray
from nodes_stubs import images
from rclpy.qos import QoSProfile
from ros_helpers import PATIENCE, quick, ros_fixture, wait_for_match, wait_until  # noqa: F401
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import String

from slam3r_ros.bench.damage import decode, encode
from slam3r_ros.nodes import camera_input, video_topic
from slam3r_ros.nodes.video_decoder import VideoDecoder
from slam3r_ros.nodes.video_topic import PacketDecoder
from slam3r_ros.transport.bus import create_subscription
from slam3r_ros.transport.images import to_image
from slam3r_ros.transport.stamps import to_stamp
from slam3r_ros.values import Frame
from slam3r_ros.video import bag
from slam3r_ros.video.topics import FFMPEG, FOXGLOVE, Packet

pytestmark = pytest.mark.usefixtures('quick')
WHY = 'apt install ros-jazzy-ffmpeg-image-transport-msgs ros-jazzy-foxglove-msgs'
FFMPEGPacket = pytest.importorskip('ffmpeg_image_transport_msgs.msg', reason=WHY).FFMPEGPacket
CompressedVideo = pytest.importorskip('foxglove_msgs.msg', reason=WHY).CompressedVideo

GOP = 6
PACKETS = encode({'bf': '0'}, 24, gop=GOP)
CLEAN = decode(PACKETS)
START, PERIOD = 5_000_000_000, 33_000_000  # nanoseconds


def message(kind, data, i=0, encoding='h264', stamped=True):
    stamp = to_stamp(START + i * PERIOD if stamped else 0)
    if kind is CompressedVideo:
        made = CompressedVideo(timestamp=stamp, frame_id='cam', format=encoding)
    else:
        made = FFMPEGPacket(width=96, height=64, encoding=f'{encoding};yuv420p;bgr8', pts=i)
        made.header.stamp = stamp
    made.data.frombytes(data)
    return made


class Camera:
    """A camera outside of the process."""

    def __init__(self, ros, kind, topic):
        self._ros = ros
        self.node = ros.apart().node(node_name='camera', namespace='/cam')
        self.kind = kind
        self.video = self.node.create_publisher(kind, topic, QoSProfile(depth=100))

    def ready(self, *others):
        (decoder,) = (each for each in self._ros.nodes if isinstance(each, VideoDecoder))
        wait_for_match(self.node, decoder, *(each.topic_name for each in (self.video, *others)))

    def send(self, packets=PACKETS, first=0, **kwargs):
        for i, data in enumerate(packets, first):
            self.video.publish(message(self.kind, data, i, **kwargs))


@pytest.fixture
def decoder(ros):
    """Return a function that starts the decoder and a list in which its frames arrive."""

    def start(input, callback=None, **parameters):
        frames = []
        create_subscription(
            ros.node(node_name='watcher'), Frame, 'frames', callback or frames.append, depth=2, lossless=True
        )
        # `reliable`: the tests send faster than a camera
        parameters = {'input': input, 'input_qos': 'reliable'} | parameters
        return ros.node(VideoDecoder, parameters=parameters), frames

    return start


@pytest.fixture
def unhurried(monkeypatch):
    """Let frames wait: what is looked at is which of them come out, not how soon."""
    make = camera_input.CameraInput.__init__

    def patched(self, *args):
        make(self, *args)
        self._inbox._depth = 1000

    monkeypatch.setattr(camera_input.CameraInput, '__init__', patched)


@pytest.mark.parametrize('kind, topic, input', [
    (FFMPEGPacket, 'image_raw/ffmpeg', '/cam/image_raw/ffmpeg'),
    (CompressedVideo, 'video', 'topic:/cam/video'),
    (FFMPEGPacket, 'image_raw/ffmpeg', '/cam/image_raw'),
    (CompressedVideo, 'image_raw/foxglove', '/cam/image_raw'),
])  # fmt: skip
@pytest.mark.usefixtures('unhurried')
def test_video_comes_as_frames_with_the_stamps_of_its_messages(ros, decoder, kind, topic, input):
    camera = Camera(ros, kind, topic)
    node, frames = decoder(input)
    camera.ready()
    camera.send()
    wait_until(lambda: len(frames) == len(CLEAN))
    np.testing.assert_array_equal([frame.image for frame in frames], CLEAN)
    assert [frame.stamp for frame in frames] == [START + i * PERIOD for i in range(len(CLEAN))]
    assert [frame.id for frame in frames] == list(range(len(CLEAN)))
    wait_until(lambda: node.diagnostics()['received'] == len(CLEAN))
    assert node.diagnostics()['dropped'] == 0
    assert frames[0].intrinsics is None and node.trouble == ''


@pytest.mark.parametrize('kind', [FFMPEGPacket, CompressedVideo])
def test_a_zero_stamp_is_filled_in(ros, decoder, kind):
    camera = Camera(ros, kind, 'video')
    node, frames = decoder('/cam/video')
    camera.ready()
    start = time.time_ns()
    camera.send(PACKETS[:1], stamped=False)
    wait_until(lambda: frames)
    assert start <= frames[0].stamp <= node.get_clock().now().nanoseconds


def test_the_calibration_beside_a_video_is_used(ros, decoder):
    camera = Camera(ros, FFMPEGPacket, 'image_raw/ffmpeg')
    info = camera.node.create_publisher(CameraInfo, 'camera_info', 10)
    _, frames = decoder('/cam/image_raw/ffmpeg')
    camera.ready(info)
    k = [100.0, 0.0, 47.5, 0.0, 100.0, 31.5, 0.0, 0.0, 1.0]
    info.publish(CameraInfo(width=96, height=64, k=k, d=[-0.3, 0.1, 0.0, 0.0, 0.0], distortion_model='plumb_bob'))
    wait_until(lambda: camera_info_arrived(ros))
    camera.send(PACKETS[:1])
    wait_until(lambda: frames)
    assert frames[0].intrinsics.fx != 100.0  # the pinhole camera that is left has no black border
    assert np.abs(frames[0].image.astype(int) - CLEAN[0]).mean() > 1


def camera_info_arrived(ros):
    node = next(node for node in ros.nodes if isinstance(node, VideoDecoder))
    return node._source._calibration._newest is not None


def test_raw_images_go_before_video(ros, decoder):
    camera = Camera(ros, FFMPEGPacket, 'image_raw/ffmpeg')
    node, frames = decoder('/cam/image_raw')
    camera.ready()
    raw = camera.node.create_publisher(Image, 'image_raw', 10)
    wait_until(lambda: not camera.video.get_subscription_count())
    wait_for_match(camera.node, node, '/cam/image_raw')
    raw.publish(to_image(next(images()).image, 7, 'cam'))
    wait_until(lambda: frames)
    assert frames[0].stamp == 7


def test_every_packet_is_decoded_however_busy_the_others_are(ros, decoder):
    go_on, seen = threading.Event(), []

    def busy(frame):
        seen.append(frame)
        assert go_on.wait(2 * PATIENCE)

    camera = Camera(ros, CompressedVideo, 'video')
    node, _ = decoder('/cam/video', busy)
    camera.ready()
    packets = encode({'bf': '0'}, 40, gop=1000)  # one key picture: a packet that is dropped costs all behind it
    for i in range(0, 40, 10):
        camera.send(packets[i : i + 10], i)
        wait_until(lambda i=i: node._source._count == i + 10)
    assert node._source._lost == 0 and len(seen) == 1
    go_on.set()
    wait_until(lambda: seen[-1].id == 39)
    np.testing.assert_array_equal(seen[-1].image, decode(packets)[39])
    assert len(seen) < 20  # the newest, and what was on its way
    assert node.diagnostics()['dropped'] == 40 - len(seen)


class Slow:
    """A stream whose first packet takes as long as one likes."""

    def __init__(self, stream):
        self.stream, self.begun, self.go_on = stream, threading.Event(), threading.Event()
        self.flush = stream.flush

    def feed(self, *packet):
        self.begun.set()
        assert self.go_on.wait(2 * PATIENCE)
        return self.stream.feed(*packet)


@pytest.mark.parametrize('encoding, options, codec', [
    ('h264', {'bf': '0'}, 'libx264'), ('vp9', {'lag-in-frames': '0', 'deadline': 'realtime'}, 'libvpx-vp9'),
])  # fmt: skip
def test_what_piles_up_is_given_up_to_the_next_key_picture(encoding, options, codec):
    """VP9 does not say itself that pictures are missing."""
    packets, pictures = encode(options, 30, gop=10, codec=codec), []
    packets = [Packet(data, encoding, None) for data in packets]
    decoder = PacketDecoder('/video', pictures.append, pytest.fail)
    slow = decoder._stream = Slow(decoder._stream)
    try:
        assert decoder.put(packets[0], 0)
        assert slow.begun.wait(PATIENCE)
        taken = [decoder.put(packet, i) for i, packet in enumerate(packets[1:3])]
        video_depth, video_topic._DEPTH = video_topic._DEPTH, 2
        taken += [decoder.put(packet, i) for i, packet in enumerate(packets[3:5], 3)]
        slow.go_on.set()
        wait_until(lambda: len(pictures) == 3)
        video_topic._DEPTH = video_depth
        taken += [decoder.put(packet, i) for i, packet in enumerate(packets[5:], 5)]
        wait_until(lambda: len(pictures) == 28)
    finally:
        video_topic._DEPTH = video_depth
        decoder.close()
    assert taken == [True, True, False, False] + 25 * [True]
    # 0 was on its way; 1 and 2 waited, 3 and 4 found no room; 5 to 9 need them
    assert [each and each.stamp for each in pictures] == [0] + 7 * [None] + list(range(10, 30))


def test_a_vast_packet_is_refused(monkeypatch):
    monkeypatch.setattr(video_topic, 'MAX_UNIT', 1000)
    pictures = []
    decoder = PacketDecoder('/video', pictures.append, pytest.fail)
    try:
        assert not decoder.put(Packet(bytes(1001), 'h264', None), 0)
        assert decoder.put(Packet(PACKETS[0][:1000], 'h264', None), 0)
    finally:
        decoder.close()


@pytest.mark.parametrize('lost', [range(3, 4), range(2), range(4, 9)])
@pytest.mark.usefixtures('unhurried')
def test_lost_messages_cost_what_needs_them(ros, decoder, lost):
    camera = Camera(ros, FFMPEGPacket, 'image_raw/ffmpeg')
    _, frames = decoder('/cam/image_raw/ffmpeg')
    camera.ready()
    for i in (i for i in range(len(PACKETS)) if i not in lost):
        camera.send(PACKETS[i : i + 1], i)
    wait_until(lambda: frames and frames[-1].stamp == START + 23 * PERIOD)
    shown = [round((frame.stamp - START) / PERIOD) for frame in frames]
    resumed = (lost[-1] // GOP + 1) * GOP
    assert shown == [*range(lost[0]), *range(resumed, 24)]
    np.testing.assert_array_equal([frame.image for frame in frames], [CLEAN[i] for i in shown])


@pytest.mark.usefixtures('unhurried')
def test_another_codec_and_another_size_in_the_midst_of_a_topic(ros, decoder):
    camera = Camera(ros, CompressedVideo, 'video')
    _, frames = decoder('/cam/video')
    camera.ready()
    camera.send(PACKETS[:6])
    camera.send(encode({'x265-params': 'log-level=none:bframes=0'}, 6, codec='libx265'), 6, encoding='h265')
    camera.send(encode({'bf': '0'}, 6, (192, 128)), 12)  # of the same shape
    camera.send(encode({'bf': '0'}, 6, (96, 96)), 18)
    wait_until(lambda: len(frames) == 24)
    assert [frame.image.shape for frame in frames] == [(64, 96, 3)] * 18 + [(96, 96, 3)] * 6
    assert [frame.id for frame in frames] == [*range(18), *range(6)]  # a new video begins with the other shape


@pytest.mark.usefixtures('unhurried')
def test_an_unknown_codec_is_counted_and_passes(ros, decoder, capfd):
    camera = Camera(ros, CompressedVideo, 'video')
    node, frames = decoder('/cam/video')
    camera.ready()
    camera.send(PACKETS[:2], encoding='wmv9')
    camera.send()
    wait_until(lambda: len(frames) == 24)
    assert node.diagnostics()['dropped'] == 2
    assert capfd.readouterr().err.count("/cam/video: codec 'wmv9' is not supported; send h264 or h265") == 1


@pytest.mark.usefixtures('unhurried')
def test_after_a_pause_of_the_node_video_goes_on_at_a_key_picture(ros, decoder):
    camera = Camera(ros, FFMPEGPacket, 'image_raw/ffmpeg')
    node, frames = decoder('/cam/image_raw/ffmpeg')
    camera.ready()
    camera.send(PACKETS[:3])
    wait_until(lambda: len(frames) == 3)
    node.trigger_deactivate()
    camera.send(PACKETS[3:9], 3)
    wait_until(lambda: node._source.received == 9)
    node.trigger_activate()
    camera.send(PACKETS[9:], 9)
    wait_until(lambda: frames[-1].stamp == START + 23 * PERIOD)
    assert [round((frame.stamp - START) / PERIOD) for frame in frames] == [0, 1, 2, *range(12, 24)]
    assert node.diagnostics()['dropped'] == 9
    assert frames[-1].id > frames[2].id


def test_a_missing_message_package_is_an_error_that_names_it(ros, decoder, monkeypatch):
    load = camera_input.import_module

    def missing(name):
        if name.startswith('ffmpeg'):
            raise ModuleNotFoundError(name)
        return load(name)

    monkeypatch.setattr(camera_input, 'import_module', missing)
    outside, diagnostics = ros.apart().node(node_name='outside'), []
    outside.create_subscription(DiagnosticArray, '/diagnostics', lambda m: diagnostics.append(m.status[0]), 10)
    camera = Camera(ros, FFMPEGPacket, 'image_raw/ffmpeg')
    wait_until(lambda: camera.node.count_publishers('/cam/image_raw/ffmpeg'))
    node, frames = decoder('/cam/image_raw')
    reason = (
        '/cam/image_raw/ffmpeg: carries ffmpeg_image_transport_msgs/msg/FFMPEGPacket, whose package '
        'ffmpeg_image_transport_msgs is not installed; apt install ros-jazzy-ffmpeg-image-transport-msgs'
    )
    wait_until(lambda: any(each.level == b'\x02' and each.message == reason for each in diagnostics))
    raw = camera.node.create_publisher(Image, 'image_raw', 10)
    wait_for_match(camera.node, node, '/cam/image_raw')
    wait_until(lambda: node.trouble == '')
    raw.publish(to_image(next(images()).image, 7, 'cam'))
    wait_until(lambda: frames)


def test_a_topic_of_something_else_is_an_error(ros, decoder):
    outside = ros.apart().node(node_name='outside')
    outside.create_publisher(String, '/cam/image_raw', 10)
    node, _ = decoder('/cam/image_raw')
    wait_until(lambda: node.trouble == '/cam/image_raw: carries std_msgs/msg/String, no images; give an image topic')


def test_video_without_a_key_picture_is_told(ros, decoder, capfd, monkeypatch):
    monkeypatch.setattr(camera_input, '_NOTICE', 0.3)
    camera = Camera(ros, CompressedVideo, 'video')
    _, frames = decoder('/cam/video')
    camera.ready()

    def told():
        camera.send(PACKETS[1:2])
        texts.append(capfd.readouterr().err)
        return '/cam/video: waiting for a key picture' in ''.join(texts)

    texts = []
    wait_until(told)
    assert not frames


@pytest.mark.parametrize('kind, message_type', [(FFMPEG, FFMPEGPacket), (FOXGLOVE, CompressedVideo)])
def test_bags_and_topics_mean_the_same_messages(kind, message_type):
    fields = dict(line.split()[::-1] for line in bag._DEFINITIONS[kind].splitlines())
    generated = message_type.get_fields_and_field_types()
    assert list(fields) == list(generated)
    names = {'uint8[]': 'sequence<uint8>', 'bool': 'boolean'}
    assert Counter(names.get(each, each) for each in fields.values()) == Counter(generated.values())
