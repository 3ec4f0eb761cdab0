# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Time as it goes wrong in the ROS graph: looping bags, a clock that goes back or stands still, stamps that lie."""

import gc
import time
import weakref
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray
from nav_msgs.msg import Odometry, Path
from nodes_stubs import StubClock, StubEngine, StubSource, images
from rclpy.clock import Clock as RosClock
from rclpy.clock import JumpThreshold
from rclpy.duration import Duration
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, QoSProfile
from ros_helpers import quick, ros_fixture, wait_for_match, wait_until  # noqa: F401
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import Image, PointCloud2
from std_srvs.srv import Trigger
from test_video_bag import COUNT, LATE, PERIOD, START, raw, record
from tf2_msgs.msg import TFMessage
from visualization_msgs.msg import Marker, MarkerArray

from slam3r_ros.container import Container
from slam3r_ros.nodes import playback, slam3r
from slam3r_ros.nodes.keyframe_selector import KeyframeSelector
from slam3r_ros.nodes.mesher import Mesher
from slam3r_ros.nodes.slam3r import Slam3r
from slam3r_ros.nodes.video_decoder import VideoDecoder
from slam3r_ros.transport.bus import create_publisher, create_subscription, worker_of
from slam3r_ros.transport.images import to_image
from slam3r_ros.transport.stamps import from_stamp, to_stamp
from slam3r_ros.values import Frame, Keyframe, MeshUpdate, SlamStatus
from slam3r_ros.video import live
from slam3r_ros.video.live import LiveSource
from slam3r_ros.video.picture import Picture

pytestmark = pytest.mark.usefixtures('quick')
SECOND = 10**9
PICTURES = [frame.image for frame in images(25)]  # of noise: sharp, with three keyframes
BEGIN = 1_700_000_000 * SECOND
LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)


listen = RosClock.create_jump_callback  # a test looks at who else does
ANY_JUMP = JumpThreshold(min_forward=Duration(nanoseconds=1), min_backward=Duration(nanoseconds=-1))


class Clockwork:
    """Publishes /clock."""

    def __init__(self, ros):
        self._publisher = ros.apart().node(node_name='clockwork').create_publisher(Clock, '/clock', 10)

    def set(self, nanoseconds, *nodes):
        """Set the time, and wait until the nodes have heeded it."""
        wait_until(lambda: self._publisher.get_subscription_count() >= len(nodes))
        heeded, handles = [], []
        for node in nodes:  # told behind those who listen already
            clock = node.get_clock()

            def note(jump, node=node, clock=clock):
                if clock.now().nanoseconds == nanoseconds:
                    heeded.append(node)

            handles.append(listen(clock, ANY_JUMP, post_callback=note))

        def arrived():
            self._publisher.publish(Clock(clock=to_stamp(nanoseconds)))  # best effort
            time.sleep(0.01)
            return heeded and {*heeded} == {*nodes}

        wait_until(arrived)
        for node, handle in zip(nodes, handles, strict=True):
            handle.unregister()
            if hasattr(node, 'worker'):
                node.worker.call(lambda: None)


