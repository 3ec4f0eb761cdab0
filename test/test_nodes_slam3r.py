# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
import threading
import time
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray
from nav_msgs.msg import Odometry, Path
from nodes_stubs import StubEngine, images, pose_at, wall
from rclpy.qos import DurabilityPolicy, QoSProfile
from ros_helpers import PACE, PATIENCE, quick, ros_fixture, wait_for_match, wait_until  # noqa: F401
from sensor_msgs.msg import PointCloud2
from std_srvs.srv import Trigger
from tf2_msgs.msg import TFMessage

from slam3r_ros import msg
from slam3r_ros.engines.protocol import EngineError, EngineOutput
from slam3r_ros.mapping.frames import T_MAP_OPTICAL, from_quaternion, rigid
from slam3r_ros.mapping.trajectory import read_tum
from slam3r_ros.nodes import pulse, slam3r
from slam3r_ros.srv import LoadMap, SaveMap, SetScale
from slam3r_ros.transport.bus import close_node, create_publisher, create_subscription, worker_of
from slam3r_ros.transport.clouds import from_cloud
from slam3r_ros.transport.poses import from_pose, pose_from_odometry
from slam3r_ros.values import Frame, Keyframe, Pose, SlamStatus, State

pytestmark = pytest.mark.usefixtures('quick')
LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)


class Bench:
    """The node, fed and watched from within the process, and an observer outside."""

    def __init__(self, ros, monkeypatch, engine=None, **parameters):
        self.ros, self.engine = ros, engine or StubEngine()
        monkeypatch.setattr(slam3r, 'create_engine', self.engine.made)
        self.feeder = ros.node(node_name='feeder')
        self.frames = create_publisher(self.feeder, Frame, 'selected_frames')
        self.statuses, self.keyframes = [], []
        create_subscription(self.feeder, SlamStatus, 'status', self.statuses.append, depth=1000)
        create_subscription(self.feeder, Keyframe, 'keyframes', self.keyframes.append, depth=1000)
        self.node = ros.node(slam3r.Slam3r, parameters=parameters)
        self.outside = ros.apart().node(node_name='outside')

    def collect(self, message_type, topic, qos=100):
        seen = []
        self.outside.create_subscription(message_type, topic, seen.append, qos)
        return seen

    def feed(self, frames):
        for frame in frames:
            self.frames.publish(frame)
        self.node.worker.call(lambda: None)
        worker_of(self.feeder).call(lambda: None)  # what came of it has arrived too

    def matched(self, *topics):
        """Wait until the node's publishers and the observer's subscriptions know each other."""
        wait_for_match(self.node, self.outside, *topics)


@pytest.fixture
def bench(ros, monkeypatch):
    return lambda **kwargs: Bench(ros, monkeypatch, **kwargs)


def matrix(transform):
    t, q = transform.translation, transform.rotation
    return rigid(from_quaternion(np.array([q.x, q.y, q.z, q.w])), np.array([t.x, t.y, t.z]))


def test_the_tf_chain_leads_from_the_map_to_the_camera(bench):
    b = bench()
    moving, fixed = b.collect(TFMessage, '/tf'), b.collect(TFMessage, '/tf_static', LATCHED)
    odometry = b.collect(Odometry, 'odometry')
    b.matched('/tf', '/odometry')
    b.feed(images(10))
    wait_until(lambda: len(moving) == 8 and fixed and len(odometry) == 8)  # two frames to initialise
    (mount,) = fixed[0].transforms
    assert (mount.header.frame_id, mount.child_frame_id) == ('base_link', 'camera_optical_frame')
    for i, message in enumerate(moving, start=2):
        edges = {(t.header.frame_id, t.child_frame_id): t for t in message.transforms}
        assert set(edges) == {('map', 'odom'), ('odom', 'base_link')}
        chain = matrix(edges['map', 'odom'].transform) @ matrix(edges['odom', 'base_link'].transform)
        np.testing.assert_allclose(chain @ matrix(mount.transform), pose_at(i), atol=1e-9)
        stamp = edges['odom', 'base_link'].header.stamp
        assert stamp.sec * 10**9 + stamp.nanosec == 10**9 + i * 33_000_000
        np.testing.assert_allclose(pose_from_odometry(odometry[i - 2]).T_map_camera, pose_at(i), atol=1e-9)
    assert odometry[0].header.frame_id == 'odom' and odometry[0].child_frame_id == 'base_link'


