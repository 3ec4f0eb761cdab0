# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What ROS does to a graph: readers come and go, signals arrive in the middle, and another graph runs beside it."""

import itertools
import os
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from long_clip import repeat
from nav_msgs.msg import Path as PathMessage
from nodes_stubs import StubEngine, StubSource, images, wall
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, QoSProfile
from rclpy.serialization import deserialize_message
from ros_helpers import PATIENCE, Ros, quick, ros_fixture, wait_for_match, wait_until  # noqa: F401
from sensor_msgs.msg import PointCloud2
from tf2_msgs.msg import TFMessage
from visualization_msgs.msg import MarkerArray

from slam3r_ros import msg
from slam3r_ros.container import GRAPH, Container
from slam3r_ros.engines.geometric import storage
from slam3r_ros.engines.protocol import EngineOutput
from slam3r_ros.mapping.trajectory import read_tum
from slam3r_ros.nodes import playback, slam3r
from slam3r_ros.nodes.mesher import Mesher
from slam3r_ros.nodes.slam3r import Slam3r
from slam3r_ros.srv import SaveMap
from slam3r_ros.transport.bus import create_publisher
from slam3r_ros.values import Frame

CLIP = Path(__file__).parent / 'data' / 'room' / 'video.mp4'
LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
READ = {
    'mesh': (msg.MeshUpdate, 1000),
    'mesh_markers': (MarkerArray, 1000),
    'path': (PathMessage, LATCHED),
    'map_cloud': (PointCloud2, LATCHED),
}


class EndlessEngine(StubEngine):
    """Every fifth frame is a keyframe, with depth at once; the wall goes on and on."""

    def process(self, frame):
        output = super().process(frame)
        if output.pose is None or frame.id % 5:
            return EngineOutput(output.pose)
        keyframe = wall(replace(frame, id=frame.id % 40), 1, self.map_id, shift=0.9 * frame.id / 40)
        return EngineOutput(output.pose, (replace(keyframe, pose=replace(keyframe.pose, id=frame.id)),))


@pytest.mark.usefixtures('quick')
def test_readers_come_and_go_while_the_map_grows(ros, monkeypatch):
    """Each gets the whole, once, and leaves nothing behind."""
    engine = EndlessEngine()
    monkeypatch.setattr(slam3r, 'create_engine', engine.made)
    mesher = ros.node(Mesher, parameters={'mesh_rate': 5.0, 'mesh_min_weight': 0.0})
    node = ros.node(Slam3r)
    frames = create_publisher(ros.node(node_name='feeder'), Frame, 'selected_frames')
    end = threading.Event()

    def feed():
        template = next(images())
        for id in itertools.count():
            if end.is_set():
                return
            frames.publish(replace(template, id=id, stamp=10**9 + id * 33_000_000))
            time.sleep(0.02)

    feeding = threading.Thread(target=feed, daemon=True)
    feeding.start()
    outside, left = ros.apart(), []

    def visit(number):
        reader, seen = outside.node(node_name=f'reader{number}'), {name: [] for name in READ}
        for name, (kind, qos) in READ.items():
            reader.create_subscription(kind, name, seen[name].append, qos, raw=True)  # markers are slow to read
        wait_until(lambda: all(seen.values()))
        wait_until(lambda: len(seen['mesh']) > 2)  # the updates that come behind the whole
        outside.executor.remove_node(reader)
        outside.nodes.remove(reader)
        reader.destroy_node()
        updates = [deserialize_message(each, msg.MeshUpdate) for each in seen['mesh']]
        assert updates[0].blocks and [each.full for each in updates] == [True] + [False] * (len(updates) - 1)
        numbers = [each.sequence for each in updates]
        assert numbers == list(range(numbers[0], numbers[-1] + 1))
        markers, path, cloud = (deserialize_message(seen[name][0], READ[name][0]) for name in list(READ)[1:])
        assert markers.markers and path.poses and cloud.width
        wait_until(lambda: mesher._chunks is None and not mesher._mesh_readers.settled)  # kept for those who read
        left.append((len(os.listdir('/proc/self/fd')), [len(each._entities()) for each in (node, mesher)]))

    wait_until(lambda: mesher.diagnostics()['blocks'])
    for number in range(4):
        visit(number)
    end.set()
    feeding.join(PATIENCE)
    assert left[-1][0] < left[1][0] + 3 and left[-1][1] == left[1][1]
    assert node.last_error == mesher.last_error == ''


def shared_memory(pid='[0-9]*'):
    """Return the files of shared memory that a process has, or all processes have."""
    files = set()
    for maps in Path('/proc').glob(f'{pid}/maps'):
        with suppress(OSError):  # it has ended, or is somebody else's
            files |= {Path(each) for each in re.findall(r'/dev/shm/\S+', maps.read_text())}
    return files


