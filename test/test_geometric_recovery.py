# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The camera is found again after three seconds of black frames: the bundled clip always, the real one where it is."""

import os
from argparse import ArgumentParser
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from slam3r_ros.bench import recovery
from slam3r_ros.values import Pose
from slam3r_ros.video.source import open_source

ROOM = Path(__file__).parent / 'data' / 'room'
FRAMES = 120
KITCHEN = Path(os.environ.get('SLAM3R_DATA', '/nonexistent')) / '7scenes_redkitchen_a'


def bench(*arguments: object) -> int:
    parser = ArgumentParser()
    recovery.add_arguments(parser)
    return recovery.main(parser.parse_args(list(map(str, arguments))))


class Short:
    """The first frames of a video: enough to be lost and found again."""

    def __init__(self, video):
        self._source = open_source(video)
        self.fps, self.close = self._source.fps, self._source.close

    def __iter__(self):
        return islice(self._source, FRAMES)


def test_bundled_clip(capsys, monkeypatch):
    monkeypatch.setattr(recovery, 'open_source', Short)
    assert bench('--video', ROOM / 'video.mp4', '--groundtruth', ROOM / 'groundtruth.tum', '--still', '--at', 0.5) == 0
    assert 'kept' in capsys.readouterr().out


@pytest.mark.skipif(not KITCHEN.is_dir(), reason='SLAM3R_DATA names no folder of real clips')
def test_hand_held_kitchen():
    assert bench('--video', KITCHEN / 'video.mp4', '--groundtruth', KITCHEN / 'groundtruth_rgb.txt') == 0


def poses(places: np.ndarray, late: int = 0, begin: int = 0) -> list[Pose]:
    """Return poses at places (N, 3), one a tenth of a second, those from `begin` on so many nanoseconds later."""
    made = []
    for i, place in enumerate(places):
        T = np.eye(4)
        T[:3, 3] = place
        made.append(Pose(i, i * 100_000_000 + late * (i >= begin), T))
    return made


def test_outcome_is_what_it_says():
    random = np.random.default_rng(0)
    places = np.cumsum(random.normal(0, 0.1, (100, 3)), axis=0)
    truth, noise = poses(places), random.normal(0, 0.01, (100, 3))
    uncut = poses(places + noise)
    worse = places + noise * np.where(np.arange(100) >= 60, 3, 1)[:, None]
    start, end = 4_000_000_000, 6_000_000_000
    cut = [pose for pose in poses(worse) if pose.stamp < start or pose.stamp >= end + 500_000_000]
    outcome = recovery.compare(uncut, cut, start, end, False, truth)
    assert outcome.seconds == pytest.approx(0.5) and outcome.ratio == pytest.approx(3, rel=0.15)
    worse = places + noise * np.where(np.arange(100) >= 40, 2, 1)[:, None]
    outcome = recovery.compare(uncut, poses(worse, end - start, 40), start, end, True, truth)
    assert outcome.seconds == 0 and outcome.ratio == pytest.approx(2, rel=0.15)
    assert recovery.compare(uncut, uncut[:40], start, end, False, truth).seconds == np.inf
