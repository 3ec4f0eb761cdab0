# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Which frames are worth the engine's time: drops blurred ones, and advises on keyframes."""

from collections import deque
from dataclasses import replace

import cv2
import numpy as np

from slam3r_ros.values import Frame

WIDTH = 160  # pixels, at which motion is measured; sharpness at twice that
BLURRED = 0.3  # of the usual sharpness
MAX_DROPPED = 0.05  # share of the frames
BLANK = 1.0  # grey levels of deviation; less shows nothing
KEYFRAME_MOTION = 0.06  # of the image's width, from one keyframe to the next
CANDIDATE_MOTION = 0.01  # of the image's width; a camera that stands still needs no keyframe
MAX_STRIDE = 15


class FrameSelector:
    """Passes frames on, in order, with advice; a few milliseconds each.

    Tracking needs every frame, so a frame is dropped only when it is far less sharp than those before it (variance of
    the Laplacian, Pech-Pacheco et al. 2000), never two in a row, never the last, and at most a twentieth of them all.
    A blank frame tells nothing but passes, that the engine may know that the camera is blind; it is no candidate.
    """

    received = 0  # frames
    blurred = 0  # of them dropped
    unreadable = 0  # of them dropped: no image at all

    def __init__(self, stride: int = 0) -> None:
        """Begin a stream.

        Args:
            stride: Fixed advice of frames between keyframes; 0 follows the motion of the image.
        """
        self._stride = stride
        self._sharpness: deque[float] = deque(maxlen=30)  # of the latest frames
        self._flow = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)
        self._previous: np.ndarray | None = None  # (h, w) uint8
        self._speed = 0.0  # image widths a frame, smoothed
        self._moved = np.inf  # image widths since the last candidate
        self._since = MAX_STRIDE  # frames since the last candidate
        self._dropped_before = False

    def select(self, frame: Frame) -> Frame | None:
        """Return the frame with advice, or None where it should be dropped."""
        self.received += 1
        if frame.image.ndim != 3 or frame.image.dtype != np.uint8 or min(frame.image.shape[:2]) < 16:
            self.unreadable += 1
            return replace(frame, candidate=False) if frame.last else None
        height, width = frame.image.shape[:2]
        size = WIDTH, max(round(WIDTH * height / width), 16)
        middle = cv2.resize(frame.image, (2 * size[0], 2 * size[1]), interpolation=cv2.INTER_AREA)
        middle = cv2.cvtColor(middle, cv2.COLOR_RGB2GRAY)
        blank, blurred = middle.std() < BLANK, self._is_blurred(middle)
        if blurred and self._may_drop(frame):
            self.blurred += 1
            self._dropped_before = True
            return None
        self._dropped_before = False
        self._follow(cv2.resize(middle, size, interpolation=cv2.INTER_AREA))
        stride = self._stride or int(np.clip(round(KEYFRAME_MOTION / max(self._speed, 1e-6)), 1, MAX_STRIDE))
        due = self._since >= self._stride if self._stride else self._moved >= CANDIDATE_MOTION
        candidate = bool(due and not blank and not blurred)
        if candidate:
            self._moved, self._since = 0.0, 0
        return replace(frame, candidate=candidate, stride=stride)

    def _is_blurred(self, grey: np.ndarray) -> bool:
        sharpness = float(cv2.Laplacian(grey, cv2.CV_16S).var())
        usual = float(np.median(self._sharpness)) if len(self._sharpness) >= 10 else 0.0
        self._sharpness.append(sharpness)
        return sharpness < BLURRED * usual

    def _may_drop(self, frame: Frame) -> bool:
        return not frame.last and not self._dropped_before and self.blurred + 1 <= MAX_DROPPED * self.received

    def _follow(self, grey: np.ndarray) -> None:
        """Measure how far the image moved since the frame before."""
        motion = 0.0
        if self._previous is not None and self._previous.shape == grey.shape:
            flow = self._flow.calc(self._previous, grey, None)  # (h, w, 2) pixels
            motion = float(np.median(np.linalg.norm(flow, axis=2))) / grey.shape[1]
        self._previous = grey
        self._speed += 0.3 * (motion - self._speed)
        self._moved += motion
        self._since += 1
