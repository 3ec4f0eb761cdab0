# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Every service in every state of the nodes, asked of a running graph: always an answer, soon."""

import itertools
import re
import threading
import time
from contextlib import suppress
from dataclasses import replace

import pytest
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from nodes_stubs import StubEngine, images, wall
from ros_helpers import PATIENCE, Ros, ros_fixture, wait_until  # noqa: F401
from std_srvs.srv import Trigger

from slam3r_ros.engines.protocol import EngineError, EngineOutput
from slam3r_ros.nodes import base, mesher, slam3r
from slam3r_ros.nodes.mesher import Mesher
from slam3r_ros.nodes.slam3r import Slam3r
from slam3r_ros.srv import GetMesh, LoadMap, SaveMap, SetScale
from slam3r_ros.transport.bus import create_publisher, create_subscription, worker_of
from slam3r_ros.values import Frame, Keyframe, SlamStatus, State

SOON = 8.0  # seconds, less than any patience of a node: it waited for nothing

UNCONFIGURED = 'the node is not configured; configure it first'
INACTIVE = 'the node is inactive; activate it first'
NO_POSE = 'there is no pose yet, nothing was written; map something first'
NO_MESH = 'the mesh is empty but for specks, nothing was written; map something first'
LOADED = r'map \d+: 2 keyframes'
METRIC = r'map \d+ is metric'
BEGINS = r'map \d+ begins'
ANEW = 'the mesh begins anew'

STATES = ('unconfigured', 'inactive', 'active', 'paused', 'deactivated', 'cleaned up', 'finalized')
# What each service says, by state, in the order in which they are asked; those in FAILURES are answered as such.
TABLE = {
    'slam3r/save_map': (UNCONFIGURED, NO_POSE, '', '', '', UNCONFIGURED, UNCONFIGURED),
    'slam3r/load_map': (UNCONFIGURED, INACTIVE, LOADED, LOADED, INACTIVE, UNCONFIGURED, UNCONFIGURED),
    'slam3r/set_scale': (UNCONFIGURED, INACTIVE, METRIC, METRIC, INACTIVE, UNCONFIGURED, UNCONFIGURED),
    'slam3r/resume': (UNCONFIGURED, INACTIVE, 'going on', 'going on', INACTIVE, UNCONFIGURED, UNCONFIGURED),
    'slam3r/pause': (UNCONFIGURED, INACTIVE, 'paused', 'paused', INACTIVE, UNCONFIGURED, UNCONFIGURED),
    'mesher/get_mesh': (UNCONFIGURED, '', '', '', '', UNCONFIGURED, UNCONFIGURED),
    'mesher/save_map': (UNCONFIGURED, NO_MESH, '', '', '', UNCONFIGURED, UNCONFIGURED),
    'mesher/reset': (UNCONFIGURED, ANEW, ANEW, ANEW, ANEW, UNCONFIGURED, UNCONFIGURED),
    'slam3r/reset': (UNCONFIGURED, BEGINS, BEGINS, BEGINS, BEGINS, UNCONFIGURED, UNCONFIGURED),
}
FAILURES = {UNCONFIGURED, INACTIVE, NO_POSE, NO_MESH}
FIELDS = {
    'save_map': {'path': 'room', 'overwrite': True},
    'load_map': {'path': 'room'},
    'set_scale': {'metres_per_unit': 2.0},
}
TYPES = {'save_map': SaveMap, 'load_map': LoadMap, 'set_scale': SetScale, 'get_mesh': GetMesh}


class MapEngine(StubEngine):
    """Has a map of two keyframes, whatever it loads, that can be saved and scaled."""

    can_save = True
    keyframes = 2
    _again = ()

    def save(self, path):
        path.write_bytes(b'map')

    def load(self, path):
        if not path.exists():
            raise EngineError(f'{path} cannot be read')
        self._poses = [replace(each, id=i) for i, each in enumerate(self._poses[:2])]
        self._announce()

    def set_scale(self, metres_per_unit):
        self.scale_known = True
        self._announce()

    def _announce(self):
        self.map_id += 1
        frame = next(images())
        self._again = [wall(replace(frame, id=i), map_id=self.map_id) for i in range(self.keyframes)]

    def resend(self, most=8):
        part, self._again = self._again[:most], self._again[most:]
        return EngineOutput(None, tuple(part))


