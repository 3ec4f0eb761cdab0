# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Feature tracks follow a moving image."""

import cv2
import numpy as np
import pytest
from geometric_scenes import texture

from slam3r_ros.engines.geometric.tracks import Tracks


@pytest.fixture
def tracks():
    """Return empty tracks whose ids count from 0."""
    given = [0]

    def allocate(number: int) -> np.ndarray:
        given[0] += number
        return np.arange(given[0] - number, given[0])

    return Tracks(200, allocate)


def test_tracks_follow_a_shift(tracks):
    image = texture()
    shift = np.float32([[1, 0, 3.5], [0, 1, -2.25]])
    tracks.follow(image)
    tracks.detect()
    before = dict(zip(tracks.ids, tracks.pixels))
    tracks.follow(cv2.warpAffine(image, shift, (320, 240), borderMode=cv2.BORDER_REFLECT))
    assert len(tracks) > 0.8 * len(before)
    moved = np.array([pixel - before[id] for id, pixel in zip(tracks.ids, tracks.pixels)])
    np.testing.assert_allclose(np.median(moved, axis=0), [3.5, -2.25], atol=0.05)


def test_corners_are_spread_evenly_and_apart(tracks):
    image = texture()
    image[:, :160] = image[:, :160] // 8 + 100  # low contrast on the left
    tracks.follow(image)
    tracks.detect()
    left = (tracks.pixels[:, 0] < 160).mean()
    assert 0.35 < left < 0.65
    gaps = np.linalg.norm(tracks.pixels[:, None] - tracks.pixels[None], axis=2) + 100 * np.eye(len(tracks))
    assert gaps.min() > 2


def test_detection_fills_gaps_only(tracks):
    tracks.follow(texture())
    tracks.detect()
    kept = tracks.pixels[:, 0] > 160
    tracks.keep(kept)
    old = tracks.ids.copy()
    tracks.detect()
    new = ~np.isin(tracks.ids, old)
    assert new.any() and len(set(tracks.ids)) == len(tracks)
    assert (tracks.pixels[new, 0] < 170).mean() > 0.9


def test_another_image_ends_the_tracks(tracks):
    tracks.follow(texture())
    tracks.detect()
    number = len(tracks)
    tracks.follow(texture(seed=9))
    assert len(tracks) < 0.2 * number


def test_blank_image_has_no_tracks(tracks):
    tracks.follow(np.full((240, 320), 127, np.uint8))
    tracks.detect()
    assert len(tracks) == 0
