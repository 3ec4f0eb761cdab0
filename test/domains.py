# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""ROS domains for tests: no two processes that run them share one, however many run at once."""

import itertools
import os
import socket
from collections import deque

COUNT = 100  # those above 101 meet the ephemeral ports
KEPT = 20  # by this process: a corner of the graph may outlive the tests that come after it

_numbers = itertools.count(os.getpid() * 7)
_kept: deque[socket.socket] = deque()


def take_domain() -> tuple[int, socket.socket]:
    """Return a domain that nobody has, and what holds it until it is closed, or this process has ended."""
    for number in itertools.islice(_numbers, COUNT):
        domain, guard = 1 + number % COUNT, socket.socket(socket.AF_UNIX)
        try:
            guard.bind(f'\0slam3r_ros test domain {domain}')  # Linux' abstract namespace: no file is left behind
            return domain, guard
        except OSError:  # somebody else has it
            guard.close()
    raise RuntimeError('every ROS domain is in use: too many tests run at the same time')


def next_domain() -> int:
    """Return a domain that the tests before did not use, and that stays this process' own for some time."""
    domain, guard = take_domain()
    _kept.append(guard)
    if len(_kept) > KEPT:
        _kept.popleft().close()
    return domain
