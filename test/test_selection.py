# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
import itertools
import os
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from slam3r_ros.bench.selection import blur_found, corridor, median_stride, recorded, views_apart
from slam3r_ros.mapping.selection import DELAY, MAX_DROPPED, MAX_STRIDE, REMEMBERED, USUAL, FrameSelector
from slam3r_ros.values import Frame, Intrinsics, Keyframe, Pose

ROOM = Path(__file__).parent / 'data' / 'room'
DATA = Path(os.environ.get('SLAM3R_DATA', '/nonexistent'))
NEEDS_DATA = pytest.mark.skipif(not DATA.is_dir(), reason='SLAM3R_DATA names no folder of real clips')

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


def test_a_frame_that_motion_smears_passes_but_is_no_candidate():
    selector, passed = FrameSelector(stride=1), []
    for i in range(40):
        image = frame(i, 2 * i).image
        if i == 20:
            image = cv2.blur(image, (7, 1))
        if i == 30:
            image = cv2.blur(image, (1, 7))
        passed.append(selector.select(Frame(i, i, image)))
    assert None not in passed
    assert [i for i, each in enumerate(passed) if not each.candidate] == [20, 30]


@pytest.mark.parametrize('speed, stride', [(0, MAX_STRIDE), (1, MAX_STRIDE), (4, 5), (10, 2)])
def test_the_stride_follows_the_motion(speed, stride):
    selector = FrameSelector()
    for i in range(60):
        passed = selector.select(frame(i, speed * i))
    assert abs(passed.stride - stride) <= 1