class Corner:
    """The two nodes with services, unconfigured; frames come from the same process, questions from outside."""

    def __init__(self, ros, patch, folder, engine=None):
        self.ros, self.state = ros, 'unconfigured'
        self.engines = []
        patch.setattr(slam3r, 'create_engine', self._make)
        self._engine = engine or MapEngine
        parameters = {'autostart': False, 'map_folder': str(folder)}
        self.mesher = ros.node(Mesher, parameters=parameters | {'mesh_min_weight': 0.0})
        self.slam3r = ros.node(Slam3r, parameters=parameters)
        self.feeder = ros.node(node_name='feeder')
        self._frames = create_publisher(self.feeder, Frame, 'selected_frames')
        self.statuses = []
        create_subscription(self.feeder, SlamStatus, 'status', self.statuses.append, depth=1000)
        self.outside = ros.apart().node(node_name='outside')
        self._ids = itertools.count()

    def _make(self, *args, **kwargs):
        self.engines.append(self._engine())
        return self.engines[-1].made(*args, **kwargs)

    def ask(self, service, **fields):
        """Return the answer, and the seconds until it came."""
        kind = TYPES.get(service.rpartition('/')[2], Trigger)
        start = time.monotonic()
        answer = self.ros.call(self.outside, kind, f'/{service}', kind.Request(**fields))
        return answer, time.monotonic() - start

    def change(self, *labels, nodes=('mesher', 'slam3r')):
        for label, name in itertools.product(labels, nodes):
            request = ChangeState.Request(transition=Transition(id=getattr(Transition, f'TRANSITION_{label.upper()}')))
            assert self.ros.call(self.outside, ChangeState, f'/{name}/change_state', request, 40.0).success

    def feed(self, count=25):
        for frame in itertools.islice(images(count + 1), count):
            id = next(self._ids)
            self._frames.publish(replace(frame, id=id, stamp=10**9 + id * 33_000_000))
        for node in (self.slam3r, self.mesher):
            node.worker.call(lambda: None)

    def go(self, state):
        """Go on to a state, by those before it."""
        for step in STATES[STATES.index(self.state) + 1 : STATES.index(state) + 1]:
            if step == 'inactive':
                self.change('configure')
            elif step == 'active':
                self.change('activate')
                self.feed()
            elif step == 'paused':
                self.feed()
                assert self.ask('slam3r/pause')[0].success
            elif step == 'deactivated':
                assert self.ask('slam3r/resume')[0].success
                self.feed()
                self.change('deactivate')
            else:
                self.change('cleanup' if step == 'cleaned up' else 'unconfigured_shutdown')
            self.state = step


@pytest.fixture(scope='module')
def graph(tmp_path_factory):
    ros, folder = Ros(), tmp_path_factory.mktemp('maps')
    with pytest.MonkeyPatch.context() as patch:
        yield Corner(ros, patch, folder)
        ros.close()


@pytest.fixture
def corner(ros, monkeypatch, tmp_path):
    return lambda engine=None: Corner(ros, monkeypatch, tmp_path, engine)


@pytest.mark.parametrize('state, service', list(itertools.product(STATES, TABLE)))
def test_every_service_answers_in_every_state(graph, state, service):
    graph.go(state)
    answer, seconds = graph.ask(service, **FIELDS.get(service.rpartition('/')[2], {}))
    expected = TABLE[service][STATES.index(state)]
    assert answer.success == (expected not in FAILURES), answer.message
    assert re.fullmatch(expected, answer.message)
    assert seconds < SOON
    if service in ('slam3r/pause', 'slam3r/resume') and answer.success:  # as the state was
        assert graph.ask(f'slam3r/{"pause" if state == "paused" else "resume"}')[0].success


class SlowReader:
    """Takes keyframes when it is told to: who publishes them must wait."""

    def __init__(self, ros):
        self.gate, self.seen, self._holds = threading.Event(), [], False
        node = ros.node(node_name='slow')
        self._subscription = create_subscription(node, Keyframe, 'keyframes', self._take, depth=1, lossless=True)

    @property
    def full(self):
        """Whether it holds one keyframe and another waits: a third has no room."""
        return self._holds and len(self._subscription.inbox) == 1

    def _take(self, keyframe):
        self._holds = True
        assert self.gate.wait(4 * PATIENCE)
        self.seen.append(keyframe)


@pytest.fixture
def slow_reader(ros):
    readers = []
    yield lambda: readers.append(SlowReader(ros)) or readers[-1]
    for each in readers:
        each.gate.set()


@pytest.fixture
def stuck(corner, slow_reader):
    """Return a graph amid a frame whose keyframes are not taken."""
    c = corner()
    c.change('configure', 'activate')
    reader = slow_reader()

    def feed():
        with suppress(Exception):  # the test is over
            c.feed(60)

    threading.Thread(target=feed, daemon=True).start()
    wait_until(lambda: reader.full and c.slam3r.worker._waits)
    return c, reader


