# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import trimesh
from nodes_stubs import images, wall
from ros_helpers import PATIENCE, end, ros_fixture, wait_until  # noqa: F401
from std_srvs.srv import Trigger
from visualization_msgs.msg import Marker, MarkerArray

from slam3r_ros import msg
from slam3r_ros.meshing.backend import choose
from slam3r_ros.meshing.draco import CompressedMesh, decompress
from slam3r_ros.meshing.pace import SLOWDOWN
from slam3r_ros.meshing.reader import MeshCopy
from slam3r_ros.nodes import mesher
from slam3r_ros.nodes.base import Newcomers
from slam3r_ros.nodes.mesher import Mesher
from slam3r_ros.nodes.parameters import ParameterError
from slam3r_ros.srv import GetMesh, SaveMap
from slam3r_ros.transport.bus import create_publisher, create_subscription, outside_reader_ids, worker_of
from slam3r_ros.transport.meshes import mesh_from_message
from slam3r_ros.values import Keyframe, MeshUpdate, SlamStatus, State


class Bench:
    def __init__(self, ros, **parameters):
        self.ros = ros
        self.feeder = ros.node(node_name='feeder')
        self.keyframes = create_publisher(self.feeder, Keyframe, 'keyframes')
        self.status = create_publisher(self.feeder, SlamStatus, 'status')
        self.node = ros.node(Mesher, parameters={'mesh_rate': 5.0, 'mesh_min_weight': 0.0} | parameters)
        if 'mesh_rate' not in parameters:  # it allows five times a second, at most
            self.node.worker.every(0.05, self.node._publish)
        self.outside = ros.apart().node(node_name='outside')
        self.watchers = []

    def watch(self, value_type=MeshUpdate, topic='mesh'):
        seen = []
        self.watchers.append(self.ros.node(node_name=f'watcher{len(self.watchers)}'))
        create_subscription(self.watchers[-1], value_type, topic, seen.append)
        return seen

    def watch_draco(self):
        return self.watch(CompressedMesh, 'mesh/draco')

    def watch_markers(self):
        seen = []
        self.outside.create_subscription(MarkerArray, 'mesh_markers', seen.append, 10)
        return seen

    def feed(self, ids=(0, 10), **kwargs):
        for frame in images(40):
            if frame.id in ids:
                self.keyframes.publish(wall(frame, **kwargs))
        self.node.worker.call(lambda: None)

    def turn(self, count=1):
        """Let the mesher publish so many times, beside its timer."""
        for _ in range(count):
            self.node.worker.call(self.node._publish)
        for each in self.watchers:
            worker_of(each).call(lambda: None)

    def by_hand(self):
        """Let it publish in no other way."""
        self.node.worker.call(self.node.worker._timers.clear)

    def whole(self):
        """Return the whole mesh, asked for where the mesher is at work."""
        return self.node.worker.call(self.node._mesher.snapshot)

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
    b.feed([0])  # before anybody reads: else the first update may be that of an empty mesh
    updates = b.watch()
    wait_until(lambda: updates)
    assert updates[0].full
    vertices = np.concatenate([block.vertices for block in updates[0].blocks])
    assert abs(x_of(vertices) - 1.0) < 0.01
    b.feed([30], shift=0.5)
    wait_until(lambda: len(updates) >= 2)
    b.turn()
    assert not any(each.full for each in updates[1:])
    assert [each.sequence for each in updates] == list(range(updates[0].sequence, updates[0].sequence + len(updates)))


def test_a_new_subscriber_gets_the_whole_map_once(bench):
    b = bench()
    b.feed()
    first = b.watch()
    wait_until(lambda: first)
    b.turn(3)
    second = b.watch()
    wait_until(lambda: second)
    assert second[0].full and second[0].blocks
    b.turn(3)
    assert len(second) == 1


def test_a_new_subscriber_gets_the_whole_map_once_though_others_had_it_before(bench):
    b = bench()
    b.by_hand()
    b.feed()
    b.watch_markers()
    wait_until(lambda: outside_reader_ids(b.node, b.node._markers))
    b.turn()
    updates = b.watch()
    b.turn(3)  # the markers are told at the first, the mesh at the second
    assert [each.full for each in updates] == [True] and updates[0].blocks


