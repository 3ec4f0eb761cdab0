# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`slam3r bench endurance`: its video, its judgement, and the command itself in small."""

import json
from contextlib import closing

import numpy as np
import pytest

from slam3r_ros.bench import endurance, gallery
from slam3r_ros.bench.endurance import Sample, by_minute, judge
from slam3r_ros.cli import main
from slam3r_ros.video.source import open_source

FRAMES = 3600
NODES = {'/video_decoder', '/keyframe_selector', '/slam3r', '/mesher'}


def test_walks_follow_one_path_through_places_that_look_like_no_others(tmp_path):
    gallery.make_video(tmp_path / 'video.mp4', 120, 2)
    with closing(open_source(str(tmp_path / 'video.mp4'))) as source:
        frames = list(source)
    images = np.array([frame.image for frame in frames], np.float32)
    assert len(images) == 120 and images.shape[1:] == (240, 320, 3) and frames[-1].stamp == 11_900_000_000
    between = np.abs(images[:60] - images[60:]).mean(axis=(1, 2, 3))
    assert 0.5 < between.min() and between.max() < 20  # the same places, but no picture twice
    panels = [gallery.draw(gallery.pose(step, 6000)) for step in range(500, 2500, 160)]  # two panels apart
    small = np.array([panel[::8, ::8].ravel() for panel in panels], float)
    alike = np.corrcoef(small) - np.eye(len(small))
    assert alike.max() < 0.9
    steps = np.linalg.norm(np.diff([gallery.pose(step, 6000)[:3, 3] for step in range(6001)], axis=0), axis=1)
    assert steps.max() < 0.06 and steps.sum() > 150  # metres: a hand-held camera that gets far


def samples(**late: float) -> list[Sample]:
    """Return what a run of some fields that drift to so many times their value is seen to do, once a second."""
    drift = {'memory_mb': 1.0, 'waiting': 1.0, 'fps': 1.0} | late
    seen, frames, seconds = [], 0, 0.0
    while frames < FRAMES:
        share = frames / FRAMES
        now = {name: 1 + (end - 1) * share for name, end in drift.items()}
        waiting, memory = 4 * now['waiting'], 500 * now['memory_mb']
        seen.append(Sample(seconds, frames, frames // 5, waiting, memory, 600, 0.04 * frames))
        frames, seconds = frames + 8, seconds + 8 / (40 * now['fps'])
    return [*seen, seen[-1]._replace(seconds=seconds, frames=FRAMES, work=0.04 * FRAMES)]


@pytest.mark.parametrize('late, kept', [
    ({}, True),
    ({'memory_mb': 1.06}, True),
    ({'memory_mb': 1.09}, False),
    ({'memory_mb': 0.92}, False),
    ({'waiting': 1.09}, False),
    ({'fps': 1.1}, True),
    ({'fps': 0.75}, False),
])
def test_judgement(late, kept):
    """Two thirds of the drift lie between both windows."""
    minutes = by_minute(samples(**late), FRAMES)
    assert len(minutes) == 60
    assert judge(minutes)['kept'] == kept
    for name, value in (('fps', 40), ('memory_mb', 500), ('waiting', 4), ('work_ms', 40)):
        assert minutes[0][name] == pytest.approx(value, rel=0.01)


def test_a_run_that_never_reaches_its_bound_shows_nothing():
    few = [sample._replace(keyframes=min(sample.keyframes, 90)) for sample in samples()]
    assert not judge(by_minute(few, FRAMES))['kept']


def test_the_command(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(endurance, 'LIMITS', {name: 100.0 for name in endurance.LIMITS})  # so short it measures nothing
    monkeypatch.setitem(endurance.BOUNDS, 'slam3r', {'max_keyframes': 50})
    assert main(['bench', 'endurance', '--minutes', '0.15', '--json', str(tmp_path / 'figures.json')]) == 1
    assert 'MISSED' in capsys.readouterr().out.splitlines()[-1]  # the map was never full
    figures = json.loads((tmp_path / 'figures.json').read_text())
    assert len(figures['minutes']) == 60 and figures['fps']['late'] > 0
    assert 50 < figures['memory_mb']['late'] < figures['rss_mb']['late']
    counters = figures['counters']
    assert set(counters) >= NODES
    assert counters['/video_decoder']['received'] == counters['/slam3r']['frames'] == '90'
    assert all(value == '0' for node in NODES for key, value in counters[node].items()
               if key.startswith('dropped ') and key != 'dropped status')
