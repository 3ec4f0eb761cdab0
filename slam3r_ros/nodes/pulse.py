# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A node's line on /diagnostics: once a second in every state, whatever its worker does meanwhile.

What belongs to the worker is looked at only while that rests or waits for others.  While it is busy with one value,
what was seen last holds, and the line says for how long that has been so.
"""

import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.clock import Clock, ClockType
from rclpy.duration import Duration

from slam3r_ros.monitoring.readings import ENDED
from slam3r_ros.transport.bus import count_malformed, queues_of
from slam3r_ros.transport.errors import RECENT

if TYPE_CHECKING:
    from slam3r_ros.nodes.base import PipelineNode

PERIOD = 1.0  # seconds
_FAREWELL = 0.2  # seconds until the last line must have arrived
_STUCK = 60.0  # seconds with one value after which something must be wrong


class Pulse:
    """Beats while the node is there, on a thread of the executor."""

    def __init__(self, node: 'PipelineNode'):
        """Begin with the next second."""
        self._node = node
        self._publisher = node.create_publisher(DiagnosticArray, '/diagnostics', 10)
        self._seen: dict[str, Any] = {}  # what the node said of itself when its worker could be looked at last
        self._counts: dict[str, int] = {}  # values that had come on each queue
        self._counted = time.monotonic()
        self._beating = threading.Lock()
        # The time of the machine: simulated time may stand still.
        clock = Clock(clock_type=ClockType.STEADY_TIME)
        self._timer = node.create_timer(PERIOD, self._beat, MutuallyExclusiveCallbackGroup(), clock)

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Wait for the beat that runs; there is none meanwhile."""
        with self._beating:
            yield

    def end(self) -> None:
        """Beat no more; unless the node failed, say that it goes."""
        with self._beating:
            if self._timer is None:
                return
            self._node.destroy_timer(self._timer)
            self._timer = None
            with suppress(RuntimeError):  # of rcl: the context has ended, as after a signal, and nothing can be told
                if self._publisher.get_subscription_count() and not self._node.failure:
                    self._tell(DiagnosticStatus.STALE, ENDED, {})
                    self._publisher.wait_for_all_acked(Duration(seconds=_FAREWELL))

    def look(self) -> None:
        """Look at the node, or let its worker do so as soon as it can."""
        self._node.worker.peek(self._ask)

    def publish(self) -> None:
        """Tell /diagnostics how the node fares, when somebody listens."""
        if self._publisher.get_subscription_count():
            self._tell(*self._judge())

    def _tell(self, level: bytes, message: str, values: dict[str, Any]) -> None:
        node = self._node
        status = DiagnosticStatus(level=level, name=node.get_fully_qualified_name(), message=message)
        status.values = [KeyValue(key=key, value=str(value)) for key, value in values.items()]
        array = DiagnosticArray(status=[status])
        array.header.stamp = node.get_clock().now().to_msg()
        self._publisher.publish(array)

    def _beat(self) -> None:
        with self._beating:
            if self._timer is None or not self._node.context.ok():
                return
            try:
                self.publish()
                if self._node.configured:
                    self._node.beat()
            except Exception:  # noqa: BLE001 - a mistake of ours: a node that runs alone must live on
                if self._node.context.ok():
                    self._node.get_logger().error(traceback.format_exc(), throttle_duration_sec=RECENT)

    def _judge(self) -> tuple[bytes, str, dict[str, Any]]:
        """Return level, message and values."""
        node = self._node
        if not node.configured:
            level = DiagnosticStatus.ERROR if node.failure else DiagnosticStatus.OK
            return level, node.failure or 'unconfigured', {'lifecycle': 'unconfigured'}
        worker, state = node.worker, 'active' if node.active else 'inactive'
        self.look()
        busy = worker.busy
        values = {'lifecycle': state, 'busy [s]': round(busy, 1), 'errors': worker.errors}
        values |= {'last_error': worker.last_error, 'malformed': count_malformed(node)} | self._queues() | self._seen
        if trouble := node.trouble or (f'busy with one value for {busy:.0f} s' if busy > _STUCK else ''):
            return DiagnosticStatus.ERROR, trouble, values
        if concern := worker.recent_error or node.concern:
            return DiagnosticStatus.WARN, concern, values
        return DiagnosticStatus.OK, 'ok' if node.active else state, values

    def _ask(self) -> None:
        self._seen = self._node.diagnostics()

    def _queues(self) -> dict[str, Any]:
        """Return what waits on each input, what it dropped, and how fast it comes since the last look."""
        now, values, counts = time.monotonic(), {}, {}
        seconds = max(now - self._counted, 1e-3)
        for name, queue in queues_of(self._node).items():
            counts[name] = queue.taken
            values[f'queue {name}'] = len(queue)
            values[f'dropped {name}'] = queue.dropped
            values[f'rate {name} [Hz]'] = round(max(0, counts[name] - self._counts.get(name, 0)) / seconds, 1)
        self._counts, self._counted = counts, now
        return values
