# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`slam3r demo`, run as a user runs it: through the real graph, in processes of its own."""

import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock, Mock

import av
import numpy as np
import pytest

pytest.importorskip('rclpy', reason='rclpy is not installed')
pytest.importorskip('evo', reason='evo is not installed: it is only for tests')
pytest.importorskip('mcap', reason='mcap is not installed: it is only for tests')

from evo.tools import file_interface
from long_clip import repeat
from mcap.reader import make_reader
from ros_helpers import PATIENCE, next_domain, ros_fixture, wait_until  # noqa: F401

from slam3r_ros import demo as demo_module
from slam3r_ros import graph, msg
from slam3r_ros.cli import main
from slam3r_ros.demo import FILES
from slam3r_ros.graph import isolate, undisturbed

CLIP = Path(__file__).parent / 'data' / 'room' / 'video.mp4'
TOPICS = ('/tf', '/tf_static', '/odometry', '/path', '/map_cloud', '/mesh', '/mesh_markers', '/status')


def marked(path, mark):
    try:
        return f'TEST_MARK={mark}'.encode() in path.read_bytes()
    except OSError:  # it has ended, or is somebody else's
        return False


def demo(*arguments, start=('-m', 'slam3r_ros.cli'), **environment):
    command = [sys.executable, *start, 'demo', *map(str, arguments)]
    environment = {'AMENT_PREFIX_PATH': sys.prefix} | os.environ | environment
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def wait_for_engine(process):
    """Wait until the container has loaded the engine, which is in the middle of the start."""
    while '[slam3r]: engine' not in (line := process.stderr.readline()):
        assert line, 'the engine never came up'


def wait_for_imports(process):
    """Wait until the process is amid its imports."""
    wait_until(lambda: 'numpy' in Path(f'/proc/{process.pid}/maps').read_text())


def container_of(process):
    """Return the folder in /proc of a demo's container; None while there is none."""
    for path in Path(f'/proc/{process.pid}/task').glob('*/children'):
        with suppress(OSError):  # that thread, or that child, has ended
            for each in path.read_text().split():
                if b'slam3r_ros.container' in Path('/proc', each, 'cmdline').read_bytes():
                    return Path('/proc', each)
    return None


def has_ended(folder):
    """Tell whether a process, by its folder in /proc, has ended; nobody may have asked for its status yet."""
    try:
        return not (folder / 'cmdline').read_bytes()
    except OSError:
        return True


def write_video(path, images, codec='mpeg4'):
    with av.open(str(path), 'w') as container:
        stream = container.add_stream(codec, rate=30)
        stream.height, stream.width, stream.pix_fmt = *images[0].shape[:2], 'yuv420p'
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format='rgb24')))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope='module')
def short_clip(tmp_path_factory):
    """The first 70 frames of the bundled clip."""
    images = []
    with av.open(str(CLIP)) as container:
        for frame in container.decode(video=0):
            images.append(frame.to_ndarray(format='rgb24'))
            if len(images) == 70:
                break
    return write_video(tmp_path_factory.mktemp('clip') / 'short.mp4', images, 'libx264')


@pytest.fixture(scope='module')
def mapping(short_clip, tmp_path_factory):
    """Return a demo that is under way, and its folder."""
    out = tmp_path_factory.mktemp('mapping') / 'out'
    process = demo('--video', short_clip, '--out', out, ROS_DOMAIN_ID=str(next_domain()))
    yield process, out
    process.kill()
    process.communicate()


@pytest.mark.usefixtures('mapping')  # meanwhile
def test_ctrl_c_saves_what_there_is(ros, tmp_path):
    out, statuses, meshed = tmp_path / 'out', [], []
    observer = ros.node(node_name='observer')
    observer.create_subscription(msg.SlamStatus, 'status', statuses.append, 10)
    observer.create_subscription(msg.MeshUpdate, 'mesh', lambda update: meshed.extend(update.blocks), 10)
    clip = repeat(CLIP, tmp_path / 'long.mp4', 4)
    process = demo('--video', clip, '--out', out, ROS_DOMAIN_ID=str(ros.domain))
    wait_for_engine(process)
    wait_until(lambda: meshed and any(each.frames_in > 10 for each in statuses), 2 * PATIENCE)
    process.send_signal(signal.SIGINT)
    _, log = process.communicate(timeout=2 * PATIENCE)
    assert process.returncode == 0 and 'Traceback' not in log and 'interrupted' in log, log
    assert sorted(path.name for path in out.iterdir()) == sorted(FILES)
    summary = json.loads((out / 'summary.json').read_text())
    assert summary['interrupted'] and 10 < summary['frames'] < 1200


