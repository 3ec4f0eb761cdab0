# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The images of a stream: what they must be, and how large they are tracked."""

from typing import NamedTuple

import cv2
import numpy as np

from slam3r_ros.values import MIN_SIDE, Frame, Intrinsics, same_shape

_AREA = 640 * 480  # pixels at which images are tracked
_MAX_ENLARGED = 2.0  # times that a smaller image is enlarged for it, at most


class UnsuitableError(ValueError):
    """A frame cannot be tracked; the message says why."""


class Stream(NamedTuple):
    """The sizes and the camera of a stream."""

    frame_size: tuple[int, int]  # height and width of its frames
    size: tuple[int, int]  # height and width at which they are tracked
    camera: Intrinsics  # of the tracked images; the focal length may be a guess, or 0

    @property
    def scale(self) -> tuple[float, float]:
        """Tracked images to frames, x and y."""
        return self.size[1] / self.frame_size[1], self.size[0] / self.frame_size[0]

    @classmethod
    def of(cls, frame: Frame, focal: float) -> 'Stream':
        """Settle on sizes and camera by the first frame; `focal` in its pixels where it comes without intrinsics.

        Raises:
            UnsuitableError: the image is no RGB image, or too small.
        """
        height, width = _size(frame)
        given = frame.intrinsics
        if given is None:
            given = Intrinsics(focal, focal, (width - 1) / 2, (height - 1) / 2)
        factor = min(_MAX_ENLARGED, (_AREA / (width * height)) ** 0.5)
        squeeze = given.fx / given.fy if given.fy else 1.0  # the tracked pixels are square
        size = max(MIN_SIDE, round(height * factor * squeeze)), max(MIN_SIDE, round(width * factor))
        return cls((height, width), size, given.scaled(size[1] / width, size[0] / height))

    def with_focal(self, focal: float) -> Intrinsics:
        """Return the camera of the tracked images, with the focal length as known now."""
        return self.camera._replace(fx=focal, fy=focal)

    def shows(self, frame: Frame) -> bool:
        """Tell whether a frame has the shape of this stream, in whatever size: then the camera sees the same by it.

        Raises:
            UnsuitableError: the image is no RGB image, or too small.
        """
        return same_shape(_size(frame), self.frame_size)

    def fit(self, frame: Frame) -> np.ndarray:
        """Return the image of a frame as it is tracked, (h, w, 3) uint8.

        Raises:
            UnsuitableError: it is no RGB image, or too small.
        """
        height, width = _size(frame)
        image = np.ascontiguousarray(frame.image)
        if (height, width) == self.size:
            return image
        smaller = self.size < (height, width)
        return cv2.resize(image, self.size[::-1], interpolation=cv2.INTER_AREA if smaller else cv2.INTER_LINEAR)


def _size(frame: Frame) -> tuple[int, int]:
    shape = frame.image.shape
    if frame.image.dtype != np.uint8 or len(shape) != 3 or shape[2] != 3:
        raise UnsuitableError(f'frame {frame.id} is {frame.image.dtype} of shape {shape}: give (H, W, 3) uint8 RGB')
    if min(shape[:2]) < MIN_SIDE:
        raise UnsuitableError(f'frame {frame.id} is {shape[1]} x {shape[0]} pixels, too small to track: '
                              f'give at least {MIN_SIDE} x {MIN_SIDE}')
    return shape[:2]
