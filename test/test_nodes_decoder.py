# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
import threading
import time
from contextlib import contextmanager, suppress
from functools import partial

import cv2
import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray
from nodes_stubs import StubClock, StubSource, images
from rclpy.qos import qos_profile_sensor_data
from ros_helpers import PACE, PATIENCE, next_domain, quick, ros_fixture, wait_for_match, wait_until  # noqa: F401
from rtsp_server import rtsp_server
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from test_video_live import free_port
from test_video_live import server as websocket_server

from slam3r_ros import msg
from slam3r_ros.bench.damage import encode
from slam3r_ros.nodes import calibration as calibration_module
from slam3r_ros.nodes import camera_input, playback, process
from slam3r_ros.nodes.keyframe_selector import KeyframeSelector
from slam3r_ros.nodes.parameters import ParameterError
from slam3r_ros.nodes.video_decoder import VideoDecoder, topic_of
from slam3r_ros.transport.bus import create_publisher, create_subscription
from slam3r_ros.transport.images import to_image
from slam3r_ros.values import Frame, State
from slam3r_ros.video import live
from slam3r_ros.video.source import VideoError

pytestmark = pytest.mark.usefixtures('quick')


@pytest.fixture
def decoder(ros, monkeypatch):
    """Return a function that starts the decoder and a list in which its frames arrive."""

    def start(source=None, callback=None, **parameters):
        if source is not None:
            monkeypatch.setattr(playback, 'open_source', lambda *_: source)
        frames = []
        watcher = ros.node(node_name='watcher')
        create_subscription(watcher, Frame, 'frames', callback or frames.append, depth=2, lossless=True)
        return ros.node(VideoDecoder, parameters=parameters), frames

    return start


def test_what_an_input_means(tmp_path):
    bag = tmp_path / 'bag'
    bag.mkdir()
    assert topic_of('') == 'image_raw'
    assert topic_of('topic:camera/image') == 'camera/image'
    assert topic_of('/camera/image_raw') == '/camera/image_raw'
    assert topic_of('/videos/missing.mp4') is None
    assert topic_of('/videos/my-clips') is None and topic_of('/videos/my clips') is None
    assert topic_of('/videos//clips') is None and topic_of('/2024/clips') is None
    assert topic_of(str(bag)) is None
    assert topic_of('video.mp4') is None


def test_a_file_is_read_without_loss_at_the_readers_pace(ros, decoder):
    seen = []

    def slow(frame):
        time.sleep(0.003)
        seen.append(frame.id)

    source = StubSource()
    node, _ = decoder(source, slow, input='video.mp4')
    wait_until(lambda: len(seen) == 40)
    assert seen == list(range(40))
    ros.executor.remove_node(node)
    ros.nodes.remove(node)
    node.destroy_node()
    assert source.closed


def test_a_file_waits_for_a_reader(ros, monkeypatch):
    monkeypatch.setattr(playback, 'open_source', lambda *_: StubSource())
    node = ros.node(VideoDecoder, parameters={'input': 'video.mp4'})
    wait_until(lambda: node.worker._waits)
    time.sleep(0.1)
    assert node.diagnostics()['received'] == 0
    seen = []
    create_subscription(ros.node(node_name='late'), Frame, 'frames', seen.append, depth=4, lossless=True)
    wait_until(lambda: len(seen) == 40)


def test_at_its_own_pace_a_file_drops_what_comes_too_late(decoder, monkeypatch):
    seen, clock = [], StubClock()
    monkeypatch.setattr(playback, 'time', clock)

    def slow(frame):
        clock.sleep(0.1)
        seen.append(frame.id)

    start = clock.monotonic()
    node, _ = decoder(StubSource(), slow, input='video.mp4', realtime=True)
    wait_until(lambda: seen and seen[-1] == 39)
    assert 1.2 < clock.monotonic() - start < 2.5  # 39 * 33 ms, and what was waiting
    assert len(seen) < 25
    assert node.diagnostics()['dropped'] == 40 - len(seen)


