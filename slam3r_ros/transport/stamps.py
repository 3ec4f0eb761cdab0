# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Nanoseconds, our unit of time, to and from builtin_interfaces/Time."""

from builtin_interfaces.msg import Time

_SECOND = 1_000_000_000


def to_stamp(nanoseconds: int) -> Time:
    """Return a time stamp message."""
    seconds, rest = divmod(int(nanoseconds), _SECOND)
    return Time(sec=seconds, nanosec=rest)


def from_stamp(stamp: Time) -> int:
    """Return the nanoseconds of a time stamp message."""
    return stamp.sec * _SECOND + stamp.nanosec