def test_a_reader_that_takes_the_place_of_another_is_noticed():
    newcomers = Newcomers()
    assert [newcomers.look(each) for each in ({1}, {1}, {1}, {2}, {2}, {2})] == [False, True, False, False, True, False]
    assert newcomers.settled == {2}


def test_nothing_is_meshed_while_nobody_looks(bench, monkeypatch):
    b = bench()
    calls = []
    monkeypatch.setattr(b.node._mesher, 'update', lambda full=False: calls.append(full))
    b.feed()
    b.turn(3)
    assert not calls


def test_nothing_is_compressed_or_serialised_for_those_who_read_the_mesh_only(bench, monkeypatch):
    b = bench()
    made = []
    monkeypatch.setattr(mesher, 'DracoStream', lambda *_: made.append('draco'))
    monkeypatch.setattr(mesher, 'DisplayChunks', lambda *_: made.append('markers'))
    updates = b.watch()
    b.feed()
    wait_until(lambda: updates and updates[-1].blocks)
    b.turn(3)
    assert not made


def test_a_reader_from_before_the_first_map_misses_nothing(bench):
    b = bench()
    updates, messages = b.watch(), b.watch_draco()
    wait_until(lambda: updates and messages)
    b.feed([0], map_id=5)
    b.turn(2)
    wait_until(lambda: any(each.blocks for each in updates) and any(len(each.indices) for each in messages))
    for copy, told in ((MeshCopy(), updates), (MeshCopy(), map(decompress, messages))):
        assert all(copy.apply(each) for each in told) and copy.blocks


def test_without_dracopy_the_rest_goes_on(bench, monkeypatch):
    monkeypatch.setattr(mesher, 'is_installed', lambda: False)
    b = bench()
    updates, messages = b.watch(), b.watch_draco()
    b.feed()
    wait_until(lambda: updates and updates[-1].blocks)
    b.turn(2)
    assert not messages and not b.node.last_error


def test_a_device_that_is_not_there_is_told(bench):
    if choose('auto') == 'cuda':
        pytest.skip('there is a GPU')
    with pytest.raises(ParameterError, match='mesh_device of /mesher.*CuPy'):
        bench(mesh_device='cuda')


def test_the_compressed_mesh_is_the_mesh_and_has_numbers_of_its_own(bench):
    b = bench(mesh_bandwidth_mbps=0.0)
    b.feed([0])
    updates = b.watch()
    wait_until(lambda: updates)
    messages = b.watch_draco()
    wait_until(lambda: messages)
    b.feed([30], shift=0.5)
    b.feed([0], revision=1, shift=1.0)  # moves, so that blocks are removed
    wait_until(lambda: any((each.vertex_counts == 0).any() for each in messages))
    b.by_hand()
    b.turn(2)
    plain, packed = MeshCopy(), MeshCopy()
    assert all(plain.apply(each) for each in updates)
    assert all(packed.apply(decompress(each)) for each in messages)
    assert {index: len(block.triangles) for index, block in packed.blocks.items()} == {
        index: len(block.triangles) for index, block in plain.blocks.items()}
    assert [each.sequence for each in messages] == list(range(1, len(messages) + 1))


def test_a_new_subscriber_of_one_topic_is_sent_everything_there_alone(bench):
    b = bench()
    updates = b.watch()
    b.feed()
    wait_until(lambda: updates and updates[-1].blocks)
    b.turn(2)
    count = len(updates)
    messages = b.watch_draco()
    wait_until(lambda: messages)
    b.turn(3)
    assert [each.full for each in messages] == [True] and len(updates) == count
    plain = MeshCopy()
    assert all(plain.apply(each) for each in updates)
    assert messages[0].triangle_counts.sum() == len(plain.mesh()[2])


