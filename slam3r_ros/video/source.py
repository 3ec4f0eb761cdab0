# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Sources of video: whatever can be opened by name and gives frames."""

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from slam3r_ros.values import Frame
from slam3r_ros.video.live import LiveSource
from slam3r_ros.video.picture import VideoError, printable

BAG_SUFFIXES = ('.mcap', '.db3')
_WHAT = 'give a video file, a folder of images, a rosbag2, a camera (camera:0) or a stream (rtsp://, http://, ws://)'
_PATIENCE = 20.0  # seconds that a camera or a stream may take to give its first frame
_CAMERA = re.compile(r'(?:camera:|/dev/video)(\d+)')


class Source(Protocol):
    """A video that can be read once, from its beginning.

    Live ones (`video.live.LiveSource`) never end by themselves, keep the newest frames and say meanwhile what is wrong.
    """

    name: str  # fit for logs
    fps: float  # nominal
    frames: int | None  # an estimate of their number
    skipped: int  # pictures that could not be decoded so far

    def __iter__(self) -> Iterator[Frame]:
        """Yield the frames in the order of their stamps; `Frame.last` marks the last one."""
        ...

    def close(self) -> None:
        """Free the file or the connection; no frame can be read afterwards."""
        ...


def open_source(uri: str, stamp_offset: int = 0, topic: str = '', fps: float = 30.0, hardware: str = '') -> Source:
    """Open a video: a file, a folder of images, a rosbag2, a camera or a stream.

    Args:
        uri: A path or a file:// URI; camera:0 or /dev/video0; rtsp://, http:// or https://; ws:// or wss://.
        stamp_offset: Nanoseconds that are added to the stamps of a file, and to the time since the opening of what is
            live; bags, and images named by times, have stamps of their own.
        topic: A bag's image topic; needed only where it has several of one kind.
        fps: Frames a second of a folder of images whose names are no times.
        hardware: A device type of FFmpeg ('cuda', 'vaapi', ...) that decodes if it can, else software does.

    Raises:
        VideoError: There is nothing that can be read as video; one line names the input and the reason.  Cameras and
            streams do not raise it: they try again.
    """
    if not uri:
        raise VideoError(f'no input was given; {_WHAT}')
    if is_live(uri):
        return _live(_CAMERA.sub(r'/dev/video\1', uri), stamp_offset, hardware)
    path = _path(uri)
    try:
        if path.is_dir():
            if not is_bag(uri):
                from slam3r_ros.video.folder import ImageFolder

                return ImageFolder(path, stamp_offset, fps)
        elif not path.is_file():
            reason = 'is not a regular file' if path.exists() else 'does not exist'
            raise VideoError(f'{path}: {reason}; {_WHAT}')
        else:
            with path.open('rb') as stream:
                if not stream.read(1):
                    raise VideoError(f'{path}: is empty; {_WHAT}')
    except OSError as error:
        raise VideoError(f'{path}: cannot be read: {error.strerror}') from error
    # Imported late: one does not need PyAV to read a bag, nor rosbags to read a file.
    if is_bag(uri):
        from slam3r_ros.video.bag import Bag

        return Bag(path, topic, hardware)
    from slam3r_ros.video.file import VideoFile

    return VideoFile(path, stamp_offset, hardware)


def first_frame(source: Source) -> Frame:
    """Return the first frame of a source, for who does not wait until a camera is switched on.

    Raises:
        VideoError: There is none.
    """
    if not isinstance(source, LiveSource):
        return next(iter(source))
    end = time.monotonic() + _PATIENCE
    while (frame := source.read(0.1)) is None:
        if source.breaks:
            raise VideoError(source.reason)
        if time.monotonic() > end:
            reason = f'no picture came in {_PATIENCE:.0f} s; what came, if anything, could not be decoded'
            raise VideoError(f'{source.name}: {reason}')
    return frame


def is_live(uri: str) -> bool:
    """Return whether a URI means a camera or a stream: these do not wait for who reads them."""
    return bool(_CAMERA.fullmatch(uri)) or ('://' in uri and not uri.startswith('file://'))


def is_bag(uri: str) -> bool:
    """Return whether a URI means a rosbag2, which has stamps of its own."""
    path = _path(uri)
    return (path / 'metadata.yaml').is_file() if path.is_dir() else path.suffix.lower() in BAG_SUFFIXES


def _path(uri: str) -> Path:
    return Path(uri.removeprefix('file://')).expanduser()


def _live(uri: str, stamp_offset: int, hardware: str) -> Source:
    from slam3r_ros.video.network import connection

    name = printable(uri)
    return LiveSource(name, connection(uri, name, hardware), stamp_offset)
