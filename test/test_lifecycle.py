# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
import itertools
import sys
import threading
import time
import weakref
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from nodes_stubs import FRAMES, StubEngine, StubSource, images
from ros_helpers import PACE, PATIENCE, quick, ros_fixture, wait_for_match, wait_until  # noqa: F401
from sensor_msgs.msg import Image

from slam3r_ros import bringup
from slam3r_ros.nodes import managed, playback, slam3r
from slam3r_ros.nodes.keyframe_selector import KeyframeSelector
from slam3r_ros.nodes.managed import ManagedNode
from slam3r_ros.nodes.mesher import Mesher
from slam3r_ros.nodes.slam3r import Slam3r
from slam3r_ros.nodes.video_decoder import VideoDecoder
from slam3r_ros.transport.bus import create_publisher, create_subscription, worker_of
from slam3r_ros.transport.images import to_image
from slam3r_ros.values import Frame, Keyframe, SlamStatus
from slam3r_ros.video.source import open_source

pytestmark = pytest.mark.usefixtures('quick')
CLIP = Path(__file__).parent / 'data' / 'room' / 'video.mp4'


@pytest.fixture
def manager(ros):
    """Return a lifecycle manager outside of the process."""
    return Manager(ros)


class Manager:
    def __init__(self, ros):
        self.ros, self.node = ros, ros.apart().node(node_name='manager')

    def ask(self, name, label):
        """Ask a node for a transition; return whether it was successful."""
        number = getattr(Transition, f'TRANSITION_{label.upper()}')
        request = ChangeState.Request(transition=Transition(id=number))
        return self.ros.call(self.node, ChangeState, f'/{name}/change_state', request, 40.0).success

    def state(self, name):
        return self.ros.call(self.node, GetState, f'/{name}/get_state').current_state.label


@pytest.fixture
def engines(monkeypatch):
    """Have the node make stub engines; return those that it has made."""
    made = []

    def make(*args, **kwargs):
        made.append(StubEngine())
        return made[-1].made(*args, **kwargs)

    monkeypatch.setattr(slam3r, 'create_engine', make)
    return made


class Gate:
    """Makes an engine wait in the middle of a frame."""

    def __init__(self, engine, at):
        self.reached, self.open = threading.Event(), threading.Event()
        process = engine.process

        def wait(frame):
            if frame.id == at:
                self.reached.set()
                assert self.open.wait(2 * PATIENCE)
            return process(frame)

        engine.process = wait


class Feeder:
    """Publishes frames as fast as they are taken, on a thread, and hears what comes of them."""

    def __init__(self, ros, topic='selected_frames'):
        self.node = ros.node(node_name='feeder')
        self.sent, self.keyframes, self.statuses = [], [], []
        self._frames = create_publisher(self.node, Frame, topic)
        self.listener = ros.node(node_name='listener')
        create_subscription(self.listener, Keyframe, 'keyframes', self.keyframes.append, depth=1000)
        create_subscription(self.listener, SlamStatus, 'status', self.statuses.append, depth=1000)

    def start(self, frames):
        def feed():
            for frame in frames:
                self._frames.publish(frame)
                self.sent.append(frame.id)

        threading.Thread(target=feed, daemon=True).start()

    def heard(self):
        worker_of(self.listener).call(lambda: None)
        return len(self.keyframes), len(self.statuses)


def graph_of(node):
    return sorted(node._entities(), key=id)


def test_a_node_goes_through_its_states(ros, manager, capfd):
    node = ros.node(KeyframeSelector, parameters={'autostart': False})
    before = graph_of(node)
    assert manager.state('keyframe_selector') == 'unconfigured'
    for _ in range(2):
        for label, state in (
            ('configure', 'inactive'),
            ('activate', 'active'),
            ('deactivate', 'inactive'),
            ('cleanup', 'unconfigured'),
        ):
            assert manager.ask('keyframe_selector', label)
            assert manager.state('keyframe_selector') == state
            assert node.active == (state == 'active')
            assert not manager.ask('keyframe_selector', label)  # there is no such transition now; rclpy would end here
        assert graph_of(node) == before
        assert not hasattr(node, '_selector') and not hasattr(node, 'worker')
    assert manager.ask('keyframe_selector', 'unconfigured_shutdown')
    assert manager.state('keyframe_selector') == 'finalized'
    assert 'No transition matching' in capfd.readouterr().err


