# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`slam3r bench latency`: its sums by made-up times, the real nodes on a short clip, and networks before a wall."""

import io
import json
from argparse import ArgumentParser

import numpy as np
import pytest
from ros_helpers import next_domain
from slam3r_long_stream import TINY
from torch.utils.flop_counter import FlopCounterMode

from slam3r_ros.bench import latency
from slam3r_ros.cli import main
from slam3r_ros.engines.slam3r.engine import Slam3rEngine
from slam3r_ros.values import Frame, State
from slam3r_ros.video.source import open_source
from slam3r_ros.video.synthetic import FPS, write_video

MS = 1_000_000  # nanoseconds
PERIOD = round(1e9 / FPS)
FRAMES = 100  # of the real clip: poses are heard only once both processes have found each other
SIDE = 64  # pixels of the square that tiny networks see
STAMP, CLOCK = 1_000_000_000_000, 7_000_000_000  # where the stamps and the clock begin


def asked(*words):
    """Return the arguments of a command line."""
    parser = ArgumentParser()
    latency.add_arguments(parser)
    return parser.parse_args(words)


@pytest.fixture
def wall(monkeypatch):
    """The module, with tiny networks for all."""
    from slam3r_ros.bench import wall

    for size in wall.SIZES:
        monkeypatch.setitem(wall.SIZES, size, TINY)
    return wall


def made_up(frames=20, late=0, dds=2):
    """Return times and arrivals: each frame takes 1 ms to decode, 2 to convert, 3 to select, 20 for its pose."""
    times = {stage: {} for stage in ('decode', 'convert', 'hand on', 'select', 'engine', 'publish')}
    arrived = {}
    for number in range(frames):
        stamp, due = STAMP + number * PERIOD, CLOCK + number * PERIOD
        times['decode'][number] = due - 30 * MS, due - 29 * MS
        times['convert'][number] = due - 29 * MS, due - 27 * MS
        start = due + late * MS * (number > 0)
        times['hand on'][stamp] = start, start + MS
        times['select'][stamp] = start + 4 * MS, start + 7 * MS
        if number % 2:  # every other frame is dropped before the engine
            times['engine'][stamp] = start + 12 * MS, start + 32 * MS
            times['publish'][stamp] = start + 33 * MS, start + 34 * MS
            arrived[stamp] = start + (34 + dds) * MS
    return times, arrived


def test_each_stage_gets_its_time():
    result = latency.sum_up(*made_up(late=6, dds=2))
    medians = {stage: median for stage, (median, _) in result['milliseconds'].items()}
    assert medians == pytest.approx({
        'decode': 1, 'convert': 2, 'start late': 6, 'wait for selector': 4, 'select': 3, 'wait for engine': 5,
        'engine': 20, 'make message': 1, 'DDS': 3, 'camera to TF': 45,
    })  # fmt: skip
    assert (result['frames'], result['poses']) == (20, 10)


def test_p95_is_that_of_the_slow_frames():
    times, arrived = made_up()
    slow = max(arrived)
    arrived[slow] += 1000 * MS
    median, p95 = latency.sum_up(times, arrived)['milliseconds']['camera to TF']
    assert median == pytest.approx(39) and p95 == pytest.approx(39 + 0.55 * 1000)


def test_frames_a_second_are_those_that_leave_the_engine():
    """Every other frame reaches it, each 33 ms; 20 ms are work, and alone it works for 10."""
    times, _ = made_up(frames=32)
    slow = 4 * [1000 * MS] + 12 * [10 * MS]  # the first quarter does not count
    times['alone'] = {stamp: (stamp, stamp + span) for stamp, span in enumerate(slow)}
    result = latency.speed(times)
    assert result['fps'] == pytest.approx(FPS / 2) and result['engine_fps'] == pytest.approx(100)
    assert result['slower'] == pytest.approx(2)
    assert result['fps'] / result['engine_fps'] == pytest.approx(result['busy'] / result['slower'])


def test_without_a_pose_the_limit_is_missed(capsys):
    times, _ = made_up()
    result = latency.sum_up(times, {})
    assert result['poses'] == 0 and 'not one pose' in capsys.readouterr().err
    assert latency.judge({'640x480': result}, 'geometric')[0].missed


@pytest.mark.parametrize('dds, engine, status', [(2, 'geometric', 0), (90, 'geometric', 1), (2, 'slam3r', 1)])
def test_a_missed_limit_is_the_exit_status(dds, engine, status, monkeypatch, tmp_path, capsys):
    """Made-up frames reach the engine every 67 ms and take it 20: less than a third of what it could do."""
    times, arrived = made_up(dds=dds)
    times['alone'] = times['engine']
    monkeypatch.setattr(latency, 'listen', lambda *_: latency.Run(times, arrived, {'tracking': 18.5}, 'of a kind'))
    words = ['--resolutions', '640x480', '--frames', '2', '--engine', engine, '--json', str(tmp_path / 'figures.json')]
    assert main(['bench', 'latency', *words]) == status
    printed = capsys.readouterr().out
    assert all(stage in printed for stage in (*latency.STAGES, 'engine: tracking', 'of a kind'))
    assert ('MISSED' in printed) == bool(status)
    result = json.loads((tmp_path / 'figures.json').read_text())
    assert result['resolutions']['640x480']['milliseconds']['engine'] == pytest.approx([20, 20])
    assert any(figure['missed'] for figure in result['figures']) == bool(status)


