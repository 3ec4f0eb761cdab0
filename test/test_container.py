# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
import gc
import os
import re
import signal
import subprocess
import sys
import threading
import time
import weakref

import pytest
from composition_interfaces.srv import ListNodes, LoadNode, UnloadNode
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from nodes_stubs import StubEngine, StubSource, images
from rcl_interfaces.msg import Parameter as ParameterMessage
from rcl_interfaces.msg import ParameterValue
from rclpy.lifecycle import LifecycleNode
from rclpy.node import Node
from rclpy.parameter import Parameter
from ros_helpers import PATIENCE, Ros, next_domain, ros_fixture, wait_for_match, wait_until  # noqa: F401
from std_msgs.msg import Empty

from slam3r_ros import bringup
from slam3r_ros import container as container_module
from slam3r_ros.components import ComponentError, component_class, components
from slam3r_ros.container import GRAPH, MONITOR, Container, ContainerError
from slam3r_ros.graph import run_graph
from slam3r_ros.nodes import playback, slam3r
from slam3r_ros.nodes.process import begin, own_arguments
from slam3r_ros.transport import errors
from slam3r_ros.transport.bus import create_subscription
from slam3r_ros.transport.registry import nodes, worker_of
from slam3r_ros.values import Frame

SERVICE = '/slam3r_container/_container'


def parameter(name, value):
    return Parameter(name, value=value).to_parameter_msg()


class Polite(Node):
    """A component that is none of ours."""

    def __init__(self, **kwargs):
        super().__init__('polite', **kwargs)
        self.declare_parameter('greeting', 'hello')
        self.publisher = None


class Rude(Node):
    def __init__(self, **kwargs):
        raise RuntimeError('I would rather not')


class HalfMade(Node):
    def __init__(self, **kwargs):
        super().__init__('half_made', **kwargs)
        create_subscription(self, Frame, 'frames', lambda frame: None)
        raise RuntimeError('no further')


class Deaf(Node):
    """Its subscriber never comes back."""

    gate = threading.Event()

    def __init__(self, **kwargs):
        super().__init__('deaf', **kwargs)
        self.heard = threading.Event()
        self.create_subscription(Empty, 'words', self._hear, 10)

    def _hear(self, message):
        self.heard.set()
        self.gate.wait()


class Clumsy(Node):
    """Its subscriber raises."""

    def __init__(self, **kwargs):
        super().__init__('clumsy', **kwargs)
        self.count = 0
        self.create_subscription(Empty, 'words', self._hear, 10)

    def _hear(self, message):
        self.count += 1
        raise KeyError('butter')


class Slow(Node):
    """Is still being made when a signal ends the process."""

    def __init__(self, context, **kwargs):
        print('slow', flush=True)
        while context.ok():
            time.sleep(0.01)
        time.sleep(0.3)  # the container goes to its end meanwhile
        super().__init__('slow', context=context, **kwargs)


class Support(Node):
    """Another node waits for its worker."""

    def __init__(self, **kwargs):
        super().__init__('support', **kwargs)
        Leaning.worker = worker_of(self)


class Leaning(Node):
    """Is being made until the node that it waits for takes leave."""

    worker = None

    def __init__(self, **kwargs):
        print('leaning', flush=True)
        while not self.worker.closed:
            time.sleep(0.01)
        super().__init__('leaning', **kwargs)


class Managed(LifecycleNode):
    """A managed node that is none of ours; rclpy makes it a reference cycle."""

    alive = 0

    def __init__(self, **kwargs):
        super().__init__('managed', **kwargs)
        Managed.alive += 1
        weakref.finalize(self, self._gone)

    @staticmethod
    def _gone():
        Managed.alive -= 1


@pytest.fixture
def container(ros):
    node = Container(context=ros.context)
    ros.executor.add_node(node)
    yield node
    ros.executor.remove_node(node)
    node.close()


