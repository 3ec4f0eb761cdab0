# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Shared memory of processes that were killed goes; that of those who live stays."""

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest
from domains import next_domain

from slam3r_ros.transport import shared_memory
from slam3r_ros.transport.shared_memory import remove_segments

PARTICIPANT = """
import os, sys
import rclpy
from rclpy.node import Node
from slam3r_ros.transport.shared_memory import remove_segments
rclpy.init()
node = Node('node')
files = {os.path.realpath(f'/proc/self/fd/{each}') for each in os.listdir('/proc/self/fd')}
print(*(each for each in files if each.startswith('/dev/shm/fastrtps_') and 'port' not in each), flush=True)
sys.stdin.readline()
remove_segments(own=True)
os._exit(0)
"""


@pytest.fixture
def participant():
    """Start a process with a node; return it and the locks of its segments, which are made to seem old."""
    pytest.importorskip('rclpy', reason='rclpy is not installed')
    environment = os.environ | {'ROS_DOMAIN_ID': str(next_domain())}
    process = subprocess.Popen(
        [sys.executable, '-c', PARTICIPANT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
    locks = [Path(each) for each in process.stdout.readline().split()]
    if not locks:
        pytest.skip('this middleware has no segments in shared memory')
    for each in locks:
        os.utime(each, (0, 0))
    yield process, locks
    process.kill()
    process.communicate()
    remove_segments()


def files_of(locks):
    return [path for each in locks for path in (each, Path(str(each).removesuffix('_el'))) if path.exists()]


def test_what_a_killed_process_has_left_goes_and_not_before(participant):
    process, locks = participant
    remove_segments()
    assert len(files_of(locks)) == 2 * len(locks)
    process.kill()
    process.wait()
    remove_segments()
    assert files_of(locks) == []


def test_a_process_that_ends_at_once_takes_its_own_with_it(participant):
    process, locks = participant
    process.communicate('\n')
    assert process.returncode == 0 and files_of(locks) == []


def test_what_is_new_locked_or_no_segment_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(shared_memory, '_FOLDER', tmp_path)
    names = [f'fastrtps_{i:016x}' for i in range(3)] + ['fastrtps_port7001', 'other']
    for name in names:
        for path in (tmp_path / name, tmp_path / f'{name}_el'):
            path.touch()
            if name != names[1]:
                os.utime(path, (0, 0))
    with (tmp_path / f'{names[2]}_el').open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        remove_segments()
        assert {each.name.removesuffix('_el') for each in tmp_path.iterdir()} == {*names[1:]}
    remove_segments()
    assert {each.name.removesuffix('_el') for each in tmp_path.iterdir()} == {names[1], *names[3:]}


HOLDER = """
import fcntl, sys
file = open(sys.argv[1])
fcntl.flock(file, fcntl.LOCK_EX)
print(flush=True)
sys.stdin.readline()
"""


def test_what_another_process_has_locked_is_not_our_own(tmp_path, monkeypatch):
    """Though we have it open, as Fast DDS has when it looks whether its owner lives."""
    monkeypatch.setattr(shared_memory, '_FOLDER', tmp_path)
    own, others = (tmp_path / f'fastrtps_{i:016x}_el' for i in range(2))
    for each in (own, others):
        each.touch()
        os.utime(each, (0, 0))
    pipes = {'stdin': subprocess.PIPE, 'stdout': subprocess.PIPE}
    with subprocess.Popen([sys.executable, '-c', HOLDER, others], **pipes) as holder:
        holder.stdout.readline()
        with own.open() as ours, others.open():
            fcntl.flock(ours, fcntl.LOCK_EX)
            remove_segments()
            assert own.exists()
            remove_segments(own=True)
        assert not own.exists() and others.exists()
        holder.communicate(b'\n')
