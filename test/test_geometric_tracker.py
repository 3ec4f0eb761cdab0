# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The sparse SLAM of one map in a rendered room: what it does on a weak frame, and how many keyframes it makes."""

from types import SimpleNamespace

import numpy as np
import pytest
from geometric_scenes import CAMERA_FOCAL, HEIGHT, INTRINSICS, WIDTH, Room, walk

from slam3r_ros.engines.geometric import local_mapping, tracker
from slam3r_ros.engines.geometric import relocalise as relocalise_module
from slam3r_ros.engines.geometric.tracker import Tracker
from slam3r_ros.values import State

THERE = 40  # frames of the way there; the way back shows old points again
WEAK = 71  # on the way back, no keyframe the frame before


@pytest.fixture(scope='module')
def images():
    room, path = Room(panels=4), walk(0, 0.04, THERE)
    return [room.render(T) for T in (*path, *path[::-1])]


def make() -> Tracker:
    return Tracker(WIDTH, HEIGHT, (INTRINSICS.cx, INTRINSICS.cy), CAMERA_FOCAL)


@pytest.fixture(scope='module')
def weak(images):
    """Track a frame of which little is left, so that the frame before is secured; tell what came of it."""
    slam, told = make(), SimpleNamespace(gone=set(), stale=[], asked=[])
    extend = local_mapping.extend

    def watched(map, keyframe, *arguments):
        told.stale += [(keyframe.id, id) for id in keyframe.ids.tolist() if id in told.gone]
        table = extend(map, keyframe, *arguments)
        told.gone |= set(np.flatnonzero(table != np.arange(len(table))).tolist())
        return table

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local_mapping, 'extend', watched)
        patch.setattr(tracker, 'relocalise', lambda _, numbers, *__, **___: told.asked.append(numbers.tolist()))
        patch.setattr(relocalise_module, '_CONSIDERED', 10)
        for id, image in enumerate(images[:WEAK]):
            slam.track(id, image)
        assert not told.asked
        told.gone_before = len(told.gone)
        hidden = images[WEAK].copy()
        hidden[:, :int(0.6 * WIDTH)] = 90
        told.step = slam.track(WEAK, hidden)
        told.state, told.keyframes = slam.state, len(slam.map.keyframes)
        for id in range(WEAK + 1, WEAK + 3):
            slam.track(id, images[id])
    return told


def test_points_that_became_others_stay_so_when_the_frame_before_is_secured(weak):
    """A keyframe made of the frame before lets points be one; the tracks of the newest frame must follow."""
    assert weak.state == State.TRACKING and [keyframe.id for keyframe, _ in weak.step.inserted] == [WEAK - 1, WEAK]
    assert len(weak.gone) > weak.gone_before
    assert not weak.stale


def test_a_weak_frame_is_looked_for_in_the_newest_keyframes(weak):
    known = weak.keyframes - 1  # its own came afterwards
    assert known > 10
    assert weak.asked[0] == list(range(known - 8, known))


def test_dropped_frames_bring_no_more_keyframes(images):
    """A camera too fast for the engine: nearly each frame that is left becomes a keyframe, but then few are left."""
    def keyframes(every: int) -> int:
        slam = make()
        for id in range(0, THERE, every):
            slam.track(id, images[id])
        assert slam.state == State.TRACKING
        return len(slam.map.keyframes)

    of_all, of_some = keyframes(1), keyframes(4)
    assert of_some <= of_all < THERE / 3
    assert of_some > THERE / 4 / 2
