# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The little of H.264's syntax that tells whether a picture can be decoded whole (ITU-T H.264, chapter 7).

FFmpeg makes up for a lost reference picture without a word; its number is missing in the slice headers, though.
"""

from collections.abc import Iterator
from enum import Enum
from typing import NamedTuple

MAX_UNIT = 8 << 20  # bytes of one access unit; level 5.2 stays far below
_SLICE, _IDR, _SEI, _SPS, _PPS, _DELIMITER = 1, 5, 6, 7, 8, 9  # nal_unit_type
_START = b'\0\0\1'
_HIGH_PROFILES = {44, 83, 86, 100, 110, 118, 122, 128, 134, 135, 138, 139, 144, 244}
_HEADER = 64  # bytes that hold the begin of a slice header
_PARAMETERS = 4096  # bytes of a parameter set
_OVERHEAD = 64  # bytes that Python adds to a NAL unit, about: many small ones count too


class Kind(Enum):
    """How an access unit stands to those before it."""

    KEY = 'needs nothing before it'  # IDR
    NEXT = 'needs those before it, and all are there'
    BROKEN = 'needs what is missing'
    NONE = 'holds no picture'


class _Sequence(NamedTuple):
    """Of a sequence parameter set."""

    frame_num_bits: int
    may_have_gaps: bool
    frames_only: bool
    separate_planes: bool


class _Bits:
    """Reads bits from the front; raises ValueError at the end."""

    def __init__(self, data: bytes):
        data = data.replace(b'\0\0\3', b'\0\0')  # emulation prevention
        self._value, self._left = int.from_bytes(data), 8 * len(data)

    def take(self, count: int) -> int:
        if count > self._left:
            raise ValueError('the syntax goes on behind the end')
        self._left -= count
        return (self._value >> self._left) & ((1 << count) - 1)

    def golomb(self) -> int:
        """Return an unsigned Exp-Golomb number; a signed one takes the same bits."""
        zeros = 0
        while not self.take(1):
            zeros += 1
        return (1 << zeros) - 1 + self.take(zeros)

    def signed(self) -> int:
        number = self.golomb()
        return (number + 1) // 2 if number % 2 else -number // 2


class References:
    """Follows the parameter sets and frame numbers of a stream.

    Attributes:
        needed: The NAL units of the parameter sets of the newest picture.
        slices: Their number in the newest picture.
    """

    def __init__(self) -> None:
        """Know nothing yet."""
        self.needed: tuple[bytes, ...] = ()
        self.slices = 0
        self._units: dict[tuple[int, int], bytes] = {}  # of parameter sets, by type and number
        self._sequences: dict[int, _Sequence] = {}
        self._of_picture: dict[int, int] = {}  # picture parameter set -> sequence parameter set
        self._last = 0  # frame_num of the last reference picture

    def look(self, units: list[bytes]) -> Kind:
        """Take the NAL units of one access unit, and say whether it can be decoded after those before it."""
        kind, self.slices = Kind.NONE, 0
        for unit in units:
            if not unit:
                continue
            of_type = unit[0] & 31
            try:
                if of_type == _SPS:
                    self._take_sequence(unit)
                elif of_type == _PPS:
                    self._take_picture_parameters(unit)
                elif of_type in (_SLICE, _IDR):
                    self.slices += 1
                    if kind is Kind.NONE:
                        kind = self._take_slice(unit)
            except ValueError:
                if of_type == _SPS:
                    self._sequences.clear()  # which of them it was to replace is not known
                kind = Kind.BROKEN
        return kind

    def _take_sequence(self, unit: bytes) -> None:
        bits = _Bits(unit[1:_PARAMETERS])
        profile = bits.take(24) >> 16
        number, chroma, separate = bits.golomb(), 1, False
        if profile in _HIGH_PROFILES:
            chroma = bits.golomb()
            separate = chroma == 3 and bits.take(1) == 1
            bits.golomb(), bits.golomb(), bits.take(1)  # bit depths; transform bypass
            if bits.take(1):
                for i in range(12 if chroma == 3 else 8):
                    if bits.take(1):
                        _skip_scaling_list(bits, 16 if i < 6 else 64)
        frame_num_bits = bits.golomb() + 4
        order = bits.golomb()  # pic_order_cnt_type
        if order == 0:
            bits.golomb()
        elif order == 1:
            bits.take(1), bits.golomb(), bits.golomb()
            for _ in range(min(bits.golomb(), 255)):
                bits.golomb()
        bits.golomb()  # number of reference frames
        gaps = bits.take(1)
        bits.golomb(), bits.golomb()  # size
        if frame_num_bits > 16 or number > 31:
            raise ValueError('a parameter is out of its range')
        sequence = _Sequence(frame_num_bits, bool(gaps), bool(bits.take(1)), separate)
        self._keep(_SPS, number, unit)
        self._sequences[number] = sequence

    def _take_picture_parameters(self, unit: bytes) -> None:
        bits = _Bits(unit[1:_HEADER])
        number, sequence = bits.golomb(), bits.golomb()
        if number > 255:
            raise ValueError('a parameter is out of its range')
        self._keep(_PPS, number, unit)
        self._of_picture[number] = sequence

    def _keep(self, of_type: int, number: int, unit: bytes) -> None:
        known = self._units.get((of_type, number), b'')
        if len(unit) < len(known) and known.startswith(unit):
            raise ValueError('a parameter set that is known was cut')
        self._units[of_type, number] = unit

    def _take_slice(self, unit: bytes) -> Kind:
        """Look at the first slice of a picture."""
        bits, is_reference, is_key = _Bits(unit[1:_HEADER]), unit[0] >> 5 & 3 > 0, unit[0] & 31 == _IDR
        first_block, _, picture = bits.golomb(), bits.golomb(), bits.golomb()
        number = self._of_picture.get(picture, -1)
        if first_block or number not in self._sequences:
            return Kind.BROKEN
        sequence, self.needed = self._sequences[number], (self._units[_SPS, number], self._units[_PPS, picture])
        if sequence.separate_planes:
            bits.take(2)
        frame_num = bits.take(sequence.frame_num_bits)
        is_field = not sequence.frames_only and bits.take(1)
        if is_key:
            self._last = frame_num
            return Kind.BROKEN if frame_num else Kind.KEY
        last, following = self._last, (self._last + 1) % (1 << sequence.frame_num_bits)
        if is_reference:
            self._last = frame_num
        good = frame_num == following or sequence.may_have_gaps or (is_field and frame_num == last)
        return Kind.NEXT if good else Kind.BROKEN


class AccessUnits:
    """Cuts an Annex B byte stream into access units, whatever pieces it comes in."""

    def __init__(self) -> None:
        """Wait for the first start code."""
        self.overflows = 0  # units that were too long
        self._data = bytearray()  # from the last start code on
        self._looked = 0  # bytes of it in which no start code begins
        self._started = False
        self._stamp = self._unit_stamp = 0
        self._units: list[bytes] = []  # of the picture that is not complete yet
        self._size, self._has_slice = 0, False

    def feed(self, data: bytes, stamp: int) -> Iterator[tuple[list[bytes], int]]:
        """Yield the NAL units of each picture that is now known to be complete, and when its first byte came.

        Args:
            data: The next piece.
            stamp: When it came.
        """
        self._data += data
        while (at := self._data.find(_START, self._looked)) >= 0:
            if self._started:
                yield from self._take(bytes(self._data[:at]).rstrip(b'\0'))
            del self._data[: at + len(_START)]
            self._looked, self._started, self._stamp = 0, True, stamp
        self._looked = max(0, len(self._data) - len(_START) + 1)
        if not self._started:
            del self._data[: self._looked]
            self._looked = 0
        elif len(self._data) + self._size > MAX_UNIT:
            self.overflows += 1
            self._data.clear()
            self._units, self._size, self._has_slice = [], 0, False
            self._looked, self._started = 0, False

    def flush(self) -> Iterator[tuple[list[bytes], int]]:
        """Yield what is left at the end of the stream."""
        if self._started:
            yield from self._take(bytes(self._data).rstrip(b'\0'))
            yield from self._complete()
        self._data.clear()
        self._looked, self._started = 0, False

    def _take(self, unit: bytes) -> Iterator[tuple[list[bytes], int]]:
        """Append a NAL unit to the picture it belongs to."""
        if len(unit) < 2:
            return
        of_type = unit[0] & 31
        is_slice = of_type in (_SLICE, _IDR)
        begins = unit[1] & 0x80 if is_slice else of_type in (_SEI, _SPS, _PPS, _DELIMITER)  # first block: 0
        if begins and self._has_slice:
            yield from self._complete()
        if not self._units:
            self._unit_stamp = self._stamp
        self._units.append(unit)
        self._size += len(unit) + _OVERHEAD
        self._has_slice |= is_slice

    def _complete(self) -> Iterator[tuple[list[bytes], int]]:
        units, has_slice = self._units, self._has_slice
        self._units, self._size, self._has_slice = [], 0, False
        if has_slice:
            yield units, self._unit_stamp


def annex_b(units: list[bytes]) -> bytes:
    """Return NAL units as a byte stream."""
    return b''.join(b'\0' + _START + unit for unit in units)


def split_annex_b(data: bytes) -> list[bytes]:
    """Return the NAL units of a byte stream."""
    return [unit.rstrip(b'\0') for unit in data.split(_START)[1:]]


def split_lengths(data: bytes, size: int) -> list[bytes]:
    """Return the NAL units of a packet of MP4, each behind its length of `size` bytes.

    Raises:
        ValueError: The lengths do not add up.
    """
    units, at = [], 0
    while at < len(data):
        end = at + size + int.from_bytes(data[at : at + size])
        if end > len(data):
            raise ValueError('a NAL unit goes on behind the end of its packet')
        units.append(data[at + size : end])
        at = end
    return units


def split_configuration(data: bytes) -> tuple[list[bytes], int]:
    """Return the parameter sets of an MP4's avcC box, and the size of the lengths in its packets."""
    units, at = [], 5
    for mask in (31, 255):  # of the counts: sequence, picture parameter sets
        count, at = data[at] & mask, at + 1
        for _ in range(count):
            end = at + 2 + int.from_bytes(data[at : at + 2])
            units.append(data[at + 2 : end])
            at = end
    return units, (data[4] & 3) + 1


def _skip_scaling_list(bits: _Bits, size: int) -> None:
    last = scale = 8
    for _ in range(size):
        if scale:
            scale = (last + bits.signed()) % 256
        last = scale or last