@pytest.mark.parametrize('offset, expected', [(0.0, 0), (2.5, 2_500_000_000), (-1.0, None)])
def test_stamps_start_where_the_parameter_says(ros, monkeypatch, offset, expected):
    offsets = []
    monkeypatch.setattr(playback, 'open_source', lambda uri, offset, *_: offsets.append(offset) or StubSource([]))
    start = time.time_ns()
    node = ros.node(VideoDecoder, parameters={'input': 'video.mp4', 'stamp_offset': offset})
    wait_until(lambda: offsets)
    now = node.get_clock().now().nanoseconds
    assert offsets[0] == expected if expected is not None else start <= offsets[0] <= now


def test_the_rate_of_an_image_folder_is_a_parameter(decoder, tmp_path):
    for frame in images(4):
        cv2.imwrite(str(tmp_path / f'{frame.id}.png'), frame.image)
    _, frames = decoder(input=str(tmp_path), fps=4, stamp_offset=1)
    wait_until(lambda: len(frames) == 4)
    assert [frame.stamp for frame in frames] == [1_000_000_000 + i * 250_000_000 for i in range(4)]


@pytest.mark.parametrize('hardware, reason', [
    ('abacus', "hardware 'abacus' cannot decode (this FFmpeg knows "),
    ('drm', "hardware 'drm' cannot decode ("), ('', ''),
])  # fmt: skip
def test_hardware_that_cannot_decode_is_told_once_and_software_does(decoder, tmp_path, capfd, hardware, reason):
    (tmp_path / 'video.h264').write_bytes(b''.join(encode({}, 12)))
    _, frames = decoder(input=str(tmp_path / 'video.h264'), hardware=hardware)
    wait_until(lambda: frames and frames[-1].last)
    errors = capfd.readouterr().err
    assert len(frames) == 12 and errors.count('cannot decode') == bool(hardware) and reason in errors


def test_bad_input_is_told_in_one_line_and_fails_the_node(ros):
    outside = ros.apart().node(node_name='outside')
    statuses, diagnostics = [], []
    outside.create_subscription(msg.SlamStatus, 'status', statuses.append, 10)
    outside.create_subscription(DiagnosticArray, '/diagnostics', diagnostics.append, 10)
    node = ros.node(VideoDecoder, parameters={'input': '/nowhere/video.mp4', 'autostart': False})
    node.trigger_configure()
    wait_for_match(node, outside, '/status', '/diagnostics')
    node.trigger_activate()
    wait_until(node.failed.done)
    assert node.failed.result().startswith('/nowhere/video.mp4: does not exist; give a video file')
    wait_until(lambda: statuses and any(each.status[0].level == b'\x02' for each in diagnostics))
    assert statuses[-1].state == State.ERROR and '/nowhere/video.mp4' in statuses[-1].last_error


@contextmanager
def served(scheme, port):
    """Serve the same video again and again; at the end every connection is cut."""
    packets, over = encode({'bf': '0'}, 12), threading.Event()

    def play(send):
        with suppress(Exception):
            while not over.is_set():
                for data in packets:
                    send(data)
                    time.sleep(0.01)

    if scheme == 'ws':
        server = websocket_server(lambda connection: play(connection.send), port)
    else:
        server = rtsp_server(lambda player: play(player.send), port=port)
    with server:
        yield
        over.set()


@pytest.mark.parametrize('scheme', ['ws', 'rtsp'])
def test_a_broken_stream_is_an_error_in_diagnostics_and_comes_back_without_restart(ros, decoder, monkeypatch, scheme):
    monkeypatch.setattr(live, 'Backoff', partial(live.Backoff, 0.05, 0.1))
    port, statuses = free_port(), []
    outside = ros.apart().node(node_name='outside')
    outside.create_subscription(DiagnosticArray, '/diagnostics', lambda m: statuses.append(m.status[0]), 10)
    node, frames = decoder(input=f'{scheme}://127.0.0.1:{port}/ws/video/consume')

    def wait_for(level, text):
        statuses.clear()
        wait_until(lambda: any(each.level == level and text in each.message for each in statuses))

    wait_for(b'\x02', 'Connection refused')
    for _ in range(2):
        count = len(frames)
        with served(scheme, port):
            wait_for(b'\x00', 'ok')
            wait_until(lambda: len(frames) > count)  # noqa: B023
        wait_for(b'\x02', 'next attempt in')
    assert not node.failed.done() and node.active