def test_a_video_becomes_a_map(mapping):
    process, out = mapping
    table, log = process.communicate(timeout=4 * PATIENCE)
    assert process.returncode == 0, log
    assert not list(out.glob('.*'))
    assert sorted(path.name for path in out.iterdir()) == sorted(FILES)
    assert 'frames' in table and 'keyframes' in table

    summary = json.loads((out / 'summary.json').read_text())
    assert summary['frames'] == 70 and summary['keyframes_with_depth'] >= 3 and not summary['interrupted']
    trajectory = file_interface.read_tum_trajectory_file(out / 'trajectory.tum')
    assert trajectory.num_poses >= 60
    with (out / 'map.mcap').open('rb') as file:
        counts: dict[str, int] = dict.fromkeys(TOPICS, 0)
        for _, channel, _ in make_reader(file).iter_messages():
            counts[channel.topic] += 1
    assert all(counts.values()), counts
    # Every pose that was published live was heard.
    assert counts['/odometry'] == round(summary['tracked_share'] * (70 - summary['init_frames'])) >= 50
    with av.open(str(out / 'overview.png')) as picture:
        image = next(picture.decode(video=0)).to_ndarray(format='rgb24')
    assert len(np.unique(image.reshape(-1, 3), axis=0)) > 1000


def test_an_early_end_leaves_nothing_behind(tmp_path):
    moments = [
        (signal.SIGINT, wait_for_imports),
        (signal.SIGHUP, lambda process: wait_until(lambda: container_of(process))),  # amid the container's imports
        (signal.SIGINT, wait_for_engine),
        (signal.SIGTERM, wait_for_engine),
    ]
    demos = []
    for i, moment in enumerate(moments):  # they start at the same time
        given = {'TEST_MARK': str(tmp_path), 'ROS_DOMAIN_ID': str(next_domain())}
        demos.append((*moment, tmp_path / f'out{i}', demo('--video', CLIP, '--out', tmp_path / f'out{i}', **given)))

    def strike(end, wait, _, process):
        wait(process)
        process.send_signal(end)
        return process.communicate(timeout=2 * PATIENCE)[1]

    with ThreadPoolExecutor() as pool:
        logs = list(pool.map(lambda each: strike(*each), demos))
    for (end, _, out, process), log in zip(demos, logs, strict=True):
        assert 'Traceback' not in log, log
        if process.returncode in (0, 2):  # it was under way already, with a pose or without
            assert (out / 'summary.json').exists()
        else:
            # Python ends as by SIGINT where KeyboardInterrupt went through an `exec`, though it was caught.
            assert process.returncode in (130, -end, -signal.SIGINT) and not out.exists(), log
        assert not list(out.glob('.*'))
    assert not [path for path in Path('/proc').glob('[0-9]*/environ') if marked(path, str(tmp_path))]


# Runs the command; an orderly end of ROS, in which Fast DDS may crash, or of Python gives away that it was tried.
STRICT = """
import atexit, os, sys
import rclpy
from slam3r_ros.cli import main
atexit.register(lambda: os._exit(98))
rclpy.try_shutdown = lambda: os._exit(99)
sys.exit(main())
"""


def test_a_container_that_is_killed_is_one_line_and_leaves_nothing(tmp_path):
    out = tmp_path / 'out'
    process = demo('--video', CLIP, '--out', out, start=['-c', STRICT], ROS_DOMAIN_ID=str(next_domain()))
    wait_for_engine(process)
    container = container_of(process)
    files = {os.path.realpath(each) for each in Path(f'/proc/{process.pid}/fd').iterdir()}
    os.kill(int(container.name), signal.SIGKILL)
    _, log = process.communicate(timeout=2 * PATIENCE)
    complaints = [line for line in log.splitlines() if line.startswith('slam3r demo: ')]
    assert process.returncode == 1 and 'Traceback' not in log, log
    assert complaints == [
        'slam3r demo: the container process was ended by signal 9 (Killed); if nobody sent it, `dmesg` may say why'
    ]
    assert not out.exists()
    assert not [path for path in files if 'fastrtps_' in path and 'port' not in path and Path(path).exists()]


def test_a_demo_that_is_killed_takes_its_container_with_it(tmp_path):
    process = demo('--video', CLIP, '--out', tmp_path / 'out', ROS_DOMAIN_ID=str(next_domain()))
    wait_for_engine(process)
    container = container_of(process)
    process.kill()
    process.communicate(timeout=2 * PATIENCE)  # the container has the same standard error
    wait_until(lambda: has_ended(container))


