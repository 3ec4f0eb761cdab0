# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
import random
from itertools import pairwise

import numpy as np
import pytest
from builtin_interfaces.msg import Time
from rclpy.serialization import deserialize_message
from std_msgs.msg import Header

from slam3r_ros.transport.cdr import CdrWriter
from slam3r_ros.transport.stamps import from_stamp, split, to_stamp
from slam3r_ros.values import Frame
from slam3r_ros.video.stamps import StampFilter

IMAGE = np.zeros((1, 1, 3), np.uint8)
YEAR = 365 * 24 * 3600


def run(*seconds, first=0, end=False, judge=None):
    """Return the filter, and the (id, stamp in seconds) that it passes on for each frame."""
    judge = judge or StampFilter()
    frames = [Frame(first + i, round(each * 1e9), IMAGE) for i, each in enumerate(seconds)]
    if end:
        frames[-1] = Frame(frames[-1].id, frames[-1].stamp, IMAGE, last=True)
    return judge, [[(each.id, each.stamp / 1e9) for each in judge.pass_on(frame)] for frame in frames]


def flat(passed):
    return [each for step in passed for each in step]


def test_stamps_that_rise_pass_at_once_and_unchanged():
    judge, passed = run(*range(7000, 7400), end=True)  # two hours into a recording, at 1 Hz
    assert passed == [[(i, 7000 + i)] for i in range(400)]
    assert judge.dropped == 0


def test_a_stamp_passes_once_and_what_is_late_is_left_out():
    judge, passed = run(1.0, 1.1, 1.1, 1.3, 1.2, 1.4)
    assert flat(passed) == [(0, 1.0), (1, 1.1), (3, 1.3), (5, 1.4)]
    assert (judge.duplicates, judge.disordered, judge.strays, judge.dropped) == (1, 1, 0, 2)


def test_a_single_stamp_astray_costs_its_frame_only():
    for wrong in (YEAR, 5.0, 1e-9):
        judge, passed = run(1000.0, 1000.1, 1000.2 + wrong if wrong > 1 else wrong, 1000.3, 1000.4)
        assert flat(passed) == [(0, 1000.0), (1, 1000.1), (3, 1000.3), (4, 1000.4)]
        assert (judge.strays, judge.dropped) == (1, 1)


def test_stamps_that_nothing_can_carry_are_left_out():
    judge, passed = run(1.0, -5.0, 2.0**31, 1e30, 1.1)
    assert flat(passed) == [(0, 1.0), (4, 1.1)]
    assert judge.strays == 3


def test_time_that_went_on_meanwhile_belongs_to_the_same_stream():
    judge, passed = run(1.0, 1.1, 61.0, 61.1, YEAR, YEAR + 0.1)
    assert passed == [[(0, 1.0)], [(1, 1.1)], [], [(2, 61.0), (3, 61.1)], [], [(4, YEAR), (5, YEAR + 0.1)]]
    assert judge.dropped == 0


def test_pictures_taken_at_long_intervals_all_pass():
    judge, passed = run(0, 20, 40, 60, end=True)
    assert flat(passed) == [(0, 0), (1, 20), (2, 40), (3, 60)]
    assert judge.dropped == 0


def test_a_loop_begins_another_stream_without_losing_a_frame():
    once = [100 + i / 10 for i in range(30)]
    judge, passed = run(*once, *once, *once)
    assert flat(passed) == 3 * [(i, each) for i, each in enumerate(once)]
    assert judge.dropped == 0


def test_two_clocks_on_one_topic_do_not_begin_a_stream_each_time():
    judge, passed = run(*(each for i in range(20) for each in (100 + i / 10, i / 10)))
    assert flat(passed) == [(2 * i, 100 + i / 10) for i in range(20)]
    assert judge.strays == 19  # and one that is still held back


def test_a_source_that_begins_anew_by_itself_is_followed():
    judge, _ = run(1.0, 1.1, 90.0)
    _, passed = run(0.2, 0.3, 0.1, 0.4, judge=judge)
    assert flat(passed) == [(0, 0.2), (1, 0.3), (3, 0.4)]
    assert (judge.strays, judge.disordered) == (1, 1)


@pytest.mark.parametrize('seconds, stamp', [
    (5.0, 5.0), (4.9, 4.9 + 1e-9), (4.5, 4.9 + 1e-9), (-3.0, 4.9 + 1e-9), (YEAR, YEAR),
])  # fmt: skip
def test_the_last_frame_is_always_told(seconds, stamp):
    judge, passed = run(4.8, 4.9, seconds, end=True)
    assert flat(passed)[2:] == [(2, pytest.approx(stamp, abs=1e-12))]
    assert judge.dropped == 0


def test_the_last_frame_settles_the_one_held_back():
    assert flat(run(1.0, 9.0, 9.1, end=True)[1]) == [(0, 1.0), (1, 9.0), (2, 9.1)]
    assert flat(run(1.0, 9.0, 1.1, end=True)[1]) == [(0, 1.0), (2, 1.1)]
    assert flat(run(50.0, 1.0, 1.1, end=True)[1]) == [(0, 50.0), (0, 1.0), (1, 1.1)]
    assert flat(run(-1.0, end=True)[1]) == [(0, 0.0)]


def test_whatever_comes_stamps_rise_within_a_stream():
    rng = random.Random(0)
    for _ in range(300):
        judge, out, time = StampFilter(), [], 50.0
        for i in range(200):
            time += rng.choice((0.03, 0.03, 0.03, 0.03, 0, -0.1, -60, 60, 3))
            wrong = rng.choice((None,) * 20 + (0.0, -1.0, 2.0**40, 7.0))
            out += judge.pass_on(Frame(i, round((time if wrong is None else wrong) * 1e9), IMAGE, last=i == 199))
        assert sum(each.last for each in out) == 1 and out[-1].last
        for a, b in pairwise(out):
            assert b.id == 0 and b.stamp < a.stamp or b.id > a.id and b.stamp > a.stamp
        assert len(out) + judge.dropped == 200


@pytest.mark.parametrize('nanoseconds', [0, 1, 10**9 - 1, 1_700_000_000_123_456_789, -1, -1_500_000_000])
def test_stamps_go_to_messages_and_back(nanoseconds):
    assert from_stamp(to_stamp(nanoseconds)) == nanoseconds


@pytest.mark.parametrize('nanoseconds, seconds', [
    (2**31 * 10**9, 2**31 - 1), (10**40, 2**31 - 1), (-(10**40), -(2**31)),
])  # fmt: skip
def test_a_time_that_no_message_holds_becomes_the_nearest_one(nanoseconds, seconds):
    stamp = to_stamp(nanoseconds)
    assert isinstance(stamp, Time) and stamp.sec == seconds and split(nanoseconds) == (stamp.sec, stamp.nanosec)
    writer = CdrWriter()
    writer.header(nanoseconds, 'map')
    assert deserialize_message(writer.bytes(), Header).stamp == stamp
