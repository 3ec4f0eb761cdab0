# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Trajectories: TUM files (`timestamp tx ty tz qx qy qz qw`, camera to world) and association by stamp.

The format: https://cvg.cit.tum.de/data/datasets/rgbd-dataset/file_formats
"""

import os
from collections.abc import Iterable, Sequence
from decimal import Decimal, InvalidOperation
from pathlib import Path

import numpy as np

from slam3r_ros.files import write_whole
from slam3r_ros.mapping.frames import from_quaternion, rigid, to_quaternion
from slam3r_ros.values import Pose

NANOSECONDS = 1_000_000_000  # in a second


class TrajectoryError(ValueError):
    """A trajectory file cannot be read; the message names file, line and reason."""


def write_tum(path: str | os.PathLike, poses: Iterable[Pose]) -> None:
    """Write poses as a TUM trajectory; the file appears whole or not at all."""
    lines = ['# timestamp tx ty tz qx qy qz qw (camera optical frame to map; seconds, map units)']
    for pose in poses:
        position, quaternion = pose.T_map_camera[:3, 3], to_quaternion(pose.T_map_camera[:3, :3])
        seconds, nanoseconds = divmod(pose.stamp, NANOSECONDS)
        numbers = ' '.join(f'{value:.9f}' for value in (*position, *quaternion))
        lines.append(f'{seconds}.{nanoseconds:09d} {numbers}')
    write_whole(path, ('\n'.join(lines) + '\n').encode())


def read_tum(path: str | os.PathLike) -> list[Pose]:
    """Read a TUM trajectory, sorted by stamp; the poses' ids count the lines from 0.

    Raises:
        TrajectoryError: naming the file, the line and the reason.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding='utf-8')
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, 'strerror', None) or 'it is not a text file'
        raise TrajectoryError(f'{path}: cannot be read as a TUM trajectory: {reason}') from None
    poses = []
    for number, line in enumerate(text.splitlines(), start=1):
        fields = line.split('#', 1)[0].replace(',', ' ').split()
        if not fields:
            continue
        try:
            stamp, T = _parse(fields)
        except ValueError as error:
            raise TrajectoryError(f'{path}:{number}: {error}') from None
        poses.append(Pose(len(poses), stamp, T))
    if not poses:
        raise TrajectoryError(f'{path}: holds no pose; each line must be `timestamp tx ty tz qx qy qz qw`')
    return sorted(poses, key=lambda pose: pose.stamp)


def associate(stamps: Sequence[int], others: Sequence[int], tolerance: int) -> np.ndarray:
    """Pair stamps that are each other's nearest and at most `tolerance` apart; all in nanoseconds.

    Returns:
        (M, 2) int64: indices into `stamps` and `others`, in the order of `stamps`, each used at most once.
    """
    stamps, others = np.asarray(stamps, np.int64), np.asarray(others, np.int64)
    if not len(stamps) or not len(others):
        return np.empty((0, 2), np.int64)
    forward, backward = _nearest(stamps, others), _nearest(others, stamps)
    own = np.arange(len(stamps))
    good = (backward[forward] == own) & (np.abs(others[forward] - stamps) <= tolerance)
    return np.column_stack([own[good], forward[good]])


def _nearest(stamps: np.ndarray, others: np.ndarray) -> np.ndarray:
    order = np.argsort(others, kind='stable')
    ordered = others[order]
    right = np.searchsorted(ordered, stamps).clip(0, len(others) - 1)
    left = (right - 1).clip(0)
    return order[np.where(np.abs(ordered[left] - stamps) <= np.abs(ordered[right] - stamps), left, right)]


def _parse(fields: list[str]) -> tuple[int, np.ndarray]:
    if len(fields) != 8:
        raise ValueError(f'has {len(fields)} numbers; expected 8: timestamp tx ty tz qx qy qz qw')
    try:
        stamp = int((Decimal(fields[0]) * NANOSECONDS).to_integral_value())  # exact, as a float would not be
        values = np.array([float(field) for field in fields[1:]])
    except (InvalidOperation, ValueError, OverflowError):
        raise ValueError(f'`{" ".join(fields)}` holds something that is not a number') from None
    if not np.isfinite(values).all():
        raise ValueError('the pose is not finite')
    if np.linalg.norm(values[3:]) < 1e-6:
        raise ValueError('the quaternion is zero')
    return stamp, rigid(from_quaternion(values[3:]), values[:3])
