# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What torch and CuPy keep of a GPU, told and given back, by whichever is in use."""

import subprocess
import sys
from types import SimpleNamespace

import pytest

from slam3r_ros.gpu_memory import give_back_gpu_memory

KERNELS = 'slam3r_ros.meshing.kernels_gpu'


@pytest.mark.parametrize('torch_used', [False, True])
@pytest.mark.parametrize('cupy_used', [False, True])
def test_both_are_given_back_where_they_are_in_use(monkeypatch, torch_used, cupy_used):
    freed = []
    cuda = SimpleNamespace(is_initialized=lambda: torch_used, empty_cache=lambda: freed.append('torch'))
    pool = SimpleNamespace(free_all_blocks=lambda: freed.append('cupy'))
    monkeypatch.setitem(sys.modules, 'torch', SimpleNamespace(cuda=cuda))
    monkeypatch.setitem(sys.modules, 'cupy', SimpleNamespace(get_default_memory_pool=lambda: pool))
    if cupy_used:
        monkeypatch.setitem(sys.modules, KERNELS, SimpleNamespace())
    else:
        monkeypatch.delitem(sys.modules, KERNELS, raising=False)
    give_back_gpu_memory()
    assert freed == ['torch'] * torch_used + ['cupy'] * cupy_used


def test_neither_is_imported():
    code = (
        'import sys; from slam3r_ros import gpu_memory as memory; memory.give_back_gpu_memory(); '
        'none = memory.torch_gpu_memory() + memory.cupy_gpu_memory(); '
        'sys.exit(none or bool({"torch", "cupy", "rclpy"} & sys.modules.keys()))'
    )
    assert subprocess.run([sys.executable, '-c', code], check=False).returncode == 0