@pytest.fixture
def call(ros):
    """Return a function that calls one of the container's services from another participant."""
    client = ros.apart().node(node_name='client')

    def call(service_type, **fields):
        name = {LoadNode: 'load_node', UnloadNode: 'unload_node', ListNodes: 'list_nodes'}[service_type]
        return ros.call(client, service_type, f'{SERVICE}/{name}', service_type.Request(**fields))

    call.node = client
    return call


@pytest.fixture
def quick_collection():
    """Let the test freeze what is not to be looked through each time that garbage is collected."""
    yield
    gc.unfreeze()


@pytest.fixture
def stubs(monkeypatch):
    engine, sources = StubEngine(), []
    monkeypatch.setattr(slam3r, 'create_engine', engine.made)
    monkeypatch.setattr(playback, 'open_source', lambda *_: sources.append(StubSource()) or sources[-1])
    return engine, sources


def test_nodes_are_loaded_listed_and_unloaded(container, call):
    answer = call(
        LoadNode,
        plugin_name='test_container:Polite',
        node_name='second',
        node_namespace='/left',
        remap_rules=['a:=b'],
        parameters=[parameter('greeting', 'salve')],
    )
    assert answer.success, answer.error_message
    assert (answer.unique_id, answer.full_node_name) == (1, '/left/second')
    node = container.hosted[1].node
    assert node.get_parameter('greeting').value == 'salve'
    assert node.resolve_topic_name('a') == '/left/b'
    answer = call(LoadNode, plugin_name='test_container:Polite')
    assert (answer.unique_id, answer.full_node_name) == (2, '/polite')
    answer = call(ListNodes)
    assert list(answer.unique_ids) == [1, 2] and answer.full_node_names == ['/left/second', '/polite']
    assert call(UnloadNode, unique_id=1).success
    assert list(call(ListNodes).unique_ids) == [2]
    wait_until(lambda: not [name for name, _ in call.node.get_service_names_and_types() if name.startswith('/left')])


@pytest.mark.parametrize(
    'plugin, message',
    [
        ('slam3r_ros::Toaster', "component 'slam3r_ros::Toaster' is unknown; use module:Class or a registered one ("),
        ('no_such_module:Node', "component 'no_such_module:Node' cannot be imported: No module named 'no_such_module'"),
        ('test_container:Absent', "has no attribute 'Absent'"),
        ('test_container:SERVICE', "component 'test_container:SERVICE' is no rclpy node"),
        ('test_container:Rude', 'test_container:Rude: I would rather not'),
    ],
)
def test_what_cannot_be_loaded_is_answered_clearly(container, call, plugin, message):
    answer = call(LoadNode, plugin_name=plugin)
    assert not answer.success and message in answer.error_message
    assert call(LoadNode, plugin_name='test_container:Polite').success


@pytest.mark.parametrize(
    'fields, message',
    [
        ({'parameters': [parameter('voxel_size', 'big')]}, "voxel_size of /mesher: 'big' must be of type float"),
        ({'parameters': [ParameterMessage(name='voxel_size', value=ParameterValue(type=77))]}, 'cannot be read'),
        ({'remap_rules': ['no rule at all']}, 'no rule at all'),
        ({'node_name': 'not a name'}, 'not a name'),
        ({'node_name': 'slam3r_container'}, 'a node named /slam3r_container is here already'),
        ({'log_level': 77}, '77 is not a valid LoggingSeverity'),
        ({'extra_arguments': [parameter('use_intra_process_comms', 'yes')]}, "must be a boolean, not 'yes'"),
    ],
)
def test_a_bad_request_is_answered_clearly(container, call, fields, message):
    answer = call(LoadNode, plugin_name='slam3r_ros::Mesher', **fields)
    assert not answer.success and message in answer.error_message
    assert not call(ListNodes).unique_ids
    extra = [parameter('use_intra_process_comms', True), parameter('forward_global_arguments', False)]
    assert call(LoadNode, plugin_name='slam3r_ros::Mesher', extra_arguments=extra).success