def test_the_body_stands_upright_by_default(bench):
    """base_link has x where the camera looks: at the first frame it coincides with the map's axes."""
    b = bench()
    moving = b.collect(TFMessage, '/tf')
    b.matched('/tf')
    b.feed(images(3))
    wait_until(lambda: moving)
    base = matrix(moving[0].transforms[1].transform)
    np.testing.assert_allclose(base, rigid(np.eye(3), np.array([0.02, 0, 0])), atol=1e-9)


def test_edges_can_be_switched_off_and_frames_renamed(bench):
    b = bench(
        publish_map_odom=False,
        publish_base_camera=False,
        odom_frame='o',
        base_frame='b',
        base_to_camera=[0.1, 0.2, 0.3, 0.0, 0.0, 0.0],
    )
    moving, fixed = b.collect(TFMessage, '/tf'), b.collect(TFMessage, '/tf_static', LATCHED)
    b.matched('/tf', '/tf_static')
    b.feed(images(3))
    wait_until(lambda: moving)
    (edge,) = moving[0].transforms
    assert (edge.header.frame_id, edge.child_frame_id) == ('o', 'b')
    mount = rigid(np.eye(3), np.array([0.1, 0.2, 0.3]))
    np.testing.assert_allclose(matrix(edge.transform) @ mount, pose_at(2), atol=1e-9)
    assert not fixed


def test_keyframes_and_status_tell_the_course_of_a_stream(bench, monkeypatch):
    monkeypatch.setattr(pulse, 'PERIOD', 1e6)  # the status is told when something has changed, not besides
    b = bench()
    b.feed(images(missing=(5, 6, 7)))
    assert [(k.id, k.revision) for k in b.keyframes] == [(10, 0), (20, 0), (10, 1), (30, 0), (20, 1), (30, 1)]
    status = b.statuses[-1]
    assert (status.frames_in, status.frames_decoded, status.frames_dropped, status.keyframes) == (40, 37, 3, 3)
    assert (status.engine, status.device, status.state) == ('stub', 'cpu', State.TRACKING)
    assert status.milliseconds == {'track': 1.0}
    assert status.memory_bytes > 10**7
    assert b.engine.finished == 1
    told = [(each.state, each.finished) for each in b.statuses]
    assert told == [(State.INITIALIZING, False), (State.TRACKING, False), (State.TRACKING, True)]


def test_a_late_joiner_gets_path_and_map_cloud(bench):
    b = bench(cloud_stride=1)
    b.feed(images())
    path, cloud = b.collect(Path, 'path', LATCHED), b.collect(PointCloud2, 'map_cloud', LATCHED)
    wait_until(lambda: path and cloud)
    assert path[-1].header.frame_id == cloud[-1].header.frame_id == 'map'
    assert [round(p.pose.position.x, 3) for p in path[-1].poses] == [0.1, 0.2, 0.3]
    xyz, rgb, _ = from_cloud(cloud[-1])
    assert len(xyz) == 3 * 48 * 64
    np.testing.assert_allclose(xyz[:, 0], 1.0, atol=1e-5)
    assert (rgb == (200, 100, 50)).all()
    later = b.collect(Path, 'path', LATCHED)
    wait_until(lambda: later)