def test_going_forward_asks_for_fewer_keyframes_than_going_sideways():
    """Of two cameras whose images move equally far, on the median, the one that goes forward has the wider stride."""
    forward, sideways = FrameSelector(), FrameSelector()
    for i in range(40):
        half = int(200 / 1.02**i)  # the square that fills the image: 2 % closer each frame
        image = cv2.resize(SCENE[120 - half // 2 : 120 + half // 2, 400 - half // 2 : 400 + half // 2], (240, 240))
        ahead = forward.select(Frame(i, i, image))
        beside = sideways.select(Frame(i, i, np.ascontiguousarray(SCENE[:, 2 * i : 2 * i + 240])))
    assert ahead.stride >= 1.5 * beside.stride


def test_corridors_are_wider_than_rooms_and_rooms_wider_than_fast_motion():
    hall, room = corridor(60), recorded('room', 'room', ROOM, 'groundtruth.tum', 'depth')
    strides = {clip.name: median_stride(clip)[0] for clip in (hall, room, room.faster(3))}
    assert strides['corridor'] >= 1.3 * strides['room']
    assert strides['room'] >= 2 * strides['room x3']
    for clip in (hall, room, room.faster(3)):  # what the advice means, by the true depth
        overlap, parallax = views_apart(clip, round(strides[clip.name]))
        assert overlap > 0.8 and 1 < parallax < 10
    caught, blurred, others = blur_found(room)
    assert (caught, blurred, others) == (11, 11, 0)


@NEEDS_DATA
def test_a_street_is_wider_than_a_kitchen_and_that_wider_than_a_fast_one():
    street = recorded('street', 'corridor', DATA / 'kitti_vo_1', 'groundtruth.txt')
    kitchen = recorded('kitchen', 'room', DATA / '7scenes_redkitchen_a', 'groundtruth_rgb.txt')
    (wide, _), (middle, dropped), (narrow, _) = map(median_stride, (street, kitchen, kitchen.faster(3)))
    assert wide >= 1.3 * middle >= 2 * narrow
    assert dropped == 0  # what is smeared there can be tracked
    caught, blurred, _ = blur_found(kitchen)
    assert caught == blurred


def test_a_camera_that_stands_still_needs_one_keyframe():
    selector = FrameSelector()
    assert [selector.select(frame(i)).candidate for i in range(30)] == [True] + [False] * 29


def test_a_fixed_stride_is_kept():
    selector = FrameSelector(stride=4)
    passed = [selector.select(frame(i, 10 * i)) for i in range(12)]
    assert [frame.candidate for frame in passed] == [i % 4 == 0 for i in range(12)]
    assert {frame.stride for frame in passed} == {4}


@pytest.mark.parametrize('stride', [-1, MAX_STRIDE + 1])
def test_a_fixed_stride_out_of_range_is_refused(stride):
    with pytest.raises(ValueError, match='the stride must be 1 to 15'):
        FrameSelector(stride)


def keyframe(id, confidence=0.5, map_id=1, revision=1):
    map = None if confidence is None else np.full((6, 8), confidence, np.float32)
    return Keyframe(Pose(id, 0, np.eye(4)), Intrinsics(1, 2, 3, 4), None, map, revision=revision, map_id=map_id)


def advice(confidences, until=80, every=5, stride=0, late=0):
    """Return what is advised at each frame when every fifth frame becomes a keyframe, heard `late` frames later."""
    selector, passed = FrameSelector(stride), []
    for i in range(until):
        done = i - late
        if done >= 0 and done % every == 0 and done // every < len(confidences):
            selector.hear(keyframe(done, confidences[done // every]))
        passed.append(selector.select(frame(i, 2 * i)))
    return passed


def test_the_stride_follows_the_confidence():
    usual = [each.stride for each in advice([0.5] * 16)]
    assert usual == [each.stride for each in advice([])] and usual[79] >= 8
    low, high = ([each.stride for each in advice([0.5] * 10 + [value] * 6)] for value in (0.3, 0.7))
    assert low[:60] == high[:60] == usual[:60]  # keyframe 50 counts from frame 60 on
    assert abs(low[60] - 0.6 * usual[60]) < 1 and abs(high[60] - 1.4 * usual[60]) < 1
    lost = advice([0.5] * 10 + [0.0] * 6)[60].stride
    assert abs(lost - 0.5 * usual[60]) < 1  # and no less


def test_confidence_never_changes_what_is_a_candidate():
    assert [each.candidate for each in advice([0.5] * 10 + [0.1] * 6)] == [each.candidate for each in advice([])]


def test_a_fixed_stride_does_not_listen():
    assert {each.stride for each in advice([0.5] * 10 + [0.1] * 6, stride=4)} == {4}


@pytest.mark.parametrize('late', [1, DELAY])
def test_when_a_keyframe_is_heard_makes_no_difference(late):
    confidences = np.random.default_rng(0).uniform(0.2, 0.9, 16)
    assert [each.stride for each in advice(confidences, late=late)] == [each.stride for each in advice(confidences)]
    assert [each.stride for each in advice(confidences)] != [each.stride for each in advice([])]


def test_a_few_keyframes_do_not_tell_the_usual_confidence():
    few = advice([0.9] * (USUAL - 2) + [0.1])
    assert [each.stride for each in few] == [each.stride for each in advice([])]


def after(*keyframes):
    selector = FrameSelector()
    for each in keyframes:
        selector.hear(each)
    for i in range(100, 130):
        passed = selector.select(frame(i, 2 * (i - 100)))
    return passed.stride


def test_keyframes_without_depth_and_later_revisions_say_nothing():
    steady = [keyframe(i) for i in range(12)]
    usual = after(*steady)
    assert after(*steady, keyframe(20, 0.1)) < usual
    assert after(*steady, keyframe(20, None, revision=0)) == usual
    assert after(*steady, keyframe(11, 0.1, revision=2)) == usual


def test_another_map_begins_with_nothing_known():
    old, usual = [*(keyframe(i) for i in range(12)), keyframe(12, 0.1)], after()
    assert after(*old) < usual
    assert after(*old, keyframe(20, map_id=2)) == usual
    assert after(*old, keyframe(20, None, map_id=2)) == usual  # its first one has no depth yet


def test_what_was_heard_is_bounded():
    selector = FrameSelector()
    for i in itertools.chain(range(500), range(0, 500, 7)):
        selector.hear(keyframe(i))
    assert sorted(selector._confidence) == list(range(500 - REMEMBERED - DELAY, 500))


def test_black_frames_pass_but_are_no_candidates():
    selector = FrameSelector()
    for i in range(20):
        selector.select(frame(i, 10 * i))
    black = [selector.select(Frame(20 + i, i, np.zeros((240, 320, 3), np.uint8))) for i in range(20)]
    passed = [frame for frame in black if frame is not None]
    assert len(passed) >= 19 and not any(frame.candidate for frame in passed)


@pytest.mark.parametrize('image', [
    np.zeros((4, 4, 3), np.uint8),
    np.zeros((240, 320, 3)),
    np.zeros((240, 320, 2), np.uint8),
    np.zeros((240, 320, 3, 1), np.uint8),
    np.zeros(240, np.uint8),
    np.zeros((0, 0, 3), np.uint8),
])
def test_what_is_no_image_is_dropped_unless_it_is_the_last(image):
    selector = FrameSelector()
    assert selector.select(Frame(0, 0, image)) is None
    assert selector.unreadable == 1
    last = selector.select(Frame(1, 1, image, last=True))
    assert last.last and not last.candidate


@pytest.mark.parametrize('convert', [
    lambda image: cv2.cvtColor(image, cv2.COLOR_RGB2GRAY),
    lambda image: cv2.cvtColor(image, cv2.COLOR_RGB2RGBA),
    lambda image: image[::-1],  # not contiguous
])
def test_grey_and_rgba_images_get_the_same_advice_and_reach_the_engine(convert):
    plain, other = FrameSelector(), FrameSelector()
    for i in range(30):
        image = frame(i, 4 * i).image
        expected, passed = plain.select(Frame(i, i, image)), other.select(Frame(i, i, convert(image)))
        assert (passed.candidate, passed.stride) == (expected.candidate, expected.stride)
    assert other.unreadable == 0


@pytest.mark.parametrize('shape', [(16, 16), (16, 2000), (2000, 16)])
def test_odd_shapes_get_advice(shape):
    selector, rng = FrameSelector(), np.random.default_rng(0)
    for i in range(5):
        passed = selector.select(Frame(i, i, rng.integers(0, 255, (*shape, 3)).astype(np.uint8)))
        assert 1 <= passed.stride <= MAX_STRIDE


def test_the_image_size_may_change_in_the_stream():
    selector, passed = FrameSelector(), []
    for i in range(60):
        image = frame(i, 4 * i).image
        if i >= 30:
            image = cv2.resize(image, (300, 400))
        passed.append(selector.select(Frame(i, i, image)))
    assert None not in passed
    assert abs(passed[29].stride - 5) <= 1 and abs(passed[59].stride - 5) <= 1


def test_it_is_cheap():
    selector = FrameSelector()
    frames = [Frame(i, i, cv2.resize(frame(i, 3 * i).image, (640, 480))) for i in range(20)]
    seconds = []
    for each in frames:
        start = time.process_time()
        selector.select(each)
        seconds.append(time.process_time() - start)
    assert np.median(seconds) < 0.02
