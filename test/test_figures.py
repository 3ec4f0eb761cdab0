# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What the geometric engine reaches, focal length unknown.

The bundled clip always; real clips when SLAM3R_DATA names a folder with them, each a folder of its own with
video.mp4, a TUM trajectory, intrinsics.json and depth images, frame number and ".png" being their names.
"""

import os
from pathlib import Path

import pytest

from slam3r_ros.evaluation.evaluate import evaluate

ROOM = Path(__file__).parent / 'data' / 'room'
DATA = Path(os.environ.get('SLAM3R_DATA', '/nonexistent'))
NEEDS_DATA = pytest.mark.skipif(not DATA.is_dir(), reason='SLAM3R_DATA names no folder of real clips')


def figures(folder, groundtruth, depth):
    return evaluate(
        folder / 'video.mp4',
        folder / groundtruth,
        depth=folder / depth if depth else None,
        intrinsics=folder / 'intrinsics.json',
        engine='geometric',
    )


def test_bundled_clip():
    result = figures(ROOM, 'groundtruth.tum', 'depth')
    assert not result['intrinsics_used']
    assert result['tracked_share'] >= 0.98
    assert result['ate_live_percent'] < 2 and result['ate_final_percent'] < 2
    assert result['depth']['abs_rel'] < 0.08 and result['depth']['coverage'] > 0.6
    assert abs(result['focal_error_percent']) < 5


@NEEDS_DATA
def test_hand_held_kitchen():
    result = figures(DATA / '7scenes_redkitchen_a', 'groundtruth_rgb.txt', 'depth_rgb')
    assert result['tracked_share'] >= 0.98
    assert result['ate_live'] <= 0.07
    assert result['depth']['abs_rel'] <= 0.10 and result['depth']['delta1'] >= 0.92
    assert result['depth']['coverage'] >= 0.40


@NEEDS_DATA
def test_rendered_living_room():
    result = figures(DATA / 'icl_livingroom1', 'groundtruth.txt', 'depth')
    assert result['tracked_share'] >= 0.98
    assert result['ate_live'] <= 0.025
    assert result['depth']['abs_rel'] <= 0.04 and result['depth']['coverage'] >= 0.60
    assert abs(result['focal_error_percent']) <= 5


@NEEDS_DATA
def test_big_jumps_about_a_fox():
    result = figures(DATA / 'fox', 'groundtruth.txt', None)
    assert result['init_frames'] <= result['frames'] / 4
    assert result['tracked_share'] >= 0.60 and result['backfilled_share'] >= 0.70