def test_each_keyframe_comes_as_a_cloud_in_the_map(bench):
    b = bench()
    clouds, keyframes = b.collect(PointCloud2, 'keyframe_cloud'), b.collect(msg.Keyframe, 'keyframes')
    b.matched('/keyframe_cloud', '/keyframes')
    b.feed(images())
    wait_until(lambda: len(clouds) == 3 and len(keyframes) == 6)
    assert clouds[0].header.frame_id == 'map'
    np.testing.assert_allclose(from_cloud(clouds[0])[0][:, 0], 1.0, atol=1e-5)
    assert keyframes[0].header.frame_id == 'camera_optical_frame'
    np.testing.assert_allclose(from_pose(keyframes[0].pose), pose_at(10), atol=1e-9)


def test_nothing_is_made_for_topics_without_a_subscriber(bench, monkeypatch):
    from slam3r_ros.nodes import outputs

    def unwanted(*args, **kwargs):
        raise AssertionError('nobody asked')

    b = bench()
    for name in ('to_tf', 'to_odometry', 'path_to_cdr', 'cloud_to_cdr', 'keyframe_points'):
        monkeypatch.setattr(outputs, name, unwanted)
    b.feed(images())
    assert b.node.last_error == ''
    assert b.statuses[-1].finished


def test_the_map_cloud_is_sent_every_two_seconds_at_most(bench):
    start = time.monotonic()
    b = bench()
    clouds = b.collect(PointCloud2, 'map_cloud', LATCHED)
    b.matched('/map_cloud')
    frames = images(10**6)

    def more():
        b.feed([replace(next(frames), last=False)])  # every tenth changes the cloud
        return len(clouds) > 2

    wait_until(more)
    assert len(clouds) <= 1 + (time.monotonic() - start) / (2.0 / PACE)


def test_reset_begins_another_map(bench):
    b = bench()
    b.feed(replace(each, last=False) for each in images())
    answer = b.ros.call(b.outside, Trigger, '/slam3r/reset')
    assert answer.success
    before = b.keyframes[-1].map_id
    wait_until(lambda: b.statuses[-1].map_id == before + 1)
    assert b.statuses[-1].state == State.INITIALIZING
    b.feed(images(80, missing=range(40)))
    assert b.keyframes[-1].map_id == before + 1
    assert b.statuses[-1].keyframes == 4  # the engine is warm: frame 40 counts


def test_save_map_writes_what_came_before_the_call(bench, tmp_path):
    b = bench(map_folder=str(tmp_path))
    for frame in images():
        b.frames.publish(frame)
    answer = b.ros.call(b.outside, SaveMap, '/slam3r/save_map', SaveMap.Request(path=str(tmp_path / 'new')))
    assert answer.success, answer.message
    assert answer.files == [str(tmp_path / 'new' / name) for name in ('trajectory.tum', 'cloud.ply')]
    poses = read_tum(tmp_path / 'new' / 'trajectory.tum')
    assert len(poses) == 38
    np.testing.assert_allclose(poses[-1].T_map_camera, pose_at(39), atol=1e-6)
    assert (tmp_path / 'new' / 'cloud.ply').stat().st_size > 1000

    answer = b.ros.call(b.outside, SaveMap, '/slam3r/save_map', SaveMap.Request(path=str(tmp_path / 'new')))
    assert not answer.success and 'is there already; set overwrite' in answer.message
    request = SaveMap.Request(path=str(tmp_path / 'new'), overwrite=True, format='glb')
    answer = b.ros.call(b.outside, SaveMap, '/slam3r/save_map', request)
    assert answer.files == [str(tmp_path / 'new' / 'trajectory.tum')]


@pytest.mark.parametrize(
    'fields, message',
    [
        ({}, 'path is empty'),
        ({'path': '/tmp/x', 'format': 'obj'}, "format 'obj' is unknown"),
        ({'path': '/tmp/x', 'method': 'nerf'}, "method 'nerf' is unknown"),
        ({'path': '/dev/null/x'}, '/dev/null/x cannot be made'),
    ],
)
def test_a_bad_request_to_save_is_answered_clearly(bench, fields, message):
    b = bench(map_folder='/')
    b.feed(images(5))
    answer = b.ros.call(b.outside, SaveMap, '/slam3r/save_map', SaveMap.Request(**fields))
    assert not answer.success and message in answer.message


