# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Live video: the newest frame is kept, and a connection that breaks is made again, however long that takes."""

import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

from slam3r_ros.values import Frame
from slam3r_ros.video.picture import Picture, SteadySize, VideoError, one_line

_DEPTH = 2  # frames that wait for their reader
_SILENCE = 15.0  # seconds without a picture that are told: the driver of a camera may wait for one for ever

Pictures = Iterator[Picture | None]  # None: one was lost
Connect = Callable[[threading.Event], AbstractContextManager[Pictures]]


class Backoff:
    """How long to wait before the next attempt: twice as long each time, with jitter.

    Many clients of a server that comes back would otherwise all come at the same moment.
    """

    def __init__(self, first: float = 0.5, last: float = 30.0, rng: random.Random | None = None) -> None:
        """Begin anew.

        Args:
            first: Seconds at least.
            last: Seconds at most.
            rng: Of the jitter.
        """
        self._first, self._last, self._rng = first, last, rng or random.Random()
        self._limit = 2 * first

    def next(self) -> float:
        """Return the seconds to wait now."""
        limit = self._limit
        self._limit = min(2 * limit, self._last)
        return self._rng.uniform(limit / 2, limit)

    def reset(self) -> None:
        """Begin anew: it worked."""
        self._limit = 2 * self._first


class LiveSource:
    """A `Source` that never ends by itself: it connects on a thread of its own, and again whenever that is needed.

    When the size of the pictures changes, those of the same shape are scaled to what it was, and all goes on; with
    another shape a new video begins: `Frame.id` counts from 0 again.

    Attributes:
        name: For logs, without passwords.
        fps: Nominal.
        frames: None; there is no end.
        skipped: Pictures that could not be decoded so far.
        dropped: Frames that their reader was too slow for.
        breaks: How often the connection broke, or could not be made.
        reason: Why that was so last; empty before.
    """

    live = True
    frames = None

    def __init__(
        self, name: str, connect: Connect, stamp_offset: int = 0, fps: float = 30.0, backoff: Backoff | None = None
    ) -> None:
        """Begin to connect; does not wait for it.

        Args:
            name: For logs.
            connect: Opens the video; what it opens is closed when it breaks.  Pictures are stamped with
                `time.monotonic_ns()`.  Its argument is set when the source is closed.
            stamp_offset: Nanoseconds of a picture that comes now.
            fps: Nominal.
            backoff: Between attempts.
        """
        self.name, self.fps, self.skipped, self.dropped = name, fps, 0, 0
        self.breaks, self.reason, self._error, self._came = 0, '', f'{name}: connecting', 0.0
        self._connect, self._backoff = connect, backoff or Backoff()
        self._offset = stamp_offset - time.monotonic_ns()
        self._closed = threading.Event()
        self._changed = threading.Condition()
        self._waiting: deque[Frame] = deque()
        self._count, self._fit = 0, SteadySize()
        self._thread = threading.Thread(target=self._run, name=f'live {name}', daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[Frame]:
        """Yield the newest frames until the source is closed."""
        while not self._closed.is_set():
            if (frame := self.read(None)) is not None:
                yield frame

    def read(self, timeout: float | None) -> Frame | None:
        """Return the next frame; None when none came within `timeout` seconds, or the source is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed.is_set(), timeout)
            return self._waiting.popleft() if self._waiting and not self._closed.is_set() else None

    @property
    def error(self) -> str:
        """Why there are no pictures now; empty while they come."""
        if not self._error and (seconds := time.monotonic() - self._came) > _SILENCE:
            return f'{self.name}: no picture for {seconds:.0f} s'
        return self._error

    @property
    def waiting(self) -> int:
        """Frames that wait for their reader."""
        return len(self._waiting)

    @property
    def now(self) -> int:
        """The stamp of a picture that comes now."""
        return time.monotonic_ns() + self._offset

    def close(self) -> None:
        """End at once; the thread closes the connection as soon as that lets it."""
        self._closed.set()
        with self._changed:
            self._changed.notify_all()

    def _run(self) -> None:
        while not self._closed.is_set():
            try:
                with self._connect(self._closed) as pictures:
                    for picture in pictures:
                        if self._closed.is_set():
                            return
                        self._put(picture)
                reason = 'the stream has ended'
            except (VideoError, OSError) as error:
                reason = one_line(error)
            except Exception as error:  # noqa: BLE001 - whatever comes over a network, the next attempt may work
                reason = f'{type(error).__name__}: {one_line(error)}'
            delay = self._backoff.next()
            self.reason = f'{self.name}: {reason.removeprefix(f"{self.name}: ")}'
            self._error = f'{self.reason}; next attempt in {delay:.1f} s'
            self.breaks += 1
            self._closed.wait(delay)

    def _put(self, picture: Picture | None) -> None:
        """Append a frame; drop the oldest one that waits."""
        if picture is None:
            self.skipped += 1
            self._count += 1
            return
        self._error, self._came = '', time.monotonic()
        self._backoff.reset()
        image, begins = self._fit(picture.image)
        if begins:
            self._count = 0
        with self._changed:
            if len(self._waiting) >= _DEPTH:
                self._waiting.popleft()
                self.dropped += 1
            self._waiting.append(Frame(self._count, picture.stamp + self._offset, image))
            self._changed.notify_all()
        self._count += 1
