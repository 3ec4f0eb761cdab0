# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""One thread per node: its callbacks never run at the same time, and in the order in which they came."""

import math
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, wait
from typing import Any

from slam3r_ros.transport.errors import Fallible
from slam3r_ros.transport.inbox import Inbox, current

_POLL = 0.1  # seconds between two looks at whether a call can still come to its turn


class WorkerError(RuntimeError):
    """The worker was closed before it came to the call."""


class Worker(Fallible):
    """A thread that serves inboxes in the order in which their values came, and timers.

    An exception in a callback is reported and kept as `last_error`; the thread lives on.
    """

    def __init__(self, name: str, report: Callable[[str], None]):
        """Start the thread.

        Args:
            name: Of the thread.
            report: Told the traceback of every exception in a callback.
        """
        self.closed = self.paused = False
        self._report = report
        self._busy = self._waits = False  # in a callback; in one that waits for others
        self._since = 0.0  # when it began, or went on
        self._unstoppable = False  # in a callback that a pause does not stop
        self._held = False  # paused, even amid a callback that waits for others
        self._changed = threading.Condition()
        self._turns: deque[Inbox] = deque()  # one entry for each value that waits
        self._looks: deque[Callable[[], Any]] = deque()  # what waits for the end of the present callback
        self._timers: list[list] = []  # [due, period, callback]
        self._calls = self.inbox(lambda call: call(), depth=math.inf)
        self._pending: set[Future] = set()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def inbox(
        self, callback: Callable[[Any], None], depth: float, lossless: bool = False, always: bool = False
    ) -> Inbox:
        """Make a queue of at most `depth` values for `callback`; while paused but not held, served only if `always`."""
        return Inbox(self, callback, depth, lossless, always)

    def every(self, seconds: float, callback: Callable[[], None]) -> None:
        """Run a callback again and again, at most once in `seconds`; not while paused."""
        with self._changed:
            self._timers.append([time.monotonic() + seconds, seconds, callback])
            self._changed.notify_all()

    def call(self, function: Callable, *arguments: Any, patience: float | None = None) -> Any:
        """Run a function after everything that waits already; return its result or raise its exception.

        Args:
            function: To run.
            arguments: For it.
            patience: Seconds that it may wait for its turn; None: for ever.

        Raises:
            WorkerError: The worker was closed first, its turn did not come, or cannot come: the worker is held amid a
                callback.
        """
        if getattr(current, 'worker', None) is self:
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
            if patience is not None and (reason := self._why_not(future, patience)) and future.cancel():
                raise WorkerError(reason)
            return future.result()
        except CancelledError:
            raise WorkerError('the node is shutting down') from None
        finally:
            with self._changed:
                self._pending.discard(future)

    def _why_not(self, future: Future, patience: float) -> str:
        """Wait for a call to be done or its patience to be over; return why its turn does not come."""
        deadline = time.monotonic() + patience
        while not wait([future], _POLL).done and not future.cancelled():
            if self._held and self._waits and not self._unstoppable:
                return 'the node was deactivated while others did not take what it publishes; activate it first'
            if time.monotonic() > deadline:
                if self._waits:
                    return 'others do not take what the node publishes; see that they are active, then try again'
                return f'the node was busy for more than {patience:.0f} s; try again'
        return ''

    @property
    def busy(self) -> float:
        """Seconds that the present callback has been at work; 0 when there is none, or it waits for others."""
        with self._changed:
            return time.monotonic() - self._since if self._busy and not self._waits else 0.0

    def peek(self, look: Callable[[], Any]) -> None:
        """Call a function in this thread unless a callback is at work, and then on the worker as soon as that is done.

        A callback that waits for others is not at work.  Until the function returns the worker does nothing, so it must
        be short.
        """
        if getattr(current, 'worker', None) is self:
            look()
            return
        with self._changed:
            if not self._busy or self._waits:
                look()
            elif look not in self._looks:
                self._looks.append(look)

    def note(self, error: str) -> None:
        """Report something that went wrong without an exception."""
        self.last_error = error
        self._report(error)

    def pause(self, timeout: float = 0.0, hold: bool = True) -> bool:
        """Serve calls only, until `resume`; values wait or are dropped, as their inboxes say.

        Waits for the callback that runs, unless that waits for others (`pausable`).

        Args:
            timeout: Seconds to wait.
            hold: Let a callback that waits for others stay where it is, even when they are ready; else it may go on to
                its end, and calls are served then.

        Returns:
            False, and all goes on as before, when the callback has not ended within `timeout` seconds.
        """
        with self._changed:
            before = self.paused, self._held
            self.paused, self._held = True, self._held or hold
            done = self._changed.wait_for(lambda: not self._busy or self._waits or self.closed, timeout)
            if not done:
                self.paused, self._held = before
            self._changed.notify_all()
            return done

    def resume(self) -> None:
        """Go on."""
        with self._changed:
            self.paused = self._held = False
            self._changed.notify_all()

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
        current.worker = self
        while (task := self._next()) is not None:
            try:
                task()
            except Exception as error:  # noqa: BLE001 - whatever one callback does, the others go on
                self.last_error = f'{type(error).__name__}: {error}'
                self._report(traceback.format_exc())

    def _next(self) -> Callable[[], None] | None:
        """Wait for the next callback to run; None when closed."""
        with self._changed:
            self._busy = False
            self._changed.notify_all()
            while not self.closed:
                now = time.monotonic()
                if self._looks:
                    self._busy, self._since, self._unstoppable = True, now, True
                    return self._looks.popleft()
                timers = [] if self.paused else self._timers
                for timer in timers:
                    if timer[0] <= now:
                        timer[0] = now + timer[1]
                        self._busy, self._since, self._unstoppable = True, now, False
                        return timer[2]
                while (inbox := self._take_turn()) is not None:
                    if inbox._values:  # else it was closed in the meantime
                        value = inbox._values.popleft()
                        self._busy, self._since, self._unstoppable = True, now, inbox is self._calls
                        self._changed.notify_all()
                        return lambda: inbox._callback(value)
                due = min((timer[0] for timer in timers), default=None)
                self._changed.wait(None if due is None else due - now)
        return None

    def _take_turn(self) -> Inbox | None:
        """Return the inbox that is next: while held, only that of the calls."""
        for i, inbox in enumerate(self._turns):
            if not self.paused or inbox is self._calls or inbox._always and not self._held:
                del self._turns[i]
                return inbox
        return None