@pytest.mark.skipif(not Path('/dev/shm').is_dir(), reason='there is no /dev/shm')
def test_a_signal_amid_mapping_and_saving_leaves_nothing_behind(monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        patch.setenv('FASTDDS_BUILTIN_TRANSPORTS', 'UDPv4')  # no shared memory but the container's
        ros = Ros()
    clip = repeat(CLIP, tmp_path / 'long.mp4', 4)
    names = {'video_decoder:input': clip, 'slam3r:map_folder': tmp_path, 'mesher:map_folder': tmp_path}
    arguments = [each for name, value in names.items() for each in ('-p', f'{name}:={value}')]
    before = set(Path('/dev/shm').iterdir())
    container = subprocess.Popen(
        [sys.executable, '-m', 'slam3r_ros.container', '--graph', '--ros-args', '-p', 'engine:=geometric', *arguments],
        env=os.environ | {'ROS_DOMAIN_ID': str(ros.domain)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        node, statuses = ros.node(node_name='watcher'), []
        node.create_subscription(msg.SlamStatus, 'status', statuses.append, 10)
        node.create_subscription(msg.MeshUpdate, 'mesh', lambda update: None, 10)
        wait_until(lambda: any(each.keyframes > 5 for each in statuses), 2 * PATIENCE)
        for name in ('slam3r', 'mesher'):
            future = ros.client(node, SaveMap, f'/{name}/save_map').call_async(SaveMap.Request(path='room'))
        wait_until(lambda: (tmp_path / 'room').exists() or future.done())
        used = shared_memory(container.pid)
        assert used - before
        assert not statuses[-1].finished
        container.send_signal(signal.SIGINT)
        text = container.communicate(timeout=PATIENCE)[0]
        assert container.returncode == 0 and 'Traceback' not in text, text
        assert 'still run' not in text  # nobody was given up
    finally:
        container.kill()
        container.wait()
        ros.close()
    assert not [each for each in used - before - shared_memory() if each.exists()]  # some ports are used by others, too
    saved = sorted((tmp_path / 'room').glob('*'))
    assert saved and not [each for each in saved if each.name.startswith('.')]
    for path in saved:
        {'.npz': storage.load, '.tum': read_tum}.get(path.suffix, lambda path: None)(path)


SIDES = {'left': 25, 'right': 40}  # frames


@pytest.mark.parametrize('where', ['in one process', 'in two'])
def test_two_graphs_in_two_namespaces_keep_apart(ros, monkeypatch, where):
    engines = {}

    def make(name, checkpoints, **kwargs):
        side = checkpoints  # each graph has its own
        engines[side] = StubEngine()
        return engines[side].made(name, checkpoints, **kwargs)

    monkeypatch.setattr(slam3r, 'create_engine', make)
    clips = {side: list(images(count)) for side, count in SIDES.items()}
    monkeypatch.setattr(playback, 'open_source', lambda uri, *_: StubSource(clips[uri.removesuffix('.mp4')]))
    outside, edges, statuses, keyframes = ros.apart().node(node_name='outside'), set(), {}, {}

    def listen(message):
        edges.update((each.header.frame_id, each.child_frame_id) for each in message.transforms)

    outside.create_subscription(TFMessage, '/tf', listen, 1000)
    for side in SIDES:
        statuses[side], keyframes[side] = [], []
        outside.create_subscription(msg.SlamStatus, f'/{side}/status', statuses[side].append, 1000)
        outside.create_subscription(msg.Keyframe, f'/{side}/keyframes', keyframes[side].append, 1000)
    corners = {'left': ros, 'right': ros if where == 'in one process' else ros.apart()}
    containers = {}
    try:
        for side, corner in corners.items():
            if corner not in containers:
                containers[corner] = Container(context=corner.context)
                corner.executor.add_node(containers[corner])
            overrides = {'input': f'{side}.mp4', 'checkpoints_dir': side, 'stamp_offset': 0.0}
            overrides |= {f'{name}_frame': f'{side}/{name}' for name in ('map', 'odom', 'base', 'camera')}
            parameters = [Parameter(name, value=value) for name, value in overrides.items()]
            for name, plugin in GRAPH.items():
                id = containers[corner].load(plugin, f'/{side}/{name}', parameters, namespace=f'/{side}')
                if name == 'slam3r':  # nothing is published before the observer is known
                    node = containers[corner].hosted[id].node
                    wait_for_match(node, outside, '/tf', f'/{side}/keyframes', f'/{side}/status')
        for side, count in SIDES.items():
            wait_until(lambda side=side: statuses[side] and statuses[side][-1].finished)
            assert statuses[side][-1].frames_in == statuses[side][-1].frames_decoded == count
            assert all(a.image is b.image for a, b in zip(engines[side].frames, clips[side], strict=True))
            wait_until(lambda side=side, count=count: len(keyframes[side]) == 2 * ((count - 1) // 10))
            assert {each.header.frame_id for each in keyframes[side]} == {f'{side}/camera'}
        wait_until(lambda: len(edges) == 4)
        chain = (('map', 'odom'), ('odom', 'base'))
        assert edges == {(f'{side}/{a}', f'{side}/{b}') for side in SIDES for a, b in chain}
        for container in containers.values():
            for spinner in container.hosted.values():
                assert spinner.node.last_error == spinner.last_error == ''
    finally:
        for corner, container in containers.items():
            corner.executor.remove_node(container)
            container.close()
