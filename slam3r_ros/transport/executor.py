# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""rclpy's executors without two of their faults.

All of them end with `InvalidHandle` when a publisher or a subscription is destroyed on another thread just as they
gather what to wait for: `Steadfast` lets them gather anew.

MultiThreadedExecutor turns in a busy loop: it hands a ready callback to its pool of threads and asks at once for the
next.  Until a thread of the pool has begun, the same callback counts as ready: it is handed over again and again in a
loop that holds the GIL, and the thread that shall run it waits for that very GIL, 5 ms a time.  Small messages between
two processes took 10 to 110 ms each that way instead of 1 ms, and every other thread of the process was starved.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from rclpy.exceptions import InvalidHandle
from rclpy.executors import Executor, MultiThreadedExecutor


class Steadfast(Executor):
    """Goes on when what it was about to wait for is destroyed."""

    def wait_for_ready_callbacks(self, *args: Any, **kwargs: Any) -> tuple:
        """Return the next callback that is ready, as rclpy's does."""
        while True:
            try:
                return super().wait_for_ready_callbacks(*args, **kwargs)
            except InvalidHandle:
                pass


class PoolExecutor(Steadfast, MultiThreadedExecutor):
    """Spins nodes on a pool of threads."""

    def __init__(self, num_threads: int, **kwargs: Any):
        """Make the pool.

        Args:
            num_threads: Callbacks that may run at the same time, at least 2.
            kwargs: For rclpy's executor, such as `context`.
        """
        super().__init__(num_threads, **kwargs)
        self._executor.shutdown()
        self._executor = _Pool(num_threads)

    def finish(self) -> None:
        """Shut down, and wait for the callbacks that run: `shutdown` alone does not, and their answers would fail.

        Waits without limit, as Python itself would in the end: the threads of a pool are no daemons.
        """
        self.shutdown()
        self._executor.shutdown()


class _Pool(ThreadPoolExecutor):
    """Returns from `submit` when a thread has taken the work."""

    def submit(self, work: Callable[[], Any]) -> Future:
        begun = threading.Event()

        def run() -> Any:
            begun.set()
            return work()

        future = super().submit(run)
        begun.wait()  # gives the GIL to that thread
        return future
