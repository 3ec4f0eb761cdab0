# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What the nodes of one namespace said of themselves last, and whether that is well; knows nothing of ROS or HTTP."""

import math
import re
from enum import IntEnum
from typing import Any, NamedTuple

from slam3r_ros.values import SlamStatus, State

PATIENCE = 10.0  # seconds of silence after which a node counts as gone
ENDED = 'ended'  # the last message of a node that goes in order
_MAX_NODES = 64  # whoever may speak on /diagnostics, memory stays bounded


class Level(IntEnum):
    """How a node fares; the numbers are those of `DiagnosticStatus.msg`."""

    OK = 0
    WARN = 1
    ERROR = 2
    STALE = 3


class Line(NamedTuple):
    """What a node said on /diagnostics."""

    level: Level
    message: str
    values: dict[str, str]
    heard: float  # seconds

    def numbers(self) -> dict[str, float]:
        """Return the values that are numbers."""
        return {key: number for key, text in self.values.items() if math.isfinite(number := _number(text))}


class Readings:
    """Keeps the last words of each node; times are seconds of one clock that does not go back."""

    def __init__(self, namespace: str = '/') -> None:
        """Begin with nothing.

        Args:
            namespace: Of the nodes that count; those in namespaces below it do not.
        """
        self._name = re.compile(re.escape(namespace.rstrip('/')) + r'/(\w+)', re.ASCII)
        self._lines: dict[str, Line] = {}
        self._status: tuple[SlamStatus, float] | None = None

    def note_line(self, name: str, level: int, message: str, values: dict[str, str], now: float) -> None:
        """Take what somebody said on /diagnostics; nodes of other namespaces and other things are ignored."""
        match = self._name.fullmatch(name)
        if match and level == Level.STALE and message == ENDED:
            self._lines.pop(match[1], None)
        elif match and (match[1] in self._lines or len(self._lines) < _MAX_NODES):
            self._lines[match[1]] = Line(Level(min(level, Level.STALE)), message, values, now)

    def note_status(self, status: SlamStatus, now: float) -> None:
        """Take the engine's status; one that the decoder sends when it fails is no such."""
        if status.engine:
            self._status = status, now

    def lines(self) -> dict[str, Line]:
        """Return what each node said last, by its name without namespace."""
        return dict(self._lines)

    def fresh_lines(self, now: float) -> dict[str, Line]:
        """Return the same of the nodes that are not silent."""
        return {name: line for name, line in self.lines().items() if now - line.heard <= PATIENCE}

    def status(self, now: float) -> SlamStatus | None:
        """Return the engine's status; None when there is none that is fresh."""
        return self._status[0] if self._status and now - self._status[1] <= PATIENCE else None

    def troubles(self, now: float) -> list[str]:
        """Return what is not well; nothing when all is."""
        troubles = []
        for name, line in self.lines().items():
            if (silence := now - line.heard) > PATIENCE:
                troubles.append(f'{name}: not heard of for {silence:.0f} s')
            elif line.level >= Level.ERROR:
                troubles.append(f'{name}: {line.message}')
        status = self.status(now)
        if status is None:
            troubles.append('the engine tells no status')
        elif status.state == State.ERROR:
            troubles.append(f'engine: {status.last_error or "state ERROR"}')
        return troubles

    def health(self, now: float) -> dict[str, Any]:
        """Return the troubles and how each node fares, for JSON."""
        status, troubles = self.status(now), self.troubles(now)
        return {
            'healthy': not troubles,
            'reasons': troubles,
            'state': status.state.name if status else None,
            'nodes': {
                name: {'level': line.level.name, 'message': line.message, 'age': round(now - line.heard, 1)}
                for name, line in self.lines().items()
            },
        }


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
