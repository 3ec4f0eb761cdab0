# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What went wrong in something that goes on after errors: a warning for a while, then history."""

import math
import time

RECENT = 60.0  # seconds for which an error is worth a warning


class Fallible:
    """Keeps its last error for good, and knows whether it is recent.

    Attributes:
        errors: How often `last_error` was set.
    """

    errors = 0
    _last_error, _error_time = '', -math.inf

    @property
    def last_error(self) -> str:
        """What went wrong last; empty when nothing did."""
        return self._last_error

    @last_error.setter
    def last_error(self, error: str) -> None:
        self._last_error, self._error_time, self.errors = error, time.monotonic(), self.errors + 1

    @property
    def recent_error(self) -> str:
        """The same while it is recent, then empty."""
        return self._last_error if time.monotonic() - self._error_time < RECENT else ''
