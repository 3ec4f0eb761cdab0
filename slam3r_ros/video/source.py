# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Sources of video: whatever can be opened by name and gives frames."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from slam3r_ros.values import Frame, Intrinsics

MIN_SIDE = 64  # pixels; less shows too little to map
MAX_PIXELS = 36864 * 256  # the largest picture of H.264 level 5.2; about 4096x2304
BAG_SUFFIXES = ('.mcap', '.db3')


class VideoError(ValueError):
    """A video cannot be opened or read on; the message, one line, names it, the reason and the way out."""


class Picture(NamedTuple):
    """What a source reads before frames are numbered."""

    stamp: int  # nanoseconds
    image: np.ndarray  # (H, W, 3) uint8 RGB, undistorted
    intrinsics: Intrinsics | None = None


class Source(Protocol):
    """A video that can be read once, from its beginning."""

    name: str
    fps: float  # nominal
    frames: int | None  # an estimate of their number
    skipped: int  # pictures that could not be decoded so far

    def __iter__(self) -> Iterator[Frame]:
        """Yield the frames in the order of their stamps; `Frame.last` marks the last one."""
        ...

    def close(self) -> None:
        """Free the file; no frame can be read afterwards."""
        ...


def open_source(uri: str, stamp_offset: int = 0, topic: str = '') -> Source:
    """Open a video file, a rosbag2 folder or one of its .mcap or .db3 files.

    Args:
        uri: A path, or a file:// URI.
        stamp_offset: Nanoseconds that are added to the stamps of a file; a bag has stamps of its own.
        topic: The bag's image topic; needed only where it has several of one kind.

    Raises:
        VideoError: There is nothing that can be read as video; one line names the file and the reason.
    """
    if not uri:
        raise VideoError('no input was given; name a video file or a rosbag2 folder')
    scheme, separator, rest = uri.partition('://')
    if separator and scheme != 'file':
        raise VideoError(f'{uri}: {scheme} streams are not available yet; give a video file or a rosbag2 folder')
    path = Path(rest if separator else uri).expanduser()
    try:
        if path.is_dir():
            is_bag = (path / 'metadata.yaml').is_file()
            if not is_bag:
                raise VideoError(f'{path}: is a folder but no rosbag2 (it has no metadata.yaml); give a video file')
        elif not path.is_file():
            reason = 'is not a regular file' if path.exists() else 'does not exist'
            raise VideoError(f'{path}: {reason}; give a video file or a rosbag2 folder')
        else:
            is_bag = path.suffix.lower() in BAG_SUFFIXES
            with path.open('rb') as stream:
                if not stream.read(1):
                    raise VideoError(f'{path}: is empty; give a video file or a rosbag2 folder')
    except OSError as error:
        raise VideoError(f'{path}: cannot be read: {error.strerror}') from error
    # Imported late: one does not need PyAV to read a bag, nor rosbags to read a file.
    if is_bag:
        from slam3r_ros.video.bag import Bag

        return Bag(path, topic)
    from slam3r_ros.video.file import VideoFile

    return VideoFile(path, stamp_offset)


def check_size(name: object, width: int, height: int) -> None:
    """Refuse pictures that are too small to map or too large to decode.

    Raises:
        VideoError: naming `name`, the size and the limit.
    """
    if min(width, height) < MIN_SIDE:
        raise VideoError(f'{name}: is {width}x{height}, too small to map; each side needs {MIN_SIDE} pixels or more')
    if width * height > MAX_PIXELS:
        raise VideoError(f'{name}: is {width}x{height}, too large; scale it to {MAX_PIXELS / 1e6:.1f} megapixels or less')


def number(name: object, pictures: Iterable[Picture | None]) -> Iterator[Frame]:
    """Make frames of pictures: count them, find the last one, and see that their size stays.

    A picture that is None could not be decoded; it counts, but gives no frame.

    Raises:
        VideoError: The size changes.
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
    if waiting is not None:
        yield Frame(waiting.id, waiting.stamp, waiting.image, waiting.intrinsics, last=True)
