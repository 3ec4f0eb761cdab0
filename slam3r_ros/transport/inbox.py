# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What waits for a worker, and how one worker waits for another."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from slam3r_ros.transport.worker import Worker

_POLL = 0.1  # seconds between two looks at whether the blocked thread's own worker was closed
current = threading.local()  # its `worker` is the one whose thread this is


class Inbox:
    """A bounded queue of values that wait for one callback of a worker."""

    def __init__(
        self, worker: 'Worker', callback: Callable[[Any], None], depth: float, lossless: bool, always: bool
    ):
        """Use `Worker.inbox` instead."""
        self.taken = self.dropped = 0
        self._always = always
        self._worker, self._callback, self._depth, self._lossless = worker, callback, depth, lossless
        self._values: deque = deque()
        self._closed = False

    def put(self, value: Any) -> bool:
        """Append a value; when full, wait for room if lossless, else drop the oldest and count it.

        Waiting ends when the inbox, its worker, or the worker that waits is closed.

        Returns:
            False when the value was not taken since the inbox is closed.
        """
        worker, waiting = self._worker, getattr(current, 'worker', None)
        may_wait = self._lossless and waiting is not worker  # a worker cannot wait for itself
        while True:
            with worker._changed:
                if self.closed:
                    return False
                is_full = len(self._values) >= self._depth
                if not (may_wait and is_full):
                    if is_full and not self._lossless:
                        self._values.popleft()  # its turn passes to the new value
                        self.dropped += 1
                    else:
                        worker._turns.append(self)
                    self._values.append(value)
                    self.taken += 1
                    worker._changed.notify_all()
                    return True
            self._wait_for_room(waiting)
            if waiting is not None and waiting.closed:
                return False

    def _wait_for_room(self, waiting: 'Worker | None') -> None:
        changed = self._worker._changed
        with pausable():  # to the end: whoever looks meanwhile sees that it waits
            while waiting is None or not waiting.closed:
                with changed:
                    if changed.wait_for(lambda: self.closed or len(self._values) < self._depth, _POLL):
                        return

    @property
    def first(self) -> Any:
        """What comes next; None when nothing waits."""
        with self._worker._changed:
            return self._values[0] if self._values else None

    @property
    def closed(self) -> bool:
        """Whether values are refused."""
        return self._closed or self._worker.closed

    def __len__(self) -> int:
        """Return how many values wait."""
        return len(self._values)

    def close(self) -> None:
        """Refuse values from now on, forget those that wait, and free whoever waits for room."""
        with self._worker._changed:
            self._closed = True
            self._values.clear()
            self._worker._changed.notify_all()


@contextmanager
def pausable() -> Iterator[None]:
    """Let the worker of this thread be paused while it waits for others; it goes on only when it is resumed."""
    worker = getattr(current, 'worker', None)
    if worker is None:
        yield
        return
    with worker._changed:
        worker._waits = True
        worker._changed.notify_all()
    try:
        yield
    finally:
        with worker._changed:
            worker._changed.wait_for(lambda: worker._unstoppable or not worker._held or worker.closed)
            worker._waits, worker._since = False, time.monotonic()