def test_a_missing_camera_is_an_error_that_is_logged_once_and_waited_for(decoder, capfd, monkeypatch):
    monkeypatch.setattr(live, 'Backoff', partial(live.Backoff, 0.01, 0.02))
    node, _ = decoder(input='camera:87')
    wait_until(lambda: '/dev/video87: is no camera of this machine' in node.trouble)
    seen = node.diagnostics()['reconnects']
    wait_until(lambda: node.diagnostics()['reconnects'] > seen + 20)
    assert not node.failed.done() and node.active
    assert capfd.readouterr().err.count('/dev/video87: is no camera of this machine') == 1


def test_a_file_that_breaks_in_the_middle_fails_the_node(decoder):
    def breaking():
        yield from images(40, missing=range(5, 40))
        raise VideoError('video.mp4: changes size')

    node, _ = decoder(StubSource(breaking()), input='video.mp4')
    wait_until(node.failed.done)
    assert node.diagnostics()['received'] == 5
    assert node.last_error == 'video.mp4: changes size'


def test_a_mistake_while_reading_fails_the_node(decoder):
    def breaking():
        yield from images(40, missing=range(5, 40))
        raise KeyError('codec')

    node, _ = decoder(StubSource(breaking()), input='video.mp4')
    wait_until(node.failed.done)
    assert node.failed.result() == "video.mp4: KeyError: 'codec'"


@pytest.mark.parametrize('name', ['topic:/my-camera/image', 'topic:', 'topic:a b', 'topic:/camera//image'])
def test_what_is_no_topic_name_is_refused(ros, name):
    with pytest.raises(ParameterError, match='parameter input of /video_decoder: .*([Ii]nvalid|repeated)') as caught:
        ros.node(VideoDecoder, parameters={'input': name})
    assert '\n' not in str(caught.value) and '.c:' not in str(caught.value)


def test_the_name_that_is_refused_is_told_whole(ros):
    with pytest.raises(ParameterError, match="'a, at b'"):
        ros.node(VideoDecoder, parameters={'input': 'topic:a, at b'})


def test_run_ends_with_status_1_on_bad_input(monkeypatch, capfd):
    monkeypatch.setenv('ROS_DOMAIN_ID', str(next_domain()))
    assert process.run(VideoDecoder, ['--ros-args', '-p', 'input:=/nowhere/video.mp4']) == 1
    assert process.run(VideoDecoder, ['--ros-args', '-p', 'input_qos:=best']) == 1
    errors = capfd.readouterr().err
    assert errors.count('/nowhere/video.mp4: does not exist') == 1
    assert "VideoDecoder: parameter input_qos of /video_decoder: 'best' must be one of sensor_data, reliable" in errors
    assert 'Traceback' not in errors


class Camera:
    """A camera outside of the process."""

    def __init__(self, ros, compressed=False, calibrated=True, name='image_raw'):
        self._ros, self.node = ros, ros.apart().node(node_name='camera', namespace='/cam')
        kind, name = (CompressedImage, f'{name}/compressed') if compressed else (Image, name)
        self.image = self.node.create_publisher(kind, name, 10)
        self.info = self.node.create_publisher(CameraInfo, 'camera_info', 10) if calibrated else None

    @property
    def decoder(self):
        (decoder,) = (each for each in self._ros.nodes if isinstance(each, VideoDecoder))
        return decoder

    def ready(self):
        wait_for_match(self.node, self.decoder, *(each.topic_name for each in (self.image, self.info) if each))

    def calibrate(self, message):
        """Publish a calibration, and wait until it has come to the decoder."""
        self.info.publish(message)
        wait_until(lambda: self.decoder._source._calibration._newest == message)


def calibration(d=(), **kwargs):
    k = [100.0, 0.0, 63.5, 0.0, 100.0, 47.5, 0.0, 0.0, 1.0]
    return CameraInfo(width=128, height=96, k=k, d=list(d), distortion_model='plumb_bob', **kwargs)