def test_a_cap_spreads_the_mesh_over_several_messages(bench):
    b = bench(mesh_bandwidth_mbps=0.05)  # 1250 bytes each
    b.feed([0, 10, 20])
    messages = b.watch_draco()
    whole = sum(len(block.triangles) for block in b.whole().blocks)
    wait_until(lambda: sum(each.triangle_counts.sum() for each in messages) == whole)
    copy = MeshCopy()
    assert all(copy.apply(decompress(each)) for each in messages) and len(copy.mesh()[2]) == whole
    assert len(messages) > 1 and [each.full for each in messages] == [True] + [False] * (len(messages) - 1)


def test_a_process_outside_follows_the_compressed_mesh(bench):
    b = bench()
    b.feed()
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name('ros_draco_reader.py')), '/mesh/draco'],
        env=os.environ | {'ROS_DOMAIN_ID': str(b.ros.domain)}, stdout=subprocess.PIPE, text=True)
    try:
        seen = json.loads(process.stdout.readline())
    finally:
        end(process)
    whole = b.whole()
    triangles = sum(len(each.triangles) for each in whole.blocks)
    assert seen == {'frame': 'map', 'blocks': len(whole.blocks), 'triangles': triangles}


def test_the_compressed_topic_lies_below_the_mesh_wherever_that_is(ros):
    remapped = ['--ros-args', '-r', 'mesh:=surface']
    node = ros.node(Mesher, parameters={'map_frame': 'map'}, namespace='robot', cli_args=remapped)
    assert node._draco.topic_name == '/robot/surface/draco'


def test_who_missed_an_update_gets_the_mesh_on_call_and_goes_on(bench):
    b = bench()
    copy, seen = MeshCopy(), []
    b.feed([0])
    b.outside.create_subscription(msg.MeshUpdate, 'mesh', lambda each: seen.append(mesh_from_message(each)), 100)
    wait_until(lambda: seen)
    assert seen[0].full and seen[0].blocks
    b.by_hand()  # one update a turn

    def go_on(*ids, **how):
        count = len(seen)
        b.feed(ids, **how)
        b.turn(SLOWDOWN)
        wait_until(lambda: len(seen) > count)
        assert seen[-1].blocks and len(seen) == count + 1
        return seen[-1]

    assert copy.apply(seen[0])
    go_on(20, shift=0.4)  # is missed
    behind = go_on(0, revision=1, shift=1.0)
    assert any(not len(block.triangles) for block in behind.blocks) and not copy.apply(behind)
    assert copy.apply(mesh_from_message(b.ros.call(b.outside, GetMesh, '/mesher/get_mesh').mesh))
    assert copy.apply(go_on(35, shift=-0.4))
    whole = b.whole().blocks
    assert copy.blocks.keys() == {block.index for block in whole}
    for block in whole:
        np.testing.assert_array_equal(copy.blocks[block.index].vertices, block.vertices)


def test_a_fast_camera_makes_the_mesh_wait_but_not_at_the_end(bench):
    b = bench(mesh_fast_motion=0.1, mesh_rate=0.1)  # the stub goes at 0.3
    b.by_hand()
    updates = b.watch()
    b.turn(2)
    assert len(updates) == 1  # everything, which is nothing yet
    b.feed([0, 10])
    for count in [1] * (SLOWDOWN - 1) + [2]:
        b.turn()
        assert len(updates) == count
    b.feed([20], shift=0.5)
    b.tell(finished=True)
    worker_of(b.watchers[-1]).call(lambda: None)
    assert len(updates) == 3


def test_diagnostics_tell_how_the_mesh_fares(bench):
    b = bench(mesh_rate=5.0)
    messages = b.watch_draco()
    wait_until(lambda: messages)
    start = time.monotonic()
    b.feed()
    wait_until(lambda: any(len(each.indices) for each in messages))
    figures = b.node.worker.call(b.node.diagnostics)
    assert figures['triangles'] > figures['vertices'] / 2 > 0 and figures['blocks'] > 0
    assert 0 < figures['mesh_fps'] <= 5 and 0 < figures['latency_ms'] <= 1e3 * (time.monotonic() - start)
    assert figures['compression_ratio'] > 5 and figures['camera_speed'] == pytest.approx(0.303, abs=0.001)


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
    b.turn(2)
    assert updates[-1].map_id == 1 and not updates[-1].blocks
    b.feed([30], map_id=1)
    wait_until(lambda: updates[-1].blocks)


