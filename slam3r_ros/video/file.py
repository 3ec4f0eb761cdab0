# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Video files, of any container and codec that FFmpeg knows."""

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import av
import numpy as np
from av.stream import Disposition

from slam3r_ros.values import Frame
from slam3r_ros.video.source import Picture, VideoError, check_size, number

NANOSECONDS = 1_000_000_000  # in a second


class VideoFile:
    """Decodes a video file; a `Source`."""

    def __init__(self, path: Path, stamp_offset: int = 0) -> None:
        """Open the file and decode its first picture.

        Args:
            path: The file.
            stamp_offset: Nanoseconds that are added to the time from the beginning of the video.

        Raises:
            VideoError: The file holds no video that can be decoded.
        """
        self.name, self.skipped = str(path), 0
        self._offset = stamp_offset
        try:
            self._container = av.open(self.name)
        except av.FFmpegError as error:
            raise VideoError(f'{path}: is not a video that FFmpeg can read ({error.strerror})') from None
        try:
            self._stream = self._find_stream()
            self.fps = float(self._stream.average_rate or self._stream.guessed_rate or 30)
            self.frames = self._stream.frames or self._estimate()
            # The first picture tells here and now whether anything can be decoded.
            pictures = self._decode()
            lost = 0
            for first in pictures:
                if first is not None:
                    break
                lost += 1
            else:
                raise VideoError(f'{path}: has a video stream, but not one frame of it can be decoded')
            self._pictures = chain([None] * lost, [first], pictures)
        except BaseException:
            self._container.close()
            raise

    def __iter__(self) -> Iterator[Frame]:
        """Yield the frames, once."""
        return number(self.name, self._pictures)

    def close(self) -> None:
        """Close the file."""
        self._container.close()

    def _find_stream(self) -> av.VideoStream:
        # The cover picture of a music file is a video stream too.
        streams = [s for s in self._container.streams.video if not s.disposition & Disposition.attached_pic]
        if not streams:
            kinds = ', '.join(sorted({stream.type for stream in self._container.streams}))
            raise VideoError(f'{self.name}: holds {kinds or "no stream at all"}, no video; give a file with video')
        stream = streams[0]
        if stream.codec_context is None:
            raise VideoError(f'{self.name}: its video codec is unknown to this FFmpeg; convert it to H.264')
        if stream.width and stream.height:
            check_size(self.name, stream.width, stream.height)
        stream.thread_type = 'AUTO'
        return stream

    def _estimate(self) -> int | None:
        if self._stream.duration:
            return round(self._stream.duration * self._stream.time_base * self.fps)
        return round(self._container.duration / av.time_base * self.fps) if self._container.duration else None

    def _decode(self) -> Iterator[Picture | None]:
        """Yield pictures in the order of presentation; None for each that cannot be decoded."""
        stamp, period = None, round(NANOSECONDS / self.fps)
        for frame in self._decoded_frames():
            if frame is None or frame.is_corrupt:
                self.skipped += 1
                yield None
                continue
            check_size(self.name, frame.width, frame.height)
            image = frame.to_ndarray(format='rgb24')
            if quarters := round(frame.rotation / 90) % 4:
                image = np.ascontiguousarray(np.rot90(image, quarters))
            presented = self._presentation_time(frame)
            # Bare H.264 has no times, and broken files repeat them; stamps must rise.
            if presented is None or (stamp is not None and presented <= stamp):
                presented = 0 if stamp is None else stamp + period
            stamp = presented
            yield Picture(self._offset + stamp, image)

    def _decoded_frames(self) -> Iterator[av.VideoFrame | None]:
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets, None)
            except av.FFmpegError:  # the rest of a truncated file
                yield None
                return
            if packet is None:
                return
            try:
                frames = packet.decode()
            except av.FFmpegError:
                frames = [None]
            yield from frames

    def _presentation_time(self, frame: av.VideoFrame) -> int | None:
        """Return nanoseconds since the beginning of the stream."""
        if frame.pts is None:
            return None
        unit, start = frame.time_base, self._stream.start_time or 0
        return (frame.pts - start) * NANOSECONDS * unit.numerator // unit.denominator