def test_an_image_topic_with_its_calibration(ros, decoder, monkeypatch):
    monkeypatch.setattr(calibration_module, '_PATIENCE', 1e6)
    node, frames = decoder(input='/cam/image_raw')
    camera = Camera(ros)
    camera.ready()
    picture = next(images()).image
    first = to_image(picture, 5_000_000_000, 'cam')
    camera.image.publish(first)  # before its calibration: not used
    wait_until(lambda: node.diagnostics()['dropped'] == 1)
    camera.calibrate(calibration())
    camera.image.publish(first)
    wait_until(lambda: frames)
    frame = frames[0]
    assert (frame.id, frame.stamp, frame.last) == (1, 5_000_000_000, False)
    assert frame.intrinsics == (100.0, 100.0, 63.5, 47.5)
    np.testing.assert_array_equal(frame.image, picture)


def test_images_do_not_wait_for_ever_for_a_calibration_that_never_comes(ros, decoder, monkeypatch):
    monkeypatch.setattr(calibration_module, '_PATIENCE', 1e6)
    node, frames = decoder(input='/cam/image_raw')
    camera = Camera(ros)
    camera.ready()
    picture = to_image(next(images()).image, 1, 'cam')
    for count in (1, 2):
        camera.image.publish(picture)
        wait_until(lambda count=count: node.diagnostics()['dropped'] == count)
    monkeypatch.setattr(calibration_module, '_PATIENCE', 0.0)  # much later
    camera.image.publish(picture)
    wait_until(lambda: frames)
    assert frames[0].id == 2 and frames[0].intrinsics is None


def test_distortion_is_taken_out_and_a_zero_stamp_filled_in(ros, decoder):
    node, frames = decoder(input='topic:/cam/image_raw')
    camera = Camera(ros)
    camera.ready()
    camera.calibrate(calibration((-0.3, 0.1, 0.0, 0.0, 0.0)))
    lines, start = np.zeros((96, 128, 3), np.uint8), time.time_ns()
    camera.image.publish(to_image(lines, 0, 'cam'))
    wait_until(lambda: frames)
    assert start <= frames[0].stamp <= node.get_clock().now().nanoseconds
    assert frames[0].intrinsics.fx != 100.0  # the pinhole camera that is left has no black border


def test_the_calibration_stays_once_an_image_went_out(ros, decoder, capfd):
    _, frames = decoder(input='/cam/image_raw')
    camera = Camera(ros, calibrated=False)
    camera.ready()
    picture = to_image(next(images()).image, 1, 'cam')
    camera.image.publish(picture)
    wait_until(lambda: len(frames) == 1)
    camera.info = camera.node.create_publisher(CameraInfo, 'camera_info', 10)
    camera.ready()
    for width in (128, 127):
        changed = calibration((-0.3, 0.1, 0.0, 0.0, 0.0))
        changed.width = width
        camera.calibrate(changed)
    picture.header.stamp.nanosec += 1
    camera.image.publish(picture)
    wait_until(lambda: len(frames) == 2)
    assert frames[0].intrinsics is None and frames[1].intrinsics is None
    np.testing.assert_array_equal(frames[1].image, frames[0].image)
    assert capfd.readouterr().err.count('the calibration has changed, which is ignored') == 1


def test_rectified_images_are_not_undistorted_again(ros, decoder):
    _, frames = decoder(input='/cam/image_rect_color')
    camera = Camera(ros, name='image_rect_color')
    camera.ready()
    p = [90.0, 0.0, 60.0, 0.0, 0.0, 91.0, 45.0, 0.0, 0.0, 0.0, 1.0, 0.0]
    camera.calibrate(calibration((-0.3, 0.1, 0.0, 0.0, 0.0), p=p))
    picture = next(images()).image
    camera.image.publish(to_image(picture, 1, 'cam'))
    wait_until(lambda: frames)
    assert frames[0].intrinsics == (90.0, 91.0, 60.0, 45.0)
    np.testing.assert_array_equal(frames[0].image, picture)


