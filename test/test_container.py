# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
import os
import re
import signal
import subprocess
import sys
import threading
import time

import pytest
from composition_interfaces.srv import ListNodes, LoadNode, UnloadNode
from nodes_stubs import StubEngine, StubSource, images
from rclpy.node import Node
from rclpy.parameter import Parameter
from ros_helpers import next_domain, ros_fixture, wait_until  # noqa: F401

from slam3r_ros.container import GRAPH, PLUGINS, Container, ContainerError, resolve_plugin, run_graph
from slam3r_ros.nodes import playback, slam3r

SERVICE = '/slam3r_container/_container'


class Polite(Node):
    """A component that is none of ours."""

    def __init__(self, **kwargs):
        super().__init__('polite', **kwargs)
        self.declare_parameter('greeting', 'hello')
        self.publisher = None


class Rude(Node):
    def __init__(self, **kwargs):
        raise RuntimeError('I would rather not')


@pytest.fixture
def container(ros):
    node = Container(ros.executor, context=ros.context)
    yield node
    node.close()


@pytest.fixture
def stubs(monkeypatch):
    engine, sources = StubEngine(), []
    monkeypatch.setattr(slam3r, 'create_engine', engine.made)
    monkeypatch.setattr(playback, 'open_source', lambda uri, offset, topic: sources.append(StubSource()) or sources[-1])
    return engine, sources


def test_nodes_are_loaded_listed_and_unloaded(ros, container):
    client = ros.apart().node(node_name='client')
    request = LoadNode.Request(
        plugin_name='test_container:Polite',
        node_name='second',
        node_namespace='/left',
        remap_rules=['a:=b'],
        parameters=[Parameter('greeting', value='salve').to_parameter_msg()],
    )
    answer = ros.call(client, LoadNode, f'{SERVICE}/load_node', request)
    assert answer.success, answer.error_message
    assert (answer.unique_id, answer.full_node_name) == (1, '/left/second')
    node = container.hosted[1]
    assert node.get_parameter('greeting').value == 'salve'
    assert node.resolve_topic_name('a') == '/left/b'
    answer = ros.call(client, LoadNode, f'{SERVICE}/load_node', LoadNode.Request(plugin_name='test_container:Polite'))
    assert (answer.unique_id, answer.full_node_name) == (2, '/polite')
    answer = ros.call(client, ListNodes, f'{SERVICE}/list_nodes')
    assert list(answer.unique_ids) == [1, 2] and answer.full_node_names == ['/left/second', '/polite']
    assert ros.call(client, UnloadNode, f'{SERVICE}/unload_node', UnloadNode.Request(unique_id=1)).success
    answer = ros.call(client, ListNodes, f'{SERVICE}/list_nodes')
    assert list(answer.unique_ids) == [2]


@pytest.mark.parametrize(
    'plugin, message',
    [
        ('slam3r_ros::Toaster', "plugin 'slam3r_ros::Toaster' is unknown; use module:Class or one of slam3r_ros::Mesher"),
        ('no_such_module:Node', "plugin 'no_such_module:Node' cannot be imported: No module named 'no_such_module'"),
        ('test_container:Absent', "has no attribute 'Absent'"),
        ('test_container:Rude', 'test_container:Rude: I would rather not'),
    ],
)
def test_what_cannot_be_loaded_is_answered_clearly(ros, container, plugin, message):
    client = ros.apart().node(node_name='client')
    answer = ros.call(client, LoadNode, f'{SERVICE}/load_node', LoadNode.Request(plugin_name=plugin))
    assert not answer.success and message in answer.error_message
    assert ros.call(client, LoadNode, f'{SERVICE}/load_node', LoadNode.Request(plugin_name='test_container:Polite')).success


def test_a_bad_parameter_a_name_taken_twice_and_an_unknown_id_are_answered_clearly(ros, container):
    client = ros.apart().node(node_name='client')
    wrong = [Parameter('voxel_size', value='big').to_parameter_msg()]
    request = LoadNode.Request(plugin_name='slam3r_ros::Mesher', parameters=wrong)
    answer = ros.call(client, LoadNode, f'{SERVICE}/load_node', request)
    assert not answer.success and "parameter voxel_size of /mesher: 'big' must be of type float" in answer.error_message
    request = LoadNode.Request(plugin_name='slam3r_ros::Mesher')
    assert ros.call(client, LoadNode, f'{SERVICE}/load_node', request).success
    answer = ros.call(client, LoadNode, f'{SERVICE}/load_node', request)
    assert not answer.success and 'a node named /mesher is here already' in answer.error_message
    answer = ros.call(client, UnloadNode, f'{SERVICE}/unload_node', UnloadNode.Request(unique_id=9))
    assert not answer.success and 'there is no node 9' in answer.error_message


def test_every_plugin_of_the_package_resolves():
    assert {resolve_plugin(name).__name__ for name in PLUGINS} == {name.rpartition('::')[2] for name in PLUGINS}
    assert set(GRAPH.values()) == set(PLUGINS)
    with pytest.raises(ContainerError):
        resolve_plugin('Nothing')


