# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Frames on their way through the engine."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from slam3r_ros.engines.slam3r.preprocess import Crop
from slam3r_ros.engines.slam3r.scene import Encoded
from slam3r_ros.values import Frame, Intrinsics


class Foreseen(NamedTuple):
    """A frame that comes next."""

    frame: Frame
    image: np.ndarray  # (S, S, 3) uint8
    crop: Crop
    encoded: Encoded


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
