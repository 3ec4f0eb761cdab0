# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`slam3r bench graph`: what the ROS graph costs beside the same stages on plain threads and queues."""

import argparse
import json
import queue
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from slam3r_ros.engines import create_engine
from slam3r_ros.mapping.selection import FrameSelector
from slam3r_ros.meshing.mesher import BlockMesher
from slam3r_ros.values import Frame, Keyframe
from slam3r_ros.video.source import open_source

QUEUE_DEPTH = 2  # as between the nodes
MESH_SECONDS = 0.5  # between two extractions, as the mesher node's default
_END = object()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument('--video', type=Path, help='a video file or bag; without it, the bundled clip')
    parser.add_argument('--runs', type=int, default=3, help='of each kind, in turn (default: 3)')
    parser.add_argument('--once', choices=('plain', 'graph'), help='run one kind once and print its seconds')
    parser.add_argument('--json', type=Path, help='file to write the figures to')


def main(arguments: argparse.Namespace) -> int:
    """Run the benchmark and print its table."""
    if arguments.video is None:
        from slam3r_ros.graph import bundled_clip

        arguments.video = bundled_clip() / 'video.mp4'
    if arguments.once == 'plain':
        print(json.dumps(run_plain(str(arguments.video))))
        return 0
    if arguments.once == 'graph':
        from slam3r_ros.graph import isolate, run_graph

        isolate()
        print(json.dumps(run_graph({'video_decoder': {'input': str(arguments.video.resolve()), 'stamp_offset': 0.0}})))
        return 0
    source = open_source(str(arguments.video))
    frames = sum(1 for _ in source)
    source.close()
    fps: dict[str, list[float]] = {'plain': [], 'graph': []}
    for _ in range(arguments.runs):  # in turn: this machine's speed may drift
        for kind, values in fps.items():
            values.append(frames / run_apart(kind, arguments.video))
    ratios = [graph / plain for graph, plain in zip(fps['graph'], fps['plain'], strict=True)]
    result = {'frames': frames, 'fps': fps, 'ratios': ratios, 'median_ratio': statistics.median(ratios)}
    for kind, values in fps.items():
        print(f'{kind:<6} {statistics.median(values):6.1f} FPS  ({", ".join(f"{value:.1f}" for value in values)})')
    each = ', '.join(f'{ratio:.2f}' for ratio in ratios)
    print(f'graph / plain, run by run: {each}; median {result["median_ratio"]:.2f}')
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + '\n')
    return 0


def run_apart(kind: str, video: Path) -> float:
    """Run once in a fresh process; return its seconds, from the opening of the video to the last mesh."""
    command = [sys.executable, '-m', 'slam3r_ros.cli', 'bench', 'graph', '--once', kind, '--video', str(video)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return float(done.stdout.splitlines()[-1])


def run_plain(video: str) -> float:
    """Run decoder, selector, engine and mesher, each on a thread, over plain queues.

    Args:
        video: File or bag.

    Returns:
        Seconds from the opening of the video to the last mesh.
    """
    engine = create_engine('auto')
    selector, mesher = FrameSelector(), BlockMesher()
    heard: queue.SimpleQueue[Keyframe] = queue.SimpleQueue()  # keyframes on the way back to the selector
    due = 0.0

    def hand_on(frame: Frame) -> Iterator[Frame]:
        yield frame

    def select(frame: Frame) -> Iterator[Frame]:
        while not heard.empty():
            selector.hear(heard.get())
        if (selected := selector.select(frame)) is not None:
            yield selected

    def reconstruct(frame: Frame) -> Iterator[Keyframe]:
        yield from engine.process(frame).keyframes
        if frame.last:
            yield from engine.finish().keyframes

    def mesh(keyframe: Keyframe) -> Iterator[None]:
        nonlocal due
        heard.put(keyframe)
        mesher.integrate(keyframe)
        if time.monotonic() > due:
            mesher.update()
            due = time.monotonic() + MESH_SECONDS
        yield

    try:
        start = time.monotonic()
        source = open_source(video)
        values: Iterable = source
        for stage in (hand_on, select, reconstruct, mesh):
            values = on_a_thread(stage, values)
        for _ in values:
            pass
        source.close()
        mesher.update()
        return time.monotonic() - start
    finally:
        engine.close()


def on_a_thread(stage: Callable[[Any], Iterator], values: Iterable) -> Iterator:
    """Apply a stage to values on a thread of its own, a bounded queue ahead of who reads the result."""
    results: queue.Queue = queue.Queue(QUEUE_DEPTH)

    def work() -> None:
        try:
            for value in values:
                for result in stage(value):
                    results.put(result)
            results.put(_END)
        except Exception as error:  # noqa: BLE001 - whatever it is, the reader shall see it
            results.put(error)

    threading.Thread(target=work, daemon=True).start()
    while (result := results.get()) is not _END:
        if isinstance(result, Exception):
            raise result
        yield result
