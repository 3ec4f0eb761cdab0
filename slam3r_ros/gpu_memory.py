# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The memory that torch and CuPy hold of a GPU; both may be in one process, and neither knows of the other's.

Neither is imported here: where it is not in use, it holds nothing.
"""

import sys
from types import ModuleType


def give_back_gpu_memory() -> None:
    """Free what torch and CuPy keep for later of what nobody uses any more."""
    if torch := _torch():
        torch.cuda.empty_cache()
    if cupy := _cupy():
        cupy.get_default_memory_pool().free_all_blocks()


def limit_gpu_memory(megabytes: int) -> None:
    """Let torch take so much of each GPU and no more, in this process; what CUDA itself takes comes on top.

    Beyond that torch says that the memory is full, as it does of a full GPU.

    Args:
        megabytes: 0 for any.
    """
    if torch := _torch():
        for device in range(torch.cuda.device_count()):
            whole = torch.cuda.get_device_properties(device).total_memory
            share = min(megabytes * 1_000_000 / whole, 1.0) if megabytes else 1.0
            torch.cuda.set_per_process_memory_fraction(share, device)


def torch_gpu_memory() -> int:
    """Return the bytes of GPU memory that torch holds in this process; 0 where it has not begun to use one."""
    torch = _torch()
    return sum(map(torch.cuda.memory_reserved, range(torch.cuda.device_count()))) if torch else 0


def cupy_gpu_memory() -> int:
    """Return the bytes of GPU memory that CuPy holds in this process; 0 where it has not begun to use one."""
    cupy = _cupy()
    return cupy.get_default_memory_pool().total_bytes() if cupy else 0


def _torch() -> ModuleType | None:
    """Return torch where it uses a GPU."""
    torch = sys.modules.get('torch')
    return torch if torch is not None and torch.cuda.is_initialized() else None


def _cupy() -> ModuleType | None:
    """Return CuPy where the mesher uses it; else it may be there without a driver."""
    return sys.modules.get('cupy') if 'slam3r_ros.meshing.kernels_gpu' in sys.modules else None
