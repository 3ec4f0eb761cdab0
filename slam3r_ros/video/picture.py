# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What all sources share: their pictures, the numbering of frames, limits and errors."""

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import cv2
import numpy as np

from slam3r_ros.values import MIN_SIDE, Frame, Intrinsics, same_shape

NANOSECONDS = 1_000_000_000  # in a second
MAX_PIXELS = 36864 * 256  # the largest picture of H.264 level 5.2; about 4096x2304


class VideoError(ValueError):
    """A video cannot be opened or read on; the message, one line, names it, the reason and the way out."""


class Picture(NamedTuple):
    """What a source reads before frames are numbered."""

    stamp: int  # nanoseconds
    image: np.ndarray  # (H, W, 3) uint8 RGB, undistorted
    intrinsics: Intrinsics | None = None


def check_size(name: object, width: int, height: int) -> None:
    """Refuse pictures that are too small to map or too large to decode.

    Raises:
        VideoError: naming `name`, the size and the limit.
    """
    if min(width, height) < MIN_SIDE:
        raise VideoError(f'{name}: is {width}x{height}, too small to map; each side needs {MIN_SIDE} pixels or more')
    if width * height > MAX_PIXELS:
        most = f'{MAX_PIXELS / 1e6:.1f} megapixels'
        raise VideoError(f'{name}: is {width}x{height}, too large; scale it to {most} or less')


class SteadySize:
    """Keeps the images of a live video at one size, which the engines need.

    Attributes:
        size: Width and height of the images that come out, pixels; (0, 0) before the first.
    """

    def __init__(self) -> None:
        """Take the size of the first image."""
        self.size = 0, 0

    def __call__(self, image: np.ndarray) -> tuple[np.ndarray, bool]:
        """Scale an image of the same shape to the size of those before; one of another shape begins a new video.

        Args:
            image: (H, W, 3) uint8.

        Returns:
            The image, and whether a new video begins with it, behind another.
        """
        size, first = image.shape[1::-1], self.size == (0, 0)
        if self.size == size:
            return image, False
        if first or not same_shape(size[::-1], self.size[::-1]):
            self.size = size
            return image, not first
        return cv2.resize(image, self.size, interpolation=cv2.INTER_AREA), False


def number(name: object, pictures: Iterable[Picture | None]) -> Iterator[Frame]:
    """Make frames of pictures: count them, find the last one, and see that their size stays.

    A picture that is None could not be decoded; it counts, but gives no frame.

    Raises:
        VideoError: The size changes, or not one picture can be decoded.
    """
    waiting: Frame | None = None
    for i, picture in enumerate(pictures):
        if picture is None:
            continue
        if waiting is not None:
            if picture.image.shape != waiting.image.shape:
                (height, width), (old_height, old_width) = picture.image.shape[:2], waiting.image.shape[:2]
                raise VideoError(
                    f'{name}: changes size at frame {i} from {old_width}x{old_height} to {width}x{height}; '
                    'cut it there or scale it to one size'
                )
            yield waiting
        waiting = Frame(i, picture.stamp, picture.image, picture.intrinsics)
    if waiting is None:
        raise VideoError(f'{name}: not one picture of it can be decoded')
    yield Frame(waiting.id, waiting.stamp, waiting.image, waiting.intrinsics, last=True)


def printable(uri: str) -> str:
    """Return a URI for logs: without user, password, and what its query says, which may be a token."""
    return re.sub(r'\?.*', '?...', re.sub(r'//[^/?#]*@', '//...@', uri)) if '://' in uri else uri


def one_line(error: BaseException) -> str:
    """Return the message of an error in one line."""
    return ' '.join(str(error).split()) or type(error).__name__
