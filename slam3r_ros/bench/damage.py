# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Real H.264 streams, small ones, and what can happen to them on their way."""

import random
from fractions import Fraction

import av
import cv2
import numpy as np

from slam3r_ros.video.decoder import padded

_SIZE, _FRAMES = (96, 64), 18


def encode(
    options: dict[str, str], frames: int = _FRAMES, size: tuple[int, int] = _SIZE, gop: int = 6, codec: str = 'libx264'
) -> list[bytes]:
    """Return the packets of a camera that pans over a texture; every `gop` frames a key picture with parameter sets.

    Args:
        options: Of the encoder.
        frames: Their number.
        size: Width and height, pixels.
        gop: Frames from one key picture to the next.
        codec: FFmpeg's name of the encoder.
    """
    width, height = size
    rng = np.random.default_rng(3)
    texture = rng.integers(0, 256, (40, 60, 3), np.uint8)
    texture = cv2.resize(texture, (3 * width, 2 * height), interpolation=cv2.INTER_CUBIC)
    context = av.CodecContext.create(codec, 'w')
    context.width, context.height, context.pix_fmt = width, height, 'yuv420p'
    context.time_base, context.framerate, context.gop_size = Fraction(1, 30), Fraction(30), gop
    context.options = {'sc_threshold': '0'} | options
    packets = []
    for i in range(frames):
        image = np.ascontiguousarray(texture[i % height : i % height + height, 2 * i : 2 * i + width])
        frame = av.VideoFrame.from_ndarray(image, format='rgb24')
        frame.pts, frame.time_base = i, Fraction(1, 30)
        packets += context.encode(frame)
    return [bytes(packet) for packet in packets + context.encode()]


def decode(packets: list[bytes]) -> list[np.ndarray]:
    """Return the pictures of an undamaged stream, as plain FFmpeg decodes them: (H, W, 3) uint8 RGB."""
    context = av.CodecContext.create('h264', 'r')
    frames = [frame for data in packets for frame in context.decode(padded(data))] + context.decode(None)
    return [frame.to_ndarray(format='rgb24') for frame in frames]


def mutate(packets: list[bytes], others: list[list[bytes]], rng: random.Random) -> list[bytes]:
    """Return a damaged stream.

    Args:
        packets: Of the stream.
        others: Streams that parts may come from.
        rng: Says which damage.
    """
    units = [bytearray(unit) for data in packets for unit in _with_start_codes(data)]
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(len(units))
        unit, damage = units[at], rng.randrange(9)
        if damage == 0:
            del units[at : at + rng.randint(1, 4)]
        elif damage == 1:
            del unit[rng.randrange(len(unit)) :]
        elif damage == 2:
            del units[: rng.randrange(len(units))]
        elif damage == 3:
            units[at:at] = map(bytearray, rng.choice(others)[: rng.randint(1, 8)])
        elif damage == 4:
            units.insert(rng.randrange(len(units)), bytearray(unit))
        elif damage == 5:
            other = rng.randrange(len(units))
            units[at], units[other] = units[other], units[at]
        elif damage == 6:
            for _ in range(rng.randint(1, 8)):
                unit[rng.randrange(len(unit))] ^= 1 << rng.randrange(8)
        elif damage == 7:
            begin = rng.randrange(len(unit))
            unit[begin : begin + rng.randint(1, 40)] = rng.randbytes(rng.randint(0, 60))
        else:
            begin = rng.randrange(len(unit))
            unit[begin : begin + 16] = bytes(16)
        units = [unit for unit in units if unit] or [bytearray(b'\0')]
    return [bytes(unit) for unit in units]


def _with_start_codes(data: bytes) -> list[bytes]:
    return [b'\0\0\1' + unit for unit in data.split(b'\0\0\1')[1:]]
