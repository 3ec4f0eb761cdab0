# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""From any image to the square that the networks take."""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from slam3r_ros.engines.slam3r.config import SIDE
from slam3r_ros.values import Intrinsics

_LOBES = 3  # of the Lanczos filter, on either side
_BITS = 22  # of Pillow's weights, after the point
_PART = 8  # bits of a weight that are multiplied at once


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
    size, crop = _cut(height, width, side)
    bicubic = upscale_bicubic and max(height, width) <= max(size)
    # Pillow's antialiased filters, rounded to bytes between the two passes: no other resize gives the same pixels.
    resized = Image.fromarray(image).resize(size, Image.Resampling.BICUBIC if bicubic else Image.Resampling.LANCZOS)
    cut = resized.crop((crop.left, crop.top, crop.left + side, crop.top + side))
    return np.asarray(cut), crop


def _cut(height: int, width: int, side: int) -> tuple[tuple[int, int], Crop]:
    """Return the width and height to which an image is resized, and how the square is cut from that."""
    columns, rows = (round(side * length / min(height, width)) for length in (width, height))
    return (columns, rows), Crop(columns / width, rows / height, columns // 2 - side // 2, rows // 2 - side // 2)


def to_tensor(images: np.ndarray) -> torch.Tensor:
    """Turn images (..., H, W, 3) uint8 into network input (..., 3, H, W) in [-1, 1]."""
    return ((torch.from_numpy(np.array(images)).float() / 255 - 0.5) / 0.5).movedim(-1, -3)


def square_on(image: np.ndarray, side: int = SIDE, device: str = 'cuda') -> tuple[np.ndarray, Crop]:
    """Do what `square` does, to the bit, on a GPU: for a large image a CPU takes longer than the networks there.

    Args:
        image: (H, W, 3) uint8 RGB.
        side: pixels.
        device: of torch; with 'cpu', or without room, it is `square`.
    """
    try:
        return square(image, side) if device == 'cpu' else _filtered(image, side, device)
    except torch.OutOfMemoryError:
        return square(image, side)


def _filtered(image: np.ndarray, side: int, device: str) -> tuple[np.ndarray, Crop]:
    """Filter by matrices across, then down."""
    height, width = image.shape[:2]
    crop, first, last, across, down = _filters(height, width, side, device)
    pixels = torch.from_numpy(np.array(image[:, first:last], order='C')).to(device).float()  # (H, w, 3)
    narrow = _filter(across, pixels.transpose(0, 1).flatten(1)).unflatten(1, (height, 3))  # (side, H, 3)
    small = _filter(down, narrow.transpose(0, 1).flatten(1)).unflatten(1, (side, 3))
    return small.byte().cpu().numpy(), crop


def _filter(weights: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    """Apply weights (3, side, N) to pixels (N, M).

    Numbers of 8 bits multiply exactly in any type, and in float32 their sums are exact, too, of up to 256 weights.
    """
    high, middle, low = (weights @ pixels).int()
    total = (high << 2 * _PART) + (middle << _PART) + low
    return ((total + (1 << _BITS - 1)) >> _BITS).clamp(0, 255).float()


@lru_cache(maxsize=4)  # cameras
def _filters(height: int, width: int, side: int, device: str) -> tuple[Crop, int, int, torch.Tensor, torch.Tensor]:
    """Return the crop, the columns that matter, and the weights (3, side, w) across and (3, side, H) down."""
    (columns, rows), crop = _cut(height, width, side)
    across = _weights(width, columns)[crop.left : crop.left + side]
    down = _weights(height, rows)[crop.top : crop.top + side]
    matter = np.flatnonzero(across.any(axis=0))
    first, last = matter[0], matter[-1] + 1
    low = (1 << _PART) - 1
    across, down = (
        torch.from_numpy(np.stack([w >> 2 * _PART, w >> _PART & low, w & low])).float().to(device)
        for w in (across[:, first:last], down)
    )
    return crop, first, last, across, down


def _weights(before: int, after: int) -> np.ndarray:
    """Return what each of `before` pixels gives to each of `after`, (after, before), as Pillow rounds it."""
    if before == after:
        return np.eye(after, dtype=np.int64) << _BITS  # Pillow leaves that side alone
    scale = before / after
    reach = _LOBES * max(scale, 1)
    middles = (np.arange(after)[:, None] + 0.5) * scale
    pixels = np.arange(before)
    x = (pixels + 0.5 - middles) / max(scale, 1)
    near = (pixels >= np.floor(middles - reach + 0.5)) & (pixels < np.floor(middles + reach + 0.5))
    weights = np.where(near & (x >= -_LOBES) & (x < _LOBES), np.sinc(x) * np.sinc(x / _LOBES), 0)
    weights /= weights.sum(axis=1, keepdims=True)
    return np.trunc(weights * (1 << _BITS) + np.copysign(0.5, weights)).astype(np.int64)