def test_a_name_taken_twice_and_an_unknown_id_are_answered_clearly(ros, container, call):
    assert call(LoadNode, plugin_name='slam3r_ros::Mesher').success
    answer = call(LoadNode, plugin_name='slam3r_ros::Mesher')
    assert not answer.success and 'a node named /mesher is here already' in answer.error_message
    answer = call(UnloadNode, unique_id=9)
    assert not answer.success and answer.error_message == 'there is no node 9; the ids are [1]'
    wait_until(lambda: call.node.get_node_names().count('mesher') == 1)


def test_a_subscriber_that_blocks_for_ever_holds_up_nobody(ros, container, call, monkeypatch):
    monkeypatch.setattr(container_module, '_PATIENCE', 0.3)
    deaf, polite = (call(LoadNode, plugin_name=f'test_container:{name}').unique_id for name in ('Deaf', 'Polite'))
    talker = call.node.create_publisher(Empty, 'words', 10)
    wait_for_match(call.node, container.hosted[deaf].node, '/words')
    talker.publish(Empty())
    try:
        assert container.hosted[deaf].node.heard.wait(PATIENCE)
        assert list(call(ListNodes).unique_ids) == [deaf, polite]
        answer = call(UnloadNode, unique_id=deaf)
        assert not answer.success
        assert answer.error_message == '/deaf was unloaded while one of its callbacks still ran after 0 s'
        assert list(call(ListNodes).unique_ids) == [polite]
        assert call(LoadNode, plugin_name='test_container:Polite', node_name='third').success
    finally:
        Deaf.gate.set()


def test_a_callback_that_raises_is_told_in_the_diagnostics_and_goes_on(ros, container, call, capfd, monkeypatch):
    seen = []
    call.node.create_subscription(DiagnosticArray, '/diagnostics', seen.append, 10)
    clumsy = container.hosted[call(LoadNode, plugin_name='test_container:Clumsy').unique_id].node
    talker = call.node.create_publisher(Empty, 'words', 10)
    wait_for_match(call.node, clumsy, '/words')
    for _ in range(6):  # more often than the node has threads
        talker.publish(Empty())
    wait_until(lambda: clumsy.count == 6)

    def told():
        """Return what was said last of all six errors."""
        lines = [[(each.name, each.level, each.message, {pair.key: pair.value for pair in each.values})
                  for each in message.status] for message in seen]  # fmt: skip
        return [line for line in lines if all(values['errors'] == '6' for *_, values in line)][-1:]

    wait_until(told)
    ((own, status),) = told()
    assert status[:3] == ('/clumsy', DiagnosticStatus.WARN, "KeyError: 'butter'")
    assert own[:3] == ('/slam3r_container', DiagnosticStatus.WARN, "/clumsy: KeyError: 'butter'")
    assert "KeyError: 'butter'" in capfd.readouterr().err
    monkeypatch.setattr(errors, 'RECENT', 0.0)  # a minute later: all is well again, the error is history
    wait_until(lambda: [each[1:3] for each in told()[0]] == 2 * [(DiagnosticStatus.OK, 'ok')])
    assert all(values['last_error'].endswith("KeyError: 'butter'") for *_, values in told()[0])


@pytest.mark.parametrize('plugin', ['test_container:Managed', 'slam3r_ros::KeyframeSelector'])
def test_nothing_is_left_of_what_was_unloaded(container, plugin, quick_collection):
    """Memory below Python is measured by `slam3r bench container`."""

    def left():
        gc.collect()
        return len(os.listdir('/proc/self/fd')), len(gc.get_objects()) + gc.get_freeze_count()

    for _ in range(3):
        container.unload(container.load(plugin))
    gc.freeze()
    descriptors, objects = left()
    for _ in range(60):
        container.unload(container.load(plugin))
    assert Managed.alive == 0
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith('/')]
    now = left()
    assert now[0] <= descriptors
    assert now[1] < objects + 60  # not one object a cycle