def test_saving_nothing_is_an_answer_not_a_file(bench, tmp_path):
    b = bench()
    answer = b.ros.call(b.outside, SaveMap, '/slam3r/save_map', SaveMap.Request(path=str(tmp_path / 'new')))
    assert not answer.success and 'there is no pose yet' in answer.message
    assert not (tmp_path / 'new').exists()


def test_while_paused_frames_wait_and_the_state_is_told(bench):
    b = bench()
    b.feed(images(12, missing=()))
    assert b.ros.call(b.outside, Trigger, '/slam3r/pause').success
    wait_until(lambda: b.statuses[-1].state == State.PAUSED)
    frames = list(images())
    b.frames.publish(frames[12])
    told = len(b.statuses)
    wait_until(lambda: len(b.statuses) > told)  # once a second, paused or not
    assert b.statuses[-1].state == State.PAUSED and len(b.engine.frames) == 12
    assert b.ros.call(b.outside, Trigger, '/slam3r/resume').success
    wait_until(lambda: len(b.engine.frames) == 13 and b.statuses[-1].state == State.TRACKING)
    assert b.statuses[-1].frames_dropped == 0


def test_a_node_that_waits_for_others_is_paused_and_resumed_too(bench):
    """The mesher is behind: the frame that runs cannot be finished, and yet both calls are answered."""
    b = bench()
    gate, slow = threading.Event(), b.ros.node(node_name='slow')
    create_subscription(slow, Keyframe, 'keyframes', lambda keyframe: gate.wait(PATIENCE), depth=1, lossless=True)
    feeding = threading.Thread(target=lambda: [b.frames.publish(frame) for frame in images()])  # it waits, too
    feeding.start()
    wait_until(lambda: b.node.worker._waits)
    for name in ('pause', 'resume', 'pause'):
        assert b.ros.call(b.outside, Trigger, f'/slam3r/{name}').success
    gate.set()
    wait_until(lambda: b.statuses[-1].state == State.PAUSED)
    assert b.ros.call(b.outside, Trigger, '/slam3r/resume').success
    wait_until(lambda: b.statuses[-1].finished)
    feeding.join()


def test_while_paused_all_of_a_map_is_handed_on_however_long_that_takes(bench):
    b = bench(engine=MetricEngine(keyframes=20))
    seen, slow = [], b.ros.node(node_name='slow')
    create_subscription(slow, Keyframe, 'keyframes', seen.append, depth=1, lossless=True)
    b.feed(list(images())[:5])
    assert b.ros.call(b.outside, Trigger, '/slam3r/pause').success
    answer = b.ros.call(b.outside, SetScale, '/slam3r/set_scale', SetScale.Request(metres_per_unit=2.0))
    assert answer.success, answer.message
    wait_until(lambda: len(seen) == 20)


def test_an_inactive_node_is_neither_paused_nor_resumed(bench):
    b = bench()
    b.node.trigger_deactivate()
    for name in ('pause', 'resume'):
        answer = b.ros.call(b.outside, Trigger, f'/slam3r/{name}')
        assert not answer.success and 'the node is inactive' in answer.message
    b.frames.publish(next(images()))
    b.node.worker.call(lambda: None)
    assert not b.engine.frames


def test_an_engine_without_map_files_says_so(bench, tmp_path):
    b = bench()
    b.feed(images(12))
    for service_type, name, fields in (
        (LoadMap, 'load_map', {'path': str(tmp_path)}),
        (SetScale, 'set_scale', {'metres_per_unit': 2.0}),
    ):
        answer = b.ros.call(b.outside, service_type, f'/slam3r/{name}', service_type.Request(**fields))
        assert not answer.success and 'take engine:=geometric' in answer.message