def test_a_signal_amid_the_making_of_subscriptions_comes_behind_it():
    """Else rclpy has half of one, and the node cannot be destroyed."""
    done = []
    with pytest.raises(KeyboardInterrupt), undisturbed():
        signal.raise_signal(signal.SIGINT)
        done.append('all')
    assert done and signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_signal_before_all_are_kept_back_leaves_the_handlers_as_they_were(monkeypatch):
    ends, set_handler, count = (signal.SIGINT, signal.SIGTERM), signal.signal, []
    before = [set_handler(end, signal.default_int_handler) for end in ends]

    def set_and_strike(number, handler):
        set_handler(number, handler)
        count.append(number)
        if len(count) == 1:
            signal.raise_signal(signal.SIGTERM)

    try:
        monkeypatch.setattr(signal, 'signal', set_and_strike)
        with pytest.raises(KeyboardInterrupt), undisturbed():
            pytest.fail('the signal was lost')
        assert [signal.getsignal(end) for end in ends] == 2 * [signal.default_int_handler]
    finally:
        for end, handler in zip(ends, before, strict=True):
            set_handler(end, handler)


def test_the_demo_keeps_signals_back_while_it_subscribes(tmp_path, monkeypatch):
    done = []

    def observer(*_, **__):
        signal.raise_signal(signal.SIGINT)
        done.append('all')

    monkeypatch.setattr(demo_module, 'Graph', MagicMock())
    monkeypatch.setattr(demo_module, 'BagRecorder', Mock())
    monkeypatch.setattr(demo_module, 'Observer', observer)
    with pytest.raises(KeyboardInterrupt):
        demo_module.run(SimpleNamespace(video=str(CLIP), intrinsics=None), tmp_path, None, 0)
    assert done


@pytest.mark.parametrize('hangs, status', [(False, -signal.SIGTERM), (True, -signal.SIGKILL)])
def test_beside_a_container_that_had_to_be_killed_nothing_ends_in_order(monkeypatch, hangs, status):
    """Fast DDS may crash there; what SIGTERM ends at once has not begun with it."""
    monkeypatch.setattr(graph, '_PATIENCE', 0.2 if hangs else PATIENCE)
    monkeypatch.setattr(graph, 'rclpy', Mock())
    client = object.__new__(graph.Graph)
    client.node = client._executor = client._thread = Mock()
    deaf = 'trap "" TERM; ' if hangs else ''
    client._process = subprocess.Popen(['sh', '-c', f'{deaf}echo; exec sleep 60'], stdout=subprocess.PIPE)
    with client._process.stdout as output:
        output.readline()  # it is deaf from now on
        client.__exit__()
    assert client._process.returncode == status
    assert client.node.destroy_node.called == graph.rclpy.try_shutdown.called == (not hangs)


def bad_inputs(folder):
    """Name and make one bad input after the other."""
    grey = np.full((96, 128, 3), 128, np.uint8)
    yield 'missing.mp4', folder / 'missing.mp4'
    (folder / 'folder').mkdir()
    yield 'folder', folder / 'folder'
    (folder / 'broken').mkdir()
    (folder / 'broken' / '0.png').write_text('no picture')
    yield 'broken', folder / 'broken'
    yield 'rtsp:', 'rtsp://127.0.0.1:1/refused'
    yield 'video87', 'camera:87'
    (folder / 'empty.mp4').touch()
    yield 'empty.mp4', folder / 'empty.mp4'
    (folder / 'text.mp4').write_text('not a video\n' * 100)
    yield 'text.mp4', folder / 'text.mp4'
    yield 'tiny.mkv', write_video(folder / 'tiny.mkv', [grey[:2, :2]] * 3, 'rawvideo')
    with av.open(str(folder / 'sound.mp4'), 'w') as container:
        stream = container.add_stream('aac', rate=44100)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format='fltp', layout='mono')
        sound.rate = 44100
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    yield 'sound.mp4', folder / 'sound.mp4'
    small, large = (write_video(folder / f'{size}.m2v', [grey[:size]] * 10, 'mpeg2video') for size in (64, 96))
    (folder / 'changing.m2v').write_bytes(small.read_bytes() + large.read_bytes())
    yield 'changing.m2v', folder / 'changing.m2v'


