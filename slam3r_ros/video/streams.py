# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Video that comes without a container: as a byte stream, or one picture in each message."""

import heapq
from collections.abc import Iterable

import av

from slam3r_ros.video.decoder import Decoder, padded, picture
from slam3r_ros.video.h264 import AccessUnits, annex_b, split_annex_b
from slam3r_ros.video.picture import Picture, VideoError

_HEVC_KEYS = range(16, 22)  # nal_unit_type of pictures that need no other


class H264Stream:
    """An H.264 byte stream (Annex B) that comes in pieces, cut anywhere.

    Attributes:
        skipped: Pictures that were lost so far.
    """

    def __init__(self, name: str, hardware: str = '') -> None:
        """Wait for the first key picture.

        Args:
            name: For error messages.
            hardware: As in `Decoder.of`.
        """
        self._name, self._units, self._decoder = name, AccessUnits(), Decoder.of('h264', hardware)
        self._stamps: list[int] = []  # a heap: pictures come in another order than they are shown

    @property
    def skipped(self) -> int:
        """Pictures that were lost so far."""
        return self._decoder.skipped

    def feed(self, data: bytes, stamp: int) -> list[Picture | None]:
        """Decode what is complete.

        Args:
            data: The next piece of the stream.
            stamp: When it came, nanoseconds.

        Returns:
            Pictures in the order of presentation; None for each that was lost.

        Raises:
            VideoError: The pictures are too small.
        """
        return self._decode(self._units.feed(data, stamp))

    def flush(self) -> list[Picture | None]:
        """Return what is left at the end of the stream; as `feed`."""
        return self._decode(self._units.flush()) + self._pictures(self._decoder.flush())

    def _decode(self, units_and_stamps: Iterable[tuple[list[bytes], int]]) -> list[Picture | None]:
        pictures = []
        for units, came in units_and_stamps:
            heapq.heappush(self._stamps, came)
            pictures += self._pictures(self._decoder.decode(padded(annex_b(units))))
        return pictures

    def _pictures(self, frames: Iterable[av.VideoFrame | None]) -> list[Picture | None]:
        stamped = [(frame, heapq.heappop(self._stamps)) for frame in frames]
        return [frame and picture(self._name, frame, stamp) for frame, stamp in stamped]


class PacketStream:
    """Video in messages of one picture each: FFMPEGPacket of ffmpeg_image_transport, CompressedVideo of Foxglove."""

    def __init__(self, name: str, hardware: str = '') -> None:
        """Wait for the first key picture.

        Args:
            name: For error messages.
            hardware: As in `Decoder.of`.
        """
        self._name, self._hardware = name, hardware
        self._encoding = self._codec = ''
        self._decoder: Decoder | None = None

    def feed(self, data: bytes, encoding: str, stamp: int) -> list[Picture | None]:
        """Decode a message.

        Args:
            data: Of the message.
            encoding: As the message names its codec: 'h264', 'libx264;yuv420p;bgr8', 'h265' ...; may change.
            stamp: Of its header, nanoseconds; comes out with the picture.

        Returns:
            Pictures in the order of presentation; None for each that was lost.

        Raises:
            VideoError: The codec is unknown, or the pictures are too small.
        """
        if not len(data):
            return []
        pictures = self._switch(encoding) if encoding != self._encoding else []
        packet = padded(data)
        packet.pts = stamp
        packet.is_keyframe = _is_key(self._codec, data)
        return pictures + self._pictures(self._decoder.decode(packet))

    def flush(self) -> list[Picture | None]:
        """Return what is left at the end of the stream, or before a gap in it; then wait for a key picture."""
        return self._pictures(self._decoder.flush()) if self._decoder else []

    def _switch(self, encoding: str) -> list[Picture | None]:
        """Begin to decode another codec; return what is left of the one before."""
        codec, left = _codec(self._name, encoding), self.flush()
        self._encoding, self._codec, self._decoder = encoding, codec, Decoder.of(codec, self._hardware)
        return left

    def _pictures(self, frames: Iterable[av.VideoFrame | None]) -> list[Picture | None]:
        return [frame and picture(self._name, frame, frame.pts) for frame in frames]


def _codec(name: str, encoding: str) -> str:
    """Return FFmpeg's decoder for what ROS messages call it; encoders have names of their own: h264_nvenc, libx265."""
    word = encoding.partition(';')[0].strip().lower()
    for part, codec in (('264', 'h264'), ('265', 'hevc'), ('hevc', 'hevc'), ('vp8', 'vp8'), ('vp9', 'vp9'),
                        ('av1', 'libdav1d'), ('mjpeg', 'mjpeg'), ('mpeg4', 'mpeg4')):  # fmt: skip
        if part in word and codec in av.codecs_available:
            return codec
    raise VideoError(f'{name}: codec {encoding!r} is not supported; send h264 or h265')


def _is_key(codec: str, data: bytes) -> bool:
    """Return whether a picture needs no other; H.264's are looked at in the decoder."""
    if codec == 'hevc':
        return any(unit[:1] and unit[0] >> 1 & 63 in _HEVC_KEYS for unit in split_annex_b(data))
    if codec == 'vp8':
        return not data[0] & 1
    if codec == 'vp9':
        return not data[0] & 0b1100  # neither shows an earlier picture nor is predicted
    if codec == 'libdav1d':
        return any(data[at] >> 3 & 15 == 1 for at in (0, 2) if at < len(data))  # a sequence header
    if codec == 'mpeg4':
        at = data.find(b'\0\0\1\xb6') + 4
        return 4 <= at < len(data) and not data[at] >> 6  # an intra-coded picture
    return True
