# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`slam3r bench draco`: the bandwidth of `mesh/draco` while a video is mapped, without and with the cap.

Time is the video's, so that the machine's speed does not matter: a turn of the mesher each 0.2 s of it.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
from tqdm import tqdm

from slam3r_ros.bench.mesher import Figure
from slam3r_ros.engines import create_engine
from slam3r_ros.mapping.selection import FrameSelector
from slam3r_ros.meshing.draco import decompress
from slam3r_ros.meshing.mesher import BlockMesher
from slam3r_ros.meshing.reader import MeshCopy
from slam3r_ros.meshing.stream import DracoStream
from slam3r_ros.values import MeshUpdate
from slam3r_ros.video.source import open_source

RATE = 5.0  # turns a second
CAP = 1.0  # Mbps, as the mesher node's default
VOXEL_SIZE, MIN_WEIGHT = 0.02, 0.25  # as the mesher node's defaults while the scale is unknown


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument('--video', help='a video file or bag; without it, the bundled clip')
    parser.add_argument('--engine', default='geometric', choices=('auto', 'slam3r', 'geometric'))
    parser.add_argument('--voxel-size', type=float, default=VOXEL_SIZE, help='map units (default: 0.02)')
    parser.add_argument('--cap', type=float, default=CAP, help='Mbps (default: 1)')
    parser.add_argument('--json', type=Path, help='file to write the figures to')


def main(arguments: argparse.Namespace) -> int:
    """Measure, print the table, and return 1 where a limit is missed."""
    if arguments.video is None:
        from slam3r_ros.graph import bundled_clip

        arguments.video = str(bundled_clip() / 'video.mp4')
    results = measure(arguments.video, arguments.engine, arguments.voxel_size, arguments.cap)
    print(f'{arguments.video}: {results["seconds"]:.1f} s, {results["triangles"]} triangles in the end, {RATE:g} Hz')
    for name in ('free', 'capped'):
        row = results[name]
        print(
            f'{name:<7} {row["mean_mbps"]:5.2f} Mbps mean, {row["p95_mbps"]:5.2f} p95 of a turn; '
            f'{row["ratio"]:4.1f} times smaller; {row["milliseconds"]:4.1f} ms a message, '
            f'{row["p95_milliseconds"]:4.1f} p95; {row["wait"]:.1f} s until a block is sent, '
            f'{row["p95_wait"]:.1f} p95; all sent {row["rest"]:.1f} s after the end'
        )
    figure = Figure('compressed mesh, mean with the cap', results['capped']['mean_mbps'], 'Mbps', arguments.cap)
    print(figure)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + '\n')
    return int(figure.missed)


def measure(video: str, engine: str, voxel_size: float, cap: float) -> dict:
    """Map a video and send its mesh through two streams at once, without a cap and with one.

    Args:
        video: File or bag.
        engine: Its name.
        voxel_size: Map units.
        cap: Mbps.
    """
    mesher = BlockMesher(voxel_size, min_weight=MIN_WEIGHT)
    links = {'free': Link(0.0), 'capped': Link(cap)}
    turns = 0
    for update in map_video(video, engine, mesher):
        turns += 1
        for link in links.values():
            link.turn(turns / RATE, update)
    seconds = turns / RATE
    results = {'video': video, 'seconds': seconds, 'voxel_size': voxel_size, 'cap_mbps': cap}
    results |= {name: link.finish(seconds) for name, link in links.items()}
    whole = mesher.snapshot().blocks
    for name, link in links.items():
        if {index: len(block.triangles) for index, block in link.copy.blocks.items()} != {
            block.index: len(block.triangles) for block in whole
        }:
            raise RuntimeError(f'the reader of the {name} stream does not hold the mesh in the end')
    return results | {'triangles': sum(len(block.triangles) for block in whole)}


def map_video(video: str, engine: str, mesher: BlockMesher) -> Iterator[MeshUpdate | None]:
    """Run selector, engine and mesher over a video; yield what each turn of the mesher brings."""
    selector, due = FrameSelector(), None
    with closing(open_source(video)) as source, closing(create_engine(engine)) as maker:
        for frame in tqdm(source, total=source.frames, unit='frame', file=sys.stderr, disable=None):
            due = frame.stamp + 1e9 / RATE if due is None else due
            if (selected := selector.select(frame)) is not None:
                for keyframe in maker.process(selected).keyframes:
                    mesher.integrate(keyframe)
            while frame.stamp >= due:
                due += 1e9 / RATE
                yield mesher.update()
        for keyframe in maker.finish().keyframes:
            mesher.integrate(keyframe)
        yield mesher.update()


class Link:
    """A stream, its reader, and what went over the line between them at each turn."""

    def __init__(self, cap: float) -> None:
        """Make a link of so many Mbps; 0 for any."""
        self.copy = MeshCopy()
        self._stream = DracoStream(cap, 1 / RATE)
        self._bytes: list[int] = []  # of each turn
        self._milliseconds: list[float] = []  # of each message
        self._since: dict[tuple[int, int, int], float] = {}  # when a block that waits changed first
        self._waits: list[float] = []  # seconds, of each block sent

    def turn(self, now: float, update: MeshUpdate | None) -> None:
        """Take what has changed, at a time in seconds, and send what may go."""
        if update is not None:
            self._stream.put(update)
            for block in update.blocks:
                self._since.setdefault(block.index, now)
        start = time.perf_counter()
        mesh = self._stream.take(now)
        self._bytes.append(mesh.nbytes if mesh else 0)
        if mesh is not None:
            self._milliseconds.append(1e3 * (time.perf_counter() - start))
            self._waits += [now - self._since.pop(index) for index in map(tuple, mesh.indices.tolist())]
            self.copy.apply(decompress(mesh))

    def finish(self, now: float) -> dict:
        """Send what still waits; return the figures."""
        during, end = len(self._bytes), now
        while self._stream.waiting:
            now += 1 / RATE
            self.turn(now, None)
        megabits = 8e-6 * np.array(self._bytes)
        return {
            'mean_mbps': float(megabits.mean() * RATE),
            'p95_mbps': float(np.percentile(megabits[:during], 95) * RATE),
            'ratio': self._stream.ratio,
            'milliseconds': float(np.median(self._milliseconds)),
            'p95_milliseconds': float(np.percentile(self._milliseconds, 95)),
            'wait': float(np.mean(self._waits)),
            'p95_wait': float(np.percentile(self._waits, 95)),
            'rest': now - end,
        }
