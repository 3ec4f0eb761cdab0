# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
import threading
import time
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from nodes_stubs import StubEngine, images, wall
from ros_helpers import PATIENCE, ros_fixture, wait_until  # noqa: F401

from slam3r_ros.engines.protocol import EngineOutput
from slam3r_ros.mapping.selection import FrameSelector
from slam3r_ros.nodes import slam3r
from slam3r_ros.nodes.keyframe_selector import KeyframeSelector
from slam3r_ros.transport.bus import create_publisher, create_subscription
from slam3r_ros.values import Frame, Keyframe, SlamStatus

COUNT = 120  # frames
SCENE = np.kron(np.random.default_rng(0).integers(0, 255, (24, 80, 3)), np.ones((4, 4, 1))).astype(np.uint8)


def moving_images(count=COUNT):
    for i in range(count):
        image = np.ascontiguousarray(SCENE[:, i : i + 128])
        yield Frame(i, 1_000_000_000 + i * 33_000_000, image, last=i == count - 1)


def seen(id, confidence, map_id=1):
    keyframe = wall(Frame(id, id, np.zeros((1, 1, 3), np.uint8)), 1, map_id)
    return replace(keyframe, confidence=np.full((48, 64), confidence, np.float32))


class MoodyEngine(StubEngine):
    """Every third frame is a keyframe, of random confidence; the first five come together, late."""

    def __init__(self, pauses=None):
        super().__init__()
        self._pauses, self._held = pauses, []

    def process(self, frame):
        self.frames.append(frame)
        if self._pauses is not None:
            time.sleep(self._pauses.choice([0, 0, 0.004, 0.02]))
        if frame.id % 3:
            return EngineOutput(None)
        confidence = np.random.default_rng(frame.id).uniform(0.1, 0.9)
        self._held.append(seen(frame.id, confidence, self.map_id))
        if frame.id < 12:
            return EngineOutput(None)
        keyframes, self._held = self._held, []
        return EngineOutput(None, tuple(keyframes))


def advice(frames):
    return [(frame.id, frame.candidate, frame.stride) for frame in frames]


@cache
def expected():
    """Return the advice in a plain loop."""
    selector, engine = FrameSelector(), MoodyEngine()
    for frame in moving_images():
        for keyframe in engine.process(selector.select(frame)).keyframes:
            selector.hear(keyframe)
    return advice(engine.frames)


@pytest.mark.parametrize('pauses', [None, 1, 2])
def test_the_advice_does_not_depend_on_the_speed_of_the_engine(ros, monkeypatch, pauses):
    engine = MoodyEngine(np.random.default_rng(pauses) if pauses else None)
    monkeypatch.setattr(slam3r, 'create_engine', engine.made)
    feeder, statuses = ros.node(node_name='feeder'), []
    frames = create_publisher(feeder, Frame, 'frames', lossless=True)
    create_subscription(feeder, SlamStatus, 'status', statuses.append, depth=1000)
    ros.node(KeyframeSelector)
    ros.node(slam3r.Slam3r)
    for frame in moving_images():
        frames.publish(frame)
    wait_until(lambda: statuses and statuses[-1].finished)
    assert advice(engine.frames) == expected()
    assert len({frame.stride for frame in engine.frames[-60:]}) > 3  # the confidence was heard


def test_the_engine_never_waits_for_a_selector_that_waits_for_it(ros):
    selector, outside = ros.node(KeyframeSelector), ros.node(node_name='engine')
    frames, keyframes = create_publisher(outside, Frame, 'frames'), create_publisher(outside, Keyframe, 'keyframes')
    for frame in images(2):  # nobody takes what is selected
        frames.publish(frame)
    wait_until(lambda: selector.diagnostics()['received'] == 1)
    speaker = threading.Thread(target=lambda: [keyframes.publish(seen(i, 0.5)) for i in range(100)], daemon=True)
    speaker.start()
    speaker.join(PATIENCE)
    assert not speaker.is_alive() and selector.diagnostics()['received'] == 1


@pytest.mark.parametrize('stride, readers', [(0, 1), (4, 0)])
def test_keyframes_are_read_only_when_the_stride_is_not_fixed(ros, stride, readers):
    ros.node(KeyframeSelector, parameters={'keyframe_stride': stride})
    assert create_publisher(ros.node(node_name='engine'), Keyframe, 'keyframes').readers() == readers


def test_confidence_is_heard_from_another_process(ros):
    passed = []
    selector = ros.node(KeyframeSelector)
    feeder = ros.node(node_name='feeder')
    frames = create_publisher(feeder, Frame, 'frames')
    create_subscription(feeder, Frame, 'selected_frames', passed.append, depth=1000)
    keyframes = create_publisher(ros.apart().node(node_name='engine'), Keyframe, 'keyframes', depth=100, lossless=True)
    wait_until(keyframes.outside_readers)
    for frame in moving_images(60):
        frames.publish(replace(frame, last=False))
    wait_until(lambda: len(passed) == 60)
    for id in range(20):  # it gives no credit, so nobody waits for it
        keyframes.publish(seen(id, 0.8 if id < 19 else 0.2))
        wait_until(lambda id=id: id in selector._selector._confidence)
    last = list(moving_images(61))[-1]
    frames.publish(last)
    wait_until(lambda: len(passed) == 61)
    assert passed[-1].stride <= 0.7 * passed[-2].stride
