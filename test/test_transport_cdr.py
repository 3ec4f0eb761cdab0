# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from rclpy.serialization import deserialize_message, serialize_message
from rosbags.typesys import Stores, get_typestore
from visualization_msgs.msg import Marker, MarkerArray

from slam3r_ros.meshing.chunks import ChunkChange
from slam3r_ros.transport.cdr import CdrWriter, marker_array

RNG = np.random.default_rng(0)
STAMP = 1_700_000_000_123_456_789


def change(id, triangles):
    vertices = RNG.random((triangles + 2 if triangles else 0, 3), np.float32)
    corners = RNG.integers(0, max(len(vertices), 1), (triangles, 3)).astype(np.uint32)
    return ChunkChange(id, vertices, RNG.integers(0, 256, vertices.shape).astype(np.uint8), corners)


@pytest.mark.parametrize('namespace', ['', 'a', 'ab', 'abc', 'mesh'])  # shifts what follows by a byte
@pytest.mark.parametrize('frame_id', ['map', 'a/longer/name'])
def test_rclpy_reads_what_was_written(namespace, frame_id):
    changes = [change(0, 4), change(7, 0), change(-1, 1)]
    data = marker_array(changes, namespace, STAMP, frame_id)
    message = deserialize_message(data, MarkerArray)
    assert len(serialize_message(message)) == len(data)  # what fills the gaps is anybody's guess
    assert len(message.markers) == 3
    for marker, each in zip(message.markers, changes, strict=True):
        assert (marker.header.frame_id, marker.ns, marker.id) == (frame_id, namespace, each.id)
        assert marker.header.stamp.sec * 10**9 + marker.header.stamp.nanosec == STAMP
        assert marker.type == Marker.TRIANGLE_LIST
        assert marker.action == (Marker.DELETE if each.delete else Marker.ADD)
        assert marker.pose.orientation.w == marker.scale.x == marker.scale.y == marker.scale.z == marker.color.a == 1.0
        points = np.array([(p.x, p.y, p.z) for p in marker.points]).reshape(-1, 3)
        np.testing.assert_array_equal(points, each.vertices[each.triangles].reshape(-1, 3))
        colors = np.array([(c.r, c.g, c.b, c.a) for c in marker.colors]).reshape(-1, 4)
        np.testing.assert_allclose(colors[:, :3] * 255, each.colors[each.triangles].reshape(-1, 3), atol=1e-4)
        assert (colors[:, 3] == 1).all()


def test_an_independent_reader_agrees():
    store = get_typestore(Stores.ROS2_JAZZY)
    each = change(3, 5)
    message = store.deserialize_cdr(marker_array([each], 'mesh', STAMP, 'map'), 'visualization_msgs/msg/MarkerArray')
    (marker,) = message.markers
    np.testing.assert_array_equal([(p.x, p.y, p.z) for p in marker.points], each.vertices[each.triangles.reshape(-1)])
    assert (marker.ns, marker.mesh_use_embedded_materials) == ('mesh', False)


def test_nothing_is_an_empty_array():
    assert deserialize_message(marker_array([], 'mesh', 0, 'map'), MarkerArray).markers == []


def test_primitives_are_aligned_to_their_size():
    writer = CdrWriter()
    writer.numbers('u1', 1)
    writer.numbers('f8', 2.0)
    writer.numbers('u1', 3)
    writer.numbers('i2', -1)
    writer.sequence(np.array([], 'f8'))
    data = writer.bytes()
    assert data[:4] == b'\x00\x01\x00\x00'
    assert data[4:] == b'\x01' + bytes(7) + np.float64(2).tobytes() + b'\x03\x00\xff\xff' + bytes(4)
