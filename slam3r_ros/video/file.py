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
from slam3r_ros.video.decoder import Decoder, accelerator, picture
from slam3r_ros.video.picture import NANOSECONDS, Picture, VideoError, check_size, number

_PLAYLISTS = {'hls', 'concat', 'dash', 'imf'}  # formats that name other files


class VideoFile:
    """Decodes a video file; a `Source`."""

    def __init__(self, path: Path, stamp_offset: int = 0, hardware: str = '') -> None:
        """Open the file and decode its first picture.

        Args:
            path: The file.
            stamp_offset: Nanoseconds that are added to the time from the beginning of the video.
            hardware: As in `Decoder.of`.

        Raises:
            VideoError: The file holds no video that can be decoded.
        """
        self.name = str(path)
        self._offset = stamp_offset
        try:
            options = {'protocol_whitelist': 'file'}  # what a file names is not fetched
            self._container = av.open(f'file:{path}', 'r', options=options, hwaccel=accelerator(hardware))
        except av.FFmpegError as error:
            raise VideoError(f'{path}: is not a video that FFmpeg can read ({error.strerror})') from None
        try:
            if _PLAYLISTS & set(self._container.format.name.split(',')):
                raise VideoError(f'{path}: is a playlist of other files; give one of those')
            self._stream = find_stream(self.name, self._container)
            self._decoder = Decoder(self._stream.codec_context)
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

    @property
    def skipped(self) -> int:
        """Pictures that could not be decoded so far."""
        return self._decoder.skipped

    def __iter__(self) -> Iterator[Frame]:
        """Yield the frames, once."""
        return number(self.name, self._pictures)

    def close(self) -> None:
        """Close the file."""
        self._container.close()

    def _estimate(self) -> int | None:
        if self._stream.duration:
            return round(self._stream.duration * self._stream.time_base * self.fps)
        return round(self._container.duration / av.time_base * self.fps) if self._container.duration else None

    def _decode(self) -> Iterator[Picture | None]:
        """Yield pictures in the order of presentation; None for each that cannot be decoded."""
        stamp, period, quarters = None, round(NANOSECONDS / self.fps), None
        for frame in decoded_frames(self._container, self._stream, self._decoder):
            if frame is None:
                yield None
                continue
            image = picture(self.name, frame, 0).image
            if quarters is None:  # of the whole file
                quarters = round(frame.rotation / 90) % 4
            if quarters:
                image = np.ascontiguousarray(np.rot90(image, quarters))
            presented = self._presentation_time(frame)
            # Bare H.264 has no times, and broken files repeat them; stamps must rise.
            if presented is None or (stamp is not None and presented <= stamp):
                presented = 0 if stamp is None else stamp + period
            stamp = presented
            yield Picture(self._offset + stamp, image)

    def _presentation_time(self, frame: av.VideoFrame) -> int | None:
        """Return nanoseconds since the beginning of the stream."""
        if frame.pts is None:
            return None
        unit, start = self._stream.time_base, self._stream.start_time or 0
        return (frame.pts - start) * NANOSECONDS * unit.numerator // unit.denominator


def find_stream(name: str, container: av.container.InputContainer) -> av.VideoStream:
    """Return the video stream of a container.

    Raises:
        VideoError: There is none that can be decoded.
    """
    # The cover picture of a music file is a video stream too.
    streams = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
    if not streams:
        kinds = ', '.join(sorted({stream.type for stream in container.streams}))
        raise VideoError(f'{name}: holds {kinds or "no stream at all"}, no video; give a file with video')
    stream = streams[0]
    if stream.codec_context is None:
        raise VideoError(f'{name}: its video codec is unknown to this FFmpeg; convert it to H.264')
    if stream.width and stream.height:
        check_size(name, stream.width, stream.height)
    return stream


def decoded_frames(
    container: av.container.InputContainer, stream: av.VideoStream, decoder: Decoder
) -> Iterator[av.VideoFrame | None]:
    """Yield the frames of a stream to its end; None for each that is lost."""
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except av.FFmpegError:  # the rest of a truncated file
            decoder.skipped += 1
            yield from decoder.flush()
            yield None
            return
        if packet is None:
            yield from decoder.flush()
            return
        yield from decoder.decode(packet)
