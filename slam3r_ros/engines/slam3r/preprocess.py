# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""From any image to the square that the networks take."""

from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from slam3r_ros.engines.slam3r.config import SIDE
from slam3r_ros.values import Intrinsics


class Crop(NamedTuple):
    """How a square was cut: the image is resized, then the middle is taken."""

    scale_x: float
    scale_y: float
    left: int  # pixels of the resized image
    top: int

    def intrinsics(self, camera: Intrinsics) -> Intrinsics:
        """Return the camera of the square, given that of the image."""
        scaled = camera.scaled(self.scale_x, self.scale_y)
        return scaled._replace(cx=scaled.cx - self.left, cy=scaled.cy - self.top)


def to_rgb(image: np.ndarray) -> np.ndarray:
    """Turn grey (H, W) or (H, W, 1), RGB or RGBA (H, W, 4) into RGB (H, W, 3) uint8.

    Floating-point images are in [0, 1]; what is not finite becomes black, alpha is dropped.

    Raises:
        ValueError: for any other array.
    """
    image = np.asarray(image)
    if image.ndim == 2:
        image = image[..., None]
    if image.ndim != 3 or image.shape[2] not in (1, 3, 4) or min(image.shape[:2]) < 1:
        raise ValueError(f'an image has the shape (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), not {image.shape}')
    if np.issubdtype(image.dtype, np.floating):
        image = (np.nan_to_num(image, nan=0, posinf=0, neginf=0).clip(0, 1) * 255).round().astype(np.uint8)
    if image.dtype != np.uint8:
        raise ValueError(f'an image holds uint8 or floating-point values, not {image.dtype}')
    return np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image[..., :3]


def square(image: np.ndarray, side: int = SIDE, upscale_bicubic: bool = False) -> tuple[np.ndarray, Crop]:
    """Resize an image so that its short side is `side`, and cut out the middle.

    Args:
        image: (H, W, 3) uint8 RGB.
        side: pixels.
        upscale_bicubic: the official offline loader enlarges small images so; its online loader does not.

    Returns:
        The square (side, side, 3) uint8 and how it was cut.
    """
    height, width = image.shape[:2]
    short, long = sorted((width, height))
    length = round(side * long / short)
    size = (side, length) if width < height else (length, side)
    bicubic = upscale_bicubic and long <= length
    # Pillow's antialiased filters, rounded to bytes between the two passes: no other resize gives the same pixels.
    resized = Image.fromarray(image).resize(size, Image.Resampling.BICUBIC if bicubic else Image.Resampling.LANCZOS)
    left, top = size[0] // 2 - side // 2, size[1] // 2 - side // 2
    cut = resized.crop((left, top, left + side, top + side))
    return np.asarray(cut), Crop(size[0] / width, size[1] / height, left, top)


def to_tensor(images: np.ndarray) -> torch.Tensor:
    """Turn images (..., H, W, 3) uint8 into network input (..., 3, H, W) in [-1, 1]."""
    return ((torch.from_numpy(np.array(images)).float() / 255 - 0.5) / 0.5).movedim(-1, -3)
