# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`slam3r bench mesher`: what a keyframe costs, whether that grows with the map, and how true the mesh is.

The scene is the row of rooms of `rooms`, the voxels are 5 cm.  Two things to be compared take turns keyframe by
keyframe, so that a machine whose speed drifts slows both.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import count, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from slam3r_ros.bench import rooms
from slam3r_ros.bench.open3d_grid import Open3DGrid, distances_to_mesh
from slam3r_ros.meshing.mesher import BlockMesher
from slam3r_ros.meshing.normals import face_normals
from slam3r_ros.values import Keyframe

MILLISECONDS = {'cpu': 50.0, 'cuda': 5.0}  # for a keyframe, at most
MIN_WEIGHT = 0.05  # of the geometry: a voxel that was seen once, from 10 m, counts; for Open3D each does
SAMPLES = 1_000_000  # on a mesh
NOISE = 0.01  # of depth
MEMORY_MB = 64
LONG = 2000  # keyframes


class Figure(NamedTuple):
    """A measured number beside its limit."""

    name: str
    value: float | None  # None: not measured, `note` says why
    unit: str
    limit: float
    at_least: bool = False  # else at most
    note: str = ''

    @property
    def missed(self) -> bool:
        """Whether it was measured and lies beyond the limit."""
        return self.value is not None and bool(self.value < self.limit if self.at_least else self.value > self.limit)

    def __str__(self) -> str:
        """Return a line of the table."""
        verdict = 'skipped' if self.value is None else 'MISSED' if self.missed else 'ok'
        value = '-' if self.value is None else f'{self.value:.3g}'
        sign = '>=' if self.at_least else '<='
        return f'{self.name:<58}{value:>8} {self.unit:<7}{sign} {self.limit:<6g} {verdict:<8}{self.note}'.rstrip()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument('--device', default='cpu', choices=('cpu', 'cuda'), help='where to mesh (default: cpu)')
    parser.add_argument('--json', type=Path, help='file to write the figures to')
    parser.add_argument('--once', choices=('memory',), help='measure one thing alone and print it as JSON')


def main(arguments: argparse.Namespace) -> int:
    """Measure, print the table as it comes, and return 1 where a limit is missed."""
    if arguments.once == 'memory':
        print(json.dumps(walk_far(arguments.device)))
        return 0
    figures = []
    for figure in measure(arguments.device):
        print(figure, flush=True)
        figures.append(figure)
    if arguments.json:
        rows = [figure._asdict() | {'missed': figure.missed} for figure in figures]
        written = json.dumps({'device': arguments.device, 'figures': rows}, indent=2, default=float)
        arguments.json.write_text(written + '\n')
    return int(any(figure.missed for figure in figures))


def measure(device: str) -> Iterator[Figure]:
    """Yield the figures, one after the other."""
    yield from speed(device)
    yield from beside_open3d(device)
    for noise in (0.0, NOISE):
        yield from geometry(device, noise)
    yield from memory(device)


def speed(device: str, young: int = 50, old: int = 400, keyframes: int = 100) -> Iterator[Figure]:
    """Yield what a keyframe costs in a small map, and in a large one beside it.

    Args:
        device: of the meshers.
        young: keyframes that the small map holds at the start.
        old: keyframes that the large map does, some rooms further.
        keyframes: that both then get in turn.
    """
    meshers = [(start, walked(BlockMesher(rooms.VOXEL, device=device), start)) for start in (young, old)]
    seconds = in_turn(meshers, keyframes)
    (few, many), pairs = 1e3 * np.median(seconds, axis=0), seconds[:, 1] / seconds[:, 0]
    yield Figure('integrate and mesh a keyframe of 224 x 224, median', few, 'ms', MILLISECONDS[device])
    compared = f'keyframes {old}-{old + keyframes} to {young}-{young + keyframes}'
    yield Figure(f'the same, {compared}', many / few, 'times', 1.1,
                 note=f'{many:.1f} to {few:.1f} ms; pairs of the same view: {np.median(pairs):.2f}')


def walked(mesher: BlockMesher, steps: int) -> BlockMesher:
    """Return the mesher after so many steps of the walk."""
    for step in range(steps):
        update(mesher, rooms.keyframe(step))
    return mesher


