# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
import time

import numpy as np
import pytest
import trimesh
from nodes_stubs import images, wall
from ros_helpers import ros_fixture, wait_until  # noqa: F401
from std_srvs.srv import Trigger
from visualization_msgs.msg import Marker, MarkerArray

from slam3r_ros.nodes import mesher
from slam3r_ros.nodes.base import Newcomers
from slam3r_ros.nodes.mesher import Mesher
from slam3r_ros.srv import GetMesh, SaveMap
from slam3r_ros.transport.bus import create_publisher, create_subscription
from slam3r_ros.transport.messages import mesh_from_message
from slam3r_ros.values import Keyframe, MeshUpdate, SlamStatus, State


class Bench:
    def __init__(self, ros, **parameters):
        self.ros = ros
        self.feeder = ros.node(node_name='feeder')
        self.keyframes = create_publisher(self.feeder, Keyframe, 'keyframes')
        self.status = create_publisher(self.feeder, SlamStatus, 'status')
        self.node = ros.node(Mesher, parameters={'mesh_rate': 5.0, 'mesh_min_weight': 0.0} | parameters)
        self.outside = ros.apart().node(node_name='outside')

    def watch(self):
        updates = []
        create_subscription(self.ros.node(node_name=f'watcher{len(self.ros.nodes)}'), MeshUpdate, 'mesh', updates.append)
        return updates

    def watch_markers(self):
        seen = []
        self.outside.create_subscription(MarkerArray, 'mesh_markers', seen.append, 10)
        return seen

    def feed(self, ids=(0, 10), **kwargs):
        for frame in images(40):
            if frame.id in ids:
                self.keyframes.publish(wall(frame, **kwargs))
        self.node.worker.call(lambda: None)

    def tell(self, **kwargs):
        self.status.publish(SlamStatus(0, State.TRACKING, **kwargs))
        self.node.worker.call(lambda: None)


@pytest.fixture
def bench(ros):
    return lambda **parameters: Bench(ros, **parameters)


def x_of(vertices):
    return float(np.median(vertices[:, 0]))


def test_the_mesh_comes_in_pieces_with_rising_numbers(bench):
    b = bench()
    updates = b.watch()
    b.feed([0])
    wait_until(lambda: updates)
    assert updates[0].full
    vertices = np.concatenate([block.vertices for block in updates[0].blocks])
    assert abs(x_of(vertices) - 1.0) < 0.01
    b.feed([30], shift=0.5)
    wait_until(lambda: len(updates) >= 2)
    assert not updates[-1].full
    assert [each.sequence for each in updates] == list(range(updates[0].sequence, updates[0].sequence + len(updates)))


def test_a_new_subscriber_gets_the_whole_map_once(bench):
    b = bench()
    b.feed()
    first = b.watch()
    wait_until(lambda: first)
    time.sleep(0.5)
    second = b.watch()
    wait_until(lambda: second)
    assert second[0].full and second[0].blocks
    time.sleep(0.5)
    assert len(second) == 1


def test_a_reader_that_takes_the_place_of_another_is_noticed():
    newcomers = Newcomers()
    assert [newcomers.look(each) for each in ({1}, {1}, {1}, {2}, {2}, {2})] == [False, True, False, False, True, False]
    assert newcomers.settled == {2}


def test_nothing_is_meshed_while_nobody_looks(bench, monkeypatch):
    b = bench()
    calls = []
    monkeypatch.setattr(b.node._mesher, 'update', lambda full=False: calls.append(full))
    b.feed()
    time.sleep(0.5)
    assert not calls


def test_rviz_gets_markers_and_a_late_one_gets_them_all(bench):
    b = bench()
    b.feed()
    seen = b.watch_markers()
    wait_until(lambda: seen)
    for marker in seen[0].markers:
        assert (marker.type, marker.action, marker.ns) == (Marker.TRIANGLE_LIST, Marker.ADD, 'mesh')
        assert marker.header.frame_id == 'map' and marker.scale.x == marker.pose.orientation.w == 1.0
        assert len(marker.points) == len(marker.colors) > 0
    later = b.watch_markers()
    wait_until(lambda: later)
    assert {each.id for each in later[-1].markers} == {each.id for each in seen[0].markers}


