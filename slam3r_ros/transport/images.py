# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Camera messages: Image and CompressedImage to RGB arrays, CameraInfo to the lens that is to be undone."""

import numpy as np
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from slam3r_ros.transport import interop
from slam3r_ros.transport.stamps import to_stamp
from slam3r_ros.values import Intrinsics
from slam3r_ros.video.pixels import PixelError, decompress, to_rgb
from slam3r_ros.video.undistort import Undistorter


def from_image(message: Image | CompressedImage) -> np.ndarray:
    """Return the pixels of an image message, (H, W, 3) uint8 RGB.

    Raises:
        PixelError: The encoding is unknown, or the data is broken.
    """
    if isinstance(message, CompressedImage):
        return decompress(message.data)
    try:
        return to_rgb(message.data, message.encoding, message.width, message.height, message.step)
    except PixelError:
        if interop.has_cv_bridge():  # knows more encodings
            return interop.convert_image(message, 'rgb8')
        raise


def to_image(image: np.ndarray, stamp: int, frame_id: str) -> Image:
    """Return an (H, W, 3) uint8 RGB array as a sensor_msgs/Image."""
    message = Image(encoding='rgb8', height=image.shape[0], width=image.shape[1], step=3 * image.shape[1])
    message.header.stamp = to_stamp(stamp)
    message.header.frame_id = frame_id
    # Assigning an array is walked element by element; this is a thousand times faster.
    message.data.frombytes(memoryview(np.ascontiguousarray(image)).cast('B'))
    return message


def undistorter(info: CameraInfo, width: int, height: int, rectified: bool = False) -> Undistorter | None:
    """Return what undoes the lens of a CameraInfo, and knows the pinhole camera that remains.

    Args:
        info: Calibration; scaled when it was made at another size.
        width: Of the images, pixels.
        height: Of the images, pixels.
        rectified: The images are undistorted already: the camera is in P.

    Returns:
        None when the camera is not calibrated, K all zeros (REP-104).

    Raises:
        DistortionError: The distortion model is unknown.
    """
    K = np.reshape(info.p, (3, 4))[:, :3] if rectified else np.reshape(info.k, (3, 3))
    if not K[0, 0]:
        return None
    camera = Intrinsics(*(float(K[i]) for i in ((0, 0), (1, 1), (0, 2), (1, 2))))
    if info.width and info.height:
        camera = camera.scaled(width / info.width, height / info.height)
    return Undistorter(camera, () if rectified else info.d, width, height, info.distortion_model)