def test_it_starts_by_itself_unless_told_otherwise(ros, manager):
    ros.node(KeyframeSelector)
    assert manager.state('keyframe_selector') == 'active'
    assert manager.ask('keyframe_selector', 'active_shutdown')
    assert manager.state('keyframe_selector') == 'finalized'


def test_diagnostics_say_that_a_node_is_inactive(ros, manager):
    seen = []
    manager.node.create_subscription(DiagnosticArray, '/diagnostics', seen.append, 10)
    ros.node(KeyframeSelector, parameters={'autostart': False})
    assert manager.ask('keyframe_selector', 'configure')

    def states():
        return [each.value for message in seen for each in message.status[0].values if each.key == 'lifecycle']

    wait_until(lambda: 'inactive' in states())


def test_what_runs_is_finished_and_nothing_is_published_afterwards(ros, manager, engines):
    feeder = Feeder(ros)
    node = ros.node(Slam3r)
    gate = Gate(engines[0], at=20)
    feeder.start(images())
    assert gate.reached.wait(PATIENCE)
    answer = []
    asking = threading.Thread(target=lambda: answer.append(manager.ask('slam3r', 'deactivate')))
    asking.start()
    wait_until(lambda: node.worker.paused)
    assert not answer and node.active  # it waits for the frame
    gate.open.set()
    asking.join(PATIENCE)
    assert answer == [True] and not node.active
    assert engines[0].frames[-1].id == 20
    heard = feeder.heard()
    assert [(k.id, k.revision) for k in feeder.keyframes] == [(10, 0), (20, 0), (10, 1)]
    time.sleep(1.5 / PACE)  # longer than the period of the status
    assert feeder.heard() == heard
    wait_until(lambda: feeder.sent[-1] == 22)  # two wait for the node, and the feeder with the next: nothing is lost
    assert manager.ask('slam3r', 'activate')
    wait_until(lambda: feeder.statuses[-1].finished)
    assert [frame.id for frame in engines[0].frames] == list(range(FRAMES))
    assert len({keyframe.map_id for keyframe in feeder.keyframes}) == 1 and len(engines) == 1


def test_a_status_that_is_on_its_way_is_waited_for(ros, manager, engines, monkeypatch):
    feeder, node = Feeder(ros), ros.node(Slam3r)
    telling, gate, publish = threading.Event(), threading.Event(), node._status.publisher.publish

    def slow(status):
        telling.set()
        assert gate.wait(2 * PATIENCE)
        publish(status)

    monkeypatch.setattr(node._status.publisher, 'publish', slow)
    assert telling.wait(PATIENCE)
    answer = []
    asking = threading.Thread(target=lambda: answer.append(manager.ask('slam3r', 'deactivate')))
    asking.start()
    wait_until(lambda: not node.active)
    time.sleep(0.1)
    assert not answer
    gate.set()
    asking.join(PATIENCE)
    assert answer == [True] and feeder.heard() == (0, 1)


def test_a_callback_that_does_not_end_keeps_the_node_active(ros, manager, engines, monkeypatch, capfd):
    monkeypatch.setattr(managed, '_PATIENCE', 0.2)
    feeder = Feeder(ros)
    node = ros.node(Slam3r)
    gate = Gate(engines[0], at=5)
    feeder.start(images())
    assert gate.reached.wait(PATIENCE)
    assert not manager.ask('slam3r', 'deactivate')
    assert node.active and manager.state('slam3r') == 'active'
    assert 'a callback still ran after 0 s; the node stays active' in capfd.readouterr().err
    gate.open.set()
    wait_until(lambda: feeder.statuses and feeder.statuses[-1].finished)


