# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Files appear whole or not at all."""

import os
import subprocess
import sys
import time

import numpy as np
import pytest

from slam3r_ros.files import write_whole

# Writes 8 MB of one letter after the other, and says so after the first.
WRITER = """
import sys
from slam3r_ros.files import write_whole
for i in range(10**6):
    write_whole(sys.argv[1], (b'a', b'b')[i % 2] * 8_000_000)
    if i == 0:
        print(flush=True)
"""


def test_a_file_is_written_and_replaced(tmp_path):
    path = tmp_path / 'file'
    for data in (b'old', b'newer', b''):
        write_whole(path, data)
        assert path.read_bytes() == data and list(tmp_path.iterdir()) == [path]
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask()  # as of any new file


def umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize('fault', [OSError(28, 'No space left on device'), MemoryError(), KeyboardInterrupt()])
@pytest.mark.parametrize('moment', ['fsync', 'replace'])
def test_a_failure_leaves_the_old_file_and_no_other(tmp_path, monkeypatch, fault, moment):
    path = tmp_path / 'file'
    path.write_bytes(b'old')

    def fail(*_):
        raise fault

    monkeypatch.setattr(os, moment, fail)
    with pytest.raises(type(fault)):
        write_whole(path, b'new')
    assert path.read_bytes() == b'old' and list(tmp_path.iterdir()) == [path]


def test_the_data_is_on_the_disk_before_the_name_and_then_the_name(tmp_path, monkeypatch):
    calls = []
    for name in ('fsync', 'replace'):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *args, name=name, real=real: (calls.append(name), real(*args)))
    write_whole(tmp_path / 'file', b'data')
    assert calls == ['fsync', 'replace', 'fsync']


def test_killed_at_any_moment_it_leaves_one_of_the_two(tmp_path):
    path = tmp_path / 'file'
    rng = np.random.default_rng(0)
    for _ in range(12):
        with subprocess.Popen([sys.executable, '-c', WRITER, str(path)], stdout=subprocess.PIPE) as writer:
            writer.stdout.readline()
            time.sleep(rng.uniform(0, 0.05))  # the moment
            writer.kill()
        data = path.read_bytes()
        assert len(data) == 8_000_000 and data == data[:1] * len(data)
