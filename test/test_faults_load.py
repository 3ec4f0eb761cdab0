# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""An engine five times slower than the camera: queues stay short, the newest frames are kept, drops are counted."""

import os
import time
from pathlib import Path

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray
from nav_msgs.msg import Odometry
from nodes_stubs import StubEngine
from ros_helpers import ros_fixture, wait_until  # noqa: F401
from sensor_msgs.msg import Image

from slam3r_ros.nodes import slam3r
from slam3r_ros.nodes.keyframe_selector import KeyframeSelector
from slam3r_ros.nodes.slam3r import Slam3r
from slam3r_ros.nodes.video_decoder import VideoDecoder
from slam3r_ros.transport.bus import create_subscription
from slam3r_ros.transport.images import to_image
from slam3r_ros.transport.stamps import from_stamp
from slam3r_ros.values import SlamStatus

CAMERA, ENGINE = 0.02, 0.1  # seconds a frame
SECONDS = 3.5
QUEUE = 2  # frames before the engine: the default


class SlowEngine(StubEngine):
    def process(self, frame):
        time.sleep(ENGINE)
        return super().process(frame)


def resident():
    return int(Path('/proc/self/statm').read_text().split()[1]) * os.sysconf('SC_PAGE_SIZE')


@pytest.mark.parametrize('lossless, periods', [(False, QUEUE + 2), (True, 3 * QUEUE + 5)])
def test_an_engine_slower_than_the_camera(ros, monkeypatch, lossless, periods):
    """As the launch file sets it for what is live, frames before the engine give way to newer ones; else the camera's."""
    engine = SlowEngine()
    monkeypatch.setattr(slam3r, 'create_engine', engine.made)
    statuses, latencies, told = [], [], []
    create_subscription(ros.node(node_name='watcher'), SlamStatus, 'status', statuses.append, depth=1000)
    outside = ros.apart().node(node_name='outside')

    def place(message):
        latencies.append((time.time_ns() - from_stamp(message.header.stamp)) * 1e-9)

    outside.create_subscription(Odometry, 'odometry', place, 100)
    outside.create_subscription(DiagnosticArray, '/diagnostics', told.append, 10)
    node = ros.node(Slam3r, parameters={'lossless': lossless, 'queue_depth': QUEUE})
    ros.node(KeyframeSelector)
    decoder = ros.node(VideoDecoder, parameters={'input': '/image_raw', 'input_qos': 'reliable'})
    camera = outside.create_publisher(Image, 'image_raw', 10)
    wait_until(camera.get_subscription_count)
    noise = np.random.default_rng(0).integers(0, 255, (480, 640, 3)).astype(np.uint8)
    sent, memory, start = 0, [], time.monotonic()
    while time.monotonic() < start + SECONDS:
        camera.publish(to_image(np.roll(noise, 5 * sent, axis=1), time.time_ns(), 'camera'))
        sent += 1
        memory.append(resident())
        time.sleep(max(0.0, start + CAMERA * sent - time.monotonic()))
    processed = len(engine.frames)
    assert sent > 4 * processed > 0
    wait_until(lambda: engine.frames[-1].id == decoder.diagnostics()['received'] - 1)  # the newest is never dropped
    wait_until(lambda: statuses[-1].frames_decoded == len(engine.frames))
    waited = np.percentile(latencies, [50, 90, 100]) / (SECONDS / processed)  # as fast as the machine is now
    told_as = ', '.join(f'{each:.1f}' for each in waited)
    print(f'{processed} of {sent} frames; latency: {told_as} engine periods (median, 90 %, at most)')
    assert waited[1] < periods and waited[2] < 2 * periods
    status, source = statuses[-1], decoder.diagnostics()
    assert status.frames_in == source['received'] > 0.9 * sent
    assert status.frames_dropped == status.frames_in - len(engine.frames) > 0.7 * sent
    assert source['dropped'] == status.frames_dropped if lossless else source['dropped'] < 0.1 * sent

    def diagnosed():
        return [each.value for array in told for each in array.status[0].values
                if array.status[0].name == '/slam3r' and each.key == 'dropped']  # fmt: skip

    wait_until(lambda: int(diagnosed()[-1]) == status.frames_dropped)
    quarter = len(memory) // 4
    grown = max(memory[3 * quarter :]) - max(memory[2 * quarter : 3 * quarter])
    assert grown < 20e6  # meanwhile 50 frames of 0.9 MB were dropped
    assert node.last_error == decoder.last_error == ''
