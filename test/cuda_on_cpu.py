# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A small stand-in for CuPy: its arrays are NumPy's, and g++ compiles CUDA C, run one thread after the other.

So everything of a GPU module but the hardware is tested.  As with CuPy, an array of the host among those of the
device is an error, kernels take C-contiguous arrays of the device, and Python's numbers reach them with 64 bits.
Good for kernels whose threads do not wait for each other.
"""

import ctypes
import re
import subprocess
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np

_SHIM = """
#include <math.h>
#define __global__
#define __device__
struct Number { unsigned int x; };
static Number threadIdx, blockIdx, blockDim;
"""
_KERNEL = re.compile(r'extern "C" __global__ void (\w+)\(([^)]*)\)\s*{')
_FORM = {'*': ctypes.c_void_p, 'int64': ctypes.c_longlong, 'double': ctypes.c_double}


class DeviceArray(np.ndarray):
    """An array that mixes with no host array."""

    def __array_ufunc__(self, ufunc, method, *inputs, out=(), **kwargs):
        for operand in (*inputs, *out):
            if isinstance(operand, np.ndarray) and not isinstance(operand, DeviceArray):
                raise TypeError(f'{ufunc.__name__}: a host array among those of the device')
        plain = [value.view(np.ndarray) if isinstance(value, DeviceArray) else value for value in inputs]
        if out:
            kwargs['out'] = tuple(array.view(np.ndarray) for array in out)
        return np.asarray(getattr(ufunc, method)(*plain, **kwargs)).view(DeviceArray)

    def __dlpack_device__(self):
        return 2, 0  # kDLCUDA

    def __getitem__(self, index):
        _refuse_host_arrays(index)
        return np.asarray(super().__getitem__(index)).view(DeviceArray)  # a 0-dimensional array for one element

    def __setitem__(self, index, value):
        _refuse_host_arrays(index)
        super().__setitem__(index, value)


def _refuse_host_arrays(index):
    for part in index if isinstance(index, tuple) else (index,):
        if isinstance(part, list) or type(part) is np.ndarray:
            raise TypeError('a device array is indexed by a list or an array of the host')


def _to_device(array):
    return np.array(array, order='C').view(DeviceArray)


class RawModule:
    """CUDA C, compiled to a library in which `NAME_all` runs the kernel NAME over a grid."""

    folder: Path  # for the library

    def __init__(self, code, options):
        assert '--fmad=false' in options  # as g++ is told below
        self._kernels = dict(_KERNEL.findall(code))
        self._launches = 0
        for name, parameters in self._kernels.items():
            names = ', '.join(parameter.split()[-1].lstrip('*') for parameter in parameters.split(','))
            code += f"""
extern "C" void {name}_all(unsigned int grid, unsigned int block, bool backwards, {parameters})
{{
    blockDim.x = block;
    for (unsigned int i = 0; i < grid * block; i++) {{
        unsigned int thread = backwards ? grid * block - 1 - i : i;
        blockIdx.x = thread / block, threadIdx.x = thread % block;
        {name}({names});
    }}
}}"""
        source, library = self.folder / 'kernels.cpp', self.folder / 'kernels.so'
        source.write_text(_SHIM + code)
        command = ['g++', '-O2', '-Wall', '-Werror', '-ffp-contract=off', '-shared', '-fPIC', '-o', library, source]
        subprocess.run(command, check=True)
        self._library = ctypes.CDLL(str(library))

    def get_function(self, name):
        """Return a callable as RawKernel is; it runs the threads backwards every other time."""
        function = getattr(self._library, f'{name}_all')
        forms = [next(form for form in _FORM if form in parameter) for parameter in self._kernels[name].split(',')]
        function.argtypes = [ctypes.c_uint, ctypes.c_uint, ctypes.c_bool, *(_FORM[form] for form in forms)]
        function.restype = None

        def launch(grid, block, arguments):
            assert grid[0] > 0 and block[0] <= 1024
            values = []
            for form, value in zip(forms, arguments, strict=True):
                if form == '*':
                    assert isinstance(value, DeviceArray) and value.flags.c_contiguous
                    value = value.ctypes.data
                else:
                    assert type(value) is {'int64': int, 'double': float}[form], (name, form, value)
                values.append(value)
            self._launches += 1
            function(grid[0], block[0], self._launches % 2 == 0, *values)

        return launch


def fake_cupy(folder: Path) -> ModuleType:
    """Return the stand-in; what it compiles goes into `folder`."""
    cupy = ModuleType('cupy')
    cupy.__version__ = 'on the CPU'
    cupy.RawModule = type('RawModule', (RawModule,), {'folder': folder})
    cupy.ndarray = DeviceArray
    for name in ('float32', 'float64', 'uint8', 'uint32', 'int32', 'int64'):
        setattr(cupy, name, getattr(np, name))
    for name in ('isfinite', 'minimum', 'maximum', 'ceil'):
        setattr(cupy, name, getattr(np, name))
    for name in ('empty', 'zeros', 'ones', 'full', 'arange', 'where', 'unique', 'cumsum', 'stack'):
        setattr(cupy, name, _on_device(getattr(np, name)))
    unique = cupy.unique

    def unique_of_some(array):
        assert array.size  # what comes of none is not said
        return unique(array)

    cupy.unique = unique_of_some
    cupy.array = lambda values, dtype=None, order='K': np.array(values, dtype, order=order).view(DeviceArray)
    cupy.asarray = lambda values: values if isinstance(values, DeviceArray) else _to_device(values)
    cupy.from_dlpack = lambda tensor: tensor if isinstance(tensor, DeviceArray) else tensor.on_cpu

    def asnumpy(array):
        assert isinstance(array, DeviceArray)
        return np.array(array)

    cupy.asnumpy = asnumpy
    pool = SimpleNamespace(free_all_blocks=lambda: None)
    cupy.get_default_memory_pool = lambda: pool
    return cupy


def _on_device(function):
    def plain(value):
        assert type(value) is not np.ndarray
        if isinstance(value, DeviceArray):
            return value.view(np.ndarray)
        return tuple(map(plain, value)) if isinstance(value, tuple) else value

    return lambda *args, **kwargs: np.asarray(function(*map(plain, args), **kwargs)).view(DeviceArray)


class CudaTensor:
    """What an engine hands on: an array of the GPU that cannot be read on the host."""

    def __init__(self, values):
        self.on_cpu = _to_device(values)  # for `fake_cupy` alone

    def data_ptr(self):
        return self.on_cpu.ctypes.data

    def __dlpack_device__(self):
        return 2, 0  # kDLCUDA

    def __array__(self, *args, **kwargs):
        raise TypeError('a tensor of the GPU was copied to the host')