def test_reset_empties_the_display(bench):
    b = bench()
    updates, markers = b.watch(), b.watch_markers()
    b.feed()
    wait_until(lambda: updates and updates[-1].blocks and markers)
    assert b.ros.call(b.outside, Trigger, '/mesher/reset').success
    wait_until(lambda: updates[-1].full and not updates[-1].blocks)
    wait_until(lambda: markers[-1].markers and all(each.action == Marker.DELETE for each in markers[-1].markers))


def test_a_higher_map_id_clears_and_late_keyframes_of_the_old_map_are_left_out(bench):
    b = bench()
    updates = b.watch()
    b.feed()
    wait_until(lambda: updates and updates[-1].blocks)
    b.tell(map_id=1)
    wait_until(lambda: updates[-1].map_id == 1)
    assert updates[-1].full and not updates[-1].blocks
    b.feed([20], map_id=0)
    time.sleep(0.4)
    assert updates[-1].map_id == 1 and not updates[-1].blocks
    b.feed([30], map_id=1)
    wait_until(lambda: updates[-1].blocks)


def test_the_end_of_the_stream_brings_the_rest_at_once(bench):
    b = bench(mesh_rate=0.1)
    updates = b.watch()
    b.node.worker.call(b.node._publish)  # sees the reader
    b.feed()
    b.tell(finished=True)
    wait_until(lambda: updates, seconds=1.0)


def test_once_the_scale_is_known_voxels_are_metres(bench):
    b = bench(voxel_size=0.05)
    updates = b.watch()
    b.feed([0])
    wait_until(lambda: updates)
    assert updates[-1].block_size == pytest.approx(8 * 0.02)
    b.tell(scale_known=True, map_id=1)
    b.feed([0], map_id=1)
    wait_until(lambda: updates[-1].map_id == 1 and updates[-1].blocks)
    assert updates[-1].block_size == pytest.approx(8 * 0.05)
    assert updates[-1].full and updates[-1].sequence == len(updates)


def test_get_mesh_gives_everything(bench):
    b = bench()
    b.feed()
    answer = b.ros.call(b.outside, GetMesh, '/mesher/get_mesh')
    assert answer.success
    mesh = mesh_from_message(answer.mesh)
    assert mesh.full and abs(x_of(np.concatenate([block.vertices for block in mesh.blocks])) - 1.0) < 0.01
    answer = b.ros.call(b.outside, GetMesh, '/mesher/get_mesh', GetMesh.Request(map_id=7))
    assert not answer.success and answer.message == 'map 7 is gone; the present one is 0'


def test_save_map_writes_both_meshes(bench, tmp_path, monkeypatch):
    b = bench()
    answer = b.ros.call(b.outside, SaveMap, '/mesher/save_map', SaveMap.Request(path=str(tmp_path)))
    assert not answer.success and 'the mesh is empty' in answer.message
    b.feed()
    monkeypatch.setattr(mesher, '_SPECK', 10**9)
    answer = b.ros.call(b.outside, SaveMap, '/mesher/save_map', SaveMap.Request(path=str(tmp_path / 'specks')))
    assert not answer.success and 'the mesh is empty but for specks' in answer.message
    assert not (tmp_path / 'specks').exists()
    monkeypatch.undo()
    answer = b.ros.call(b.outside, SaveMap, '/mesher/save_map', SaveMap.Request(path=str(tmp_path)))
    assert answer.success, answer.message
    assert answer.files == [str(tmp_path / 'mesh.ply'), str(tmp_path / 'mesh.glb')]
    assert abs(x_of(trimesh.load(tmp_path / 'mesh.ply', process=False).vertices) - 1.0) < 0.01