def test_the_end_of_the_stream_brings_the_rest_at_once(bench):
    b = bench(mesh_rate=0.1)
    b.by_hand()
    updates = b.watch()
    b.turn()  # sees the reader
    b.feed()
    assert not updates
    b.tell(finished=True)
    worker_of(b.watchers[-1]).call(lambda: None)
    assert updates and updates[-1].blocks


def test_once_the_scale_is_known_voxels_are_metres(bench):
    b = bench(voxel_size=0.05)
    updates = b.watch()
    b.feed([0])
    wait_until(lambda: updates)
    assert updates[-1].block_size == pytest.approx(8 * 0.02)
    b.tell(scale_known=True, map_id=1)
    b.feed([0], map_id=1)
    wait_until(lambda: updates[-1].map_id == 1 and updates[-1].blocks)
    b.by_hand()
    b.turn()
    metric = [each for each in updates if each.map_id == 1]  # one or more, as the timer falls
    assert [each.full for each in metric] == [True] + [False] * (len(metric) - 1)
    assert all(each.block_size == pytest.approx(8 * 0.05) for each in metric)
    assert [each.sequence for each in updates] == list(range(1, len(updates) + 1))


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
    b = bench(map_folder=str(tmp_path))
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


def test_a_mesh_of_which_nothing_is_left_is_not_saved(bench, tmp_path, monkeypatch):
    b = bench(save_max_triangles=1, map_folder=str(tmp_path))
    b.feed()
    monkeypatch.setattr(mesher, 'decimate', lambda vertices, colors, triangles, most: (vertices, colors, triangles[:0]))
    answer = b.ros.call(b.outside, SaveMap, '/mesher/save_map', SaveMap.Request(path=str(tmp_path)))
    assert not answer.success and 'nothing was written; raise save_max_triangles' in answer.message
    assert list(tmp_path.iterdir()) == []


def test_save_map_smooths_and_simplifies_what_is_asked_for(bench, tmp_path, monkeypatch):
    b = bench(save_max_triangles=100, map_folder=str(tmp_path))
    b.feed()
    asked = []
    monkeypatch.setattr(mesher, 'smooth', lambda *mesh: asked.append(mesh[3]) or mesh[:3])
    monkeypatch.setattr(mesher, 'decimate', lambda *mesh: (*mesh[:2], mesh[2][:mesh[3]]))

    def save(method, folder):
        request = SaveMap.Request(path=str(tmp_path / folder), method=method)
        return b.ros.call(b.outside, SaveMap, '/mesher/save_map', request)

    assert save('tsdf', 'plain').success and not asked
    assert save('poisson', 'smooth').success and asked == [pytest.approx(0.02)]
    for folder in ('plain', 'smooth'):
        assert len(trimesh.load(tmp_path / folder / 'mesh.ply', process=False).faces) == 100
    assert save('marble', 'other').message == "method 'marble' is unknown; use tsdf or poisson"


def test_keyframes_go_on_while_a_mesh_is_saved(bench, tmp_path, monkeypatch):
    b = bench(map_folder=str(tmp_path))
    b.feed([0])
    began, go_on = threading.Event(), threading.Event()

    def write(*_):
        began.set()
        assert go_on.wait(2 * PATIENCE)

    monkeypatch.setattr(mesher, 'write_mesh', write)
    client = b.ros.client(b.outside, SaveMap, '/mesher/save_map')
    future = client.call_async(SaveMap.Request(path=str(tmp_path)))
    assert began.wait(PATIENCE)
    before = b.node.diagnostics()['blocks']
    b.feed([30], shift=0.5)
    assert b.node.diagnostics()['blocks'] > before and not future.done()
    assert b.ros.call(b.outside, GetMesh, '/mesher/get_mesh').success and not future.done()
    go_on.set()
    wait_until(future.done)
    assert future.result().success
