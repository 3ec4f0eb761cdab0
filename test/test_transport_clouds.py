# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from rclpy.serialization import deserialize_message, serialize_message
from rosbags.typesys import Stores, get_typestore
from sensor_msgs.msg import PointCloud2

from slam3r_ros.transport.clouds import cloud_to_cdr, from_cloud, to_cloud

RNG = np.random.default_rng(0)
STAMP = 1_700_000_000_123_456_789
SHAPES = {'list': (7,), 'organised': (3, 4), 'one': (1,), 'empty': (0,)}


def make(shape):
    return RNG.random((*shape, 3), np.float32), RNG.integers(0, 256, (*shape, 3), np.uint8)


@pytest.mark.parametrize('frame_id', ['', 'map', 'camera_optical_frame'])  # shifts what follows by a byte
@pytest.mark.parametrize('with_confidence', [False, True])
@pytest.mark.parametrize('shape', SHAPES.values(), ids=SHAPES)
def test_what_is_written_is_what_rclpy_would_send(shape, with_confidence, frame_id):
    confidence = RNG.random(shape, np.float32) if with_confidence else None
    arguments = (*make(shape), STAMP, frame_id, confidence)
    data, message = cloud_to_cdr(*arguments), to_cloud(*arguments)
    assert deserialize_message(data, PointCloud2) == message
    assert len(serialize_message(message)) == len(data)


def test_an_independent_reader_agrees():
    points, colors = make((3, 4))
    points[1, 2] = np.nan
    data = cloud_to_cdr(points, colors, STAMP, 'map')
    store = get_typestore(Stores.ROS2_JAZZY)
    cloud = store.deserialize_cdr(data, 'sensor_msgs/msg/PointCloud2')
    assert (cloud.height, cloud.width, cloud.point_step, cloud.row_step) == (3, 4, 16, 64)
    assert (cloud.header.frame_id, cloud.header.stamp.sec * 10**9 + cloud.header.stamp.nanosec) == ('map', STAMP)
    assert [(each.name, each.offset, each.datatype, each.count) for each in cloud.fields] == [
        (name, 4 * i, 7, 1) for i, name in enumerate(('x', 'y', 'z', 'rgb'))
    ]
    assert not cloud.is_dense and not cloud.is_bigendian
    rows = cloud.data.view('<f4').reshape(3, 4, 4)
    np.testing.assert_array_equal(rows[..., :3], points)
    np.testing.assert_array_equal(rows[..., 3].copy().view(np.uint8).reshape(3, 4, 4)[..., 2::-1], colors)
    assert bytes(store.serialize_cdr(cloud, 'sensor_msgs/msg/PointCloud2')) == data


@pytest.mark.parametrize('value', [np.nan, np.inf])
@pytest.mark.parametrize('axis', [0, 1, 2])
def test_one_point_without_a_place_makes_a_cloud_not_dense(axis, value):
    points, colors = make((5,))
    assert to_cloud(points, colors, 0, 'map').is_dense
    points[3, axis] = value
    cloud = to_cloud(points, colors, 0, 'map')
    assert not cloud.is_dense
    np.testing.assert_array_equal(from_cloud(cloud)[0], points)
    np.testing.assert_array_equal(from_cloud(cloud)[1], colors)


def test_points_of_another_layout_are_packed_the_same():
    points, colors = make((8,))
    expected = cloud_to_cdr(points[::2], colors[::2], 0, 'map')
    assert cloud_to_cdr(points[::2].copy(), colors[::2].copy(), 0, 'map') == expected
    assert cloud_to_cdr(points[::2].astype(float), colors[::2], 0, 'map') == expected
