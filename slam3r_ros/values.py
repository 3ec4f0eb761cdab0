# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The five values that flow through the program: who knows these knows slam3r_ros.

`Frame` goes in, `Pose` and `Keyframe` come out of an engine, `MeshUpdate` out of the mesher, and
`SlamStatus` says how it all fares.  They are frozen: a value that was handed on is never changed,
since inside one process every reader holds the very same object.
"""

from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple

import numpy as np

MIN_SIDE = 64  # pixels of an image; less shows too little to map
LATEST = 2**31 * 1_000_000_000 - 1  # nanoseconds; the last stamp that a builtin_interfaces/Time holds
_SAME_SHAPE = 0.01  # relative difference of aspect ratios that still show the same


class State(IntEnum):
    """What the engine is doing; the numbers are those of `SlamStatus.msg`."""

    INITIALIZING = 0
    TRACKING = 1
    LOST = 2
    RELOCALIZING = 3
    PAUSED = 4
    ERROR = 5


class Intrinsics(NamedTuple):
    """A pinhole camera, in pixels of the image it belongs to; pixel centres are integers."""

    fx: float
    fy: float
    cx: float
    cy: float

    def matrix(self) -> np.ndarray:
        """Return K, (3, 3)."""
        return np.array([[self.fx, 0, self.cx], [0, self.fy, self.cy], [0, 0, 1]], float)

    def scaled(self, x: float, y: float) -> 'Intrinsics':
        """Return the camera of the same image resized by `x` and `y` (half-pixel rule of OpenCV)."""
        return Intrinsics(self.fx * x, self.fy * y, (self.cx + 0.5) * x - 0.5, (self.cy + 0.5) * y - 0.5)


@dataclass(frozen=True)
class Frame:
    """One undistorted colour image of the stream, and the selector's advice about it."""

    id: int  # counts from 0 with each new stream, dropped frames included
    stamp: int  # nanoseconds
    image: np.ndarray  # (H, W, 3) uint8 RGB
    intrinsics: Intrinsics | None = None  # when the source knows them
    candidate: bool = True  # advice: worth a keyframe
    stride: int = 1  # advice: frames between keyframes
    last: bool = False  # the source ends with this frame


def same_shape(size: tuple[int, int], other: tuple[int, int]) -> bool:
    """Tell whether images of these heights and widths have one shape, so that a camera shows the same by both."""
    (height, width), (rows, columns) = size, other
    return abs(width * rows / (height * columns) - 1) <= _SAME_SHAPE


@dataclass(frozen=True)
class Pose:
    """Where the camera was when a frame was taken."""

    id: int  # of the frame
    stamp: int  # nanoseconds
    T_map_camera: np.ndarray  # (4, 4) float64, optical frame -> map
    state: State = State.TRACKING


@dataclass(frozen=True)
class Keyframe:
    """A posed view with dense geometry; the same id with a higher `revision` replaces the earlier one.

    It may first come without depth: then `pointmap`, `confidence` and `colors` are None.
    """

    pose: Pose
    intrinsics: Intrinsics  # of the pointmap's pixel grid
    pointmap: np.ndarray | None = None  # (H, W, 3) float32, camera optical frame, map units; NaN where unknown
    confidence: np.ndarray | None = None  # (H, W) float32 in [0, 1]; 0 where there is no point
    colors: np.ndarray | None = None  # (H, W, 3) uint8 RGB
    revision: int = 0
    map_id: int = 0
    stride: int = 1  # frames since the keyframe before
    relocalised: bool = False

    @property
    def id(self) -> int:
        """The id of the frame it was made from."""
        return self.pose.id


class MeshBlock(NamedTuple):
    """The surface inside one block of the map; no vertices means that the block is gone."""

    index: tuple[int, int, int]  # lattice position; the block's origin is index * block_size
    vertices: np.ndarray  # (N, 3) float32, map
    colors: np.ndarray  # (N, 3) uint8 RGB
    triangles: np.ndarray  # (M, 3) uint32, into vertices


@dataclass(frozen=True)
class MeshUpdate:
    """The blocks of the mesh that changed since the update before."""

    stamp: int  # nanoseconds, of the newest keyframe in it
    map_id: int  # another map has another id
    sequence: int  # a gap means that an update was missed
    block_size: float  # edge of a block, map units
    full: bool  # holds every block: forget the rest
    blocks: tuple[MeshBlock, ...]


@dataclass(frozen=True)
class SlamStatus:
    """How the engine and the nodes around it fare."""

    stamp: int  # nanoseconds
    state: State
    engine: str = ''
    device: str = 'cpu'
    model_license: str = ''
    scale_known: bool = False  # False: map units are the median depth of the first keyframes
    map_id: int = 0
    frames_in: int = 0
    frames_decoded: int = 0
    frames_dropped: int = 0
    keyframes: int = 0
    depth_skipped: int = 0  # keyframes that got no depth: the queue was full, or depth has failed
    finished: bool = False  # the source has ended and everything was handed on
    milliseconds: dict[str, float] = field(default_factory=dict)  # median per stage
    memory_bytes: int = 0
    last_error: str = ''
