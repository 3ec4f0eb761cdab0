# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Nanoseconds, our unit of time, to and from builtin_interfaces/Time."""

from builtin_interfaces.msg import Time

from slam3r_ros.values import LATEST

_SECOND = 1_000_000_000
_EARLIEST = -(2**31) * _SECOND  # that the message holds


def split(nanoseconds: int) -> tuple[int, int]:
    """Return seconds and nanoseconds as a time stamp message holds them; a time beyond its range becomes its limit."""
    return divmod(min(max(int(nanoseconds), _EARLIEST), LATEST), _SECOND)


def to_stamp(nanoseconds: int) -> Time:
    """Return a time stamp message, after the rule of `split`."""
    seconds, rest = split(nanoseconds)
    return Time(sec=seconds, nanosec=rest)


def from_stamp(stamp: Time) -> int:
    """Return the nanoseconds of a time stamp message."""
    return stamp.sec * _SECOND + stamp.nanosec
