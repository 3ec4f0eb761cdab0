# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from nav_msgs.msg import Path as PathMessage
from rclpy.serialization import deserialize_message, serialize_message
from ros_helpers import Ros, end, next_domain, wait_until
from scipy.spatial.transform import Rotation
from sensor_msgs.msg import PointCloud2

from slam3r_ros import msg, srv
from slam3r_ros.mapping.frames import T_MAP_OPTICAL, rigid
from slam3r_ros.meshing.draco import CompressedMesh
from slam3r_ros.transport import interop
from slam3r_ros.transport.clouds import from_cloud, to_cloud
from slam3r_ros.transport.messages import adapter_of
from slam3r_ros.transport.poses import (
    from_pose,
    path_to_cdr,
    pose_from_odometry,
    position_and_quaternion,
    to_odometry,
    to_pose,
    to_tf,
)
from slam3r_ros.transport.stamps import from_stamp, to_stamp
from slam3r_ros.values import Frame, Intrinsics, Keyframe, MeshBlock, MeshUpdate, Pose, SlamStatus, State

RNG = np.random.default_rng(3)
STAMP = 1_700_000_000_123_456_789
T = rigid(Rotation.from_euler('xyz', (0.3, -1.2, 2.0)).as_matrix(), np.array([1.0, -2.0, 3.0]))
CAMERA = Intrinsics(500.5, 501.5, 319.25, 239.75)


def colors(*shape):
    return RNG.integers(0, 256, (*shape, 3)).astype(np.uint8)


def dense_keyframe():
    pointmap = RNG.random((12, 16, 3), np.float32)
    confidence = RNG.random((12, 16), np.float32)
    pointmap[3, 4:9], confidence[3, 4:9] = np.nan, 0
    return Keyframe(Pose(7, STAMP, T), CAMERA, pointmap, confidence, colors(12, 16), 3, 2, 5, True)


