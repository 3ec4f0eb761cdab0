# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Messages from outside that make no sense: counted, named, and nothing ends."""

import copy
import random
from array import array
from dataclasses import replace

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray
from nodes_stubs import StubEngine, images, wall
from rclpy.serialization import serialize_message
from ros_helpers import ros_fixture, wait_until  # noqa: F401
from test_transport_messages import VALUES

from slam3r_ros.mapping.selection import FrameSelector
from slam3r_ros.meshing.mesher import BlockMesher
from slam3r_ros.meshing.reader import MeshCopy
from slam3r_ros.nodes import slam3r
from slam3r_ros.nodes.keyframe_selector import KeyframeSelector
from slam3r_ros.nodes.mesher import Mesher
from slam3r_ros.nodes.slam3r import Slam3r
from slam3r_ros.transport.messages import adapter_of
from slam3r_ros.values import Frame, Keyframe, MeshUpdate

INTEGERS = {f'{sign}int{bits}': (bits, not sign) for bits in (8, 16, 32, 64) for sign in ('u', '')}


def spoil(message, rng):
    """Change one field, somewhere in a message."""
    fields = message.get_fields_and_field_types()
    name = rng.choice(list(fields))
    kind, value = fields[name], getattr(message, name)
    if hasattr(value, 'get_fields_and_field_types'):
        spoil(value, rng)
    elif isinstance(value, np.ndarray):
        value[rng.randrange(len(value))] = number(value.dtype.name, rng)
    elif isinstance(value, array):
        if len(value) and rng.random() < 0.5:
            value[rng.randrange(len(value))] = number(kind.removeprefix('sequence<').removesuffix('>'), rng)
        else:
            setattr(message, name, rng.choice([value[: rng.randrange(len(value) + 1)], value * 2, value[:0]]))
    elif isinstance(value, list):
        if value and hasattr(value[0], 'get_fields_and_field_types') and rng.random() < 0.7:
            spoil(rng.choice(value), rng)
        else:
            setattr(message, name, rng.choice([value[:-1], value * 2, []]))
    elif isinstance(value, str):
        setattr(message, name, rng.choice(['', 'x' * 5000, 'bgr8', 'nv12', 'mono16', '\N{ROCKET}']))
    elif isinstance(value, bool):
        setattr(message, name, not value)
    else:
        setattr(message, name, number(kind, rng))


def number(kind, rng):
    if kind in INTEGERS:
        bits, signed = INTEGERS[kind]
        low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
        return rng.choice([low, high, rng.randint(low, high), 0, 1, 7])
    huge = 1e300 if kind in ('double', 'float64') else 3e38
    return rng.choice([float('nan'), float('inf'), -1.0, huge, 0.0, 1e-40])


def spoiled(value, count, changes=3):
    """Return messages of a value, each with a few fields changed."""
    rng = random.Random(0)
    adapter = adapter_of(type(value))
    for _ in range(count):
        message = copy.deepcopy(adapter.to_message(value, 'frame'))
        for _ in range(rng.randint(1, changes)):
            spoil(message, rng)
        yield message


@pytest.mark.parametrize('name', VALUES)
def test_a_malformed_message_is_a_value_that_holds_together_or_an_error(name):
    value = VALUES[name]
    adapter, failed = adapter_of(type(value)), 0
    mesher, selector, mesh = BlockMesher(ring=5, max_blocks=2000), FrameSelector(), MeshCopy()
    for message in spoiled(value, 400):
        try:
            made = adapter.from_message(message)
        except ValueError as error:
            assert str(error)
            failed += 1
            continue
        adapter.to_message(made, 'frame')
        if isinstance(made, Frame):
            selector.select(made)
        elif isinstance(made, Keyframe):
            mesher.integrate(made)
            mesher.update()
            selector.hear(made)
        elif isinstance(made, MeshUpdate):
            mesh.apply(made)
            mesh.mesh()
    assert 10 < failed < 400
    assert np.isfinite(mesher.mesh()[0]).all()


def test_absurd_sizes_cost_no_memory():
    message = adapter_of(Keyframe).to_message(wall(next(images())), 'camera')
    for each in (message, message.cloud):
        each.width = each.height = 0xFFFF_FFFF
    message.cloud.row_step = message.cloud.point_step = 0xFFFF_FFFF
    with pytest.raises(ValueError, match='no grid of 4294967295x4294967295'):
        adapter_of(Keyframe).from_message(message)
    message = adapter_of(Frame).to_message(next(images()), 'camera')
    message.image.width = message.image.height = message.image.step = 0xFFFF_FFFF
    with pytest.raises(ValueError, match='image of 4294967295x4294967295'):
        adapter_of(Frame).from_message(message)


def test_nodes_count_and_name_what_is_malformed_and_go_on(ros, monkeypatch):
    """Over DDS, damaged bytes among it."""
    engine = StubEngine()
    monkeypatch.setattr(slam3r, 'create_engine', engine.made)
    nodes = [ros.node(kind) for kind in (Mesher, Slam3r, KeyframeSelector)]
    told = []
    outside = ros.apart().node(node_name='outside')
    outside.create_subscription(DiagnosticArray, '/diagnostics', told.append, 10)
    frame, keyframe = next(images()), wall(next(images()), revision=1)
    rng = random.Random(1)
    publishers = {}
    for value, topic, readers in ((frame, 'frames', 1), (keyframe, 'keyframes', 2), (VALUES['status'], 'status', 1)):
        publisher = outside.create_publisher(adapter_of(type(value)).message_type, topic, 100)
        publishers[type(value)] = publisher
        wait_until(lambda publisher=publisher, readers=readers: publisher.get_subscription_count() == readers)
        for message in spoiled(value, 60, changes=2):
            publisher.publish(message)
            data = bytearray(serialize_message(message))
            data[rng.randrange(4, min(200, len(data)))] ^= 255
            publisher.publish(bytes(data[: rng.randrange(4, 2 * len(data))]))

    def values(name):
        found = [each for array in told for each in array.status if each.name == name]
        return {each.key: each.value for each in found[-1].values} | {'message': found[-1].message} if found else {}

    heard = {'/mesher': ('/keyframes: ', '/status: '), '/keyframe_selector': ('/frames: ', '/keyframes: ')}
    for name, topics in heard.items():
        wait_until(lambda name=name: int(values(name).get('malformed', 0)) > 3)
        assert values(name)['message'].startswith(topics)
    for value in (replace(frame, id=12345), keyframe, VALUES['status']):
        publishers[type(value)].publish(adapter_of(type(value)).to_message(value, 'frame'))
    wait_until(lambda: any(each.id == 12345 for each in engine.frames))
    for node in nodes:
        node.worker.call(lambda: None)
        assert 'Error' not in node.last_error, node.last_error  # nothing that a callback raised
