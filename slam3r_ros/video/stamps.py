# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The stamps of a stream judged: what is handed on rises, and a stream that begins again is told from a wrong stamp."""

from dataclasses import replace

from slam3r_ros.values import LATEST, Frame
from slam3r_ros.video.picture import NANOSECONDS

JUMP = NANOSECONDS  # a longer step, either way, is a jump of time; a shorter one back is disorder


class StampFilter:
    """Passes on the frames whose stamps rise; every stamp once.

    A frame that is not newer than those before, by at most `JUMP`, is dropped.  A jump is believed when the next stamp
    lies nearer to it than to the one before; until then its frame is held back, so that none is lost.  Time that has
    gone on meanwhile belongs to the same stream; with time that has gone back, as when a bag is played again, another
    stream begins, and `Frame.id` counts from 0 again.

    Attributes:
        duplicates: Frames dropped because their stamp had come before.
        disordered: Frames dropped because newer ones had come before.
        strays: Frames dropped because the next one contradicted their stamp, or because no message can carry it.
    """

    def __init__(self) -> None:
        """Wait for the first frame, whose stamp is believed."""
        self.duplicates = self.disordered = self.strays = 0
        self._newest: int | None = None  # stamp
        self._held: Frame | None = None
        self._first = self._next = 0  # ids in the source: of this stream's first frame, and of the frame to come

    @property
    def dropped(self) -> int:
        """All frames dropped."""
        return self.duplicates + self.disordered + self.strays

    def pass_on(self, frame: Frame) -> list[Frame]:
        """Return the frames that can be handed on now: none, this one, or the one held back and this one.

        The last frame of a source is always among them: where its stamp makes no sense it gets the next nanosecond.
        """
        if frame.id < self._next:  # the source itself has begun another stream
            self._settle(believed=False)
            self._newest, self._first = None, 0
        self._next = frame.id + 1
        if not 0 <= frame.stamp <= LATEST:
            if not frame.last:
                self.strays += 1
                return []
            frame = replace(frame, stamp=0 if self._newest is None else self._newest)
        held = self._held
        passed = self._settle(held is not None and abs(frame.stamp - held.stamp) < abs(frame.stamp - self._newest))
        if self._newest is None:
            return [*passed, self._take(frame)]
        step = frame.stamp - self._newest
        if frame.last:
            return [*passed, self._take(frame if step > 0 else replace(frame, stamp=self._newest + 1))]
        if 0 < step <= JUMP:
            return [*passed, self._take(frame)]
        if abs(step) > JUMP:
            self._held = frame
        elif step:
            self.disordered += 1
        else:
            self.duplicates += 1
        return passed

    def _settle(self, believed: bool) -> list[Frame]:
        """Return the frame that was held back, if there is one and its stamp is believed; else drop it."""
        held, self._held = self._held, None
        if held is None:
            return []
        if believed:
            return [self._take(held)]
        self.strays += 1
        return []

    def _take(self, frame: Frame) -> Frame:
        """Go on to a frame; return it as the stream numbers it."""
        if self._newest is not None and frame.stamp < self._newest:
            self._first = frame.id
        self._newest = frame.stamp
        return replace(frame, id=frame.id - self._first) if self._first else frame
