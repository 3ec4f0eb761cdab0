# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Frames on their way through the engine."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from slam3r_ros.engines.slam3r.preprocess import Crop, square_on, to_rgb, to_tensor
from slam3r_ros.engines.slam3r.scene import Encoded, Scene
from slam3r_ros.values import Frame, Intrinsics


class Foreseen(NamedTuple):
    """A frame that comes next."""

    frame: Frame
    image: np.ndarray  # (S, S, 3) uint8
    crop: Crop
    encoded: Encoded


class Lookahead:
    """Cuts and encodes the next frame while the device works on the present one, where it can do both."""

    def __init__(self, side: int, device: str) -> None:
        """Take the pixels of a square, and torch's device."""
        self._side, self._device = side, device
        self._next: Frame | None = None
        self._begun: Foreseen | None = None

    def tell(self, frame: Frame) -> None:
        """Take note of the next frame."""
        self._next = frame

    def cut(self, frame: Frame) -> tuple[np.ndarray, Crop]:
        """Return the square of a frame that the networks see, (S, S, 3) uint8, and where it lies.

        Raises:
            ValueError: the frame holds no image.
        """
        return square_on(to_rgb(frame.image), self._side, self._device)

    def begin(self, scene: Scene) -> None:
        """Begin with it: the device has been told its work on the present frame, and nobody waits for that yet."""
        frame, self._next = self._next, None
        if frame is None or not scene.can_do_two:
            return
        try:
            with scene.beside():  # else the square would wait for the present frame
                image, crop = self.cut(frame)
            self._begun = Foreseen(frame, image, crop, scene.encoded(to_tensor(image)[None]))
        except (ValueError, torch.OutOfMemoryError):
            pass  # when its turn comes it is said why

    def take(self, frame: Frame) -> Foreseen | None:
        """Return what was begun for a frame whose turn has come; what was begun for another one is in vain."""
        begun, self._begun = self._begun, None
        if self._next is frame:
            self._next = None
        return begun if begun and begun.frame is frame else None


@dataclass(frozen=True)
class Waiting:
    """A frame that has no pose yet."""

    id: int
    stamp: int
    image: np.ndarray  # (224, 224, 3) uint8
    camera: Intrinsics | None  # of that square, when known
    candidate: bool
    stride: int
    encoded: Encoded | None  # when it was foreseen
