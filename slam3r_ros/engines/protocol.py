# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What every reconstruction engine offers: frames in, poses and keyframes out."""

from pathlib import Path
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

    An engine may map several places that it cannot join yet; one of these maps is the present one.  Whenever another
    becomes the present one, or it gets another frame or unit, `map_id` rises and all its keyframes come anew: at once
    without depth, then a few with every frame, with it.  So the newest `map_id` is always the whole of one map.
    """

    name: str
    device: str
    model_license: str
    can_save: bool  # and load

    @property
    def state(self) -> State:
        """What the engine was doing when the last frame was through."""
        ...

    @property
    def map_id(self) -> int:
        """The id of the present map; it only ever rises."""
        ...

    @property
    def scale_known(self) -> bool:
        """Whether the units of the present map are metres."""
        ...

    @property
    def degraded(self) -> str:
        """What the engine does without for want of memory; empty where nothing is missing."""
        ...

    @property
    def milliseconds(self) -> dict[str, float]:
        """Median time of each stage, by its name."""
        ...

    @property
    def depth_skipped(self) -> int:
        """Keyframes that got no depth, the queue being full or depth having failed."""
        ...

    def prepare(self) -> None:
        """Get what the first frame would else wait for, as networks that are in files.

        Raises:
            EngineError: it cannot be had.
        """
        ...

    def foresee(self, frame: Frame) -> None:
        """See a frame that waits to come next: what is done for it alone may begin, beside the work on the one before.

        It changes no result.  The frame may not come after all.
        """
        ...

    def process(self, frame: Frame) -> EngineOutput:
        """Take the next frame of the stream."""
        ...

    def finish(self) -> EngineOutput:
        """Wait for the work in the background; return the keyframes still to come."""
        ...

    def resend(self, most: int = 8) -> EngineOutput:
        """Return keyframes that wait to come anew, so many with depth; none when nothing waits.  It needs no frame."""
        ...

    def trajectory(self) -> list[Pose]:
        """Return the best known pose of every frame of the present map, in order, those back-filled included."""
        ...

    def other_trajectories(self) -> list[list[Pose]]:
        """Return the same of the maps that are not the present one, each in a frame and a unit of its own."""
        ...

    def set_scale(self, metres_per_unit: float) -> None:
        """Say how many metres a unit of the present map has, as it is now: said twice, both factors count.

        Raises:
            EngineError: there is no map yet, the number makes no sense, or the engine cannot.
        """
        ...

    def save(self, path: Path) -> None:
        """Write all maps to a file, in one step: whatever happens, the old file or the new one is there.

        Raises:
            EngineError: there is no map yet, or the engine cannot.
            OSError: it cannot be written.
        """
        ...

    def load(self, path: Path) -> None:
        """Forget everything, take the maps of a file, and look for the camera in them.

        Their keyframes are numbered from 0; the ids of keyframes to come count on from there.

        Raises:
            EngineError: the file is no map of this engine, or the engine cannot; then all stays as it was.
        """
        ...

    def reset(self) -> None:
        """Forget everything; the next keyframes carry the next `map_id`."""
        ...

    def release(self) -> None:
        """Free what can be had again when the next frame comes, and give it back to the GPU; the map stays."""
        ...

    def close(self) -> None:
        """Stop background threads and free what is held."""
        ...


class OneByOne:
    """The answers of an engine that does one thing after the other, and needs whatever it holds."""

    def prepare(self) -> None:
        """Get nothing: all is there."""

    def foresee(self, frame: Frame) -> None:
        """Leave it until its turn."""

    def release(self) -> None:
        """Free nothing."""


class SingleMap(OneByOne):
    """The answers of an engine with one map, of unknown scale, that can be put into no file."""

    name: str
    can_save = scale_known = False

    def resend(self, most: int = 8) -> EngineOutput:
        """Return nothing: nothing ever waits."""
        return EngineOutput(None)

    def other_trajectories(self) -> list[list[Pose]]:
        """Return nothing: there is one map."""
        return []

    def set_scale(self, metres_per_unit: float) -> None:
        """Say that this cannot be had."""
        raise self._cannot('scale its map')

    def save(self, path: Path) -> None:
        """Say that this cannot be had."""
        raise self._cannot('save its map; what was seen can be saved, as trajectory, cloud and mesh')

    def load(self, path: Path) -> None:
        """Say that this cannot be had."""
        raise self._cannot('load a map')

    def _cannot(self, what: str) -> EngineError:
        return EngineError(f'the engine {self.name} cannot {what}: take engine:=geometric where that is needed')
