# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The kernels of the mesher on a CUDA GPU: `kernels.cu` by CuPy; the twin of `reference`, bit for bit.

The voxels, and of each view depth, weight and colours, stay on the GPU.  The host keeps the books: keys come to it,
slots go back, and at the end the surface comes.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any

import cupy as xp
import numpy as np

from slam3r_ros.meshing.lattice import BITS, EDGE, OFFSET, VOXELS
from slam3r_ros.meshing.marching_cubes import CELL_EDGES, CORNER_MARGIN, SIDE, TRIANGLES
from slam3r_ros.meshing.tsdf import BAND_SAMPLES, DISTANCE_STEPS, FADE

BATCH = 1024  # blocks to march at once: bounds the memory of results, here 30 MB between kernels
_THREADS = 256  # of a CUDA block
_CUDA = 2  # kDLCUDA, of DLPack
_POINTS = SIDE**3
_NUMBERS = {
    'BITS': BITS, 'EDGE': EDGE, 'OFFSET': OFFSET, 'VOXELS': VOXELS, 'SIDE': SIDE, 'POINTS': _POINTS,
    'CORNER_MARGIN': CORNER_MARGIN, 'BAND_SAMPLES': BAND_SAMPLES, 'DISTANCE_STEPS': DISTANCE_STEPS, 'FADE': FADE,
}  # fmt: skip


def source() -> str:
    """Return the CUDA C of the kernels, constants and tables in front."""
    lines = [f'#define {name} {value}' for name, value in _NUMBERS.items()]
    for name, table in (('TRIANGLES', TRIANGLES), ('CELL_EDGES', CELL_EDGES)):
        shape = ''.join(f'[{size}]' for size in table.shape)
        values = json.dumps(table.tolist()).replace('[', '{').replace(']', '}')
        lines.append(f'__device__ const signed char {name}{shape} = {values};')
    return '\n'.join([*lines, Path(__file__).with_name('kernels.cu').read_text(encoding='utf-8')])


def as_array(values: Any) -> xp.ndarray:
    """Return a CuPy array or a CUDA tensor as it lies on the GPU, anything else as a copy there."""
    if values.__dlpack_device__()[0] == _CUDA:
        return xp.from_dlpack(values)
    return xp.asarray(np.asarray(values))


def band_keys(depth: xp.ndarray, weight: xp.ndarray, camera: np.ndarray, block_size: float,
              truncation: float) -> np.ndarray:
    """Do as `reference.band_keys`."""
    if not depth.size:
        return np.empty(0, np.int64)
    keys = xp.empty(depth.size * BAND_SAMPLES, xp.int64)
    _launch('band_keys', depth.size, depth, weight, xp.asarray(camera), *depth.shape, block_size, truncation, keys)
    keys = xp.asnumpy(xp.unique(keys))
    return keys[keys >= 0]


def fuse(sums: xp.ndarray, slots: np.ndarray, indices: np.ndarray, depth: xp.ndarray, weight: xp.ndarray,
         colors: xp.ndarray, camera: np.ndarray, voxel_size: float, truncation: float, sign: int,
         max_weight: int) -> tuple[np.ndarray, np.ndarray]:
    """Do as `reference.fuse`."""
    count = len(slots)
    blocks = xp.asarray(np.concatenate((slots[:, None], indices), axis=1))  # (N, 4) int64
    flags = xp.zeros(9 * count, xp.uint8)
    _launch('fuse', count * VOXELS, sums, blocks, count, depth, weight, colors, xp.asarray(camera), *depth.shape,
            voxel_size, truncation, sign, max_weight, flags[:count], flags[count:])
    flags = xp.asnumpy(flags).astype(bool)
    return flags[:count], flags[count:].reshape(-1, 8)


def march(sums: xp.ndarray, slots: np.ndarray, indices: np.ndarray, voxel_size: float,
          min_weight: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Do as `reference.march`."""
    count = len(slots)
    blocks = xp.asarray(np.concatenate((slots, indices), axis=1))  # (N, 11) int64
    values = xp.empty((count, _POINTS), xp.float64)
    _launch('sample', values.size, sums, blocks, count, min_weight, values)
    cases, drawn = xp.empty((2, count, VOXELS), xp.uint8)
    crossed = xp.zeros((count, 3 * _POINTS), xp.uint8)
    _launch('classify', cases.size, values, count, cases, drawn, crossed)
    vertex_ends = xp.cumsum(crossed, dtype=xp.int32).reshape(crossed.shape)
    triangle_ends = xp.cumsum(drawn, dtype=xp.int32).reshape(drawn.shape)
    ends = xp.asnumpy(xp.stack((vertex_ends[:, -1], triangle_ends[:, -1]), axis=-1)).astype(np.int64)  # (N, 2)
    v_count, t_count = ends[-1].tolist()
    vertices, colors = xp.empty((v_count, 3), xp.float32), xp.empty((v_count, 3), xp.uint8)
    triangles = xp.empty((t_count, 3), xp.uint32)
    _launch('place_vertices', crossed.size, sums, blocks, count, values, crossed, vertex_ends, voxel_size,
            vertices, colors)
    _launch('place_triangles', cases.size, count, cases, vertex_ends, triangle_ends, triangles)
    return xp.asnumpy(vertices), xp.asnumpy(colors), xp.asnumpy(triangles), ends


@cache
def _module() -> xp.RawModule:
    return xp.RawModule(code=source(), options=('--fmad=false',))


@cache
def _kernel(name: str) -> Any:
    return _module().get_function(name)


def _launch(name: str, threads: int, *arguments: Any) -> None:
    """Run a kernel; integers reach it as 64-bit ones, floats as double."""
    if threads:
        _kernel(name)((-(-threads // _THREADS),), (_THREADS,), arguments)
