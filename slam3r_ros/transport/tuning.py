# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The environment in which large messages are fast, three to five times as fast between processes, and threads fair.

Fast DDS' shared memory holds 512 kB, so that an image goes through in pieces; `config/fastdds.xml` makes it 128 MB.
glibc gives large blocks back to the kernel and takes them again for each message; two variables make it keep them.
OpenMP's threads, which compute SLAM3R's networks on a CPU, spin while they wait for each other at the end of each
layer, on the very cores that the other nodes need; a third one makes them sleep.  OpenBLAS' spin beside the geometric
engine's products, which are too small for two; a fourth one leaves them out.
What is in the environment already is left as it is.
"""

import ctypes
import shutil
from collections.abc import Mapping
from pathlib import Path

from ament_index_python.packages import get_package_share_directory

_MMAP_THRESHOLD = 32 << 20  # bytes, the most that glibc accepts
_TRIM_THRESHOLD = (1 << 31) - 1  # bytes
_MALLOC = {'MALLOC_MMAP_THRESHOLD_': str(_MMAP_THRESHOLD), 'MALLOC_TRIM_THRESHOLD_': str(_TRIM_THRESHOLD)}
_THREADS = {'OMP_WAIT_POLICY': 'passive', 'OPENBLAS_NUM_THREADS': '1'}
_PROFILES = 'FASTRTPS_DEFAULT_PROFILES_FILE'
_OTHER_PROFILES = (_PROFILES, 'FASTDDS_DEFAULT_PROFILES_FILE', 'FASTDDS_BUILTIN_TRANSPORTS')
_SHARED_MEMORY = Path('/dev/shm')
_NEEDED = 1 << 30  # bytes free in it: each process takes a segment; containers often have 64 MB in all


def tuning(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables to be added to an environment, for processes that begin with it."""
    added = {name: value for name, value in (_MALLOC | _THREADS).items() if name not in environment}
    is_own = any(name in environment for name in _OTHER_PROFILES)
    if not is_own and _SHARED_MEMORY.is_dir() and shutil.disk_usage(_SHARED_MEMORY).free > _NEEDED:
        added[_PROFILES] = str(Path(get_package_share_directory('slam3r_ros'), 'config', 'fastdds.xml'))
    return added


def tune_malloc() -> None:
    """Set glibc's thresholds for this process, which has begun without them."""
    trim_threshold, mmap_threshold = -1, -3  # malloc.h
    libc = ctypes.CDLL(None)
    if hasattr(libc, 'mallopt'):
        libc.mallopt(mmap_threshold, _MMAP_THRESHOLD)
        libc.mallopt(trim_threshold, _TRIM_THRESHOLD)