def in_turn(meshers: list[tuple[int, BlockMesher]], keyframes: int) -> np.ndarray:
    """Return the seconds (keyframes, M) that each mesher takes for the next keyframes of its walk.

    Args:
        meshers: each after how many steps it has walked.
        keyframes: that each gets, one after the other, in turns first and last, so that other work on the machine
            slows all.
    """
    seconds = np.empty((keyframes, len(meshers)))
    for step in range(keyframes):
        for i in range(len(meshers))[:: 1 - step % 2 * 2]:
            start, mesher = meshers[i]
            seconds[step, i] = update(mesher, rooms.keyframe(start + step))
    return seconds


def beside_open3d(device: str, small: int = rooms.STEPS, large: int = rooms.STEPS,
                  blocks: int = 5000) -> Iterator[Figure]:
    """Yield how many times faster than Open3D's VoxelBlockGrid an update is, in small maps and in a large one.

    Args:
        device: of the mesher.
        small: how many maps of 500 blocks get one more keyframe, each begun at another place of the walk.
        large: how many keyframes the large map gets.
        blocks: that it holds before.
    """
    walks = ((500, [(start, 1) for start in range(small)], 1.0), (blocks, [(0, large)], 3.0))
    for held, runs, limit in walks:
        name = f'times faster an update than Open3D, {held} blocks held'
        if (trouble := _no_comparison(device)) is not None:
            yield Figure(name, None, 'times', limit, at_least=True, note=trouble)
            continue
        seconds = [pair for start, number in runs for pair in race(device, start, held, number)]
        ours, theirs = 1e3 * np.median(seconds, axis=0)
        yield Figure(name, theirs / ours, 'times', limit, at_least=True, note=f'{ours:.1f} to {theirs:.1f} ms')


def race(device: str, start: int, blocks: int, number: int) -> Iterator[tuple[float, float]]:
    """Yield the seconds that the mesher and Open3D take for a keyframe each, once their maps hold enough blocks.

    Args:
        device: of the mesher.
        start: the first step of the walk.
        blocks: of the mesher's map.
        number: how many keyframes are timed.
    """
    mesher, grid = BlockMesher(rooms.VOXEL, device=device), Open3DGrid()
    steps = count(start)
    while mesher.counters['blocks'] < blocks:
        keyframe = rooms.keyframe(next(steps))
        update(mesher, keyframe)
        grid.integrate(grid.prepare(keyframe))
    grid.mesh()  # the first time takes longer
    for step in islice(steps, number):
        keyframe = rooms.keyframe(step)
        yield update(mesher, keyframe), grid.update(keyframe)


def geometry(device: str, noise: float, keyframes: int = 2 * rooms.STEPS, samples: int = SAMPLES) -> Iterator[Figure]:
    """Yield how far the mesh is from the true surface, and that from the mesh, beside Open3D's of the same keyframes.

    Args:
        device: of the mesher.
        noise: of depth, as a share of it.
        keyframes: along the walk.
        samples: on a mesh.
    """
    of = f'depth noise {noise:.0%}' if noise else 'exact depth'
    names = (f'{of}: mesh to truth, mean', f'{of}: mesh to truth, to that of Open3D',
             f'{of}: truth to mesh, to that of Open3D')
    mesher = BlockMesher(rooms.VOXEL, min_weight=MIN_WEIGHT, device=device)
    for step in range(keyframes):
        mesher.integrate(rooms.keyframe(step, noise))
    vertices, _, triangles = mesher.mesh()
    accuracy = rooms.distance(sample(vertices, triangles, samples)).mean()
    yield Figure(names[0], accuracy / rooms.VOXEL, 'voxels', 1.5)
    if (trouble := _no_comparison(device)) is not None:
        for name in names[1:]:
            yield Figure(name, None, 'times', 1.0, note=trouble)
        return
    grid = Open3DGrid()
    for step in range(keyframes):
        grid.integrate(grid.prepare(rooms.keyframe(step, noise)))
    others = grid.mesh()
    theirs = rooms.distance(sample(*others, samples)).mean()
    yield Figure(names[1], accuracy / theirs, 'times', 1.0, note=f'{1e3 * accuracy:.2f} to {1e3 * theirs:.2f} mm')
    surface = rooms.seen(range(keyframes), 0.02)
    completeness, theirs = (distances_to_mesh(surface, *mesh).mean() for mesh in ((vertices, triangles), others))
    note = f'{1e3 * completeness:.2f} to {1e3 * theirs:.2f} mm'
    yield Figure(names[2], completeness / theirs, 'times', 1.0, note=note)


