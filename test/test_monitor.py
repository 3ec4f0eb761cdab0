# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What the nodes say of themselves each second, and the node that shows it over HTTP."""

import gc
import json
import os
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from contextlib import suppress
from types import SimpleNamespace

import pytest
import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from nodes_stubs import FRAMES, StubEngine, StubSource, images
from rclpy.context import Context
from rclpy.parameter import Parameter
from ros_helpers import PACE, PATIENCE, quick, ros_fixture, wait_until  # noqa: F401
from std_srvs.srv import Trigger

pytest.importorskip('prometheus_client', reason='prometheus-client is not installed')

from prometheus_client.parser import text_string_to_metric_families

from slam3r_ros import gpu_memory
from slam3r_ros.container import GRAPH, MONITOR, Container
from slam3r_ros.monitoring import readings
from slam3r_ros.nodes import playback, pulse, slam3r
from slam3r_ros.nodes.keyframe_selector import KeyframeSelector
from slam3r_ros.nodes.mesher import Mesher
from slam3r_ros.nodes.monitor import Monitor
from slam3r_ros.nodes.parameters import ParameterError
from slam3r_ros.nodes.slam3r import Slam3r
from slam3r_ros.nodes.video_decoder import VideoDecoder
from slam3r_ros.transport import errors
from slam3r_ros.transport.bus import create_publisher, create_subscription
from slam3r_ros.values import Frame, MeshUpdate, SlamStatus, State

pytestmark = pytest.mark.usefixtures('quick')
PERIOD, BEATS = 1.0 / PACE, 4  # seconds, and how many of them are timed

@pytest.fixture
def engine(monkeypatch):
    """Have the nodes work on a video of noise with a stub engine."""
    stub = StubEngine()
    monkeypatch.setattr(slam3r, 'create_engine', stub.made)
    monkeypatch.setattr(playback, 'open_source', lambda *_: StubSource())
    return stub


class Watcher:
    """Hears everything on /diagnostics and on `status`, over DDS."""

    def __init__(self, ros):
        self.node = ros.apart().node(node_name='watcher')
        self.lines, self.statuses = [], []  # (seconds, message)
        self.node.create_subscription(DiagnosticArray, '/diagnostics', self._hear, 100)
        create_subscription(
            self.node, SlamStatus, 'status', lambda each: self.statuses.append((time.monotonic(), each)), 100
        )

    def _hear(self, message):
        self.lines += [(time.monotonic(), each) for each in message.status]

    def of(self, name):
        return [each for _, each in self.lines if each.name == name]

    def values(self, name):
        return {each.key: each.value for each in self.of(name)[-1].values}

    def times_of(self, name):
        """Return when the lines of a node came; without a name, when the statuses came."""
        return [at for at, each in self.lines if each.name == name] if name else [at for at, _ in self.statuses]

    def keeps_its_pace(self, *names, period=PERIOD, beats=BEATS):
        """Wait until lines of nodes, or statuses, have come in less than twice the time that so many should take.

        One that is held up misses that always; the machine itself may hold them up for a while.
        """
        begin = time.monotonic()

        def in_time(name):
            times = [at for at in self.times_of(name) if at > begin]
            return any(last - first < 2 * beats * period for first, last in zip(times, times[beats:], strict=False))

        wait_until(lambda: all(in_time(name) for name in names), pause=0.02)
        return True


@pytest.fixture
def watcher(ros):
    return Watcher(ros)


def wait_for(condition):
    """Wait as `wait_until` does, but ask less often: an answer over HTTP takes some milliseconds."""
    wait_until(condition, pause=0.05)


def fetch(port, page):
    """Return status and text of a page."""
    try:
        with urllib.request.urlopen(f'http://127.0.0.1:{port}/{page}', timeout=PATIENCE) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def metrics(port):
    """Return each sample by its name and the values of its labels."""
    status, text = fetch(port, 'metrics')
    assert status == 200
    families = text_string_to_metric_families(text)
    return {(each.name, *each.labels.values()): each.value for family in families for each in family.samples}