def block(index, vertices):
    triangles = RNG.integers(0, max(vertices, 1), (vertices // 2, 3)).astype(np.uint32)
    return MeshBlock(index, RNG.random((vertices, 3), np.float32), colors(vertices), triangles)


VALUES = {
    'frame': Frame(2**40, STAMP, colors(48, 64), CAMERA, False, 9, True),
    'frame of an unknown camera': Frame(0, 0, colors(5, 7)),
    'keyframe': dense_keyframe(),
    'keyframe without depth': Keyframe(Pose(7, STAMP, T), CAMERA),
    'mesh': MeshUpdate(STAMP, 3, 14, 0.5, True, (block((1, -2, 3), 30), block((0, 0, 0), 0))),
    'empty mesh': MeshUpdate(0, 0, 1, 0.25, False, ()),
    'compressed mesh': CompressedMesh(
        STAMP, 3, 14, 0.5, True, np.array([(1, -2, 3), (0, 0, 0)], np.int32), np.array([30, 0], np.uint32),
        np.array([15, 0], np.uint32), bytes(RNG.integers(0, 256, 700, np.uint8)),
    ),
    'compressed mesh of nothing': CompressedMesh(
        0, 0, 1, 0.25, False, np.empty((0, 3), np.int32), np.empty(0, np.uint32), np.empty(0, np.uint32), b'',
    ),
    'status': SlamStatus(
        STAMP, State.LOST, 'geometric', 'cpu', 'CC', True, 1, 9, 8, 1, 5, 2, True, {'a': 1.5}, 77, 'oh',
    ),
}


def equal(a, b):
    """Compare values of any of our types, arrays bit by bit."""
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and np.array_equal(a, b, equal_nan=a.dtype.kind == 'f')
    if isinstance(a, Pose):
        return (a.id, a.stamp) == (b.id, b.stamp) and np.allclose(a.T_map_camera, b.T_map_camera, atol=1e-12)
    if isinstance(a, tuple) and not isinstance(a, Intrinsics):
        return len(a) == len(b) and all(map(equal, a, b))
    if hasattr(a, '__dataclass_fields__'):
        return all(equal(getattr(a, name), getattr(b, name)) for name in a.__dataclass_fields__)
    return a == b and type(a) is type(b)


@pytest.fixture(scope='module')
def echo():
    """Another process on the domain of the fixture `far`."""
    corner = Ros(next_domain())
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name('ros_echo.py'))],
        env=os.environ | {'ROS_DOMAIN_ID': str(corner.domain)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == 'ready\n'
    yield corner
    end(process)
    corner.close()


def comes_back(node, message, same):
    """Wait until the other process has sent a message back, `same` telling it from what is left of others."""
    kind, seen = type(message), []
    publisher = node.create_publisher(kind, f'in/{kind.__name__}', 10)
    subscription = node.create_subscription(kind, f'out/{kind.__name__}', seen.append, 10)
    wait_until(lambda: publisher.get_subscription_count() and subscription.get_publisher_count())
    due = 0.0

    def back():
        nonlocal due
        if time.monotonic() > due:  # the other side may not know yet of who listens here
            publisher.publish(message)
            due = time.monotonic() + 1
        return any(map(same, seen))

    wait_until(back)


@pytest.mark.parametrize('name', VALUES)
def test_a_value_survives_serialisation(name):
    value = VALUES[name]
    adapter = adapter_of(type(value))
    message = adapter.to_message(value, 'frame')
    assert message.header.frame_id == 'frame'
    assert equal(adapter.from_message(deserialize_message(serialize_message(message), adapter.message_type)), value)


@pytest.mark.parametrize('name', VALUES)
def test_a_value_survives_the_way_to_another_process_and_back(echo, name):
    value = VALUES[name]
    adapter = adapter_of(type(value))
    node = echo.node(node_name=f'sender_{len(echo.nodes)}')
    comes_back(node, adapter.to_message(value, 'frame'), lambda message: equal(adapter.from_message(message), value))


def test_messages_without_a_value_survive_it_too(echo):
    node = echo.node(node_name='plain')
    for message in (
        msg.MeshBlock(index=[1, -2, 3], vertices=[1.0] * 9, colors=[1, 2, 3] * 3, triangles=[0, 1, 2]),
        msg.CompressedMesh(map_id=3, indices=[1, 2, 3], vertex_counts=[5], format='draco', data=[1, 2, 255]),
    ):
        comes_back(node, message, message.__eq__)


def test_every_service_is_answered_by_another_process(echo):
    node = echo.node(node_name='client')

    def call(kind, **fields):
        return echo.call(node, kind, f'echo/{kind.__name__}', kind.Request(**fields))

    answer = call(srv.SaveMap, path='here', format='ply', method='tsdf', overwrite=True)
    assert (answer.success, answer.message, answer.files) == (True, 'ply tsdf', ['here', 'second'])
    answer = call(srv.LoadMap, path='there')
    assert (answer.success, answer.message, answer.map_id) == (True, 'there', 4)
    answer = call(srv.GetMesh, map_id=6)
    assert answer.mesh.map_id == 6 and list(answer.mesh.blocks[0].vertices) == [1.0, 2.0, 3.0]
    assert call(srv.SetScale, metres_per_unit=0.25).message == '0.25'


def test_keyframe_message_says_how_sure_it_is():
    keyframe = VALUES['keyframe']
    message = adapter_of(Keyframe).to_message(keyframe, 'camera')
    known = keyframe.confidence > 0
    assert message.mean_confidence == pytest.approx(keyframe.confidence[known].mean())
    assert (message.width, message.height, message.cloud.width, message.cloud.height) == (16, 12, 16, 12)
    assert not message.cloud.is_dense
    assert [field.name for field in message.cloud.fields] == ['x', 'y', 'z', 'rgb', 'confidence']


def test_a_frame_with_padded_rows_and_another_encoding_is_understood():
    frame = VALUES['frame']
    message = adapter_of(Frame).to_message(frame, 'camera')
    height, width = frame.image.shape[:2]
    padded = np.zeros((height, width * 3 + 11), np.uint8)
    padded[:, : width * 3] = frame.image[..., ::-1].reshape(height, -1)
    message.image.encoding, message.image.step, message.image.data = 'bgr8', width * 3 + 11, padded.tobytes()
    assert equal(adapter_of(Frame).from_message(message), frame)


def test_a_cloud_is_laid_out_as_pcl_reads_it():
    points, rgb = np.array([[1, 2, 3]], np.float32), np.array([[0x11, 0x22, 0x33]], np.uint8)
    cloud = to_cloud(points, rgb, STAMP, 'map')
    assert (cloud.point_step, cloud.row_step, cloud.is_dense) == (16, 16, True)
    assert np.frombuffer(cloud.data, '<f4')[:3].tolist() == [1, 2, 3]
    assert np.frombuffer(cloud.data, '<u4')[3] == 0x112233


def test_clouds_of_others_are_read_whatever_their_layout():
    """Big steps, other fields in between, points in double precision."""
    from sensor_msgs.msg import PointField

    layout = np.dtype({
        'names': ['rgb', 'intensity', 'x', 'y', 'z'],
        'formats': ['<f4', '<u2', '<f8', '<f8', '<f8'],
        'offsets': [4, 8, 16, 24, 32],
        'itemsize': 48,
    })
    rows = np.zeros((2, 3), layout)
    rows['x'], rows['y'], rows['z'] = 1, 2, np.arange(6).reshape(2, 3)
    rows['rgb'] = np.array([0x0A0B0C], '<u4').view('<f4')
    cloud = PointCloud2(height=2, width=3, point_step=48, row_step=48 * 3 + 8)
    kinds = {'f4': PointField.FLOAT32, 'u2': PointField.UINT16, 'f8': PointField.FLOAT64}
    for name in layout.names:
        dtype, offset = layout.fields[name][:2]
        cloud.fields.append(PointField(name=name, offset=offset, datatype=kinds[dtype.str[1:]], count=1))
    for row in rows:
        cloud.data.frombytes(row.tobytes() + bytes(8))
    points, rgb, confidence = from_cloud(cloud)
    assert points.shape == (2, 3, 3) and points.dtype == np.float32
    assert points[1, 2].tolist() == [1, 2, 5]
    assert (rgb == (10, 11, 12)).all() and confidence is None
    with pytest.raises(ValueError, match='x, y, z and rgb are needed'):
        from_cloud(PointCloud2())


def test_an_empty_cloud_is_a_cloud():
    cloud = to_cloud(np.empty((0, 3), np.float32), np.empty((0, 3), np.uint8), 0, 'map')
    points, rgb, _ = from_cloud(cloud)
    assert points.shape == rgb.shape == (0, 3)


def test_poses_take_every_form():
    np.testing.assert_allclose(from_pose(to_pose(T)), T, atol=1e-12)
    (edge,) = to_tf([('map', 'odom', T)], STAMP).transforms
    assert (edge.header.frame_id, edge.child_frame_id, from_stamp(edge.header.stamp)) == ('map', 'odom', STAMP)
    assert edge.transform.translation.z == 3.0
    q = edge.transform.rotation
    np.testing.assert_allclose(Rotation.from_quat([q.x, q.y, q.z, q.w]).as_matrix(), T[:3, :3], atol=1e-12)
    odometry = to_odometry(T, STAMP, 'odom', 'base_link')
    assert (odometry.header.frame_id, odometry.child_frame_id) == ('odom', 'base_link')
    pose = pose_from_odometry(odometry)
    np.testing.assert_allclose(pose.T_map_camera, T @ T_MAP_OPTICAL, atol=1e-12)
    assert (pose.id, pose.stamp) == (-1, STAMP)


@pytest.mark.parametrize('frame_id', ['', 'm', 'map', 'a_map', 'robot/map'])
@pytest.mark.parametrize('count', [0, 1, 2, 5])
def test_path_is_serialised_as_ros_does(frame_id, count):
    stamps = [STAMP + i for i in range(count)]
    poses = np.array([position_and_quaternion(T) + i for i in range(count)])
    path = deserialize_message(path_to_cdr(stamps, poses, frame_id), PathMessage)
    assert path.header.frame_id == frame_id and from_stamp(path.header.stamp) == (stamps[-1] if count else 0)
    assert [from_stamp(each.header.stamp) for each in path.poses] == stamps
    assert {each.header.frame_id for each in path.poses} <= {frame_id}
    for i, each in enumerate(path.poses):
        p, q = each.pose.position, each.pose.orientation
        np.testing.assert_array_equal([p.x, p.y, p.z, q.x, q.y, q.z, q.w], poses[i])


def test_stamps_keep_every_nanosecond():
    for nanoseconds in (0, 1, 999_999_999, 1_000_000_000, STAMP):
        assert from_stamp(to_stamp(nanoseconds)) == nanoseconds


def test_angles_are_about_fixed_axes():
    """The optical frame in a body that looks along x, REP-103."""
    np.testing.assert_allclose(interop.euler_matrix(-np.pi / 2, 0, -np.pi / 2), T_MAP_OPTICAL[:3, :3], atol=1e-12)


def test_ros_helpers_are_used_where_they_are_installed(monkeypatch):
    """A stand-in for tf_transformations and sensor_msgs_py, which the wheels lack."""
    import types

    calls = []
    transformations = types.ModuleType('tf_transformations')
    transformations.euler_matrix = lambda *angles: calls.append(angles) or np.eye(4)
    points = types.ModuleType('sensor_msgs_py')
    points.point_cloud2 = types.SimpleNamespace(
        read_points=lambda cloud, reshape_organized_cloud: calls.append('read') or np.zeros(0, 'f4')
    )
    for module in (transformations, points):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(interop, 'find_spec', lambda name: True)
    monkeypatch.setattr(interop.np, '__version__', '2.1.0')  # for which tf_transformations is not made
    assert not np.array_equal(interop.euler_matrix(1, 2, 3), np.eye(3)) and not calls
    monkeypatch.setattr(interop.np, '__version__', '1.26.4')
    assert np.array_equal(interop.euler_matrix(1, 2, 3), np.eye(3))
    interop.read_points(PointCloud2(height=1))
    assert calls == [(1, 2, 3), 'read']
    assert interop.has_cv_bridge() == (np.lib.NumpyVersion(np.__version__) < '2.0.0')
