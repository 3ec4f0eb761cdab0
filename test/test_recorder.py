# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The bag that `slam3r demo` leaves, opened by readers that are not ours."""

import time

import pytest

rclpy = pytest.importorskip('rclpy', reason='rclpy is not installed')
pytest.importorskip('mcap_ros2', reason='mcap_ros2 is not installed: it is only for tests')

from builtin_interfaces.msg import Time
from domains import next_domain
from mcap_ros2.reader import read_ros2_messages
from nav_msgs.msg import Odometry, Path
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import DurabilityPolicy, QoSProfile
from rosbags.highlevel import AnyReader
from rosbags.interfaces import QosDurability
from std_msgs.msg import Header

from slam3r_ros.msg import MeshBlock, MeshUpdate
from slam3r_ros.recorder import BagRecorder, own_types


@pytest.fixture
def node(monkeypatch):
    monkeypatch.setenv('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=next_domain())
    node = rclpy.create_node('recorder_test', context=context)
    yield node
    node.destroy_node()
    rclpy.try_shutdown(context=context)


def spin_until(node, condition):
    executor = SingleThreadedExecutor(context=node.context)
    executor.add_node(node)
    deadline = time.monotonic() + 60
    while not condition() and time.monotonic() < deadline:
        executor.spin_once(timeout_sec=0.05)
    executor.shutdown()
    assert condition()


def header(seconds):
    return Header(stamp=Time(sec=seconds, nanosec=5), frame_id='map')


def record_some(node, path):
    latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    odometry = node.create_publisher(Odometry, 'odometry', 10)
    mesh = node.create_publisher(MeshUpdate, 'mesh', 10)
    late = node.create_publisher(Path, 'path', latched)
    late.publish(Path(header=header(0)))  # before anybody listens
    recorder = BagRecorder(node, path)
    recorder.record(Odometry, 'odometry')
    recorder.record(MeshUpdate, 'mesh')
    recorder.record(Path, 'path', transient_local=True)
    spin_until(node, lambda: recorder.counts['/path'] == 1)
    for second in (1, 2):
        odometry.publish(Odometry(header=header(second)))
        spin_until(node, lambda second=second: recorder.counts['/odometry'] == second)
    block = MeshBlock(index=[1, -2, 3], vertices=[0.0, 1.0, 2.0], colors=[9, 8, 7], triangles=[0, 0, 0])
    mesh.publish(MeshUpdate(header=header(2), sequence=4, block_size=0.5, blocks=[block]))
    spin_until(node, lambda: recorder.counts['/mesh'] == 1)
    return recorder


def test_other_readers_open_the_bag(node, tmp_path):
    path = tmp_path / 'map.mcap'
    recorder = record_some(node, path)
    assert not path.exists()  # not before it is whole
    recorder.close()
    assert list(tmp_path.iterdir()) == [path]

    messages = list(read_ros2_messages(str(path)))
    assert [each.channel.topic for each in messages] == ['/path', '/odometry', '/odometry', '/mesh']
    assert [each.log_time_ns for each in messages] == [0, 10**9 + 5, 2 * 10**9 + 5, 2 * 10**9 + 5]
    block = messages[-1].ros_msg.blocks[0]
    assert list(block.index) == [1, -2, 3] and bytes(block.colors) == bytes([9, 8, 7])

    with AnyReader([path]) as reader:
        durability = {each.topic: each.ext.offered_qos_profiles[0].durability for each in reader.connections}
        reader.typestore.register(own_types())
        sequences = [
            reader.deserialize(data, connection.msgtype).sequence
            for connection, _, data in reader.messages()
            if connection.topic == '/mesh'
        ]
    assert durability['/path'] is QosDurability.TRANSIENT_LOCAL
    assert durability['/odometry'] is QosDurability.VOLATILE
    assert sequences == [4]


def test_a_discarded_bag_leaves_nothing(node, tmp_path):
    record_some(node, tmp_path / 'map.mcap').discard()
    assert list(tmp_path.iterdir()) == []