class Graph:
    """The four nodes about a stub engine, a camera and an observer outside."""

    def __init__(self, ros, monkeypatch, **parameters):
        self.engine = StubEngine()
        monkeypatch.setattr(slam3r, 'create_engine', self.engine.made)
        self.listener = ros.node(node_name='listener')
        self.statuses, self.keyframes, self.updates = [], [], []
        for value_type, topic, seen in (
            (SlamStatus, 'status', self.statuses), (Keyframe, 'keyframes', self.keyframes),
            (MeshUpdate, 'mesh', self.updates),
        ):  # fmt: skip
            create_subscription(self.listener, value_type, topic, seen.append, depth=1000)
        outside = ros.apart().node(node_name='outside')
        self.tf, self.odometry, self.paths, self.markers, self.diagnostics = ([] for _ in range(5))
        self.mounts, self.clouds = [], []
        outside.create_subscription(TFMessage, '/tf', self.tf.append, 1000)
        outside.create_subscription(Odometry, 'odometry', self.odometry.append, 1000)
        outside.create_subscription(TFMessage, '/tf_static', self.mounts.append, LATCHED)
        outside.create_subscription(Path, 'path', self.paths.append, LATCHED)
        outside.create_subscription(PointCloud2, 'map_cloud', self.clouds.append, LATCHED)
        outside.create_subscription(MarkerArray, 'mesh_markers', self.markers.append, 1000)
        outside.create_subscription(DiagnosticArray, '/diagnostics', self.diagnostics.append, 1000)
        more = {'mesher': {'mesh_min_weight': 0.0, 'mesh_rate': 5.0}, 'video_decoder': {'input_qos': 'reliable'}}
        self.nodes = [
            ros.node(each, parameters=parameters | more.get(each.NAME, {}))
            for each in (Mesher, Slam3r, KeyframeSelector, VideoDecoder)
        ]
        self.mesher, self.slam3r, _, self.decoder = self.nodes
        camera = ros.apart().node(node_name='camera')
        self.camera = camera.create_publisher(Image, 'image_raw', 10)
        wait_for_match(camera, self.decoder, '/image_raw')
        topics = '/tf', '/tf_static', '/odometry', '/path', '/map_cloud', '/mesh_markers'
        published = [p for node in (self.mesher, self.slam3r) for p in node.publishers if p.topic_name in topics]
        wait_until(lambda: all(each.get_subscription_count() for each in published))
        self._sent = 0

    def show(self, pictures, stamps):
        """Publish images, each when the one before is through."""
        for picture, stamp in zip(pictures, stamps, strict=True):
            self.camera.publish(to_image(picture, stamp, 'camera'))
            self._sent += 1
            wait_until(lambda: self.decoder.diagnostics()['received'] == self._sent)
            self.settle()

    def settle(self):
        for node in reversed(self.nodes):
            node.worker.call(lambda: None)
        worker_of(self.listener).call(lambda: None)

    def map_ids(self):
        return sorted({each.map_id for each in self.statuses})

    def tf_stamps(self):
        return [from_stamp(each.transforms[-1].header.stamp) for each in self.tf]

    def errors(self):
        return {status.message for each in self.diagnostics for status in each.status if status.level != b'\x00'}


@pytest.fixture
def graph(ros, monkeypatch):
    return lambda **parameters: Graph(ros, monkeypatch, **parameters)


