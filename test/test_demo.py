# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`slam3r demo`, run as a user runs it: through the real graph, in processes of its own."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest

pytest.importorskip('rclpy', reason='rclpy is not installed')
pytest.importorskip('evo', reason='evo is not installed: it is only for tests')
pytest.importorskip('mcap', reason='mcap is not installed: it is only for tests')

from evo.tools import file_interface
from mcap.reader import make_reader
from ros_helpers import ros_fixture, wait_until  # noqa: F401

from slam3r_ros import msg
from slam3r_ros.cli import main
from slam3r_ros.demo import FILES
from slam3r_ros.graph import isolate

CLIP = Path(__file__).parent / 'data' / 'room' / 'video.mp4'
TOPICS = ('/tf', '/tf_static', '/odometry', '/path', '/map_cloud', '/mesh', '/mesh_markers', '/status')


def marked(path, mark):
    try:
        return f'TEST_MARK={mark}'.encode() in path.read_bytes()
    except OSError:  # it has ended, or is somebody else's
        return False


def demo(*arguments, **environment):
    command = [sys.executable, '-m', 'slam3r_ros.cli', 'demo', *map(str, arguments)]
    environment = {'AMENT_PREFIX_PATH': sys.prefix} | os.environ | environment
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def wait_for_engine(process):
    """Wait until the container has loaded the engine, which is in the middle of the start."""
    while '[slam3r]: engine' not in (line := process.stderr.readline()):
        assert line, 'the engine never came up'


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


def test_a_video_becomes_a_map(short_clip, tmp_path):
    out = tmp_path / 'out'
    process = demo('--video', short_clip, '--out', out)
    table, log = process.communicate(timeout=120)
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


def test_ctrl_c_saves_what_there_is(ros, tmp_path):
    out, statuses, meshed = tmp_path / 'out', [], []
    observer = ros.node(node_name='observer')
    observer.create_subscription(msg.SlamStatus, 'status', statuses.append, 10)
    observer.create_subscription(msg.MeshUpdate, 'mesh', lambda update: meshed.extend(update.blocks), 10)
    process = demo('--video', CLIP, '--out', out, ROS_DOMAIN_ID=str(ros.domain))
    wait_for_engine(process)
    wait_until(lambda: meshed and statuses and statuses[-1].frames_in > 10, 60)
    process.send_signal(signal.SIGINT)
    _, log = process.communicate(timeout=60)
    assert process.returncode == 0 and 'Traceback' not in log and 'interrupted' in log, log
    assert sorted(path.name for path in out.iterdir()) == sorted(FILES)
    summary = json.loads((out / 'summary.json').read_text())
    assert summary['interrupted'] and 10 < summary['frames'] < 300


@pytest.mark.parametrize(
    'end, moment',
    [
        (signal.SIGINT, lambda process: time.sleep(0.5)),  # amid the imports
        (signal.SIGINT, wait_for_engine),
        (signal.SIGTERM, wait_for_engine),
    ],
)
def test_an_early_end_leaves_nothing_behind(tmp_path, end, moment):
    out = tmp_path / 'out'
    process = demo('--video', CLIP, '--out', out, TEST_MARK=str(tmp_path))
    moment(process)
    process.send_signal(end)
    _, log = process.communicate(timeout=60)
    assert 'Traceback' not in log, log
    if process.returncode in (0, 2):  # it was under way already, with a pose or without
        assert (out / 'summary.json').exists()
    else:
        assert process.returncode in (130, -end) and not out.exists(), log
    assert not list(tmp_path.glob('out/.*'))
    assert not [path for path in Path('/proc').glob('[0-9]*/environ') if marked(path, str(tmp_path))]


def bad_inputs(folder):
    """Name and make one bad input after the other."""
    grey = np.full((96, 128, 3), 128, np.uint8)
    yield 'missing.mp4', folder / 'missing.mp4'
    (folder / 'folder').mkdir()
    yield 'folder', folder / 'folder'
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
    for name, path in bad_inputs(tmp_path):
        out = tmp_path / f'out of {name}'
        run = demo if name in ('missing.mp4', 'changing.m2v') else demo_here  # the latter is told by the container
        process = run('--video', path, '--out', out)
        table, log = process.communicate(timeout=60)
        complaints = [line for line in log.splitlines() if line.startswith('slam3r demo: ')]
        assert process.returncode == 1 and not table, (name, table, log)
        assert len(complaints) == 1 and name in complaints[0] and 'Traceback' not in log, (name, log)
        assert not out.exists(), name


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
