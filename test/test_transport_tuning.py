# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest

from slam3r_ros.transport import tuning as module
from slam3r_ros.transport.tuning import tuning

PROFILES = 'FASTRTPS_DEFAULT_PROFILES_FILE'


@pytest.fixture
def plenty(monkeypatch, tmp_path):
    monkeypatch.setattr(module, '_SHARED_MEMORY', tmp_path)
    space = SimpleNamespace(free=8 << 30)
    monkeypatch.setattr(module.shutil, 'disk_usage', lambda path: space)
    return space


def test_what_is_added_is_there(plenty):
    added = tuning({})
    threads = {'OMP_WAIT_POLICY', 'OPENBLAS_NUM_THREADS'}
    assert set(added) == {'MALLOC_MMAP_THRESHOLD_', 'MALLOC_TRIM_THRESHOLD_', PROFILES} | threads
    root = ElementTree.parse(added[PROFILES]).getroot()
    assert [each.text for each in root.iter() if each.tag.endswith('segment_size')] == [str(128 << 20)]


@pytest.mark.parametrize(
    'variable', [PROFILES, 'FASTDDS_DEFAULT_PROFILES_FILE', 'FASTDDS_BUILTIN_TRANSPORTS', 'MALLOC_TRIM_THRESHOLD_']
)
def test_what_the_user_has_set_wins(plenty, variable):
    added = tuning({variable: 'mine'})
    assert variable not in added
    assert (PROFILES in added) == variable.startswith('MALLOC')


def test_small_shared_memory_is_left_alone(plenty):
    plenty.free = 64 << 20  # as containers have it
    assert PROFILES not in tuning({})


def test_fast_dds_takes_the_profile():
    """The segment of a process is as large as the profile says, and what it sends arrives."""
    profile = Path(__file__).parents[1] / 'config' / 'fastdds.xml'
    code = (
        'import rclpy; from pathlib import Path; from std_msgs.msg import UInt8MultiArray as M\n'
        'before = set(Path("/dev/shm").glob("fastrtps_*"))\n'
        'rclpy.init(); node = rclpy.create_node("one"); seen = []\n'
        'new = set(Path("/dev/shm").glob("fastrtps_*")) - before\n'
        'print(max(each.stat().st_size for each in new if each.exists()))\n'  # others come and go
        'publisher = node.create_publisher(M, "data", 1); node.create_subscription(M, "data", seen.append, 1)\n'
        'while not seen:\n'
        '    publisher.publish(M(data=bytes(10_000_000))); rclpy.spin_once(node, timeout_sec=1)\n'
        'print(len(seen[0].data))\n'
    )
    if not Path('/dev/shm').is_dir() or module.shutil.disk_usage('/dev/shm').free < 1 << 30:
        pytest.skip('/dev/shm is too small')
    environment = os.environ | {PROFILES: str(profile)}
    command = [sys.executable, '-c', code]
    done = subprocess.run(command, check=True, env=environment, capture_output=True, text=True, timeout=60)
    size, received = map(int, done.stdout.split())
    assert size >= 128 << 20 and received == 10_000_000
    assert 'rror' not in done.stderr


def test_the_container_of_a_graph_gets_it(monkeypatch):
    from slam3r_ros import graph

    for name in tuning({}):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(graph, 'tuning', lambda environment: {'TUNED': 'yes'})
    monkeypatch.setenv('TUNED', 'no')  # so that it is taken back at the end
    environments = []
    monkeypatch.setattr(graph.subprocess, 'Popen', lambda *_, **__: environments.append(dict(os.environ)) or Ended())
    with graph.Graph('test_tuning'):
        pass
    assert environments[0]['TUNED'] == 'yes'


class Ended:
    """A process that has ended."""

    returncode = 0

    def poll(self):
        return 0
