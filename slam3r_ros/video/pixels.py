# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Bytes of images to RGB arrays."""

import array

import cv2
import numpy as np

Buffer = bytes | bytearray | memoryview | np.ndarray | array.array

# Bytes a pixel, and OpenCV's way to RGB: sensor_msgs/image_encodings.hpp.
_ENCODINGS = {
    'rgb8': (3, None),
    'bgr8': (3, cv2.COLOR_BGR2RGB),
    'rgba8': (4, cv2.COLOR_RGBA2RGB),
    'bgra8': (4, cv2.COLOR_BGRA2RGB),
    'mono8': (1, cv2.COLOR_GRAY2RGB),
    '8UC1': (1, cv2.COLOR_GRAY2RGB),
    '8UC3': (3, cv2.COLOR_BGR2RGB),
}


class PixelError(ValueError):
    """Bytes are no image; the message names the reason and the way out."""


def to_rgb(data: Buffer, encoding: str, width: int, height: int, step: int) -> np.ndarray:
    """Return the pixels of a raw image.

    Args:
        data: At least `step * height` bytes.
        encoding: A name of sensor_msgs/image_encodings.
        width: Pixels.
        height: Pixels.
        step: Bytes from one row to the next; rows may be padded.

    Returns:
        (height, width, 3) uint8 RGB, writable and its own.

    Raises:
        PixelError: The encoding is unknown, or there is less data than the size says.
    """
    if encoding not in _ENCODINGS:
        raise PixelError(f'image encoding {encoding!r} is not supported; use one of {", ".join(_ENCODINGS)}')
    size, code = _ENCODINGS[encoding]
    row = width * size
    values = np.frombuffer(data, np.uint8)
    if not row or not height or step < row or values.size < step * height:
        raise PixelError(
            f'image of {width}x{height} {encoding} has {values.size} bytes in rows of {step}, '
            f'needs {row * height} in rows of {row} or more'
        )
    pixels = values[: step * height].reshape(height, step)[:, :row].reshape(height, width, size)
    return pixels.copy() if code is None else cv2.cvtColor(np.ascontiguousarray(pixels), code)


def decompress(data: Buffer) -> np.ndarray:
    """Return the pixels of a JPEG or PNG image, (H, W, 3) uint8 RGB.

    Raises:
        PixelError: The data is no such image.
    """
    values = np.frombuffer(data, np.uint8)
    image = cv2.imdecode(values, cv2.IMREAD_COLOR) if values.size else None
    if image is None:
        raise PixelError(f'compressed image of {values.size} bytes is neither JPEG nor PNG, or broken')
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