@pytest.mark.parametrize('resolution', latency.RESOLUTIONS)
def test_the_clip_has_the_size_and_the_whole_width(resolution, tmp_path):
    width, height = latency.RESOLUTIONS[resolution]
    write_video(tmp_path / 'video.mp4', latency.clip(3, width, height), preset='ultrafast')
    source = open_source(str(tmp_path / 'video.mp4'))
    frames = list(source)
    source.close()
    assert [frame.image.shape for frame in frames] == [(height, width, 3)] * 3 and source.fps == FPS
    first = next(latency.clip(1, width, height))
    assert np.abs(frames[0].image.astype(int) - first).mean() < 6


def test_the_nodes_are_timed_frame_by_frame(tmp_path, monkeypatch):
    monkeypatch.setenv('ROS_DOMAIN_ID', str(next_domain()))
    video = tmp_path / 'video.mp4'
    write_video(video, latency.clip(FRAMES, *latency.RESOLUTIONS['640x480']), preset='ultrafast')
    times, arrived, inside, about = latency.listen(video, 'free', asked('--engine', 'geometric'))
    assert about == 'geometric'
    assert len(times['hand on']) == len(times['select']) == len(times['convert']) == FRAMES
    assert inside['tracking'] > 0
    assert len(times['engine']) >= 0.9 * FRAMES  # but for blurred ones all: nothing is dropped here
    assert len(arrived) >= 20 and set(arrived) <= set(times['publish']) <= set(times['engine'])
    for stamp, when in arrived.items():
        order = [times['hand on'][stamp][0], *times['select'][stamp], *times['engine'][stamp]]
        order += [times['publish'][stamp][0], when]
        assert order == sorted(order)
    result = latency.sum_up(times, arrived)
    assert result['poses'] == len(arrived)
    stages = set(latency.STAGES) - {'start late'}  # at no pace of its own the video may run ahead
    assert all(result['milliseconds'][stage][0] > 0 for stage in stages)
    assert sum(start >= 0 for start, _ in times['alone'].values()) == len(times['engine'])
    assert 0 < latency.speed(times)['fps']


def test_networks_before_a_wall_are_tracked(wall):
    """All of their work is done, and of the wall they tell, a little rough, poses and keyframes come."""
    with FlopCounterMode(display=False) as counter:
        networks = wall.before_a_wall(TINY, side=SIDE)
        engine = Slam3rEngine(networks=networks, stride=1, side=SIDE)
        outputs = [engine.process(Frame(i, i, image)) for i, image in enumerate(latency.clip(12, 320, 240))]
    assert counter.get_total_flops() > 12 * 1e6
    assert engine.state == State.TRACKING and all(output.pose for output in outputs[9:])
    places = np.array([pose.T_map_camera[:3, 3] for pose in engine.trajectory()])
    assert len(places) == 12 and 0 < np.abs(places).max() < 0.05  # of the wall's distance, where the camera stands
    depths = [keyframe.pointmap[..., 2] for output in outputs for keyframe in output.keyframes]
    assert len(depths) > 8 and all(np.isfinite(depth).mean() > 0.9 for depth in depths)


def test_the_nodes_get_such_networks(wall, tmp_path, monkeypatch):
    monkeypatch.setenv('ROS_DOMAIN_ID', str(next_domain()))
    video = tmp_path / 'video.mp4'
    write_video(video, latency.clip(20, 320, 240), preset='ultrafast')
    monkeypatch.setattr('sys.stdin', io.StringIO('go\n'))
    content = latency.run_once(str(video), 'free', asked('--engine', 'slam3r', '--size', 'small'))
    assert content['about'] == 'slam3r, small networks of random weights'
    stages = {stage: len(spans) for stage, spans in content['times'].items()}
    assert stages['engine'] == stages['alone'] >= 19


def test_weights_that_are_there_are_taken(wall, monkeypatch):
    made = lambda *words: latency.engine_options(asked('--engine', 'slam3r', *words))
    monkeypatch.setattr(latency, 'available', lambda: False)
    assert 'networks' in made()[1] and 'networks' not in made('--checkpoints', 'folder')[1]
    monkeypatch.setattr(latency, 'available', lambda: True)
    assert 'networks' not in made()[1] and 'networks' in made('--size', 'full')[1]
