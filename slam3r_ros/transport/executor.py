# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""rclpy's MultiThreadedExecutor without its busy loop.

That one hands a ready callback to its pool of threads and asks at once for the next.  Until a thread of the
pool has begun, the same callback counts as ready: it is handed over again and again in a loop that holds the
GIL, and the thread that shall run it waits for that very GIL, 5 ms a time.  Small messages between two
processes took 10 to 110 ms each that way instead of 1 ms, and every other thread of the process was starved.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from rclpy.executors import MultiThreadedExecutor


class PoolExecutor(MultiThreadedExecutor):
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
