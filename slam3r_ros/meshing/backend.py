# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Where the mesher computes: modules that hold the same kernels, whose results agree bit for bit.

`reference` is plain NumPy, slow and easy to read; `kernels_cpu` is compiled by Numba, `kernels_gpu` by CuPy.
Each is imported only when it is chosen, since it needs what the others do without.
"""

from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np

KERNELS = {'cpu': 'kernels_cpu', 'cuda': 'kernels_gpu', 'numpy': 'reference'}


class DeviceError(RuntimeError):
    """The device that was asked for cannot be used."""


def choose(device: str) -> str:
    """Return the device to use.

    Args:
        device: 'cpu', 'cuda', 'numpy', or 'auto': 'cuda' where that works, else 'cpu'.

    Raises:
        DeviceError: there is no such device here; the message says why.
    """
    if device in ('cpu', 'numpy'):
        return device
    if device not in ('cuda', 'auto'):
        raise DeviceError(f'no device {device!r}; there are auto, cuda, cpu and numpy')
    trouble = _trouble_with_cuda()
    if trouble is None:
        return 'cuda'
    if device == 'auto':
        return 'cpu'
    raise DeviceError(f"device 'cuda' cannot be used: {trouble}; take 'cpu', or 'auto', which falls back to it")


def kernels(device: str) -> ModuleType:
    """Return the module of a device that `choose` returned."""
    return import_module(f'{__package__}.{KERNELS[device]}')


def to_host(xp: ModuleType, array: Any) -> np.ndarray:
    """Copy an array of NumPy or CuPy to the host."""
    return getattr(xp, 'asnumpy', np.array)(array)


def _trouble_with_cuda() -> str | None:
    try:
        import cupy
    except ImportError as error:
        return f'CuPy cannot be imported ({error}); install cupy-cuda12x or cupy-cuda13x, as the driver is'
    try:
        # Needs the driver, a GPU and the compiler; cuda.is_available() tells of no compiler, and some versions raise.
        int(cupy.arange(3).sum())
    except Exception as error:  # noqa: BLE001 - each part of CuPy raises errors of its own
        said, *_ = str(error).strip().split('\n')
        return f'CuPy {cupy.__version__} fails with {type(error).__name__}: {said}'
    return None
