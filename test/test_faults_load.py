# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""An engine five times slower than the camera: queues stay short, the newest frames are kept, drops are counted."""

import os
import threading
from pathlib import Path

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray
from nodes_stubs import StubEngine
from ros_helpers import PATIENCE, quick, ros_fixture, wait_for_match, wait_until  # noqa: F401
from sensor_msgs.msg import Image

from slam3r_ros.nodes import slam3r
from slam3r_ros.nodes.keyframe_selector import KeyframeSelector
from slam3r_ros.nodes.slam3r import Slam3r
from slam3r_ros.nodes.video_decoder import VideoDecoder
from slam3r_ros.transport.bus import create_subscription
from slam3r_ros.transport.images import to_image
from slam3r_ros.values import SlamStatus

SLOWER = 5  # frames of the camera while the engine works on one
PERIODS = 32  # of the engine
QUEUE = 2  # frames before the engine: the default
BEGIN, STEP = 1_700_000_000 * 10**9, 20_000_000  # nanoseconds


class SlowEngine(StubEngine):
    """Works on each frame until it is told to go on."""

    def __init__(self):
        super().__init__()
        self.begun, self.go_on = threading.Semaphore(0), threading.Semaphore(0)
        self.sent, self.latencies = 0, []  # images so far; engine periods from an image to the end of the work on it

    def process(self, frame):
        self.begun.release()
        assert self.go_on.acquire(timeout=2 * PATIENCE)
        self.latencies.append((self.sent - (frame.stamp - BEGIN) / STEP) / SLOWER)
        return super().process(frame)


def resident():
    return int(Path('/proc/self/statm').read_text().split()[1]) * os.sysconf('SC_PAGE_SIZE')


@pytest.mark.usefixtures('quick')
@pytest.mark.parametrize('lossless, periods', [(False, QUEUE + 2), (True, 3 * QUEUE + 5)])
def test_an_engine_slower_than_the_camera(ros, monkeypatch, lossless, periods):
    """As the launch file sets it for what is live, frames before the engine give way to newer; else the camera's."""
    engine = SlowEngine()
    monkeypatch.setattr(slam3r, 'create_engine', engine.made)
    statuses, told = [], []
    create_subscription(ros.node(node_name='watcher'), SlamStatus, 'status', statuses.append, depth=1000)
    outside = ros.apart().node(node_name='outside')
    outside.create_subscription(DiagnosticArray, '/diagnostics', told.append, 10)
    node = ros.node(Slam3r, parameters={'lossless': lossless, 'queue_depth': QUEUE})
    selector = ros.node(KeyframeSelector)
    decoder = ros.node(VideoDecoder, parameters={'input': '/image_raw', 'input_qos': 'reliable'})
    camera = outside.create_publisher(Image, 'image_raw', 10)
    wait_for_match(outside, decoder, '/image_raw')
    noise = np.random.default_rng(0).integers(0, 255, (480, 640, 3)).astype(np.uint8)
    memory = []

    def shoot():
        stamp = BEGIN + engine.sent * STEP
        camera.publish(to_image(np.roll(noise, 5 * engine.sent, axis=1), stamp, 'camera'))
        engine.sent += 1
        memory.append(resident())
        first = decoder if lossless else selector  # as far as nothing is held up
        wait_until(lambda: first.diagnostics()['received'] == engine.sent)

    shoot()
    for _ in range(PERIODS):
        assert engine.begun.acquire(timeout=PATIENCE)
        for _ in range(SLOWER):
            shoot()
        engine.go_on.release()
    engine.go_on.release(engine.sent)
    wait_until(lambda: engine.frames[-1].id == decoder.diagnostics()['received'] - 1)  # the newest is never dropped
    wait_until(lambda: statuses[-1].frames_decoded == len(engine.frames))
    waited = np.percentile(engine.latencies, [50, 90, 100])
    told_as = ', '.join(f'{each:.1f}' for each in waited)
    print(f'{len(engine.frames)} of {engine.sent} frames; latency: {told_as} engine periods (median, 90 %, at most)')
    assert waited[1] < periods and waited[2] < 2 * periods
    status, source = statuses[-1], decoder.diagnostics()
    assert status.frames_in == source['received'] == engine.sent
    assert status.frames_dropped == status.frames_in - len(engine.frames) > 0.7 * engine.sent
    assert source['dropped'] == (status.frames_dropped if lossless else 0)

    def diagnosed():
        return [each.value for array in told for each in array.status[0].values
                if array.status[0].name == '/slam3r' and each.key == 'dropped']  # fmt: skip

    wait_until(lambda: diagnosed()[-1:] == [str(status.frames_dropped)])
    quarter = len(memory) // 4
    grown = max(memory[3 * quarter :]) - max(memory[2 * quarter : 3 * quarter])
    assert grown < 20e6  # meanwhile 50 frames of 0.9 MB were dropped
    assert node.last_error == decoder.last_error == ''