def test_run_graph_runs_a_file_to_its_end(stubs, monkeypatch):
    engine, sources = stubs
    monkeypatch.setenv('ROS_DOMAIN_ID', str(next_domain()))
    seconds = run_graph({'video_decoder': {'input': 'video.mp4', 'stamp_offset': 0.0}})
    assert 0 < seconds < 20
    assert [frame.id for frame in engine.frames] == list(range(40))
    assert engine.finished == 1 and engine.closed and sources[0].closed
    names = [thread.name for thread in threading.enumerate()]
    assert not [name for name in names if name in GRAPH or name.startswith('/')]


def test_run_graph_hands_the_very_frames_to_the_engine(stubs, monkeypatch):
    engine, _ = stubs
    monkeypatch.setenv('ROS_DOMAIN_ID', str(next_domain()))
    frames = list(images())
    monkeypatch.setattr(playback, 'open_source', lambda uri, offset, topic: StubSource(frames))
    run_graph({'video_decoder': {'input': 'video.mp4'}})
    assert all(a.image is b.image for a, b in zip(engine.frames, frames, strict=True))


@pytest.mark.parametrize(
    'parameters, message',
    [
        ({'video_decoder': {'input': '/nowhere.mp4'}}, '/nowhere.mp4: does not exist'),
        ({'mesher': {'voxel_size': -1.0}}, 'parameter voxel_size of /mesher'),
    ],
)
def test_run_graph_raises_what_is_wrong(stubs, monkeypatch, parameters, message):
    monkeypatch.undo()
    monkeypatch.setattr(slam3r, 'create_engine', StubEngine().made)
    monkeypatch.setenv('ROS_DOMAIN_ID', str(next_domain()))
    with pytest.raises(ContainerError, match=message):
        run_graph(parameters)


class Process:
    """The container as a process."""

    def __init__(self, *arguments, domain=None):
        domain = next_domain() if domain is None else domain
        environment = os.environ | {'ROS_DOMAIN_ID': str(domain), 'ROS_LOG_DIR': '/tmp/slam3r_ros_test_log'}
        self.process = subprocess.Popen(
            [sys.executable, '-m', 'slam3r_ros.container', *arguments],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def end(self, seconds=20):
        try:
            return self.process.communicate(timeout=seconds)[0]
        finally:
            self.process.kill()


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_container_in_order(number):
    container = Process('--graph')
    lines = []
    for line in container.process.stdout:  # it is up when the decoder says what it waits for
        lines.append(line)
        if 'waiting for images' in line:
            break
    for _ in range(3 if number == signal.SIGINT else 1):  # launch repeats what the terminal sent already
        container.process.send_signal(number)
        time.sleep(0.05)
    text = ''.join(lines) + container.end()
    assert container.process.returncode == 0, text
    assert 'Traceback' not in text


def test_a_graph_that_cannot_go_on_ends_with_status_1():
    container = Process('--graph', '--ros-args', '-p', 'video_decoder:input:=/nowhere.mp4')
    text = container.end(60)
    assert container.process.returncode == 1
    assert text.count('/nowhere.mp4: does not exist') == 1
    assert 'Traceback' not in text


def test_a_node_that_cannot_be_made_fails_the_container(ros, container):
    client = ros.apart().node(node_name='client')
    answer = ros.call(client, LoadNode, f'{SERVICE}/load_node', LoadNode.Request(plugin_name='test_container:Rude'))
    assert not answer.success
    assert container.failed.done() and container.failed.result() == answer.error_message


def test_a_container_that_exits_on_failure_ends_with_status_1_when_a_node_cannot_be_made(ros):
    container = Process('--exit-on-failure', domain=ros.domain)
    given = {'engine': 'slam3r', 'checkpoints_dir': '/nowhere'}
    engine = [Parameter(name, value=value).to_parameter_msg() for name, value in given.items()]
    request = LoadNode.Request(plugin_name='slam3r_ros::Slam3r', parameters=engine)
    answer = ros.call(ros.node(node_name='client'), LoadNode, f'{SERVICE}/load_node', request)
    text = container.end()
    # With torch the weights are missing, without it the packages.
    reason = re.compile('weights download|pip install')
    assert reason.search(answer.error_message) and reason.search(text)
    assert container.process.returncode == 1
    assert 'Traceback' not in text


def test_what_waits_ends_with_the_container(ros, container, stubs):
    """A decoder blocked by a reader that never comes to an end does not hold up the end."""
    gate = threading.Event()
    engine, _ = stubs
    engine.process = lambda frame: gate.wait(3)
    for plugin in GRAPH.values():
        container.load(plugin, parameter_overrides=[Parameter('input', value='video.mp4')])
    wait_until(lambda: len(container.hosted) == 4)
    time.sleep(0.3)
    threading.Timer(0.5, gate.set).start()
    start = time.monotonic()
    container.close()
    assert time.monotonic() - start < 5
    container.close = lambda: None