def test_cleanup_frees_the_engine_and_configure_makes_another(ros, manager, engines, monkeypatch):
    feeder = Feeder(ros)
    ros.node(Slam3r)
    feeder.start(images())
    wait_until(lambda: feeder.statuses and feeder.statuses[-1].finished)
    engine, told = weakref.ref(engines.pop()), []
    cuda = SimpleNamespace(is_initialized=lambda: True, empty_cache=lambda: told.append(engine()))
    assert manager.ask('slam3r', 'deactivate')
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, 'torch', SimpleNamespace(cuda=cuda, Tensor=int))
        assert manager.ask('slam3r', 'cleanup')
    assert told == [None]  # nothing holds the engine any more when the GPU's memory is given back
    assert manager.ask('slam3r', 'configure') and manager.ask('slam3r', 'activate')
    feeder.start(images())
    wait_until(lambda: len(engines[0].frames) == FRAMES)


def test_services_are_answered_while_the_node_is_inactive(ros, manager, tmp_path):
    from slam3r_ros.srv import GetMesh

    ros.node(Mesher, parameters={'autostart': False})
    assert manager.ask('mesher', 'configure')
    assert ros.call(manager.node, GetMesh, '/mesher/get_mesh').success


def test_a_file_waits_in_the_whole_chain_and_loses_nothing(ros, manager, monkeypatch):
    """The reader is inactive: the decoder waits for it, can itself be deactivated, and goes on where it was."""
    monkeypatch.setattr(playback, 'open_source', lambda *_: StubSource())
    seen = []
    watcher = ros.node(node_name='watcher')
    create_subscription(watcher, Frame, 'selected_frames', lambda frame: seen.append(frame.id), depth=100)
    ros.node(KeyframeSelector, parameters={'autostart': False})
    assert manager.ask('keyframe_selector', 'configure')
    decoder = ros.node(VideoDecoder, parameters={'input': 'video.mp4'})
    wait_until(lambda: decoder.diagnostics()['received'] == 3)  # two wait for the selector, the third for room
    time.sleep(0.2)
    assert decoder.diagnostics()['received'] == 3 and not seen
    start = time.monotonic()
    assert manager.ask('video_decoder', 'deactivate')
    assert time.monotonic() - start < managed._PATIENCE / 2
    assert manager.ask('keyframe_selector', 'activate')
    wait_until(lambda: seen == [0, 1])
    time.sleep(0.2)
    assert seen == [0, 1]  # what waited for room is not published by an inactive node
    assert manager.ask('video_decoder', 'activate')
    wait_until(lambda: len(seen) == FRAMES)
    assert seen == list(range(FRAMES))


def test_a_decoder_that_waits_for_a_reader_can_be_deactivated_and_cleaned_up(ros, manager, monkeypatch):
    sources = []
    monkeypatch.setattr(playback, 'open_source', lambda *args: sources.append(StubSource()) or sources[-1])
    ros.node(VideoDecoder, parameters={'input': 'video.mp4'})
    wait_until(lambda: sources)
    for label in ('deactivate', 'cleanup', 'configure', 'activate'):
        assert manager.ask('video_decoder', label)
    assert sources[0].closed
    seen = []
    create_subscription(ros.node(node_name='late'), Frame, 'frames', lambda frame: seen.append(frame.id), depth=100)
    wait_until(lambda: len(seen) == FRAMES)


def test_live_images_are_dropped_and_counted_while_inactive(ros, manager):
    seen = []
    create_subscription(ros.node(node_name='watcher'), Frame, 'frames', lambda frame: seen.append(frame.id))
    outside = ros.apart().node(node_name='camera')
    camera = outside.create_publisher(Image, 'image_raw', 10)
    decoder = ros.node(VideoDecoder, parameters={'input': '/image_raw', 'input_qos': 'reliable', 'autostart': False})
    assert manager.ask('video_decoder', 'configure')
    wait_for_match(outside, decoder, '/image_raw')
    for count, frame in enumerate(itertools.islice(images(), 5), 1):
        camera.publish(to_image(frame.image, frame.stamp, 'cam'))
        wait_until(lambda count=count: decoder.diagnostics()['received'] == count)
    assert manager.ask('video_decoder', 'activate')
    camera.publish(to_image(next(images()).image, 1, 'cam'))
    wait_until(lambda: seen)
    assert seen == [5] and decoder.diagnostics()['dropped'] == 5


