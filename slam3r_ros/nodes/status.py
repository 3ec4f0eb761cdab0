# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What the slam3r node tells on `status`, once a second and at once when something has changed."""

import os
import threading
from collections.abc import Callable
from dataclasses import replace
from operator import attrgetter
from pathlib import Path

from slam3r_ros.nodes.base import PipelineNode
from slam3r_ros.transport.bus import create_publisher
from slam3r_ros.values import SlamStatus

NEWS = 'state', 'finished', 'map_id', 'scale_known', 'last_error'  # fields that others wait for
_news = attrgetter(*NEWS)


class StatusOutput:
    """Publishes how things are or, while a frame is being worked on, how they were when one was done.

    Attributes:
        publisher: Of `status`.
    """

    def __init__(self, node: PipelineNode, make: Callable[[], SlamStatus]):
        """Make the publisher.

        Args:
            node: Of the engine.
            make: Returns the status as it is, without stamp; called while the node's worker rests.
        """
        self._node, self._make = node, make
        self.publisher = create_publisher(node, SlamStatus, 'status', frame_id=node.parameters.map_frame)
        self._telling, self._last = threading.Lock(), make()
        self._told: tuple = ()

    def publish(self) -> None:
        """Tell the status, when somebody listens; from any thread."""
        node = self._node
        if not (node.active and self.publisher.readers()):
            return
        with self._telling:  # the last one told must be the newest
            node.worker.peek(self._look)
            status = replace(self._last, stamp=node.get_clock().now().nanoseconds)
            self._told = _news(status)
            self.publisher.publish(status)

    def publish_change(self, *news: object) -> None:
        """Do the same if one of `NEWS`, in this order, has another value than was told."""
        if news != self._told:
            self.publish()

    def _look(self) -> None:
        self._last = self._make()


def resident_bytes() -> int:
    """Return the memory of this process; 0 where /proc does not tell."""
    try:
        return int(Path('/proc/self/statm').read_text().split()[1]) * os.sysconf('SC_PAGE_SIZE')
    except OSError:
        return 0
