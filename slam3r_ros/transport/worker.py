# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""One thread per node: its callbacks never run at the same time, and in the order in which they came."""

import math
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from typing import Any

_POLL = 0.1  # seconds between two looks at whether the blocked thread's own worker was closed
_current = threading.local()


class WorkerError(RuntimeError):
    """The worker was closed before it came to the call."""


class Inbox:
    """A bounded queue of values that wait for one callback of a worker."""

    def __init__(self, worker: 'Worker', callback: Callable[[Any], None], depth: float, lossless: bool):
        """Use `Worker.inbox` instead."""
        self.dropped = 0
        self._worker, self._callback, self._depth, self._lossless = worker, callback, depth, lossless
        self._values: deque = deque()
        self._closed = False

    def put(self, value: Any) -> bool:
        """Append a value; when full, wait for room if lossless, else drop the oldest and count it.

        Waiting ends when the inbox, its worker, or the worker that waits is closed.

        Returns:
            False when the value was not taken since the inbox is closed.
        """
        worker = self._worker
        with worker._changed:
            if self._lossless:
                waiting = getattr(_current, 'worker', None)
                # A worker cannot wait for itself.
                while len(self._values) >= self._depth and waiting is not worker and not self.closed:
                    if waiting is not None and waiting.closed:
                        return False
                    worker._changed.wait(_POLL)
            if self.closed:
                return False
            if len(self._values) >= self._depth and not self._lossless:
                self._values.popleft()  # its turn passes to the new value
                self.dropped += 1
            else:
                worker._turns.append(self)
            self._values.append(value)
            worker._changed.notify_all()
        return True

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


class Worker:
    """A thread that serves inboxes in the order in which their values came, and timers.

    An exception in a callback is reported and kept as `last_error`; the thread lives on.
    """

    def __init__(self, name: str, report: Callable[[str], None]):
        """Start the thread.

        Args:
            name: Of the thread.
            report: Told the traceback of every exception in a callback.
        """
        self.last_error = ''
        self.closed = False
        self._report = report
        self._changed = threading.Condition()
        self._turns: deque[Inbox] = deque()  # one entry for each value that waits
        self._timers: list[list] = []  # [due, period, callback]
        self._calls = self.inbox(lambda call: call(), depth=math.inf)
        self._pending: set[Future] = set()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def inbox(self, callback: Callable[[Any], None], depth: float, lossless: bool = False) -> Inbox:
        """Make a queue of at most `depth` values for `callback`."""
        return Inbox(self, callback, depth, lossless)

    def every(self, seconds: float, callback: Callable[[], None]) -> None:
        """Run a callback again and again, at most once in `seconds`."""
        with self._changed:
            self._timers.append([time.monotonic() + seconds, seconds, callback])
            self._changed.notify_all()

    def call(self, function: Callable, *arguments: Any) -> Any:
        """Run a function after everything that waits already; return its result or raise its exception.

        Raises:
            WorkerError: The worker was closed first.
        """
        if getattr(_current, 'worker', None) is self:
            return function(*arguments)
        future = Future()
        with self._changed:
            self._pending.add(future)

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(function(*arguments))
            except Exception as error:  # noqa: BLE001 - it is raised where the call came from
                future.set_exception(error)

        if not self._calls.put(run):
            future.cancel()
        try:
            return future.result()
        except CancelledError:
            raise WorkerError('the node is shutting down') from None
        finally:
            with self._changed:
                self._pending.discard(future)

    def stop(self) -> None:
        """Take nothing more, and free whoever waits for this worker; does not wait for its thread."""
        with self._changed:
            self.closed = True
            self._turns.clear()
            for future in self._pending:
                future.cancel()  # without effect on the one that runs
            self._changed.notify_all()

    def close(self, timeout: float = 10.0) -> bool:
        """Stop, and wait for the callback that runs; return whether it ended within `timeout` seconds."""
        self.stop()
        if self._thread is not threading.current_thread():
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        _current.worker = self
        while (task := self._next()) is not None:
            try:
                task()
            except Exception as error:  # noqa: BLE001 - whatever one callback does, the others go on
                self.last_error = f'{type(error).__name__}: {error}'
                self._report(traceback.format_exc())

    def _next(self) -> Callable[[], None] | None:
        """Wait for the next callback to run; None when closed."""
        with self._changed:
            while not self.closed:
                now = time.monotonic()
                for timer in self._timers:
                    if timer[0] <= now:
                        timer[0] = now + timer[1]
                        return timer[2]
                while self._turns:
                    inbox = self._turns.popleft()
                    if inbox._values:  # else it was closed in the meantime
                        value = inbox._values.popleft()
                        self._changed.notify_all()
                        return lambda: inbox._callback(value)
                due = min((timer[0] for timer in self._timers), default=None)
                self._changed.wait(None if due is None else due - now)
        return None
