# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The node of the engine frees the networks when it is deactivated, and goes on with the same map afterwards."""

import threading
import weakref
from dataclasses import replace
from functools import partial

import pytest

pytest.importorskip('torch', reason='the engine needs torch')

from diagnostic_msgs.msg import DiagnosticArray
from ros_helpers import PATIENCE, quick, ros_fixture, wait_until  # noqa: F401
from slam3r_oracle import SIDE, OracleImage2Points, OracleLocal2World
from test_lifecycle import Feeder, Gate, manager  # noqa: F401
from test_slam3r_engine import UNIT, frames, pose_errors

from slam3r_ros.engines import create_engine
from slam3r_ros.engines.slam3r import models
from slam3r_ros.engines.slam3r.weights import L2W
from slam3r_ros.nodes import slam3r
from slam3r_ros.nodes.slam3r import Slam3r
from slam3r_ros.srv import SaveMap

pytestmark = pytest.mark.usefixtures('quick')


class Files:
    """Has networks that know the truth in place of the weights."""

    def __init__(self, monkeypatch):
        self.networks, self.limits, self.reading, self.open = [], [], threading.Event(), threading.Event()
        self.open.set()
        monkeypatch.setattr(models, 'find', lambda kind, folder: 'file')
        monkeypatch.setattr(models, 'check', lambda kind, path: None)
        monkeypatch.setattr(models, 'load', self._load)
        monkeypatch.setattr(models, 'convert', lambda network, precision, device: network)
        monkeypatch.setattr(slam3r, 'limit_gpu_memory', self.limits.append)
        make = partial(create_engine, side=SIDE, stride=3, device='cpu')
        monkeypatch.setattr(slam3r, 'create_engine', make)

    def _load(self, kind, *_, **__):
        self.reading.set()
        assert self.open.wait(2 * PATIENCE)
        network = OracleLocal2World() if kind is L2W else OracleImage2Points()
        self.networks.append(weakref.ref(network))
        return network, None

    @property
    def held(self):
        return sum(network() is not None for network in self.networks)


@pytest.fixture
def files(monkeypatch):
    return Files(monkeypatch)


def test_deactivating_frees_the_networks_and_the_map_goes_on(ros, manager, files):  # noqa: F811
    feeder, count, at = Feeder(ros), 45, 24
    stream = frames(count)
    stream[-1] = replace(stream[-1], last=True)
    node = ros.node(Slam3r, parameters={'engine': 'slam3r', 'gpu_memory_mb': 3000})
    assert files.limits == [3000] and not files.networks  # nobody has sent a frame
    gate = Gate(node._engine, at)
    feeder.start(stream)
    assert gate.reached.wait(PATIENCE) and files.held == 2
    asking = threading.Thread(target=manager.ask, args=('slam3r', 'deactivate'))
    asking.start()
    wait_until(lambda: node.worker.paused)
    gate.open.set()
    asking.join(PATIENCE)
    assert not node.active and files.held == 0 and len(node._engine.trajectory()) == at + 1
    assert node.diagnostics()['degraded'] == ''

    seen = []
    manager.node.create_subscription(DiagnosticArray, '/diagnostics', seen.append, 10)
    files.reading.clear()
    files.open.clear()
    assert manager.ask('slam3r', 'activate')
    assert files.reading.wait(PATIENCE)  # on the worker: the rest of the node goes on meanwhile
    assert manager.state('slam3r') == 'active'
    seen.clear()
    wait_until(lambda: seen)
    files.open.set()
    wait_until(lambda: feeder.statuses[-1].finished)
    assert files.held == 2 and len(files.networks) == 4
    status = feeder.statuses[-1]
    assert (status.frames_decoded, status.frames_dropped, status.last_error) == (count, 0, '')
    assert {keyframe.map_id for keyframe in feeder.keyframes} == {status.map_id}
    trajectory = node._engine.trajectory()
    assert [pose.id for pose in trajectory] == list(range(count)) and pose_errors(trajectory, UNIT)[0] < 1e-2


def test_the_map_is_saved_without_the_networks(ros, manager, files, tmp_path):  # noqa: F811
    feeder = Feeder(ros)
    node = ros.node(Slam3r, parameters={'engine': 'slam3r', 'map_folder': str(tmp_path)})
    stream = frames(20)
    stream[-1] = replace(stream[-1], last=True)
    feeder.start(stream)
    wait_until(lambda: feeder.statuses and feeder.statuses[-1].finished)
    assert manager.ask('slam3r', 'deactivate') and files.held == 0
    assert ros.call(manager.node, SaveMap, '/slam3r/save_map', SaveMap.Request(path='map')).success
    assert len((tmp_path / 'map' / 'trajectory.tum').read_text().splitlines()) >= 20
    assert manager.ask('slam3r', 'cleanup') and files.held == 0
    assert not hasattr(node, '_engine')
