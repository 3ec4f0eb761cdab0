# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Folders of images, one file a frame."""

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from slam3r_ros.values import Frame
from slam3r_ros.video.picture import NANOSECONDS, Picture, VideoError, number
from slam3r_ros.video.pixels import PixelError, decompress

SUFFIXES = ('.jpg', '.jpeg', '.png')
_MAX_BYTES = 256 << 20  # of one file
_DIGITS_OF_NANOSECONDS = 19  # of the time since 1970; seconds have a point


class ImageFolder:
    """Reads the images of a folder in the natural order of their names; a `Source`."""

    frames: int

    def __init__(self, path: Path, stamp_offset: int = 0, fps: float = 30.0) -> None:
        """List the folder.

        Args:
            path: The folder, of .png, .jpg or .jpeg files.  Names that are times give the stamps: seconds with a point
                (TUM), or nanoseconds since 1970 (EuRoC).
            stamp_offset: Nanoseconds of the first frame where names are no times.
            fps: Frames a second where names are no times.

        Raises:
            VideoError: There are no images in it.
        """
        self.name, self.skipped = str(path), 0
        files = [each for each in path.iterdir() if each.suffix.lower() in SUFFIXES and each.is_file()]
        if not files:
            raise VideoError(f'{path}: holds no {", ".join(SUFFIXES)} file, and is no rosbag2 (no metadata.yaml)')
        times = {each: _time(each.stem) for each in files}
        if all(time is not None for time in times.values()):
            self._files = sorted(times.items(), key=lambda item: item[1])
            steps = sorted(after - before for (_, before), (_, after) in pairwise(self._files))
            self.fps = NANOSECONDS / max(1, steps[len(steps) // 2]) if steps else fps
        else:
            files.sort(key=lambda each: _natural(each.name))
            self._files = [(each, stamp_offset + round(i * NANOSECONDS / fps)) for i, each in enumerate(files)]
            self.fps = fps
        self.frames = len(self._files)

    def __iter__(self) -> Iterator[Frame]:
        """Yield the frames, once."""
        return number(self.name, self._pictures())

    def close(self) -> None:
        """Do nothing: no file stays open."""

    def _pictures(self) -> Iterator[Picture | None]:
        for path, stamp in self._files:
            try:
                if path.stat().st_size > _MAX_BYTES:
                    raise PixelError(f'has more than {_MAX_BYTES} bytes')
                yield Picture(stamp, decompress(path.read_bytes()))
            except (PixelError, OSError):
                self.skipped += 1
                yield None


def _time(stem: str) -> int | None:
    """Return the nanoseconds that a name says; None when it says none."""
    if match := re.fullmatch(r'(\d{1,10})\.(\d{1,9})', stem):
        return int(match[1]) * NANOSECONDS + int(match[2].ljust(9, '0'))
    return int(stem) if re.fullmatch(rf'\d{{{_DIGITS_OF_NANOSECONDS}}}', stem) else None


def _natural(name: str) -> list[tuple[str, int]]:
    """Return a key that puts 'frame10' behind 'frame9'."""
    return [(text, int(digits or 0)) for text, digits in re.findall(r'(\D*)(\d*)', name.lower())]
