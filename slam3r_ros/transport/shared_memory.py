# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What processes that were killed leave of Fast DDS in shared memory: 140 MB each, until the machine is started anew.

A process locks a file beside each of its segments for as long as it lives; `fastdds shm clean` goes by that, too.
"""

import fcntl
import os
import time
from contextlib import suppress
from pathlib import Path

_FOLDER = Path('/dev/shm')
_LOCKS = 'fastrtps_' + 16 * '[0-9a-f]' + '_el'
_NEW = 10.0  # seconds: a file that has just been made is not locked yet


def remove_segments(own: bool = False) -> None:
    """Remove the segments whose process has ended.

    Args:
        own: Remove those of this process, too, which must end at once by `os._exit`.
    """
    mine = _own() if own else set()
    for lock in _FOLDER.glob(_LOCKS):
        with suppress(OSError):  # it is somebody else's, or gone
            if str(lock) in mine or _is_left(lock):
                lock.with_name(lock.name.removesuffix('_el')).unlink(missing_ok=True)
                lock.unlink()


def _own() -> set[str]:
    """Return what this process has locked; Fast DDS opens the locks of others, too, to see whether they live."""
    files = set()
    for each in Path('/proc/self/fdinfo').iterdir():
        with suppress(OSError):  # it is closed meanwhile
            if 'FLOCK' in each.read_text():
                files.add(os.path.realpath(f'/proc/self/fd/{each.name}'))
    return files


def _is_left(lock: Path) -> bool:
    if time.time() - lock.stat().st_mtime < _NEW:
        return False
    with lock.open() as file, suppress(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False
