# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What the mesher tells about its speed, in one place for all who show it."""

from collections import deque
from statistics import median

_SPAN = 10.0  # seconds over which updates are counted


class MeshFigures:
    """Counts updates and how long keyframes wait for theirs; times are seconds of one clock."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._updates: deque[float] = deque()
        self._latencies: deque[float] = deque(maxlen=50)
        self._waiting: float | None = None  # since when a keyframe has waited for an update

    def keyframe_came(self, now: float) -> None:
        """A keyframe came that the next update will show."""
        if self._waiting is None:
            self._waiting = now

    def published(self, now: float) -> None:
        """An update was published."""
        self._updates.append(now)
        self._forget_before(now - _SPAN)
        if self._waiting is not None:
            self._latencies.append(now - self._waiting)
            self._waiting = None

    def nothing_to_show(self) -> None:
        """The keyframes that wait changed nothing, or nobody reads."""
        self._waiting = None

    def values(self, now: float) -> dict[str, float]:
        """Return updates a second, and the milliseconds from a keyframe's coming to its update (median)."""
        self._forget_before(now - _SPAN)
        return {
            'mesh_fps': round(len(self._updates) / _SPAN, 2),
            'latency_ms': round(1e3 * median(self._latencies), 1) if self._latencies else 0.0,
        }

    def _forget_before(self, time: float) -> None:
        while self._updates and self._updates[0] < time:
            self._updates.popleft()
