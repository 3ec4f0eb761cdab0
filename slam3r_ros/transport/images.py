# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Camera messages: Image and CompressedImage to RGB arrays and back."""

import numpy as np
from sensor_msgs.msg import CompressedImage, Image

from slam3r_ros.transport import interop
from slam3r_ros.transport.stamps import to_stamp
from slam3r_ros.video.pixels import PixelError, decompress, to_rgb


def from_image(message: Image | CompressedImage) -> np.ndarray:
    """Return the pixels of an image message, (H, W, 3) uint8 RGB.

    Raises:
        PixelError: The encoding is unknown, or the data is broken.
    """
    if isinstance(message, CompressedImage):
        return decompress(message.data)
    try:
        return to_rgb(
            message.data, message.encoding, message.width, message.height, message.step, bool(message.is_bigendian)
        )
    except PixelError:
        if interop.has_cv_bridge():  # knows more encodings
            return interop.convert_image(message, 'rgb8')
        raise


def to_image(image: np.ndarray, stamp: int, frame_id: str) -> Image:
    """Return an (H, W, 3) uint8 RGB array, or tensor on any device, as a sensor_msgs/Image."""
    image = interop.as_array(image)
    message = Image(encoding='rgb8', height=image.shape[0], width=image.shape[1], step=3 * image.shape[1])
    message.header.stamp = to_stamp(stamp)
    message.header.frame_id = frame_id
    # Assigning an array is walked element by element; this is a thousand times faster.
    message.data.frombytes(memoryview(np.ascontiguousarray(image)).cast('B'))
    return message
