# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Which frames are worth the engine's time: drops blurred ones, and advises on keyframes.

The advised stride is the number of frames in which the view changes by a fixed amount, after the manner of Engel et
al., "Direct Sparse Odometry", 2018 (section 3.1), who weigh two parts of the optical flow: here, what shifts the whole
image brings new things into view and counts in full; what spreads it counts for a quarter.  Forward motion down a
corridor mostly spreads the image: new things hardly enter (high overlap), and near the middle nothing moves (low
parallax), so the stride is wide.  A camera that pans or passes by things shifts the image: in a room it is narrower.

The engine's confidence then widens or narrows the stride.  It never touches `candidate`, so that engines which heed
that alone are not disturbed, and it counts a fixed number of frames late, so that one result does not depend on the
timing: see `DELAY`.
"""

from collections import deque
from dataclasses import replace

import cv2
import numpy as np

from slam3r_ros.values import Frame, Keyframe

WIDTH = 160  # pixels, at which motion is measured; sharpness at twice that
HEIGHTS = (32, 640)  # pixels at that width, at least and at most; OpenCV's flow crashes on less than 32
SMALLEST = 16  # pixels of a side; what is smaller is no image
SECOND = np.float32([[0, 0, 0], [1, -2, 1], [0, 0, 0]])  # derivative along x; transposed, along y
BLURRED = 0.3  # of the usual sharpness
MAX_DROPPED = 0.05  # share of the frames
BLANK = 1.0  # grey levels of deviation; less shows nothing
KEYFRAME_MOTION = 0.06  # of the image's width, from one keyframe to the next
SPREAD = 0.25  # weight of spreading: pure forward motion may double the image's scale from one keyframe to the next
CANDIDATE_MOTION = 0.01  # of the image's width; a camera that stands still needs no keyframe
MAX_STRIDE = 15
# Frames after which a keyframe counts.  By then it has always been heard: in one process, lossless, at most two queues
# (`queue_depth` 2) and the frames in work lie between selector and engine, nine frames where every other is dropped.
DELAY = 10
USUAL = 8  # keyframes that tell the usual confidence; more than come late, all at once, when a map begins
REMEMBERED = 30  # keyframes
TRUST = (0.5, 1.5)  # least and most that confidence does to the stride


class FrameSelector:
    """Passes frames on, in order, with advice; a few milliseconds each.

    Tracking needs every frame, so a frame is dropped only when it is far less sharp than those before it (variance of
    the Laplacian, Pech-Pacheco et al. 2000), never two in a row, never the last, and at most a twentieth of them all.
    One that is unsharp along its rows or its columns alone, as motion makes it, can be tracked but is no candidate.
    A blank frame tells nothing but passes, that the engine may know that the camera is blind; it is no candidate.
    """

    received = 0  # frames
    blurred = 0  # of them dropped
    unreadable = 0  # of them dropped: no image at all

    def __init__(self, stride: int = 0) -> None:
        """Begin a stream.

        Args:
            stride: Fixed advice of frames between keyframes, 1 to 15; 0 follows the motion of the image and the
                engine's confidence.

        Raises:
            ValueError: The stride is out of range.
        """
        if not 0 <= stride <= MAX_STRIDE:
            raise ValueError(f'the stride must be 1 to {MAX_STRIDE}, or 0 to follow the motion, not {stride}')
        self._stride = stride
        self._sharpness: deque[np.ndarray] = deque(maxlen=30)  # (3,) of the latest frames: in all, along x, along y
        self._flow = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)
        self._previous: np.ndarray | None = None  # (h, w) uint8
        self._change = 0.0  # of the view, image widths a frame, smoothed
        self._moved = np.inf  # image widths since the last candidate
        self._since = MAX_STRIDE  # frames since the last candidate
        self._dropped_before = False
        self._map_id: int | None = None
        self._confidence: dict[int, float] = {}  # by keyframe

    def select(self, frame: Frame) -> Frame | None:
        """Return the frame with advice, or None where it should be dropped.

        Grey and RGBA images pass too: whether they can be used is for the engine to say.
        """
        self.received += 1
        if not _is_image(frame.image):
            self.unreadable += 1
            return replace(frame, candidate=False) if frame.last else None
        height, width = frame.image.shape[:2]
        size = WIDTH, int(np.clip(round(WIDTH * height / width), *HEIGHTS))
        middle = cv2.resize(frame.image, (2 * size[0], 2 * size[1]), interpolation=cv2.INTER_AREA)
        if middle.ndim == 3:
            middle = cv2.cvtColor(middle, cv2.COLOR_RGB2GRAY)
        blank, (blurred, smeared) = middle.std() < BLANK, self._is_blurred(middle)
        if blurred and self._may_drop(frame):
            self.blurred += 1
            self._dropped_before = True
            return None
        self._dropped_before = False
        self._follow(cv2.resize(middle, size, interpolation=cv2.INTER_AREA))
        due = self._since >= self._stride if self._stride else self._moved >= CANDIDATE_MOTION
        candidate = bool(due and not blank and not smeared)
        if candidate:
            self._moved, self._since = 0.0, 0
        return replace(frame, candidate=candidate, stride=self._stride or self._advise(frame.id))

    def hear(self, keyframe: Keyframe) -> None:
        """Take note of the engine's confidence in a keyframe, for the strides of later frames.

        What counts is its mean over all pixels, those without a point included, when the keyframe first has depth:
        later revisions have been seen from more places, and beside them the newest would always look poor.  Another
        map begins with nothing known.
        """
        if keyframe.map_id != self._map_id:
            self._map_id, self._confidence = keyframe.map_id, {}
        if keyframe.confidence is None or keyframe.id in self._confidence:
            return
        self._confidence[keyframe.id] = float(keyframe.confidence.mean())
        if len(self._confidence) > REMEMBERED + DELAY:
            del self._confidence[min(self._confidence)]

    def _advise(self, id: int) -> int:
        """Return the stride that motion and confidence ask for at a frame."""
        stride = min(KEYFRAME_MOTION / max(self._change, 1e-6), MAX_STRIDE)
        return int(np.clip(round(stride * self._trust(id)), 1, MAX_STRIDE))

    def _trust(self, id: int) -> float:
        """Return the newest confidence that counts at a frame, as a multiple of the usual one."""
        heard = [value for key, value in sorted(self._confidence.items()) if key <= id - DELAY][-REMEMBERED:]
        if len(heard) < USUAL:
            return 1.0
        return float(np.clip(heard[-1] / max(np.median(heard), 1e-6), *TRUST))

    def _is_blurred(self, grey: np.ndarray) -> tuple[bool, bool]:
        """Tell whether an image is far less sharp than usual, and whether it is along one axis at least."""
        derivatives = (cv2.filter2D(grey, cv2.CV_16S, kernel) for kernel in (SECOND + SECOND.T, SECOND, SECOND.T))
        sharpness = np.array([cv2.meanStdDev(each)[1].item() ** 2 for each in derivatives])
        usual = np.median(self._sharpness, axis=0) if len(self._sharpness) >= 10 else np.zeros(3)
        self._sharpness.append(sharpness)
        blurred = sharpness < BLURRED * usual
        return bool(blurred[0]), bool(blurred.any())

    def _may_drop(self, frame: Frame) -> bool:
        return not frame.last and not self._dropped_before and self.blurred + 1 <= MAX_DROPPED * self.received

    def _follow(self, grey: np.ndarray) -> None:
        """Measure how far the image moved since the frame before, and how much that changed the view."""
        motion = change = 0.0
        if self._previous is not None and self._previous.shape == grey.shape:
            flow = self._flow.calc(self._previous, grey, None)  # (h, w, 2) pixels
            coarse = flow[::4, ::4]  # no finer is it found
            shift = np.median(coarse, axis=(0, 1))
            motion = _median_length(flow) / grey.shape[1]
            change = (float(np.linalg.norm(shift)) + SPREAD * _median_length(coarse - shift)) / grey.shape[1]
        self._previous = grey
        self._change += 0.3 * (change - self._change)
        self._moved += motion
        self._since += 1


def _is_image(image: np.ndarray) -> bool:
    """Tell whether an array is an image: grey (H, W), RGB or RGBA (H, W, 3 or 4), uint8, and not tiny."""
    size, channels = image.shape[:2], image.shape[2:]
    return image.dtype == np.uint8 and channels in ((), (3,), (4,)) and image.ndim > 1 and min(size) >= SMALLEST


def _median_length(vectors: np.ndarray) -> float:
    return float(np.median(np.linalg.norm(vectors, axis=2)))
