# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""ROS domains for this machine alone: no two processes that take one share it, however many run at once."""

import itertools
import os
import socket

COUNT = 100  # those above 101 meet the ephemeral ports

_numbers = itertools.count(os.getpid() * 7)


def take_domain() -> tuple[int, socket.socket]:
    """Return a domain that nobody has, and what holds it until it is closed, or this process has ended.

    Raises:
        RuntimeError: All are taken.
    """
    for number in itertools.islice(_numbers, COUNT):
        domain, guard = 1 + number % COUNT, socket.socket(socket.AF_UNIX)
        try:
            guard.bind(f'\0slam3r_ros domain {domain}')  # Linux' abstract namespace: no file is left behind
            return domain, guard
        except OSError:  # somebody else has it
            guard.close()
    raise RuntimeError('every ROS domain is taken by another run on this machine; set ROS_DOMAIN_ID to share one')
