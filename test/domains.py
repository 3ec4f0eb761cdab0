# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""ROS domains for tests."""

import socket
from collections import deque

from slam3r_ros.transport.domains import take_domain

KEPT = 20  # by this process: a corner of the graph may outlive the tests that come after it

_kept: deque[socket.socket] = deque()


def next_domain() -> int:
    """Return a domain that the tests before did not use, and that stays this process' own for some time."""
    domain, guard = take_domain()
    _kept.append(guard)
    if len(_kept) > KEPT:
        _kept.popleft().close()
    return domain