def health(port):
    status, text = fetch(port, 'health')
    found = json.loads(text)
    assert (status == 200) == found['healthy'] == (not found['reasons'])
    return found


def monitor_of(ros, **parameters):
    node = ros.node(Monitor, parameters={'metrics_port': 0} | parameters)
    return node, node.diagnostics()['port']


NODES = Mesher, Slam3r, KeyframeSelector, VideoDecoder


def start(ros):
    """Start the graph on the stub's video, the last in the chain first."""
    parameters = {'video_decoder': {'input': 'video.mp4'}, 'mesher': {'mesh_min_weight': 0.0}}
    return {each.NAME: ros.node(each, parameters=parameters.get(each.NAME)) for each in NODES}


def test_the_monitor_shows_a_graph_at_work(ros, engine):
    node, port = monitor_of(ros)
    assert health(port)['reasons'] == ['the engine tells no status']
    create_subscription(ros.node(node_name='viewer'), MeshUpdate, 'mesh', lambda update: None)
    start(ros)
    wait_for(lambda: metrics(port).get(('mesh_face_count', 'mesher'), 0) > 0)
    wait_for(lambda: metrics(port).get(('keyframes_processed_total', 'slam3r')) == FRAMES // 10 - 1)  # 10, 20, 30
    wait_for(lambda: metrics(port).get(('frames_received_total',)) == FRAMES)
    wait_for(lambda: len(health(port)['nodes']) == 5)
    found = metrics(port)
    assert found[('frames_received_total',)] == found[('frames_processed_total',)] == FRAMES
    assert found[('frames_dropped_total',)] == 0 and found[('map_keyframes',)] == 3
    assert found[('slam_state', 'TRACKING')] == 1 and found[('map_id',)] == engine.map_id
    assert found[('mesh_vertex_count', 'mesher')] > 0 and ('mesh_generation_fps', 'mesher') in found
    assert ('compression_ratio', 'mesher') in found
    assert found[('processing_latency_seconds', 'track')] == 0.001
    assert found[('gpu_memory_usage_bytes', 'slam3r')] == found[('gpu_memory_usage_bytes', 'mesher')] == 0
    assert found[('memory_usage_bytes',)] > 10e6
    inputs = {('keyframe_selector', 'frames'), ('slam3r', 'selected_frames'), ('mesher', 'keyframes')}
    assert inputs <= {key[:0:-1] for key in found if key[0] == 'queue_depth'}
    assert {key[1]: value for key, value in found.items() if key[0] == 'node_up'} == {
        name: 1 for name in ('video_decoder', 'keyframe_selector', 'slam3r', 'mesher', 'monitor')
    }
    state = health(port)
    assert state['healthy'] and state['state'] == 'TRACKING' and len(state['nodes']) == 5
    assert node.diagnostics()['served'] > 3


def test_counters_do_not_go_back_when_another_map_begins(ros, engine):
    _, port = monitor_of(ros)
    start(ros)
    wait_for(lambda: metrics(port).get(('keyframes_processed_total', 'slam3r')) == 3)
    wait_for(lambda: engine.finished)
    ros.call(ros.apart().node(node_name='operator'), Trigger, '/slam3r/reset')
    wait_for(lambda: metrics(port)[('diagnostic_value', 'keyframes', 'slam3r')] == 0)
    wait_for(lambda: metrics(port)[('map_keyframes',)] == 0)
    assert metrics(port)[('keyframes_processed_total', 'slam3r')] == 3


def test_health_sees_errors_and_silence(ros, engine, monkeypatch):
    monkeypatch.setattr(readings, 'PATIENCE', 2.0)
    _, port = monitor_of(ros)
    nodes = start(ros)
    wait_for(lambda: health(port)['healthy'] and engine.finished)
    monkeypatch.setattr(engine, 'state', State.ERROR)
    wait_for(lambda: health(port)['reasons'] == ['engine: state ERROR'])
    monkeypatch.setattr(engine, 'state', State.TRACKING)
    wait_for(lambda: health(port)['healthy'])
    nodes['mesher'].failure = 'the mesh is on fire'
    wait_for(lambda: health(port)['reasons'] == ['mesher: the mesh is on fire'])
    assert metrics(port)[('node_up', 'mesher')] == 0
    nodes['mesher'].failure = ''
    wait_for(lambda: health(port)['healthy'])
    ros.executor.remove_node(nodes['mesher'])  # it hangs
    wait_for(lambda: any('mesher: not heard of for' in each for each in health(port)['reasons']))
    wait_for(lambda: ('mesh_vertex_count', 'mesher') not in metrics(port))


def test_a_node_that_was_unloaded_is_not_missed(ros, monkeypatch):
    """One that failed is."""
    _, port = monitor_of(ros)
    selector, mesher = ros.node(KeyframeSelector), ros.node(Mesher)
    wait_for(lambda: {'keyframe_selector', 'mesher'} <= health(port)['nodes'].keys())
    mesher.failure = 'the mesh is on fire'
    for node in (selector, mesher):
        ros.executor.remove_node(node)
        node.destroy_node()
    wait_for(lambda: 'keyframe_selector' not in health(port)['nodes'])
    assert 'mesher' in health(port)['nodes']


def test_a_node_goes_quietly_after_its_context(ros):
    """As a signal has it when the node runs alone."""
    context = Context()
    rclpy.init(context=context, domain_id=ros.domain)
    node = KeyframeSelector(context=context)
    context.shutdown()
    node.destroy_node()


def test_nodes_of_another_namespace_do_not_count(ros):
    _, port = monitor_of(ros)
    ros.node(VideoDecoder, namespace='/left')
    ros.node(KeyframeSelector)
    left = ros.node(Monitor, parameters={'metrics_port': 0}, namespace='/left')
    wait_for(lambda: set(health(left.diagnostics()['port'])['nodes']) == {'video_decoder', 'monitor'})
    wait_for(lambda: set(health(port)['nodes']) == {'keyframe_selector', 'monitor'})


def test_a_taken_port_and_a_bad_address_are_named(ros):
    _, port = monitor_of(ros)
    for parameters, reason in (
        ({'metrics_port': port}, f'127.0.0.1:{port}: Address already in use'),
        ({'metrics_port': 0, 'metrics_address': '192.0.2.1'}, '192.0.2.1:0: Cannot assign requested address'),
        ({'metrics_port': 0, 'metrics_address': ''}, 'Name or service not known'),
        ({'metrics_port': 70000}, 'metrics_port'),
    ):
        with pytest.raises(ParameterError, match=reason):
            ros.node(Monitor, parameters=parameters, namespace='/other')


def test_without_prometheus_client_it_says_what_to_install(ros, monkeypatch):
    monkeypatch.delitem(sys.modules, 'slam3r_ros.monitoring.metrics', raising=False)
    monkeypatch.setitem(sys.modules, 'prometheus_client', None)
    with pytest.raises(ParameterError, match='pip install prometheus-client.*apt install python3-prometheus-client'):
        monitor_of(ros)


def test_the_graph_without_monitor_does_not_import_it():
    code = """
import sys
from slam3r_ros.components import component_class
from slam3r_ros.container import GRAPH

for plugin in GRAPH.values():
    component_class(plugin)
assert not {'prometheus_client', 'slam3r_ros.monitoring.pages', 'slam3r_ros.nodes.monitor'} & sys.modules.keys()
"""
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_the_port_is_free_after_cleanup_and_nothing_is_left(ros):
    node, port = monitor_of(ros)
    fetch(port, 'metrics')

    def left():
        gc.collect()
        names = [thread.name for thread in threading.enumerate()]
        return len([name for name in names if name.startswith(('http', '/monitor'))]), len(os.listdir('/proc/self/fd'))

    wait_for(lambda: not node._server._clients)
    before = left()
    for _ in range(3):
        node.trigger_deactivate()
        assert fetch(port, 'metrics')[0] == 200
        node.trigger_cleanup()
        with pytest.raises(urllib.error.URLError, match='refused'):
            fetch(port, 'metrics')
        node.trigger_configure()
        node.trigger_activate()
        port = node.diagnostics()['port']
    wait_for(lambda: not node._server._clients)
    assert left() == before == (2, before[1])


def test_the_container_and_all_nodes_speak_each_second(ros, engine, watcher):
    container = ros.node(Container)
    for plugin in (MONITOR | GRAPH).values():
        overrides = [Parameter('metrics_port', value=0), Parameter('input', value='video.mp4')]
        container.load(plugin, parameter_overrides=overrides)
    names = {'/slam3r_container', '/monitor', *(f'/{name}' for name in GRAPH)}
    try:
        wait_until(lambda: {each.name for _, each in watcher.lines} == names)
        assert watcher.keeps_its_pace(*names - {'/slam3r_container'})
        assert watcher.keeps_its_pace('/slam3r_container', period=1.0, beats=1)
        assert all(each.level == DiagnosticStatus.OK for _, each in watcher.lines if each.name != '/monitor')
        assert watcher.values('/slam3r_container')['nodes'] == '5'
        queue = {'queue selected_frames', 'dropped selected_frames', 'rate selected_frames [Hz]'}
        assert queue <= watcher.values('/slam3r').keys()
    finally:
        container.close()
        container.close = lambda: None


def test_the_status_comes_each_second_in_every_state(ros, engine, watcher):
    node = ros.node(Slam3r)
    for state in (State.LOST, State.RELOCALIZING):  # nothing comes in
        engine.state = state
        wait_until(lambda state=state: watcher.statuses and watcher.statuses[-1][1].state == state)
    assert watcher.keeps_its_pace('')
    operator = ros.apart().node(node_name='operator')
    ros.call(operator, Trigger, '/slam3r/pause')
    wait_until(lambda: watcher.statuses[-1][1].state == State.PAUSED)
    assert watcher.keeps_its_pace('')
    assert watcher.statuses[-1][1].state == State.PAUSED
    assert node.active


def feed(ros, frames):
    publisher = create_publisher(ros.node(node_name='camera'), Frame, 'selected_frames')

    def publish():
        with suppress(RuntimeError):  # of rcl: the test is over
            for frame in frames:
                publisher.publish(frame)

    threading.Thread(target=publish, daemon=True).start()


def test_status_and_diagnostics_come_while_a_frame_takes_long(ros, engine, watcher, monkeypatch):
    monkeypatch.setattr(pulse, '_STUCK', 1.0)
    node = ros.node(Slam3r)
    gate, process = threading.Event(), engine.process
    first, second, *_ = images()

    def slow(frame):
        if frame.id:
            assert gate.wait(4 * PATIENCE)
        return process(frame)

    engine.process = slow
    wait_until(lambda: watcher.statuses and watcher.of('/slam3r'))
    feed(ros, [first, second])
    wait_until(lambda: node.worker.busy > 0.0)
    assert watcher.keeps_its_pace('', '/slam3r')
    wait_until(lambda: watcher.of('/slam3r')[-1].level == DiagnosticStatus.ERROR)
    assert watcher.of('/slam3r')[-1].message.startswith('busy with one value for')
    assert float(watcher.values('/slam3r')['busy [s]']) >= 1.0
    assert watcher.keeps_its_pace('', '/slam3r')
    stamps = [each.stamp for _, each in watcher.statuses]
    assert stamps == sorted(set(stamps))
    assert watcher.statuses[-1][1].frames_decoded <= 1  # as of the frame before
    gate.set()
    wait_until(lambda: watcher.statuses[-1][1].frames_decoded == 2)
    wait_until(lambda: watcher.of('/slam3r')[-1].level == DiagnosticStatus.OK)


def test_values_stay_up_to_date_while_the_worker_never_rests(ros, engine, watcher):
    process = engine.process

    def slow(frame):
        time.sleep(0.05)
        return process(frame)

    engine.process = slow
    ros.node(Slam3r)
    feed(ros, images(10**6))  # to the end of the test

    def told():
        return watcher.values('/slam3r') if watcher.of('/slam3r') else {}

    wait_until(lambda: watcher.statuses and watcher.statuses[-1][1].frames_decoded > 5)
    wait_until(lambda: int(told().get('frames', 0)) > 5)
    wait_until(lambda: told()['queue selected_frames'] == '2')


def test_a_chain_that_waits_for_a_paused_engine_goes_on_speaking(ros, engine, watcher):
    """The decoder waits for room, its worker is blocked."""
    blocked = threading.Event()
    engine.process = lambda frame: blocked.wait(4 * PATIENCE)
    try:
        start(ros)
        wait_until(lambda: len({each.name for _, each in watcher.lines}) == 4)
        names = '/video_decoder', '/keyframe_selector'
        assert watcher.keeps_its_pace(*names)
        for name in names:
            assert watcher.of(name)[-1].level == DiagnosticStatus.OK
    finally:
        blocked.set()


def test_a_node_says_where_it_is_in_its_life(ros, watcher):
    node = ros.node(KeyframeSelector, parameters={'autostart': False})
    for trigger, message in (
        (None, 'unconfigured'),
        (node.trigger_configure, 'inactive'),
        (node.trigger_activate, 'ok'),
        (node.trigger_deactivate, 'inactive'),
        (node.trigger_cleanup, 'unconfigured'),
    ):
        if trigger:
            trigger()
        wait_until(lambda message=message: watcher.lines and watcher.of('/keyframe_selector')[-1].message == message)
    assert not hasattr(node, 'worker')


def test_an_error_is_a_warning_for_a_while_and_then_history(ros, watcher, monkeypatch):
    node = ros.node(KeyframeSelector)
    node.worker.last_error = 'a frame was odd'
    wait_until(lambda: watcher.lines and watcher.of('/keyframe_selector')[-1].level == DiagnosticStatus.WARN)
    assert watcher.of('/keyframe_selector')[-1].message == 'a frame was odd'
    monkeypatch.setattr(errors, 'RECENT', 0.0)  # a minute later
    wait_until(lambda: watcher.of('/keyframe_selector')[-1].level == DiagnosticStatus.OK)
    values = watcher.values('/keyframe_selector')
    assert values['errors'] == '1' and values['last_error'] == 'a frame was odd'


def test_gpu_memory_is_that_of_the_libraries_in_use(monkeypatch):
    cuda = SimpleNamespace(is_initialized=lambda: True, device_count=lambda: 2, memory_reserved=lambda i: 100 + i)
    pool = SimpleNamespace(total_bytes=lambda: 7)
    monkeypatch.setitem(sys.modules, 'torch', SimpleNamespace(cuda=cuda))
    monkeypatch.setitem(sys.modules, 'cupy', SimpleNamespace(get_default_memory_pool=lambda: pool))
    monkeypatch.delitem(sys.modules, 'slam3r_ros.meshing.kernels_gpu', raising=False)
    assert (gpu_memory.torch_gpu_memory(), gpu_memory.cupy_gpu_memory()) == (201, 0)
    monkeypatch.setitem(sys.modules, 'slam3r_ros.meshing.kernels_gpu', SimpleNamespace())
    cuda.is_initialized = lambda: False
    assert (gpu_memory.torch_gpu_memory(), gpu_memory.cupy_gpu_memory()) == (0, 7)
