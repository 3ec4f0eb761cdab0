# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`slam3r bench latency`: its sums by made-up times, and the real nodes on a short clip."""

import json
from argparse import Namespace

import numpy as np
import pytest
from ros_helpers import next_domain

from slam3r_ros.bench import latency
from slam3r_ros.cli import main
from slam3r_ros.video.source import open_source
from slam3r_ros.video.synthetic import FPS, write_video

MS = 1_000_000  # nanoseconds
PERIOD = round(1e9 / FPS)
FRAMES = 150  # of the real clip: poses are heard only once both processes have found each other
STAMP, CLOCK = 1_000_000_000_000, 7_000_000_000  # where the stamps and the clock begin


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


def test_frames_a_second_are_those_of_the_whole_way():
    times, arrived = made_up(frames=30)
    result = latency.speed(times, arrived)
    assert result['fps'] == pytest.approx(30 / (29 / FPS + 0.036), rel=1e-6)
    assert result['engine_fps'] == pytest.approx(50)


def test_without_a_pose_it_says_so():
    times, _ = made_up()
    with pytest.raises(SystemExit, match='not one pose'):
        latency.sum_up(times, {})


@pytest.mark.parametrize('dds, engine, status', [(2, 'geometric', 0), (90, 'geometric', 1), (2, 'slam3r', 1)])
def test_a_missed_limit_is_the_exit_status(dds, engine, status, monkeypatch, tmp_path, capsys):
    """Made-up frames come every 33 ms and take the engine 20: three fifths of what it could do."""
    monkeypatch.setattr(latency, 'listen', lambda *_: (*made_up(dds=dds), {'tracking': 18.5}))
    words = ['--sizes', '640x480', '--frames', '2', '--engine', engine, '--json', str(tmp_path / 'figures.json')]
    assert main(['bench', 'latency', *words]) == status
    printed = capsys.readouterr().out
    assert all(stage in printed for stage in (*latency.STAGES, 'engine: tracking'))
    assert ('MISSED' in printed) == bool(status)
    result = json.loads((tmp_path / 'figures.json').read_text())
    assert result['sizes']['640x480']['milliseconds']['engine'] == pytest.approx([20, 20])
    assert any(figure['missed'] for figure in result['figures']) == bool(status)


@pytest.mark.parametrize('size', latency.SIZES)
def test_the_clip_has_the_size_and_the_whole_width(size, tmp_path):
    width, height = latency.SIZES[size]
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
    write_video(video, latency.clip(FRAMES, *latency.SIZES['640x480']), preset='ultrafast')
    times, arrived, inside = latency.listen(video, 'free', Namespace(engine='geometric', checkpoints=''))
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
    speed = latency.speed(times, arrived)
    assert 0 < speed['fps'] < speed['engine_fps']