def test_compressed_images_when_nothing_else_is_there(ros, decoder):
    camera = Camera(ros, compressed=True, calibrated=False)
    _, frames = decoder(input='/cam/image_raw')
    camera.ready()
    picture = cv2.GaussianBlur(next(images()).image, (0, 0), 9)
    data = cv2.imencode('.png', picture[..., ::-1])[1].tobytes()
    message = CompressedImage(format='png')
    message.data.frombytes(data)
    camera.image.publish(message)
    wait_until(lambda: frames)
    np.testing.assert_array_equal(frames[0].image, picture)
    assert frames[0].intrinsics is None


def test_broken_images_are_counted_and_the_next_one_comes_through(ros, decoder):
    node, frames = decoder(input='/cam/image_raw')
    camera = Camera(ros, calibrated=False)
    camera.ready()
    good = to_image(next(images()).image, 1, 'cam')
    bad = to_image(next(images()).image, 1, 'cam')
    bad.height *= 2
    strange = to_image(next(images()).image, 1, 'cam')
    strange.encoding = '32FC1'
    for count, message in enumerate((bad, strange), 1):
        camera.image.publish(message)
        wait_until(lambda count=count: node.diagnostics()['dropped'] == count)
    camera.image.publish(good)
    wait_until(lambda: frames)
    assert frames[0].id == 2
    assert node.diagnostics()['dropped'] == 2


def test_a_topic_keeps_the_newest_when_the_others_are_busy(ros, decoder):
    seen, pace = [], threading.Semaphore(0)

    def slow(frame):
        assert pace.acquire(timeout=PATIENCE)
        seen.append(frame.id)

    node, _ = decoder(callback=slow, input='/cam/image_raw', input_qos='reliable')
    camera = Camera(ros, calibrated=False)
    camera.ready()
    for count, frame in enumerate(images(40), 1):
        camera.image.publish(to_image(frame.image, frame.stamp, 'cam'))
        wait_until(lambda count=count: node.diagnostics()['received'] == count)
        if count % 5 == 0:
            pace.release()
    pace.release(40)
    wait_until(lambda: seen and seen[-1] == 39)
    assert 8 <= len(seen) < 25
    assert seen == sorted(seen)
    assert node.diagnostics()['dropped'] == 40 - len(seen)


def test_without_input_the_topic_is_waited_for_aloud(ros, capfd, monkeypatch):
    assert camera_input._NOTICE == 5.0
    monkeypatch.setattr(camera_input, '_NOTICE', 0.2 * PACE)
    start, texts = time.monotonic(), []
    ros.node(VideoDecoder)

    def count():
        texts.append(capfd.readouterr().err)
        return ''.join(texts).count('waiting for images on /image_raw or /image_raw/compressed')

    wait_until(lambda: count() >= 3)
    assert count() <= 1 + (time.monotonic() - start) / 0.2


def test_images_go_out_when_asked_for(ros, decoder):
    decoder(StubSource(images(10**6)), lambda frame: time.sleep(0.01), input='video.mp4')
    seen = []
    outside = ros.apart().node(node_name='outside')
    outside.create_subscription(Image, 'image', seen.append, qos_profile_sensor_data)
    wait_until(lambda: seen)
    assert (seen[0].encoding, seen[0].width, seen[0].header.frame_id) == ('rgb8', 128, 'camera_optical_frame')


def test_the_selector_passes_frames_on_with_advice(ros):
    seen = []
    create_subscription(ros.node(node_name='watcher'), Frame, 'selected_frames', seen.append, depth=100)
    selector = ros.node(KeyframeSelector, parameters={'keyframe_stride': 4})
    publisher = create_publisher(ros.node(node_name='feeder'), Frame, 'frames')
    for frame in images(20):
        publisher.publish(frame)
    wait_until(lambda: seen and seen[-1].last)
    assert [frame.id for frame in seen] == list(range(20))
    assert {frame.stride for frame in seen} == {4}
    assert [frame.id for frame in seen if frame.candidate] == [0, 4, 8, 12, 16]
    assert selector.diagnostics()['received'] == 20