class MetricEngine(StubEngine):
    """Sends its keyframes again in metres."""

    def __init__(self, keyframes=1):
        super().__init__()
        self._keyframes = keyframes

    def set_scale(self, metres_per_unit):
        self.map_id += 1
        again = (replace(self.frames[0], id=i) for i in range(self._keyframes))
        self.scale_known, self._again = True, [wall(each, map_id=self.map_id) for each in again]

    def resend(self, most=8):
        again, self._again = self._again, []
        return EngineOutput(None, tuple(again))


def test_a_new_scale_begins_a_map_that_holds_everything(bench):
    b = bench(engine=MetricEngine())
    b.feed(images(12))
    before = b.statuses[-1].map_id
    answer = b.ros.call(b.outside, SetScale, '/slam3r/set_scale', SetScale.Request(metres_per_unit=2.0))
    assert answer.success, answer.message
    wait_until(lambda: b.keyframes[-1].map_id == before + 1)
    b.node.worker.call(b.node._status.publish)
    wait_until(lambda: b.statuses[-1].keyframes == 1)
    assert b.statuses[-1].scale_known and b.statuses[-1].map_id == before + 1
    # The mesher needs the unit before the keyframes: the first status of the new map knows none yet.
    assert next(each for each in b.statuses if each.map_id == before + 1).keyframes == 0


class JoiningEngine(StubEngine):
    """Joins its map to another one at frame 30; the last keyframe of the map before comes with it."""

    def process(self, frame):
        output = super().process(frame)
        if frame.id != 30:
            return output
        late = wall(replace(frame, id=20), 1, self.map_id)
        self.map_id += 1
        again = [replace(wall(replace(frame, id=i), map_id=self.map_id), pointmap=None) for i in (5, 10, 30)]
        return EngineOutput(output.pose, (late, *again))


def test_after_two_maps_were_joined_the_path_is_that_of_the_whole(bench):
    b = bench(engine=JoiningEngine())
    paths = b.collect(Path, 'path', LATCHED)
    b.matched('/path')
    b.feed(list(images())[:31])
    before = b.keyframes[0].map_id
    wait_until(lambda: paths and len(paths[-1].poses) == 3)
    assert [each.map_id - before for each in b.keyframes[-4:]] == [0, 1, 1, 1]
    assert b.statuses[-1].map_id == before + 1


def test_a_path_is_needed_to_load_a_map(bench):
    answer = (b := bench()).ros.call(b.outside, LoadMap, '/slam3r/load_map')
    assert not answer.success and 'path is empty' in answer.message


def test_a_mistake_in_a_service_is_answered_and_the_executor_lives_on(bench, monkeypatch):
    b = bench()
    monkeypatch.setattr(b.engine, 'reset', lambda: {}['nothing'])
    for _ in range(2):
        answer = b.ros.call(b.outside, Trigger, '/slam3r/reset')
        assert not answer.success and answer.message == "KeyError: 'nothing'"


def test_a_frame_that_fails_is_told_and_the_stream_goes_on(bench):
    b = bench(engine=StubEngine(fail_at=12))
    diagnostics = b.collect(DiagnosticArray, '/diagnostics')
    b.feed(images())
    wait_until(lambda: b.statuses[-1].finished)
    assert b.statuses[-1].last_error == 'RuntimeError: this frame is cursed'
    assert len(b.engine.frames) == 40
    wait_until(lambda: any('cursed' in each.status[0].message for each in diagnostics))
    assert diagnostics[-1].status[0].name == '/slam3r'


def test_the_end_is_told_even_when_the_last_frame_fails(bench):
    b = bench(engine=StubEngine(fail_at=39))
    b.feed(images())
    wait_until(lambda: b.statuses[-1].finished)


def test_another_stream_begins_another_map(bench):
    b = bench()
    b.feed(images())
    first = b.statuses[-1]
    b.feed(images(20, missing=(5,)))
    status = b.statuses[-1]
    assert (status.map_id, b.keyframes[-1].map_id) == (first.map_id + 1, first.map_id + 1)
    assert (status.frames_in, status.frames_decoded, status.frames_dropped, status.finished) == (20, 19, 1, True)
    assert b.node.last_error == ''