@pytest.fixture
def demo_here(capfd):
    """Return a function that runs the demo in this process, and returns what a process would."""
    handler = signal.getsignal(signal.SIGTERM)

    def run(*arguments):
        status = main(['demo', *map(str, arguments)])
        return SimpleNamespace(returncode=status, communicate=lambda timeout: capfd.readouterr())

    yield run
    signal.signal(signal.SIGTERM, handler)


def test_bad_input_is_one_line_and_leaves_nothing(tmp_path, demo_here):
    inputs = list(bad_inputs(tmp_path))
    own = 'missing.mp4', 'changing.m2v'  # in processes of their own; the latter is told by the container
    demos = {name: demo('--video', path, '--out', tmp_path / f'out of {name}') for name, path in inputs if name in own}
    for name, path in inputs:
        out = tmp_path / f'out of {name}'
        process = demos.get(name) or demo_here('--video', path, '--out', out)
        table, log = process.communicate(timeout=2 * PATIENCE)
        complaints = [line for line in log.splitlines() if line.startswith('slam3r demo: ')]
        assert process.returncode == 1 and not table, (name, table, log)
        assert len(complaints) == 1 and name in complaints[0] and 'Traceback' not in log, (name, log)
        assert not out.exists(), name


def test_a_full_disk_is_one_line_and_leaves_nothing(short_clip, tmp_path, demo_here, monkeypatch):
    class Full(graph.Graph):
        def _spin(self):
            self._failure = OSError(28, 'No space left on device')  # as when the recorder cannot write

    monkeypatch.setattr(demo_module, 'Graph', Full)
    monkeypatch.setenv('ROS_DOMAIN_ID', str(next_domain()))
    out = tmp_path / 'out'
    process = demo_here('--video', short_clip, '--out', out)
    _, log = process.communicate(timeout=2 * PATIENCE)
    assert log.splitlines() == [f'slam3r demo: {out}: No space left on device; make room, or name another folder']
    assert process.returncode == 1 and not out.exists()


@pytest.mark.parametrize('error, told', [
    (FileNotFoundError(2, 'No such file', 'python9'), "[Errno 2] No such file: 'python9'"),  # it is not the folder's
    (PermissionError(13, 'Permission denied', '/full'), '/full: Permission denied; make room, or name another folder'),
])  # fmt: skip
def test_an_error_of_the_system_names_what_it_is_about(tmp_path, demo_here, monkeypatch, error, told):
    monkeypatch.setattr(demo_module, 'run', Mock(side_effect=error))
    process = demo_here('--video', CLIP, '--out', tmp_path / 'out')
    assert process.communicate(timeout=60)[1] == f'slam3r demo: {told}\n'
    assert process.returncode == 1 and not (tmp_path / 'out').exists()


# Runs the command without the work.
IDLE = """
import sys
from slam3r_ros import demo
from slam3r_ros.cli import main
demo.run, demo.format_table = lambda *_: {}, lambda _: 'table'
sys.exit(main())
"""


def test_a_reader_that_has_gone_ends_it_quietly(tmp_path):
    process = demo('--video', CLIP, '--out', tmp_path / 'out', start=['-c', IDLE], PYTHONUNBUFFERED='')
    process.stdout.close()  # as `head` does when it has enough
    assert process.stderr.read() == '' and process.wait(PATIENCE) == 1
    process.stderr.close()


def test_bad_ground_truth_is_told_before_the_work(short_clip, tmp_path, demo_here):
    process = demo_here('--video', short_clip, '--out', tmp_path / 'out', '--groundtruth', tmp_path / 'missing.tum')
    table, log = process.communicate(timeout=60)
    assert process.returncode == 1 and not table and 'missing.tum' in log and 'engine' not in log, log
    assert len(log.splitlines()) == 1 and not (tmp_path / 'out').exists()


def test_it_takes_a_domain_of_its_own_unless_told_otherwise(monkeypatch):
    given = os.environ['ROS_DOMAIN_ID']
    isolate()
    assert os.environ['ROS_DOMAIN_ID'] == given
    monkeypatch.delenv('ROS_DOMAIN_ID')
    monkeypatch.delenv('ROS_AUTOMATIC_DISCOVERY_RANGE', raising=False)
    isolate()
    assert 1 <= int(os.environ['ROS_DOMAIN_ID']) <= 100 and os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] == 'LOCALHOST'


def test_runs_at_the_same_time_take_different_domains(monkeypatch):
    domains = set()
    for _ in range(3):
        monkeypatch.delenv('ROS_DOMAIN_ID')
        isolate()
        domains.add(os.environ['ROS_DOMAIN_ID'])
    assert len(domains) == 3
