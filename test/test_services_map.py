# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""One graph maps a place and saves it; another one, in another process, goes on in the same frame, then in metres."""

import itertools
import os
import re
import signal
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray
from nav_msgs.msg import Odometry
from ros_helpers import PATIENCE, next_domain, wait_until

from slam3r_ros.graph import Graph
from slam3r_ros.mapping.registration import similarity
from slam3r_ros.mapping.trajectory import read_tum
from slam3r_ros.meshing.reader import MeshCopy
from slam3r_ros.msg import SlamStatus
from slam3r_ros.srv import GetMesh, LoadMap, SaveMap, SetScale
from slam3r_ros.transport.meshes import mesh_from_message
from slam3r_ros.transport.poses import pose_from_odometry
from slam3r_ros.values import State
from slam3r_ros.video.source import open_source

CLIP = Path(__file__).parent / 'data' / 'room'
MAPPED, SEEN_AGAIN, END = 70, 45, 95  # frames of the clip
SAME_PLACE = 0.03  # map units, of which the scene is one deep: between two graphs' poses of one frame
WAY_ON = 0.05  # metres: ground truth, by the similarity of the first graph's poses


@pytest.fixture(scope='module')
def parts(tmp_path_factory):
    """Return folders with the first frames of the clip and, overlapping, those behind them; names are times."""
    folder = tmp_path_factory.mktemp('clip')
    parts = {folder / 'first': range(MAPPED), folder / 'second': range(SEEN_AGAIN, END)}
    for each in parts:
        each.mkdir()
    for frame in itertools.islice(open_source(str(CLIP / 'video.mp4'), 0), END):
        for each, ids in parts.items():
            if frame.id in ids:
                name = f'{frame.stamp // 10**9}.{frame.stamp % 10**9:09d}.jpg'
                cv2.imwrite(str(each / name), frame.image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 97])
    return list(parts)


class Run(Graph):
    """A graph, and what it says."""

    def __init__(self, maps):
        super().__init__()
        self.status, self.diagnostics, self.poses = SlamStatus(), {}, {}
        self._maps = str(maps)
        node = self.node
        node.create_subscription(SlamStatus, 'status', lambda message: setattr(self, 'status', message), 100)
        node.create_subscription(DiagnosticArray, '/diagnostics', self._diagnose, 100)
        node.create_subscription(Odometry, 'odometry', self._place, 1000)

    def _diagnose(self, message):
        for status in message.status:
            self.diagnostics[status.name] = {each.key: each.value for each in status.values}

    def _place(self, message):
        pose = pose_from_odometry(message)
        self.poses[pose.stamp] = pose.T_map_camera

    def begin(self):
        self.load('mesher', {'map_folder': self._maps})
        self.load('slam3r', {'map_folder': self._maps, 'engine': 'geometric'})
        self.load('keyframe_selector', {})

    def play(self, folder):
        self.load('video_decoder', {'input': str(folder)})
        wait_until(lambda: self.check() or self.status.finished, 4 * PATIENCE)

    def ask(self, kind, name, **fields):
        answer = self.call(kind, name, kind.Request(**fields))
        assert answer.success, answer.message
        return answer

    def triangles(self):
        copy = MeshCopy()
        assert copy.apply(mesh_from_message(self.ask(GetMesh, '/mesher/get_mesh').mesh))
        return len(copy.mesh()[2])


def positions(poses, stamps):
    return np.array([poses[stamp][:3, 3] for stamp in stamps])


def true_positions(stamps):
    truth = {round(pose.stamp, -6): pose.T_map_camera for pose in read_tum(CLIP / 'groundtruth.tum')}
    return positions(truth, [round(stamp, -6) for stamp in stamps])


def test_another_graph_goes_on_in_the_map_and_then_in_metres(parts, tmp_path, monkeypatch):
    monkeypatch.setenv('ROS_DOMAIN_ID', str(next_domain()))
    monkeypatch.setenv('FASTDDS_BUILTIN_TRANSPORTS', 'UDPv4')  # who shares memory with a killed process may crash
    with Run(tmp_path) as first:
        first.begin()
        first.play(parts[0])
        for node in ('slam3r', 'mesher'):
            first.ask(SaveMap, f'/{node}/save_map', path='room')
        triangles = first.triangles()
    mapped = {pose.stamp: pose.T_map_camera for pose in read_tum(tmp_path / 'room' / 'trajectory.tum')}
    assert len(mapped) > 0.9 * MAPPED
    scale = similarity(positions(mapped, mapped), true_positions(mapped))

    with Run(tmp_path) as second:
        second.begin()
        answer = second.ask(LoadMap, '/slam3r/load_map', path='room')
        keyframes = re.fullmatch(r'map \d+: (\d+) keyframes', answer.message)[1]
        assert int(keyframes) > 5
        wait_until(lambda: second.diagnostics.get('/mesher', {}).get('keyframes') == keyframes)
        wait_until(lambda: second.status.map_id == answer.map_id)
        assert second.triangles() == pytest.approx(triangles, rel=0.05)

        second.play(parts[1])
        assert second.status.state == State.TRACKING and second.status.map_id == answer.map_id
        last = max(float(path.stem) for path in parts[1].iterdir())
        wait_until(lambda: max([*second.poses], default=0) * 1e-9 > last - 1e-3)  # behind all the others
        assert len(second.poses) > 0.9 * (END - SEEN_AGAIN)
        again = [stamp for stamp in second.poses if stamp in mapped]
        off = np.linalg.norm(positions(second.poses, again) - positions(mapped, again), axis=1)
        print(f'the same {len(again)} frames: median {np.median(off):.4f}, at most {off.max():.4f} map units apart')
        assert len(again) > 0.8 * (MAPPED - SEEN_AGAIN) and np.median(off) < SAME_PLACE, off
        new = [stamp for stamp in second.poses if stamp > max(mapped)]
        off = np.linalg.norm(scale.apply(positions(second.poses, new)) - true_positions(new), axis=1)
        print(f'{len(new)} frames of the way on: median {np.median(off):.4f}, at most {off.max():.4f} m from the truth')
        assert len(new) > 0.9 * (END - MAPPED) and off.max() < WAY_ON, off
        assert second.status.keyframes > int(keyframes)
        assert second.triangles() > 1.05 * triangles

        answer = second.ask(SetScale, '/slam3r/set_scale', metres_per_unit=scale.scale)
        assert 'is metric' in answer.message
        wait_until(lambda: second.status.scale_known and second.status.map_id > 0)
        second.ask(SaveMap, '/slam3r/save_map', path='metric')
        metric = {pose.stamp: pose.T_map_camera for pose in read_tum(tmp_path / 'metric' / 'trajectory.tum')}
        both = [stamp for stamp in metric if stamp >= min(new)]
        assert similarity(positions(metric, both), true_positions(both)).scale == pytest.approx(1.0, abs=0.05)

        # And the end of that process, in the middle of another save, leaves what can be loaded.
        saved = (tmp_path / 'metric' / 'map.npz').read_bytes()
        request = SaveMap.Request(path='metric', overwrite=True)
        client = second.node.create_client(SaveMap, '/slam3r/save_map')
        wait_until(client.service_is_ready)
        client.call_async(request)
        time.sleep(0.02)  # any moment will do
        os.kill(second._process.pid, signal.SIGKILL)
        second._process.wait()
        assert (tmp_path / 'metric' / 'map.npz').read_bytes() == saved  # the same map: old and new alike
        second.leave()
