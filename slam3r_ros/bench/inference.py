# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`slam3r bench inference`: what a frame costs, stage by stage, beside the same step done the plain way.

SLAM3R runs with random weights, so that anyone can measure it; the geometric engine runs on the bundled clip.  The peak
of the device is what a large matrix product of the same precision reaches in the same run.  The online step is: encode
a frame, reconstruct it in a window of 11, register it by 10 scene frames.  What is compared takes turns.
"""

import argparse
import gc
import json
import platform
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from slam3r_ros.bench import workload
from slam3r_ros.bench.mesher import Figure
from slam3r_ros.bench.savings import Step
from slam3r_ros.bench.workload import (
    SCENE_FRAMES,
    SIZES,
    FastStep,
    Walk,
    held_bytes,
    in_precision,
    in_turn,
    operations,
    peak,
    plain_step,
    point_error,
    pose_of_a_wall,
    tensor_float32,
)
from slam3r_ros.engines.slam3r.config import SIDE, NetworkConfig
from slam3r_ros.engines.slam3r.precision import choose
from slam3r_ros.engines.slam3r.preprocess import square, to_tensor

MIN_FPS = 100.0  # of the step, official size, on a GPU of the H200 class
MIN_SPEEDUP = {'cuda': 3.0, 'cpu': 1.15}  # of the step over the plain one, official size
MAX_DIFFERENCE = 1e-4  # of the largest value, both in float32
MIN_INT8_SPEEDUP = 2.0
MAX_GROWTH = 1.1  # of a frame's time in the largest map, over that in one of 100 keyframes
MAX_MEMORY = 1.05  # likewise; the hundredth keyframe does not quite fill the scene buffer
MAX_VRAM = 4.0  # GB, official size


class Row(NamedTuple):
    """What one stage takes."""

    engine: str
    stage: str
    precision: str
    milliseconds: float  # median
    p95: float | None = None
    gflop: float | None = None  # that it takes
    gflops: float | None = None  # a second
    share: float | None = None  # of the peak
    note: str = ''

    @classmethod
    def of(
        cls, names: tuple[str, str, str], times: np.ndarray, gflop: float | None = None, peak: float = 0, note: str = ''
    ) -> 'Row':
        """Sum up milliseconds (N,), given the operations and the most that the device does in a second, in GFLOP."""
        median, p95 = (float(np.quantile(times, q)) for q in (0.5, 0.95))
        gflops = 1e3 * gflop / median if gflop else None
        return cls(*names, median, p95, gflop, gflops, gflops / peak if gflop else None, note)

    def __str__(self) -> str:
        """Return a line of the table."""
        p95 = '' if self.p95 is None else f'{self.p95:.2f}'
        work = f'{self.gflop:>8.1f}{self.gflops:>9.0f}{self.share:>6.0%}' if self.gflop else ' ' * 23
        line = f'{self.engine:<10}{self.stage:<35}{self.precision:<9}{self.milliseconds:>10.2f}{p95:>10}{work}'
        return f'{line}  {self.note}'.rstrip()


_NAMES = ('engine', 'stage', 'precision', 'median ms', 'p95 ms', 'GFLOP', 'GFLOP/s', 'peak')
HEAD = '{:<10}{:<35}{:<9}{:>10}{:>10}{:>8}{:>9}{:>6}'.format(*_NAMES)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    workload.add_arguments(parser)
    parser.add_argument('--windows', nargs='+', type=int, default=[5, 11, 21], metavar='VIEWS',
                        help='(default: 5 11 21)')  # fmt: skip
    parser.add_argument('--maps', nargs='+', type=int, default=[10, 100, 1000, 10_000], metavar='KEYFRAMES',
                        help='(default: 10 100 1000 10000)')  # fmt: skip
    parser.add_argument('--repeats', type=int, help='of each measurement (default: 50 on a GPU, 5 on a CPU)')
    parser.add_argument('--frames', type=int, default=100, help='of the bundled clip (default: 100)')
    parser.add_argument('--json', type=Path, help='file to write the figures to')


@torch.inference_mode()
def main(arguments: argparse.Namespace) -> int:
    """Measure, print the table as it comes, then the figures; return 1 where one misses its limit."""
    device, chosen, size = workload.chosen(arguments)
    repeats = arguments.repeats or (50 if device == 'cuda' else 5)
    name = f'{platform.machine()}, {torch.get_num_threads()} threads'
    if device == 'cuda':
        name = torch.cuda.get_device_name()
    default = choose('auto', torch.device(device))
    peaks = {precision: peak(device, precision) for precision in chosen}
    print(f'{device} ({name}), torch {torch.__version__}, networks: {size}')
    print('peak, GFLOP/s: ' + ', '.join(f'{precision} {value:.0f}' for precision, value in peaks.items()))
    print(HEAD, flush=True)
    rows: list[Row] = []
    figures: list[Figure] = []
    parts = [
        stages(device, SIZES[size], peaks, arguments.windows, repeats),
        around(repeats),
        geometric(arguments.frames),
        speed(device, size, peaks, repeats),
        growth(device, SIZES[size if device == 'cuda' else 'small'], arguments.maps, default, 2 * repeats),
    ]
    for part in parts:
        for result in part:
            if isinstance(result, Row):
                print(result, flush=True)
            (rows if isinstance(result, Row) else figures).append(result)
    print()
    for figure in figures:
        print(figure)
    if arguments.json:
        facts = {'device': device, 'name': name, 'torch': torch.__version__, 'size': size, 'peak_gflops': peaks}
        facts['rows'] = [row._asdict() for row in rows]
        facts['figures'] = [figure._asdict() | {'missed': figure.missed} for figure in figures]
        arguments.json.write_text(json.dumps(facts, indent=2, default=float) + '\n')
    return int(any(figure.missed for figure in figures))


def stages(
    device: str, config: NetworkConfig, peaks: dict[str, float], windows: list[int], repeats: int, side: int = SIDE
) -> Iterator[Row]:
    """Yield what each stage of SLAM3R takes, in every precision."""
    counts = operations(config, windows, side)
    step = Step.make(config, max(*windows, SCENE_FRAMES + 1) - 1, 100, side, device)
    for precision, fastest in peaks.items():
        fast = FastStep(in_precision(step, precision))
        parts: dict[str, Callable] = {'encode': fast.encode, 'retrieve': fast.retrieve}
        for window in windows:
            parts[f'window {window}'] = partial(fast.locate, window)
        parts['register'] = fast.register
        for part, times in zip(parts, in_turn(device, list(parts.values()), repeats).T):
            names = {'retrieve': 'retrieve, of 100', 'register': f'register, by {SCENE_FRAMES}'}
            yield Row.of(('slam3r', names.get(part, part), precision), times, counts[part], fastest)


def around(repeats: int) -> Iterator[Row]:
    """Yield what is done on the CPU before and after the networks."""
    image = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
    times = in_turn('cpu', [lambda: to_tensor(square(image)[0]), pose_of_a_wall()], repeats).T
    yield Row.of(('slam3r', 'square of 640x480', 'uint8'), times[0])
    yield Row.of(('slam3r', 'pose', 'float64'), times[1])


def geometric(frames: int) -> Iterator[Row]:
    """Yield what a frame of the bundled clip takes the geometric engine; say why where it cannot run."""
    try:
        from slam3r_ros.engines.geometric.engine import GeometricEngine
        from slam3r_ros.graph import bundled_clip
        from slam3r_ros.video.source import open_source
    except ImportError as error:
        print(f'geometric: left out ({error})')
        return
    with closing(open_source(str(bundled_clip() / 'video.mp4'))) as source, closing(GeometricEngine()) as engine:
        clip = list(islice(source, frames))
        waiting = iter(clip)
        times = in_turn('cpu', [lambda: engine.process(next(waiting))], len(clip), warm_up=0)[:, 0]
        yield Row.of(('geometric', f'a frame, of {len(clip)}', ''), times)
        for stage, milliseconds in engine.milliseconds.items():
            yield Row('geometric', f'  {stage}', '', milliseconds)


def speed(device: str, size: str, peaks: dict[str, float], repeats: int, side: int = SIDE) -> Iterator[Row | Figure]:
    """Yield the online step in every precision beside the plain one, in turn; limits are for the official size."""
    config = SIZES[size]
    step = Step.make(config, SCENE_FRAMES, 1, side, device)
    window = f'window {SCENE_FRAMES + 1}'
    counts = operations(config, [SCENE_FRAMES + 1], side)
    gflop = sum(counts[stage] for stage in ('encode', window, 'register'))
    expected = plain_step(step)  # exact: without TF32

    def plain() -> None:
        with tensor_float32(device):
            plain_step(step)

    name = f'step: encode, {window}, register'
    speedups, fps = {}, {}
    for precision, fastest in peaks.items():
        own = in_precision(step, precision)
        fast, others = FastStep(own), {}
        if device == 'cuda':
            others['  without CUDA graphs'] = FastStep(own, cuda_graphs=False)
            others['  the next frame encoded beside'] = FastStep(own, ahead=True)
        found = fast()
        error = max(point_error(*pair) for pair in zip((found.local, found.world), (m.points[0, 0] for m in expected)))
        times, *other_times, plain_times = in_turn(device, [fast, *others.values(), plain], repeats).T
        if not speedups:
            tf32 = ', TF32' if device == 'cuda' else ''
            yield Row.of(('slam3r', f'the same, plainly{tf32}', 'float32'), plain_times)
        speedups[precision] = float(np.median(plain_times / times))
        note = f'{speedups[precision]:.2f} times plain, error {error:.1e}'
        yield Row.of(('slam3r', name, precision), times, gflop, fastest, note)
        for other, each in zip(others, other_times):
            yield Row.of(('slam3r', other, precision), each, gflop, fastest)
        fps[precision] = 1e3 / float(np.median(times))
        if precision == 'float32':
            pairs = zip((found.local, found.local_confidence, found.world, found.confidence), sum(expected, ()))
            off = max(float((a - b[0, 0]).abs().max() / b.abs().max()) for a, b in pairs)
            yield Figure('float32: largest difference to plain, of the largest', off, '', MAX_DIFFERENCE)
    if size != 'full':
        return
    fast = choose('auto', torch.device(device))
    if device == 'cuda' and fast in fps:
        yield Figure(f'{fast}, the default: steps a second', fps[fast], 'FPS', MIN_FPS, at_least=True)
    if fast in fps:
        name = f'{fast}, the default: step, faster than plain'
        yield Figure(name, speedups[fast], 'times', MIN_SPEEDUP[device], at_least=True)
    if device == 'cpu' and 'int8' in fps:
        yield Figure('int8: step, faster than plain', speedups['int8'], 'times', MIN_INT8_SPEEDUP, at_least=True)


def growth(
    device: str, config: NetworkConfig, maps: list[int], precision: str, repeats: int, side: int = SIDE
) -> Iterator[Row | Figure]:
    """Yield what a frame takes, retrieval and all, when so many keyframes have been seen, and the memory held."""
    start = held_bytes(device)
    if device == 'cuda':
        torch.cuda.empty_cache()
        reserved = torch.cuda.memory_reserved()
    step = in_precision(Step.make(config, 1, 1, side, device), precision)
    weights = held_bytes(device) - start
    walks, held = [], []
    for keyframes in maps:
        before = held_bytes(device)
        walks.append(Walk(step, keyframes))
        walks[-1]()
        held.append(held_bytes(device) - before)
    times = in_turn(device, walks, repeats).T
    for keyframes, each, size in zip(maps, times, held):
        names = 'slam3r', f'frame, after {keyframes} keyframes', precision
        yield Row.of(names, each, note=f'holds {size / 1e6:.0f} MB')
    usual = maps.index(min(maps, key=lambda keyframes: abs(keyframes - 100)))
    name = f'{maps[-1]} to {maps[usual]} keyframes'
    yield Figure(f'{name}: time of a frame', float(np.median(times[-1] / times[usual])), 'times', MAX_GROWTH)
    yield Figure(f'{name}: memory', held[-1] / held[usual], 'times', MAX_MEMORY)
    if device == 'cuda':
        del walks[:-1]
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        walks[-1]()
        memory = torch.cuda.max_memory_reserved() - reserved  # CUDA graphs, their workspace and all
        parts = f'weights {weights / 1e9:.2f}, map {held[-1] / 1e9:.2f}'
        yield Figure(f'{precision}: memory on the GPU', memory / 1e9, 'GB', MAX_VRAM, note=parts)
