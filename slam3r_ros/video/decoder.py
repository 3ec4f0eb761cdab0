# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""One policy for damaged video: skip, count, go on at the next key picture; never hand on a grey or torn one.

A picture is handed on once everything decoded before it has come out whole: what it was predicted from is among that.
After the first fault everything is skipped up to the next picture that needs no other (IDR in H.264).  Faults are
errors of FFmpeg, pictures that it mended, and gaps in the numbers of the reference pictures.  H.264 has no checksums:
what is lost or cut is found, but a flipped bit that leaves valid syntax is seen by nobody.
"""

from collections import deque
from collections.abc import Iterable
from functools import cache

import av
from av.codec.hwaccel import HWAccel, hwdevices_available

from slam3r_ros.video.h264 import Kind, References, annex_b, split_annex_b, split_configuration, split_lengths
from slam3r_ros.video.picture import MAX_PIXELS, Picture, check_size, one_line

_STRICT = {
    # "aggressive" lets only H.264's slices end where they must; elsewhere it refuses what is merely odd.
    'h264': 'crccheck+bitstream+buffer+explode+careful+compliant+aggressive',
    '': 'crccheck+bitstream+buffer+explode+careful',
}
_REORDERED = 16  # packets after which a picture comes out, or never


class Decoder:
    """Decodes the packets of one stream.

    Attributes:
        skipped: Pictures that were lost so far.
    """

    def __init__(self, context: av.VideoCodecContext) -> None:
        """Take over a context that is not open yet."""
        self.skipped = 0
        self._context = _prepared(context)
        self._lengths = 0  # bytes of the lengths before NAL units; 0: start codes
        self._references = References() if context.name == 'h264' else None
        if self._references and (context.extradata or b'')[:1] == b'\1':
            units, self._lengths = split_configuration(context.extradata)
            self._references.look(units)
        elif self._references and context.extradata:
            self._references.look(split_annex_b(context.extradata))
        self._waiting = True  # for a key picture
        self._number = self._group = 0  # of the newest packet, and of its key picture
        self._bad: dict[int, int] = {}  # group -> the first packet of it that is damaged
        self._inside: dict[int, None] = {}  # packets whose picture has not come out, oldest first
        self._held: deque[av.VideoFrame] = deque()  # came out, but something before them has not

    @classmethod
    def of(cls, codec: str, hardware: str = '') -> 'Decoder':
        """Make the decoder of a codec.

        Args:
            codec: FFmpeg's name.
            hardware: A device type of FFmpeg ('cuda', 'vaapi', ...) that decodes if it can, else software does.
        """
        return cls(av.CodecContext.create(codec, 'r', hwaccel=accelerator(hardware)))

    def decode(self, packet: av.Packet) -> list[av.VideoFrame | None]:
        """Return the pictures that are now known to be whole, as they are presented; None for each that is lost."""
        kind = self._kind(packet)
        if kind is Kind.NONE:
            return []
        self._number += 1
        lost = 0
        if kind is Kind.KEY:
            self._group, self._waiting = self._number, False
            if self._references and not self._context.is_open:
                packet = self._first(packet)
        elif kind is Kind.BROKEN and not self._waiting:
            self._bad[self._group] = self._number
            lost = self._start_over()
        if self._waiting:
            return self._release(lost + 1)
        self._inside[self._number] = None
        packet.opaque = self._group, self._number
        try:
            self._take(self._context.decode(packet))
        except av.FFmpegError:
            self._mark(self._group, self._number)
        if self._group in self._bad:
            lost += self._start_over()
        return self._release(lost)

    def flush(self) -> list[av.VideoFrame | None]:
        """Return what is left at the end of the stream."""
        return self._release(self._start_over())

    def _first(self, packet: av.Packet) -> av.Packet:
        """Prepare a fresh H.264 decoder for its first picture; return the packet with what it needs."""
        if self._references.slices == 1:
            # A slice that reads on behind its end then leaves blocks missing, which FFmpeg tells; it does not tell of
            # the first four bytes else.  Among several slices one may run into the next instead.
            self._context.options |= {'bug': 'trunc'}
        if self._lengths:
            return packet
        whole = padded(annex_b([*self._references.needed]) + bytes(packet))
        whole.pts, whole.dts = packet.pts, packet.dts
        return whole

    def _kind(self, packet: av.Packet) -> Kind:
        if not packet.size:
            return Kind.NONE
        if self._references is None:
            return Kind.BROKEN if packet.is_corrupt else Kind.KEY if packet.is_keyframe else Kind.NEXT
        data = bytes(packet)
        try:
            units = split_lengths(data, self._lengths) if self._lengths else split_annex_b(data)
        except ValueError:
            return Kind.BROKEN
        kind = self._references.look(units)
        return Kind.BROKEN if packet.is_corrupt and kind is not Kind.NONE else kind

    def _take(self, frames: Iterable[av.VideoFrame]) -> None:
        for frame in frames:
            group, number = frame.opaque
            self._inside.pop(number, None)
            self._held.append(frame)
            if frame.is_corrupt:
                self._mark(group, number)

    def _mark(self, group: int, number: int) -> None:
        """Remember the first damaged packet of a group."""
        self._bad[group] = min(number, self._bad.get(group, number))

    def _start_over(self) -> int:
        """Empty the decoder and wait for a key picture; return how many pictures did not come out."""
        try:
            self._take(self._context.decode(None))
        except av.FFmpegError:
            pass
        if self._references:
            # FFmpeg's H.264 decoder keeps coefficients of the broken block, which tear the next key picture.
            fresh = av.CodecContext.create('h264', 'r', hwaccel=self._context.hwaccel)
            if self._lengths:
                fresh.extradata = self._context.extradata
            self._context = _prepared(fresh)
        else:
            self._context.flush_buffers()
        lost = len(self._inside)
        self._inside.clear()
        self._waiting = True
        return lost

    def _release(self, lost: int) -> list[av.VideoFrame | None]:
        while self._inside and (oldest := next(iter(self._inside))) <= self._number - _REORDERED:
            del self._inside[oldest]
            lost += 1
        pictures: list[av.VideoFrame | None] = []
        while self._held:
            group, number = self._held[0].opaque
            if self._inside and next(iter(self._inside)) < number:
                break
            frame = self._held.popleft()
            pictures.append(None if number >= self._bad.get(group, number + 1) else frame)
        if not self._inside and not self._held:
            self._bad = {group: number for group, number in self._bad.items() if group == self._group}
        pictures += [None] * lost
        self.skipped += sum(frame is None for frame in pictures)
        return pictures


def _prepared(context: av.VideoCodecContext) -> av.VideoCodecContext:
    # More threads would tell of an error only some packets later.
    context.thread_count, context.copy_opaque = 1, True
    context.options = {'err_detect': _STRICT.get(context.name, _STRICT['']), 'max_pixels': str(MAX_PIXELS)}
    return context


def padded(data: bytes) -> av.Packet:
    """Return a packet of bytes.

    FFmpeg's decoders read on behind the end; PyAV would let them read whatever lies behind a bytes object.
    """
    packet = av.Packet(len(data))
    packet.update(data)
    return packet


def picture(name: str, frame: av.VideoFrame, stamp: int) -> Picture:
    """Make a picture of a decoded frame.

    Raises:
        VideoError: It is too small or too large.
    """
    check_size(name, frame.width, frame.height)
    return Picture(stamp, frame.to_ndarray(format='rgb24'))


def accelerator(hardware: str) -> HWAccel | None:
    """Return what PyAV takes for hardware decoding; None, software, where there is no such hardware."""
    if not hardware or why_no(hardware):
        return None
    return HWAccel(hardware, allow_software_fallback=True)


@cache
def why_no(hardware: str) -> str:
    """Return why a device type of FFmpeg cannot decode here; empty when it can."""
    known = hwdevices_available()
    if hardware not in known:  # PyAV would take any other
        return f'this FFmpeg knows {", ".join(known) or "none"}'
    try:
        HWAccel(hardware).create(av.Codec('h264', 'r'))
    except (av.FFmpegError, NotImplementedError) as error:  # no driver, no device; not for H.264
        return one_line(error)
    return ''