def memory(device: str) -> Iterator[Figure]:
    """Yield what a long walk takes under a memory cap, in a process of its own, and whether it slows down."""
    command = [sys.executable, '-m', 'slam3r_ros.cli', 'bench', 'mesher', '--once', 'memory', '--device', device]
    # Else glibc keeps up to 20 MB of what was freed for later.
    environment = os.environ | {'MALLOC_MMAP_THRESHOLD_': str(1 << 17), 'MALLOC_TRIM_THRESHOLD_': str(1 << 17)}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    walk = json.loads(done.stdout.splitlines()[-1])
    yield Figure(f'memory that {LONG} keyframes take, cap {MEMORY_MB} MB', walk['grown_mb'], 'MB', MEMORY_MB,
                 note=f'{walk["blocks"]} blocks held, {walk["dropped"]} dropped')
    yield Figure('time a keyframe after them, to that in a map of one room', walk['slower'], 'times', 1.1)


def walk_far(device: str, megabytes: float = MEMORY_MB, keyframes: int = LONG) -> dict[str, float]:
    """Walk through many rooms under a memory cap.

    Returns:
        blocks held and dropped, by how many megabytes the process grew, on the GPU too, and how many times longer the
        next keyframes take than in a map of one room.
    """
    for step in range(rooms.STEPS):  # what is compiled, and the pictures of the scene, are there before
        rooms.keyframe(step)
    walked(BlockMesher(rooms.VOXEL, device=device), 1)
    before = most = held(device)
    mesher = BlockMesher(rooms.VOXEL, max_blocks=BlockMesher.blocks_within(megabytes), device=device)
    for step in range(keyframes):
        update(mesher, rooms.keyframe(step))
        most = max(most, held(device))
    counters = mesher.counters
    young = walked(BlockMesher(rooms.VOXEL, device=device), rooms.STEPS)
    early, late = np.median(in_turn([(rooms.STEPS, young), (keyframes, mesher)], 2 * rooms.STEPS), axis=0)
    return {'blocks': counters['blocks'], 'dropped': counters['dropped'], 'grown_mb': (most - before) / 1e6,
            'slower': late / early}


def update(mesher: BlockMesher, keyframe: Keyframe) -> float:
    """Integrate a keyframe and mesh what changed; return the seconds.

    For a mesher on the GPU the keyframe's arrays lie there, where a network leaves them.
    """
    if mesher.device == 'cuda':
        import cupy

        arrays = {name: cupy.asarray(getattr(keyframe, name)) for name in ('pointmap', 'confidence', 'colors')}
        keyframe = replace(keyframe, **arrays)
        cupy.cuda.Device().synchronize()
    start = time.perf_counter()
    mesher.integrate(keyframe)
    mesher.update()
    return time.perf_counter() - start


def sample(vertices: np.ndarray, triangles: np.ndarray, number: int) -> np.ndarray:
    """Return points (number, 3) spread evenly over a mesh's area, the same ones every time."""
    rng = np.random.default_rng(0)
    areas = np.cumsum(np.linalg.norm(face_normals(np.asarray(vertices, np.float64), triangles), axis=1))
    chosen = triangles[np.searchsorted(areas, rng.uniform(0, areas[-1], number))]
    shares = rng.dirichlet((1, 1, 1), number)  # uniform over a triangle
    return np.einsum('ni,nij->nj', shares, vertices[chosen])


def held(device: str) -> int:
    """Return the bytes of memory that this process holds, and its arrays on the GPU if that is the device."""
    host = int(Path('/proc/self/statm').read_text().split()[1]) * os.sysconf('SC_PAGE_SIZE')
    if device != 'cuda':
        return host
    import cupy

    return host + cupy.get_default_memory_pool().used_bytes()


def _no_comparison(device: str) -> str | None:
    """Return why there can be none with Open3D."""
    if device != 'cpu':
        return "Open3D's package from PyPI runs on the CPU"
    try:
        Open3DGrid()
    except ImportError as error:
        return str(error)
    return None

