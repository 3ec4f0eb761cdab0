# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Spins one node on threads of its own: whatever blocks or fails there does not hold up another node.

rclpy's own executors end at the first exception in a callback, do not wait for those that run when they are shut
down, and turn in circles while a callback that is ready waits for a thread (see `transport.executor`).
"""

import threading
import time
import traceback
from queue import SimpleQueue

from rclpy.executors import ConditionReachedException, ExternalShutdownException, TimeoutException
from rclpy.node import Node
from rclpy.task import Task

from slam3r_ros.transport.errors import Fallible
from slam3r_ros.transport.executor import Steadfast

_THREADS = 5  # services of three kinds may block one each, input that waits for room another


class Spinner(Steadfast, Fallible):
    """An executor of one node; spins from the start.  Its errors are exceptions in callbacks.

    Attributes:
        node: That it spins.
        name: Of that node, in full.
    """

    def __init__(self, node: Node, threads: int = _THREADS):
        """Begin to spin.

        Args:
            node: Whose callbacks run.
            threads: How many of them may run at the same time, as far as their groups permit.
        """
        self._sigint_gc = None  # rclpy's __del__ looks for it, even when the following fails as the context has ended
        if not node.context.ok():  # rclpy would print a traceback
            raise RuntimeError('the context has ended')
        super().__init__(context=node.context)
        self.node = node
        self.name = name = node.get_fully_qualified_name()
        self._closing = False
        self._handlers: SimpleQueue[Task | None] = SimpleQueue()
        self._idle = threading.Semaphore(threads)
        self._taken = threading.Semaphore(0)
        # Daemons: a callback that never ends must not keep the process.
        self._waiting = threading.Thread(target=self._wait, name=f'{name} executor', daemon=True)
        self._serving = [
            threading.Thread(target=self._serve, name=f'{name} callbacks', daemon=True) for _ in range(threads)
        ]
        self.add_node(node)
        for thread in (self._waiting, *self._serving):
            thread.start()

    def close(self, timeout: float = 10.0) -> bool:
        """Run no further callback, and wait for those that run; return whether they ended within `timeout` seconds."""
        self._closing = True
        self.wake()
        self._idle.release()
        deadline = time.monotonic() + timeout
        self._waiting.join(timeout)
        for _ in self._serving:
            self._handlers.put(None)
        for thread in self._serving:
            thread.join(max(0.0, deadline - time.monotonic()))
        self.remove_node(self.node)
        self.shutdown()
        return not any(thread.is_alive() for thread in (self._waiting, *self._serving))

    def spin_once(self, timeout_sec: float | None = None) -> None:
        """Wait for a thread and for a callback, and bring them together."""
        self._idle.acquire()
        if self._closing:
            return
        try:
            self._handlers.put(self.wait_for_ready_callbacks(timeout_sec, None, self._is_closing)[0])
        except (ConditionReachedException, TimeoutException):
            self._idle.release()
        else:
            self._taken.acquire()  # else the same callback would count as ready once more

    def _is_closing(self) -> bool:
        return self._closing

    def _wait(self) -> None:
        try:
            while self.context.ok() and not self._closing:
                self.spin_once()
        except ExternalShutdownException:
            pass
        except Exception as error:  # noqa: BLE001 - of rcl
            self._report(error)

    def _serve(self) -> None:
        while (handler := self._handlers.get()) is not None:
            self._taken.release()
            handler()
            if handler.done() and (error := handler.exception()) is not None:
                self._report(error)
            del handler  # it holds the node
            self._idle.release()

    def _report(self, error: Exception) -> None:
        if self.context.ok() and not self._closing:  # else the end came between two calls of rcl
            self.last_error = f'{type(error).__name__}: {error}'
            self.node.get_logger().error(''.join(traceback.format_exception(error)))