def test_while_others_are_waited_for_the_answer_says_so(stuck, monkeypatch):
    monkeypatch.setattr(base, '_PATIENCE', 0.3)
    c, reader = stuck
    for name in ('save_map', 'set_scale', 'reset'):
        answer, seconds = c.ask(f'slam3r/{name}', **FIELDS.get(name, {}))
        assert not answer.success and seconds < SOON
        assert answer.message == 'others do not take what the node publishes; see that they are active, then try again'
    map_id = c.engines[0].map_id
    monkeypatch.setattr(base, '_PATIENCE', 20.0)
    c.change('deactivate', nodes=['slam3r'])
    answer, seconds = c.ask('slam3r/save_map', path='room')
    assert not answer.success and seconds < SOON
    assert answer.message == 'the node was deactivated while others did not take what it publishes; activate it first'
    reader.gate.set()
    c.change('activate', nodes=['slam3r'])
    assert c.ask('slam3r/save_map', path='room')[0].success
    assert c.engines[0].map_id == map_id  # what was given up is not done later


def test_a_node_paused_amid_a_frame_ends_it_and_answers(stuck):
    c, reader = stuck
    assert c.ask('slam3r/pause')[0].success
    frames = len(c.engines[0].frames)
    reader.gate.set()
    assert c.ask('slam3r/save_map', path='room')[0].success
    assert len(c.engines[0].frames) == frames  # still paused
    wait_until(lambda: c.statuses[-1].state == State.PAUSED)


def test_a_new_scale_is_answered_before_others_have_taken_everything(corner, slow_reader, monkeypatch):
    monkeypatch.setattr(slam3r, '_HANDING_ON', 0.3)
    monkeypatch.setattr(MapEngine, 'keyframes', 20)
    c = corner()
    c.change('configure', 'activate')
    c.feed(5)
    reader = slow_reader()
    answer, seconds = c.ask('slam3r/set_scale', metres_per_unit=2.0)
    assert answer.success and seconds < SOON
    assert answer.message.endswith('is metric; some keyframes are still on their way')
    c.change('deactivate', nodes=['slam3r'])
    reader.gate.set()
    taken = c.ask('slam3r/reset')  # a call is served when the worker is free: it is held amid handing on
    assert not taken[0].success
    worker_of(reader_node := c.ros.nodes[-1]).call(lambda: None)
    assert len(reader.seen) < 20 and reader_node.get_name() == 'slow'
    c.change('activate', nodes=['slam3r'])
    wait_until(lambda: len(reader.seen) == 20)


def test_saves_run_one_after_the_other(corner, monkeypatch):
    c = corner()
    c.change('configure', 'activate')
    c.feed()
    gate, running, most = threading.Event(), [], []

    def write(path, *mesh):
        running.append(path)
        most.append(len(running))
        assert gate.wait(2 * PATIENCE)
        running.pop()

    monkeypatch.setattr(mesher, 'write_mesh', write)
    client = c.ros.client(c.outside, SaveMap, '/mesher/save_map')
    futures = [client.call_async(SaveMap.Request(path=f'room{i}', format='ply')) for i in range(3)]
    wait_until(lambda: running)
    assert c.ask('mesher/get_mesh')[0].success  # what is short goes on
    gate.set()
    wait_until(lambda: all(future.done() for future in futures))
    assert most == [1, 1, 1], [future.result().message for future in futures]


def test_a_crowd_of_callers_is_answered_while_frames_come(corner):
    c = corner()
    c.change('configure', 'activate')
    c.feed()
    end = threading.Event()

    def feed():
        while not end.is_set():
            c.feed(10)

    feeding = threading.Thread(target=feed, daemon=True)
    feeding.start()
    futures = []
    for service in TABLE:
        kind = TYPES.get(service.rpartition('/')[2], Trigger)
        client = c.ros.client(c.outside, kind, f'/{service}')
        futures += [client.call_async(kind.Request()) for _ in range(5)]
    wait_until(lambda: all(future.done() for future in futures))
    end.set()
    assert c.ask('slam3r/resume')[0].success  # the crowd may have paused it
    feeding.join(PATIENCE)
    assert not feeding.is_alive()


class WanderingEngine(StubEngine):
    """Loses its way at frame 10, is looked for from frame 15 on, and found at frame 20."""

    def process(self, frame):
        output = super().process(frame)
        lost = State.LOST if 10 <= frame.id < 15 else State.RELOCALIZING if 15 <= frame.id < 20 else None
        if lost is None:
            return output
        self.state = lost
        return EngineOutput(None)


def test_the_status_tells_every_state_of_the_engine(corner):
    """ERROR is told by the decoder; see test_nodes_decoder."""
    c = corner(WanderingEngine)
    c.change('configure', 'activate')
    c.feed(25)
    assert c.ask('slam3r/pause')[0].success and c.ask('slam3r/resume')[0].success
    worker_of(c.feeder).call(lambda: None)
    wait_until(lambda: c.statuses[-1].state == State.TRACKING)
    states = [state for state, _ in itertools.groupby(each.state for each in c.statuses)]
    assert states == [
        State.INITIALIZING, State.TRACKING, State.LOST, State.RELOCALIZING, State.TRACKING, State.PAUSED, State.TRACKING
    ]  # fmt: skip
