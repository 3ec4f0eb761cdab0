# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What every reconstruction engine offers: frames in, poses and keyframes out."""

from typing import NamedTuple, Protocol

from slam3r_ros.values import Frame, Keyframe, Pose, State


class EngineError(RuntimeError):
    """An engine cannot be made or cannot go on; the message names the cause and the way out."""


class EngineOutput(NamedTuple):
    """What one frame brought."""

    pose: Pose | None  # of this very frame; None while initialising or lost
    keyframes: tuple[Keyframe, ...] = ()  # new ones, and new revisions of earlier ones


class Engine(Protocol):
    """A causal reconstruction: what it says at a frame has seen no later frame.

    Poses are in the map frame of REP-105 (x forward, y left, z up at the first keyframe).  While the
    scale is unknown the unit is the median depth of the first keyframes.
    """

    name: str
    device: str
    model_license: str

    @property
    def state(self) -> State:
        """What the engine was doing when the last frame was through."""
        ...

    @property
    def milliseconds(self) -> dict[str, float]:
        """Median time of each stage, by its name."""
        ...

    @property
    def depth_skipped(self) -> int:
        """Keyframes that got no depth, the queue being full or depth having failed."""
        ...

    def process(self, frame: Frame) -> EngineOutput:
        """Take the next frame of the stream."""
        ...

    def finish(self) -> EngineOutput:
        """Wait for the work in the background; return the keyframes still to come."""
        ...

    def trajectory(self) -> list[Pose]:
        """Return the best known pose of every frame, in order, those back-filled included."""
        ...

    def reset(self) -> None:
        """Forget everything; the next keyframes carry the next `map_id`."""
        ...

    def close(self) -> None:
        """Stop background threads and free what is held."""
        ...