def loop(begin=BEGIN, period=SECOND // 10):
    return [begin + i * period for i in range(len(PICTURES))]


def test_each_loop_of_a_bag_is_one_more_map(graph):
    g = graph()
    for i in range(3):
        g.show(PICTURES, loop())
        first = g.map_ids()[0]
        wait_until(lambda: g.updates and g.updates[-1].map_id == first + i and g.updates[-1].blocks)  # noqa: B023
    wait_until(lambda: len(g.tf) == 3 * 25 - 2)  # two frames to initialise
    assert g.map_ids() == [first, first + 1, first + 2]
    for map_id in g.map_ids():  # each is whole, and nothing of one is in another
        expected = {10, 20} if map_id == first else {0, 10, 20}
        assert {each.id for each in g.keyframes if each.map_id == map_id} == expected
        assert next(each for each in g.updates if each.map_id == map_id).full
    assert [each.id for each in g.engine.frames] == 3 * list(range(25))
    assert g.decoder.diagnostics()['dropped'] == 0
    wait_until(lambda: g.paths and len(g.paths[-1].poses) == 3)
    assert not any(node.last_error for node in g.nodes) and not g.errors()


def test_a_looping_bag_with_its_clock_begins_one_map_a_loop(ros, graph):
    clockwork, g = Clockwork(ros), graph(use_sim_time=True)
    for _ in range(2):
        for picture, stamp in zip(PICTURES, loop(), strict=True):
            clockwork.set(stamp + SECOND // 50, *g.nodes)
            g.show([picture], [stamp])
    first = g.map_ids()[0]
    wait_until(lambda: g.updates[-1].map_id == first + 1 and g.updates[-1].blocks)
    assert g.map_ids() == [first, first + 1]
    assert g.decoder.diagnostics()['dropped'] == 0
    assert not any(node.last_error for node in g.nodes) and not g.errors()


def test_a_clock_that_goes_back_clears_path_and_mesh_without_any_frame(ros, graph):
    clockwork, g = Clockwork(ros), graph(use_sim_time=True)
    clockwork.set(BEGIN, *g.nodes)
    g.show(PICTURES, loop())
    wait_until(lambda: g.markers and g.updates[-1].blocks and g.paths and g.paths[-1].poses and g.clouds)
    clockwork.set(BEGIN + 3 * SECOND, *g.nodes)
    first = g.map_ids()[0]
    g.settle()
    assert g.map_ids() == [first]  # forward is no reason
    clockwork.set(BEGIN - SECOND // 2, *g.nodes)
    wait_until(lambda: g.updates[-1].map_id == first + 1)
    assert g.updates[-1].full and not g.updates[-1].blocks
    wait_until(lambda: not g.paths[-1].poses)
    wait_until(lambda: {each.action for each in g.markers[-1].markers} == {Marker.DELETE})
    wait_until(lambda: not g.clouds[-1].width)
    assert from_stamp(g.clouds[-1].header.stamp) == 0  # not of a time to come
    wait_until(lambda: from_stamp(g.mounts[-1].transforms[0].header.stamp) == BEGIN - SECOND // 2)  # told anew
    clockwork.set(BEGIN - 9 * SECOND, *g.nodes)  # once more, with nothing mapped
    g.settle()
    assert g.map_ids() == [first, first + 1]


@pytest.mark.parametrize('order', ['clock first', 'frames first', 'late frames', 'stamps of another clock'])
def test_clock_and_frames_that_tell_the_same_loop_begin_one_map(ros, monkeypatch, order):
    clockwork, engine, statuses = Clockwork(ros), StubEngine(), []
    monkeypatch.setattr(slam3r, 'create_engine', engine.made)
    feeder = ros.node(node_name='feeder')
    frames = create_publisher(feeder, Frame, 'selected_frames')
    create_subscription(feeder, SlamStatus, 'status', statuses.append, depth=1000)
    node = ros.node(Slam3r, parameters={'use_sim_time': True})
    begin = 50 * SECOND if order == 'stamps of another clock' else BEGIN
    once = [Frame(i, stamp, picture) for i, (stamp, picture) in enumerate(zip(loop(begin), PICTURES, strict=True))]

    def feed(those):
        for frame in those:
            frames.publish(frame)
        node.worker.call(lambda: None)

    clockwork.set(BEGIN + 25 * SECOND // 10, node)
    feed(once[:20])
    if order == 'frames first':
        feed(once[:5])
    clockwork.set(BEGIN, node)
    if order == 'late frames':
        feed(once[20:])
    feed(once[5:] if order == 'frames first' else once)
    worker_of(feeder).call(lambda: None)
    first = statuses[0].map_id
    assert {each.map_id for each in statuses} == {first, first + 1}
    assert [frame.id for frame in engine.frames] == [*range(20), *range(25)]
    assert statuses[-1].frames_dropped == 0


def test_a_clock_that_goes_back_is_heeded_during_a_pause(ros, graph):
    clockwork, g = Clockwork(ros), graph(use_sim_time=True)
    clockwork.set(BEGIN, *g.nodes)
    g.show(PICTURES, loop())
    first = g.map_ids()[0]
    assert ros.call(g.listener, Trigger, '/slam3r/pause').success
    clockwork.set(BEGIN - 9 * SECOND, g.slam3r)
    wait_until(lambda: first + 1 in g.map_ids())
    assert ros.call(g.listener, Trigger, '/slam3r/resume').success
    g.show(PICTURES, loop(BEGIN - 9 * SECOND))
    assert g.map_ids() == [first, first + 1]


def test_frames_that_waited_when_the_clock_went_back_belong_to_no_map(ros, graph):
    clockwork, g = Clockwork(ros), graph(use_sim_time=True)
    clockwork.set(BEGIN, *g.nodes)
    g.show(PICTURES[:15], loop()[:15])
    first = g.map_ids()[0]
    assert ros.call(g.listener, Trigger, '/slam3r/pause').success
    g.show(PICTURES[15:17], loop()[15:17])  # as far as the engine's queue
    clockwork.set(BEGIN - 9 * SECOND, g.slam3r)
    wait_until(lambda: first + 1 in g.map_ids())
    assert ros.call(g.listener, Trigger, '/slam3r/resume').success
    g.show(PICTURES, loop(BEGIN - 9 * SECOND))
    assert g.map_ids() == [first, first + 1]
    assert [each.id for each in g.engine.frames] == [*range(15), *range(25)]


def test_no_stamp_is_told_twice(graph):
    g = graph()
    g.show([each for each in PICTURES for _ in range(2)], [each for each in loop() for _ in range(2)])
    wait_until(lambda: len(g.tf) == 25 - 2)
    wait_until(lambda: len(g.odometry) == 25 - 2)
    assert g.tf_stamps() == loop()[2:] == [from_stamp(each.header.stamp) for each in g.odometry]
    stamps = {each.id: each.pose.stamp for each in g.keyframes}
    assert len(stamps) == len(set(stamps.values())) == 4
    counted = g.decoder.diagnostics()
    assert (counted['received'], counted['dropped'], counted['stamps_repeated']) == (50, 25, 25)
    g.slam3r.worker.call(g.slam3r._status.publish)
    g.settle()
    assert g.statuses[-1].frames_dropped == 24  # the last is not known yet to be missing


def test_wrong_stamps_cost_their_frames_only(graph):
    g, stamps = graph(), loop()
    stamps[5], stamps[9], stamps[13] = stamps[4] - SECOND // 2, 7, BEGIN + 10**6 * SECOND
    g.show(PICTURES, stamps)
    assert len(g.map_ids()) == 1
    assert [each.id for each in g.engine.frames] == [i for i in range(25) if i not in (5, 9, 13)]
    counted = g.decoder.diagnostics()
    assert (counted['dropped'], counted['stamps_disordered'], counted['stamps_astray']) == (3, 1, 2)


@pytest.fixture
def decoder(ros):
    """Return a function that starts the decoder alone and a list in which its frames arrive."""

    def start(**parameters):
        frames = []
        create_subscription(ros.node(node_name='watcher'), Frame, 'frames', frames.append, depth=100, lossless=True)
        return ros.node(VideoDecoder, parameters={'input_qos': 'reliable'} | parameters), frames

    return start


def test_a_zero_stamp_waits_for_the_clock_and_takes_its_time(ros, decoder, capfd):
    node, frames = decoder(use_sim_time=True)
    outside = ros.apart().node(node_name='camera')
    camera = outside.create_publisher(Image, 'image_raw', 10)
    wait_for_match(outside, node, '/image_raw')
    camera.publish(to_image(PICTURES[0], 0, 'camera'))
    wait_until(lambda: node.diagnostics()['dropped'] == 1)
    assert capfd.readouterr().err.count('use_sim_time is set, but nothing has come on /clock: waiting for it') == 1
    clockwork = Clockwork(ros)
    for i, stamp in enumerate((BEGIN, BEGIN + SECOND // 10), 1):
        clockwork.set(stamp, node)
        camera.publish(to_image(PICTURES[i], 0, 'camera'))
        wait_until(lambda: len(frames) == i)  # noqa: B023
    assert [each.stamp for each in frames] == [BEGIN, BEGIN + SECOND // 10]


def test_a_file_waits_for_the_clock_and_begins_at_its_time(ros, decoder, monkeypatch, capfd):
    offsets = []
    monkeypatch.setattr(
        playback, 'open_source', lambda uri, offset, *_: offsets.append(offset) or StubSource(images(3))
    )
    node, frames = decoder(input='video.mp4', use_sim_time=True)
    wait_until(lambda: 'waiting for it' in capfd.readouterr().err)
    node.worker.call(lambda: None)  # it is not held up
    assert not offsets
    Clockwork(ros).set(BEGIN, node)
    wait_until(lambda: len(frames) == 3)
    assert offsets == [BEGIN]


@pytest.mark.parametrize('parameters', [{}, {'use_sim_time': True}])
def test_a_bag_needs_no_clock_and_where_its_stamps_are_zero_its_own_time_counts(tmp_path, decoder, parameters):
    path = record(tmp_path / 'bag', {'/image': lambda i: raw(i, stamped=False)})
    _, frames = decoder(input=path, **parameters)
    wait_until(lambda: len(frames) == COUNT)
    assert [each.stamp for each in frames] == [START + i * PERIOD + LATE for i in range(COUNT)]


def test_a_bag_of_two_loops_is_read_as_two_streams(tmp_path, decoder):
    def again(i):
        message = raw(i)
        stamp = START + i % 12 * PERIOD
        message.header.stamp.sec, message.header.stamp.nanosec = divmod(stamp, SECOND)
        return message

    _, frames = decoder(input=record(tmp_path / 'bag', {'/image': again}, count=24))
    wait_until(lambda: frames and frames[-1].last)
    assert [(each.id, each.stamp) for each in frames] == 2 * [(i, START + i * PERIOD) for i in range(12)]


def test_what_is_live_follows_a_clock_that_goes_its_own_way(ros, decoder, monkeypatch):
    waiting, shown, passing = [], [], StubClock()
    monkeypatch.setattr(live, 'time', passing)

    @contextmanager
    def connect(closed):
        def pictures():
            while not closed.is_set():
                if waiting:
                    yield Picture(passing.monotonic_ns(), waiting.pop())
                closed.wait(0.005)

        yield pictures()

    monkeypatch.setattr(playback, 'open_source', lambda uri, offset, *_: LiveSource('camera', connect, offset))
    node, frames = decoder(input='camera:0', use_sim_time=True)

    def show():
        waiting.append(PICTURES[0])
        shown.append(len(shown))
        wait_until(lambda: node.diagnostics()['received'] == len(shown))

    show()
    wait_until(lambda: node.diagnostics()['dropped'] == 1)  # there is no time yet
    assert not frames
    clockwork = Clockwork(ros)
    for begin in (100 * SECOND, 50 * SECOND):
        for i in range(3):
            clockwork.set(begin + i * SECOND // 2, node)
            show()
            passing.sleep(0.1)
    passing.sleep(0.05)  # it may drift so far
    show()
    wait_until(lambda: len(frames) == 7)
    assert [each.id for each in frames] == [1, 2, 3, 0, 1, 2, 3]
    expected = [100.0, 100.5, 101.0, 50.0, 50.5, 51.0, 51.15]
    np.testing.assert_allclose([each.stamp / SECOND for each in frames], expected, atol=1e-6)


def test_at_its_own_pace_a_recording_does_not_wait_for_what_is_no_pace(decoder, monkeypatch):
    def source(*_):
        stamps = [i * SECOND // 30 for i in range(10)] + [10**18] + [i * SECOND // 30 for i in range(10, 20)]
        stamps += [10**17 + i * SECOND // 30 for i in range(10)] + [i * SECOND // 30 for i in range(40)]
        frames = [Frame(i, stamp, PICTURES[0]) for i, stamp in enumerate(stamps)]
        return StubSource([*frames[:-1], replace(frames[-1], last=True)])

    clock = StubClock()
    monkeypatch.setattr(playback, 'time', clock)
    monkeypatch.setattr(playback, 'open_source', source)
    start = clock.monotonic()
    node, frames = decoder(input='bag', realtime=True)
    wait_until(lambda: frames and frames[-1].last)
    assert 2.0 < clock.monotonic() - start < 3.0  # 19, 9 and 39 periods
    assert len(frames) > 60 and node.diagnostics()['stamps_astray'] == 1


def test_nothing_stops_while_simulated_time_stands_still(ros):
    seen = []
    outside = ros.apart().node(node_name='outside')
    outside.create_subscription(DiagnosticArray, '/diagnostics', seen.append, 10)
    simulated = [Parameter('use_sim_time', value=True)]
    container = Container(context=ros.context, parameter_overrides=simulated)
    ros.executor.add_node(container)
    try:
        unique_id = container.load('slam3r_ros::KeyframeSelector', parameter_overrides=simulated)
        container.hosted[unique_id].last_error = 'slipped on butter'
        lines = {'/keyframe_selector': 'ok', '/slam3r_container': '/keyframe_selector: slipped on butter'}
        wait_until(lambda: lines.items() <= {(status.name, status.message) for each in seen for status in each.status})
    finally:
        ros.executor.remove_node(container)
        container.close()


def test_nobody_listens_to_the_clock_after_cleanup(ros, monkeypatch):
    handles, make = [], RosClock.create_jump_callback

    def spy(*args, **kwargs):
        handle = make(*args, **kwargs)
        handles.append(weakref.ref(handle))
        return handle

    monkeypatch.setattr(RosClock, 'create_jump_callback', spy)
    monkeypatch.setattr(slam3r, 'create_engine', StubEngine().made)
    clockwork, node = Clockwork(ros), ros.node(Slam3r, parameters={'use_sim_time': True})
    clockwork.set(BEGIN, node)
    assert handles[-1]() is not None
    node.trigger_deactivate()
    node.trigger_cleanup()
    gc.collect()
    assert [each for each in handles if each()] == []
    clockwork.set(BEGIN - 60 * SECOND, node)
    node.trigger_configure()
    node.trigger_activate()
    assert node.active and len(handles) == 2
