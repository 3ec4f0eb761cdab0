# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What torch and CuPy keep of a GPU, told and given back, by whichever is in use."""

import subprocess
import sys
from types import SimpleNamespace

import pytest

from slam3r_ros.gpu_memory import give_back_gpu_memory, limit_gpu_memory, torch_gpu_memory

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


@pytest.mark.parametrize('megabytes, shares', [(0, [1.0, 1.0]), (4000, [0.5, 0.16]), (10_000, [1.0, 0.4])])
@pytest.mark.parametrize('used', [False, True])
def test_torch_gets_its_share_of_each_gpu(monkeypatch, used, megabytes, shares):
    sizes, given = [8_000_000_000, 25_000_000_000], {}
    cuda = SimpleNamespace(
        is_initialized=lambda: used,
        device_count=lambda: len(sizes),
        get_device_properties=lambda device: SimpleNamespace(total_memory=sizes[device]),
        set_per_process_memory_fraction=lambda share, device: given.update({device: share}),
    )
    monkeypatch.setitem(sys.modules, 'torch', SimpleNamespace(cuda=cuda))
    limit_gpu_memory(megabytes)
    assert given == (dict(enumerate(shares)) if used else {})


def test_a_gpu_is_full_at_the_limit():
    torch = pytest.importorskip('torch', reason='it is torch that is limited')
    if not torch.cuda.is_available():
        pytest.skip('no CUDA device')
    torch.empty(1, device='cuda')
    give_back_gpu_memory()
    limit = torch_gpu_memory() // 1_000_000 + 200
    try:
        limit_gpu_memory(limit)
        held = torch.empty(100_000_000, dtype=torch.uint8, device='cuda')
        with pytest.raises(torch.OutOfMemoryError):
            torch.empty(200_000_000, dtype=torch.uint8, device='cuda')
        assert torch_gpu_memory() <= limit * 1_000_000 and held.is_cuda
    finally:
        limit_gpu_memory(0)
    assert torch.empty(200_000_000, dtype=torch.uint8, device='cuda').is_cuda


def test_neither_is_imported():
    code = (
        'import sys; from slam3r_ros import gpu_memory as memory; memory.give_back_gpu_memory(); '
        'memory.limit_gpu_memory(1); none = memory.torch_gpu_memory() + memory.cupy_gpu_memory(); '
        'sys.exit(none or bool({"torch", "cupy", "rclpy"} & sys.modules.keys()))'
    )
    assert subprocess.run([sys.executable, '-c', code], check=False).returncode == 0