def test_every_component_of_the_package_resolves():
    names = {name: place for name, place in components().items() if name.startswith('slam3r_ros::')}
    assert set(names) == {*GRAPH.values(), *MONITOR.values()}
    for name in names:
        assert component_class(name).__name__ == name.rpartition('::')[2]
    with pytest.raises(ComponentError):
        component_class('Nothing')


SCRATCH = """
from rclpy.node import Node

class Kettle(Node):
    def __init__(self, **kwargs):
        super().__init__('kettle', **kwargs)
"""


@pytest.mark.parametrize('manner', ['resource', 'entry point'])
def test_another_package_registers_its_own(container, call, tmp_path, monkeypatch, manner):
    name = f'kitchen_{manner.split()[0]}'
    (tmp_path / f'{name}.py').write_text(SCRATCH)
    monkeypatch.syspath_prepend(tmp_path)
    if manner == 'resource':
        index = tmp_path / 'share' / 'ament_index' / 'resource_index' / 'slam3r_ros_components'
        index.mkdir(parents=True)
        (index / name).write_text(f'{name}::Kettle;{name}:Kettle\n')
        monkeypatch.setenv('AMENT_PREFIX_PATH', os.pathsep.join([str(tmp_path), os.environ['AMENT_PREFIX_PATH']]))
    else:
        metadata = tmp_path / f'{name}-1.0.dist-info'
        metadata.mkdir()
        (metadata / 'METADATA').write_text(f'Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n')
        (metadata / 'entry_points.txt').write_text(f'[slam3r_ros.components]\n{name}::Kettle = {name}:Kettle\n')
    answer = call(LoadNode, package_name=name, plugin_name=f'{name}::Kettle')
    assert answer.success, answer.error_message
    assert answer.full_node_name == '/kettle'


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
    monkeypatch.setattr(playback, 'open_source', lambda *_: StubSource(frames))
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

    def __init__(self, *arguments):
        self.domain = next_domain()
        environment = os.environ | {'ROS_DOMAIN_ID': str(self.domain), 'ROS_LOG_DIR': '/tmp/slam3r_ros_test_log'}
        self.process = subprocess.Popen(
            [sys.executable, '-m', 'slam3r_ros.container', *arguments],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def end(self):
        return self.process.communicate(timeout=2 * PATIENCE)[0]


@pytest.fixture(scope='module')
def processes():
    """Return containers by what is done with them; they start at the same time, which takes some seconds."""
    nowhere = '--ros-args', '-p', 'video_decoder:input:=/nowhere.mp4'
    started = {number: Process('--graph') for number in (signal.SIGINT, signal.SIGTERM)}
    started |= {'bad input': Process('--graph', *nowhere), 'bad node': Process('--exit-on-failure')}
    yield started
    for each in started.values():
        each.process.kill()
        each.process.communicate()


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_container_in_order(processes, number):
    container = processes[number]
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


def test_a_graph_that_cannot_go_on_ends_with_status_1(processes):
    container = processes['bad input']
    text = container.end()
    assert container.process.returncode == 1
    assert text.count('/nowhere.mp4: does not exist') == 1
    assert 'Traceback' not in text


def test_a_node_of_the_graph_that_cannot_be_made_fails_the_container_and_no_other(container, call):
    assert not call(LoadNode, plugin_name='test_container:Rude').success
    assert not container.failed.done()
    stride = [Parameter('keyframe_stride', value=99).to_parameter_msg()]
    answer = call(LoadNode, plugin_name='slam3r_ros::KeyframeSelector', parameters=stride)
    assert not answer.success
    assert container.failed.done() and container.failed.result() == answer.error_message


def test_what_is_half_made_leaves_the_bus(container, call):
    before = nodes()
    assert not call(LoadNode, plugin_name='test_container:HalfMade').success
    assert nodes() == before


def test_a_container_that_exits_on_failure_ends_with_status_1_when_a_node_cannot_be_made(processes):
    container = processes['bad node']
    given = {'engine': 'slam3r', 'checkpoints_dir': '/nowhere'}
    engine = [Parameter(name, value=value).to_parameter_msg() for name, value in given.items()]
    request = LoadNode.Request(plugin_name='slam3r_ros::Slam3r', parameters=engine)
    ros = Ros(container.domain)
    try:
        answer = ros.call(ros.node(node_name='client'), LoadNode, f'{SERVICE}/load_node', request, 2 * PATIENCE)
        text = container.end()
    finally:
        ros.close()
    # With torch the weights are missing, without it the packages.
    reason = re.compile('weights download|pip install')
    assert reason.search(answer.error_message) and reason.search(text)
    assert container.process.returncode == 1
    assert 'Traceback' not in text


def test_what_waits_ends_with_the_container(ros, container, stubs):
    """A decoder blocked by a reader that never comes to an end does not hold up the end."""
    gate = threading.Event()
    engine, _ = stubs
    engine.process = lambda frame: gate.wait(2 * PATIENCE)
    video = [Parameter('input', value='video.mp4')]
    ids = [container.load(plugin, parameter_overrides=video) for plugin in GRAPH.values()]
    decoder = container.hosted[ids[-1]].node
    wait_until(lambda: decoder.worker._waits)
    threading.Timer(0.3, gate.set).start()
    start = time.monotonic()
    container.close()
    assert time.monotonic() - start < container_module._PATIENCE  # nobody was given up
    container.close = lambda: None


@pytest.mark.parametrize('plugins', [['Slow'], ['Support', 'Leaning']])
def test_a_signal_while_a_node_is_loaded_ends_the_container_without_noise(monkeypatch, plugins):
    monkeypatch.setenv('PYTHONPATH', os.path.dirname(__file__), prepend=os.pathsep)
    container = Process()
    ros = Ros(container.domain)
    try:
        load = ros.node(node_name='client').create_client(LoadNode, f'{SERVICE}/load_node')
        wait_until(load.service_is_ready, 2 * PATIENCE)
        for plugin in plugins:
            load.call_async(LoadNode.Request(plugin_name=f'test_container:{plugin}'))
        assert container.process.stdout.readline() == f'{plugin.lower()}\n'
        container.process.terminate()
        assert container.end() == '' and container.process.returncode == 0
    finally:
        ros.close()
        container.process.kill()
        container.process.communicate()


def test_a_container_whose_parent_has_gone_ends_before_it_begins_with_ros():
    parent = subprocess.Popen(['true'])
    parent.wait()
    container = Process('--parent', str(parent.pid))
    assert container.end() == '' and container.process.returncode == -signal.SIGTERM


@pytest.mark.parametrize('function', [begin, own_arguments])
@pytest.mark.parametrize('words', [['--params-file', 'missing.yaml'], ['-p', 'no_value'], ['-r', 'no, at /all']])
def test_ros_arguments_that_make_no_sense_are_told_in_one_line(words, function):
    with pytest.raises(SystemExit, match=r"^slam3r_container: .*Couldn't parse [^\n]*\. Error: [^\n]+$") as caught:
        function(['/bin/slam3r_container', '--ros-args', *words])
    assert ' '.join(words) in str(caught.value) and '.c:' not in str(caught.value)


@pytest.mark.parametrize('module', [container_module, bringup])
@pytest.mark.parametrize('word, status', [('--help', 0), ('--hlp', 2)])
def test_help_and_slips_of_the_pen_are_answered_without_ros(monkeypatch, module, word, status):
    monkeypatch.setattr(module, 'begin', lambda arguments: pytest.fail('ROS was begun with'))
    with pytest.raises(SystemExit) as caught:
        module.main(['/bin/program', word])
    assert caught.value.code == status