@pytest.mark.parametrize(
    'node_class, parameters, reason',
    [
        (VideoDecoder, {'input': 'topic:a b'}, 'parameter input of /video_decoder'),
        (Slam3r, {'engine': 'slam3r', 'checkpoints_dir': '/nowhere'}, 'slam3r'),
    ],
)
def test_what_cannot_be_configured_stays_unconfigured_and_says_why(
    ros, manager, capfd, node_class, parameters, reason
):
    node = ros.node(node_class, parameters=parameters | {'autostart': False})
    before = graph_of(node)
    capfd.readouterr()
    assert not manager.ask(node_class.NAME, 'configure')
    assert manager.state(node_class.NAME) == 'unconfigured'
    errors = capfd.readouterr().err
    assert reason in errors and 'Traceback' not in errors
    assert graph_of(node) == before


class Stub(ManagedNode):
    def __init__(self, name='stub', told=None, fails=(), **kwargs):
        super().__init__(name, **kwargs)
        self._told, self._fails = [] if told is None else told, set(fails)

    def configure(self):
        self._told.append(f'configure {self.get_name()}')
        if 'configure' in self._fails:
            raise KeyError('spanner')
        self.closing.callback(self._close)

    def activate(self):
        self._told.append(f'activate {self.get_name()}')

    def _close(self):
        if 'cleanup' in self._fails:
            self._fails.clear()
            raise OSError('the disc is full')


def test_a_cleanup_that_fails_leads_back_to_the_beginning(ros, manager, capfd):
    ros.node(Stub, fails=['cleanup'])
    assert manager.ask('stub', 'configure')
    assert not manager.ask('stub', 'cleanup')
    assert 'the disc is full' in capfd.readouterr().err
    assert manager.state('stub') == 'unconfigured'
    for label in ('configure', 'cleanup'):
        assert manager.ask('stub', label)


def test_nodes_are_brought_up_in_order(ros):
    told = []
    for name in ('c', 'a', 'b'):
        ros.node(Stub, name, told)
    client = ros.apart()
    node = client.node(node_name='bring_up')
    client.executor.remove_node(node)
    bringup.bring_up(node, ['b', 'c', 'a'])
    assert told == [f'{label} {name}' for label in ('configure', 'activate') for name in 'bca']


def test_a_node_that_refuses_ends_the_bring_up(ros, capfd):
    told = []
    ros.node(Stub, 'good', told)
    ros.node(Stub, 'bad', told, ['configure'])
    client = ros.apart()
    node = client.node(node_name='bring_up')
    client.executor.remove_node(node)
    with pytest.raises(bringup.BringUpError, match='bad does not configure; its log says why'):
        bringup.bring_up(node, ['good', 'bad'])
    assert told == ['configure good', 'configure bad']
    assert "KeyError: 'spanner'" in capfd.readouterr().err


def test_the_geometric_engine_goes_on_with_the_same_map(ros, manager):
    count, at = 45, 30
    frames = list(itertools.islice(open_source(str(CLIP), 0), count))
    frames[-1] = replace(frames[-1], last=True)
    feeder = Feeder(ros)
    node = ros.node(Slam3r, parameters={'engine': 'geometric'})
    gate = Gate(node._engine, at)
    feeder.start(frames)
    assert gate.reached.wait(2 * PATIENCE)
    asking = threading.Thread(target=manager.ask, args=('slam3r', 'deactivate'))
    asking.start()
    wait_until(lambda: node.worker.paused)
    gate.open.set()
    asking.join(PATIENCE)
    assert not node.active and node.diagnostics()['frames'] == at + 1
    heard = feeder.heard()
    time.sleep(1.2 / PACE)
    assert feeder.heard() == heard and node.diagnostics()['frames'] == at + 1
    assert manager.ask('slam3r', 'activate')
    wait_until(lambda: feeder.statuses[-1].finished, 60)
    status = feeder.statuses[-1]
    assert (status.frames_decoded, status.frames_dropped) == (count, 0)
    assert {keyframe.map_id for keyframe in feeder.keyframes} == {status.map_id}
    assert any(keyframe.pointmap is not None for keyframe in feeder.keyframes)
    assert len(node._engine.trajectory()) >= count - 5
    assert node.last_error == ''
