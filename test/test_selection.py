# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
import cv2
import numpy as np
import pytest

from slam3r_ros.mapping.selection import MAX_DROPPED, MAX_STRIDE, FrameSelector
from slam3r_ros.values import Frame, Intrinsics

SCENE = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 255, (240, 2000, 3), np.uint8), (0, 0), 2)
SCENE = cv2.normalize(SCENE, None, 0, 255, cv2.NORM_MINMAX)


def frame(i, shift=0, blur=0.0, last=False):
    image = np.ascontiguousarray(SCENE[:, shift : shift + 320])
    if blur:
        image = cv2.GaussianBlur(image, (0, 0), blur)
    return Frame(i, i * 1000, image, Intrinsics(1, 2, 3, 4), last=last)


def test_sharp_frames_pass_unchanged_but_for_the_advice():
    selector = FrameSelector()
    for i in range(50):
        given = frame(i, 2 * i, last=i == 49)
        passed = selector.select(given)
        assert passed.image is given.image
        assert (passed.id, passed.stamp, passed.intrinsics) == (given.id, given.stamp, given.intrinsics)
        assert passed.last == (i == 49)
    assert (selector.received, selector.blurred, selector.unreadable) == (50, 0, 0)


def test_one_blurred_frame_is_dropped():
    selector = FrameSelector()
    passed = [selector.select(frame(i, 2 * i, blur=6 * (i == 30))) for i in range(40)]
    assert [i for i, frame in enumerate(passed) if frame is None] == [30]
    assert selector.blurred == 1


def test_few_are_dropped_never_two_in_a_row_and_never_the_last():
    selector = FrameSelector()
    passed = [selector.select(frame(i, i, blur=6 * (i % 5 > 2), last=i == 199)) for i in range(200)]
    dropped = np.array([frame is None for frame in passed])
    assert 0 < dropped.sum() <= MAX_DROPPED * 200
    assert not (dropped[1:] & dropped[:-1]).any()
    assert passed[-1].last and not passed[-1].candidate


def test_a_blurred_frame_that_passes_is_no_candidate():
    selector = FrameSelector()
    passed = [selector.select(frame(i, 8 * i, blur=6 * (i in (15, 16)))) for i in range(20)]
    assert passed[15] is not None and not passed[15].candidate  # so early, one of 16 would be too many
    assert passed[14].candidate and passed[17].candidate


@pytest.mark.parametrize('speed, stride', [(0, MAX_STRIDE), (1, MAX_STRIDE), (4, 5), (10, 2)])
def test_the_stride_follows_the_motion(speed, stride):
    selector = FrameSelector()
    for i in range(60):
        passed = selector.select(frame(i, speed * i))
    assert abs(passed.stride - stride) <= 1


def test_a_camera_that_stands_still_needs_one_keyframe():
    selector = FrameSelector()
    assert [selector.select(frame(i)).candidate for i in range(30)] == [True] + [False] * 29


def test_a_fixed_stride_is_kept():
    selector = FrameSelector(stride=4)
    passed = [selector.select(frame(i, 10 * i)) for i in range(12)]
    assert [frame.candidate for frame in passed] == [i % 4 == 0 for i in range(12)]
    assert {frame.stride for frame in passed} == {4}


def test_black_frames_pass_but_are_no_candidates():
    selector = FrameSelector()
    for i in range(20):
        selector.select(frame(i, 10 * i))
    black = [selector.select(Frame(20 + i, i, np.zeros((240, 320, 3), np.uint8))) for i in range(20)]
    passed = [frame for frame in black if frame is not None]
    assert len(passed) >= 19 and not any(frame.candidate for frame in passed)


def test_what_is_no_image_is_dropped_unless_it_is_the_last():
    selector = FrameSelector()
    for image in (np.zeros((240, 320), np.uint8), np.zeros((4, 4, 3), np.uint8), np.zeros((240, 320, 3))):
        assert selector.select(Frame(0, 0, image)) is None
    assert selector.unreadable == 3
    last = selector.select(Frame(3, 3, np.zeros((4, 4, 3), np.uint8), last=True))
    assert last.last and not last.candidate


def test_it_is_cheap():
    import time

    selector = FrameSelector()
    frames = [Frame(i, i, cv2.resize(frame(i, 3 * i).image, (640, 480))) for i in range(20)]
    start = time.process_time()
    for each in frames:
        selector.select(each)
    assert (time.process_time() - start) / 20 < 0.02
