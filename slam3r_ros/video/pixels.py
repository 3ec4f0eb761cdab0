# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Bytes of images to RGB arrays."""

import array

import cv2
import numpy as np

from slam3r_ros.video.picture import MAX_PIXELS

Buffer = bytes | bytearray | memoryview | np.ndarray | array.array

# Bytes a pixel of the first plane, and OpenCV's way to RGB: sensor_msgs/image_encodings.hpp.
_ENCODINGS = {
    'rgb8': (3, None),
    'bgr8': (3, cv2.COLOR_BGR2RGB),
    'rgba8': (4, cv2.COLOR_RGBA2RGB),
    'bgra8': (4, cv2.COLOR_BGRA2RGB),
    'mono8': (1, cv2.COLOR_GRAY2RGB),
    'mono16': (2, cv2.COLOR_GRAY2RGB),
    '8UC1': (1, cv2.COLOR_GRAY2RGB),
    '8UC3': (3, cv2.COLOR_BGR2RGB),
    '8UC4': (4, cv2.COLOR_BGRA2RGB),
    'yuv422': (2, cv2.COLOR_YUV2RGB_UYVY),
    'uyvy': (2, cv2.COLOR_YUV2RGB_UYVY),
    'yuv422_yuy2': (2, cv2.COLOR_YUV2RGB_YUY2),
    'yuyv': (2, cv2.COLOR_YUV2RGB_YUY2),
    'nv12': (1, cv2.COLOR_YUV2RGB_NV12),
    'nv21': (1, cv2.COLOR_YUV2RGB_NV21),
    # OpenCV names the four pixels from the second row and column.
    'bayer_rggb8': (1, cv2.COLOR_BayerBG2RGB),
    'bayer_bggr8': (1, cv2.COLOR_BayerRG2RGB),
    'bayer_gbrg8': (1, cv2.COLOR_BayerGR2RGB),
    'bayer_grbg8': (1, cv2.COLOR_BayerGB2RGB),
}
_HALF_SIZE_COLOURS = ('nv12', 'nv21')  # in a plane of half the height
_PAIRS = ('yuv422', 'uyvy', 'yuv422_yuy2', 'yuyv') + _HALF_SIZE_COLOURS  # of pixels share their colour
_JPEG, _PNG = b'\xff\xd8\xff', b'\x89PNG\r\n\x1a\n'
_HEAD = 1 << 20  # bytes of a file in which its size must stand
_NO_SIZE = (0xC4, 0xC8, 0xCC)  # JPEG markers among those of frame headers


class PixelError(ValueError):
    """Bytes are no image; the message names the reason and the way out."""


def to_rgb(data: Buffer, encoding: str, width: int, height: int, step: int, big_endian: bool = False) -> np.ndarray:
    """Return the pixels of a raw image.

    Args:
        data: At least `step` bytes for each row; nv12 and nv21 have half as many rows of colour below.
        encoding: A name of sensor_msgs/image_encodings.
        width: Pixels.
        height: Pixels.
        step: Bytes from one row to the next; rows may be padded.
        big_endian: Of values of two bytes.

    Returns:
        (height, width, 3) uint8 RGB, writable and its own.

    Raises:
        PixelError: The encoding is unknown, or there is less data than the size says, or more pixels than video has.
    """
    if encoding not in _ENCODINGS:
        raise PixelError(f'image encoding {encoding!r} is not supported; use one of {", ".join(_ENCODINGS)}')
    size, code = _ENCODINGS[encoding]
    row, rows = width * size, height * 3 // 2 if encoding in _HALF_SIZE_COLOURS else height
    values = np.frombuffer(data, np.uint8)
    if not row or not rows or step < row or values.size < step * rows:
        raise PixelError(
            f'image of {width}x{height} {encoding} has {values.size} bytes in rows of {step}, '
            f'needs {row * rows} in rows of {row} or more'
        )
    _check_pixels(width, height)
    if encoding in _PAIRS and (width % 2 or (encoding in _HALF_SIZE_COLOURS and height % 2)):
        raise PixelError(f'image of {width}x{height} {encoding}: pairs of pixels share their colour; give even sizes')
    pixels = np.ascontiguousarray(values[: step * rows].reshape(rows, step)[:, :row])
    if encoding == 'mono16':
        pixels = (pixels.view('>u2' if big_endian else '<u2') >> 8).astype(np.uint8)
        size = 1
    pixels = pixels.reshape(rows, width, size)
    return pixels.copy() if code is None else cv2.cvtColor(pixels, code)


def decompress(data: Buffer) -> np.ndarray:
    """Return the pixels of a JPEG or PNG image, (H, W, 3) uint8 RGB.

    Raises:
        PixelError: The data is no such image, is not whole, or has more pixels than video has.
    """
    values = np.frombuffer(data, np.uint8)
    head = values[:_HEAD].tobytes()
    image = None
    if head.startswith((_JPEG, _PNG)) and all(size := _size(head)):
        _check_pixels(*size)
        # libjpeg fills the rest of a cut image with grey; its end marker tells.
        if head.startswith(_PNG) or values[-32:].tobytes().rstrip(b'\0\r\n').endswith(b'\xff\xd9'):
            image = cv2.imdecode(values, cv2.IMREAD_COLOR)
    if image is None:
        raise PixelError(f'compressed image of {values.size} bytes is neither JPEG nor PNG, or broken')
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _check_pixels(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        most = f'{MAX_PIXELS / 1e6:.1f} megapixels'
        raise PixelError(f'image of {width}x{height} is too large; scale it to {most} or less')


def _size(head: bytes) -> tuple[int, int]:
    """Return width and height as the head of a PNG or JPEG says; zeros where it does not."""
    if head.startswith(_PNG):
        return int.from_bytes(head[16:20]), int.from_bytes(head[20:24])
    at = 2
    while at + 9 <= len(head) and head[at] == 0xFF:
        marker, length = head[at + 1], int.from_bytes(head[at + 2 : at + 4])
        if marker == 0xFF:  # filling
            at += 1
        elif 0xC0 <= marker <= 0xCF and marker not in _NO_SIZE:
            return int.from_bytes(head[at + 7 : at + 9]), int.from_bytes(head[at + 5 : at + 7])
        else:
            at += 2 + length
    return 0, 0