def test_a_node_started_later_begins_with_a_higher_map(bench, monkeypatch):
    clock = iter((1_700_000_000.9, 1_700_000_100.0))
    stub = SimpleNamespace(time=lambda: next(clock, 1.8e9), monotonic=time.monotonic)  # the node's alone
    monkeypatch.setattr(slam3r, 'time', stub)
    for expected in (1_700_000_000, 1_700_000_100):
        b = bench()
        b.feed(images(20))
        assert b.keyframes[-1].map_id == b.statuses[-1].map_id == expected
        for node in (b.node, b.feeder):
            b.ros.executor.remove_node(node)
            b.ros.nodes.remove(node)
            node.destroy_node() if node is b.node else close_node(node)


@pytest.mark.parametrize('lossless', [True, False])
def test_the_engine_is_told_whether_keyframes_wait_for_their_depth(bench, lossless):
    assert bench(lossless=lossless).engine.lossless is lossless


def test_the_engine_is_told_how_to_compute(bench):
    engine = bench(precision='int8', cuda_graphs=False).engine
    assert engine.precision == 'int8' and not engine.cuda_graphs


@pytest.mark.parametrize('error', [RuntimeError, EngineError])
def test_the_end_is_told_even_when_the_engine_cannot_finish(bench, error):
    def fail():
        raise error('out of memory')

    b = bench(engine=StubEngine(finish=fail))
    b.feed(images())
    assert b.statuses[-1].finished
    wait_until(lambda: 'out of memory' in b.statuses[-1].last_error)


def test_an_engine_error_at_every_frame_is_one_line(bench, monkeypatch, capfd):
    def fail(frame):
        raise EngineError('frame is too small')

    b = bench()
    monkeypatch.setattr(b.engine, 'process', fail)
    b.feed(images())
    assert b.statuses[-1].last_error == 'frame is too small'
    errors = capfd.readouterr().err
    assert errors.count('frame is too small') == 1 and 'Traceback' not in errors


def test_the_engine_is_closed_with_the_node(bench):
    b = bench()
    b.ros.executor.remove_node(b.node)
    b.ros.nodes.remove(b.node)
    b.node.destroy_node()
    assert b.engine.closed


def test_the_path_stays_bounded(ros, monkeypatch):
    from slam3r_ros.nodes import outputs, parameters

    monkeypatch.setattr(outputs, '_PATH_POSES', 50)
    node = ros.node(node_name='one')
    output = outputs.PoseOutput(node, parameters.declare(node, 'slam3r'))
    for frame in images(400):
        output.add(Keyframe(Pose(frame.id, 0, T_MAP_OPTICAL), None))
    ids = list(output._stations)
    assert 25 <= len(ids) <= 50
    assert ids[0] == 0 and ids[-1] == 399 and ids == sorted(ids)


class ForeseeingEngine(StubEngine):
    """Waits at its first frame until others wait behind it."""

    def __init__(self, node):
        super().__init__()
        self.told, self._node = [], node

    def foresee(self, frame):
        self.told.append(('foresee', frame))

    def process(self, frame):
        if not self.frames:
            wait_until(lambda: len(self._node()._frames.inbox) == 3)
        self.told.append(('process', frame))
        return super().process(frame)


def test_the_engine_sees_the_frame_that_waits(bench):
    b = bench(engine=ForeseeingEngine(lambda: b.node), queue_depth=3)
    stream = list(images(4))
    b.feed(stream)
    expected = [('process', stream[0])]
    for before, frame in pairwise(stream[1:]):
        expected += [('foresee', frame), ('process', before)]
    expected += [('process', stream[3])]
    told = b.engine.told[-len(expected) :]  # the second may have waited before the first was taken
    assert [(what, frame.id) for what, frame in told] == [(what, frame.id) for what, frame in expected]
    assert all(found is sent for (_, found), (_, sent) in zip(told, expected))  # the very object
