# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`slam3r bench latency`: from the camera to the pose on TF, through the real nodes, and where the time goes.

The bundled clip, as it is and enlarged, is played as H.264: at its own pace, frames dropped rather than late, for the
latency; then as fast as the nodes go for the frames a second, and once more through the engine alone.  The nodes run in
a process of their own, and this one listens to /tf.  A file's picture is decoded before its time has come, a camera's
only then: so the latency counts from that time, and decoding is added.  The stages are the calls of a few functions,
timed from outside; frames are told by their stamps, and both processes read one monotonic clock.

Where SLAM3R's weights are not at hand, its networks have random ones and see a known wall, see `wall`.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from itertools import chain, islice, pairwise
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import cv2
import numpy as np
import rclpy
from rclpy.context import Context
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from tf2_msgs.msg import TFMessage

from slam3r_ros.bench.mesher import Figure
from slam3r_ros.bench.stage_times import Times, timed
from slam3r_ros.engines import create_engine
from slam3r_ros.engines.protocol import Engine
from slam3r_ros.engines.slam3r.weights import available
from slam3r_ros.graph import bundled_clip, isolate, run_graph
from slam3r_ros.mapping.selection import FrameSelector
from slam3r_ros.msg import SlamStatus
from slam3r_ros.nodes import playback
from slam3r_ros.nodes import slam3r as slam3r_node
from slam3r_ros.transport.stamps import from_stamp
from slam3r_ros.transport.tuning import tuning
from slam3r_ros.video.source import open_source
from slam3r_ros.video.synthetic import FPS, write_video

RESOLUTIONS = {'640x480': (640, 480), '1920x1080': (1920, 1080)}
STAGES = (
    'decode', 'convert', 'start late', 'wait for selector', 'select', 'wait for engine', 'engine', 'make message',
    'DDS',
)  # fmt: skip
MAX_LATENCY = 100.0  # milliseconds, of 95 in 100 poses
MIN_POSES = 0.5  # of the frames: what is dropped is never late
MIN_SHARE = 0.9  # of the frames a second that the engine does alone
READY = 0.25  # of the frames, after which everything is compiled, recorded and in the caches: rates count from there


class Run(NamedTuple):
    """What was heard of the nodes."""

    times: Times
    arrived: dict[int, int]  # by stamp, when its pose came here
    inside: dict[str, float]  # milliseconds of the engine's own stages, from `status`
    about: str  # the engine


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument('--engine', default='geometric', choices=('geometric', 'slam3r'), help='(default: geometric)')
    parser.add_argument('--checkpoints', default='', metavar='FOLDER', help='of the weights of slam3r')
    parser.add_argument('--size', choices=('small', 'full'), help='of random networks; they run without weights, too '
                        '(default: full on a GPU, small on a CPU)')  # fmt: skip
    parser.add_argument('--device', default='auto', choices=('auto', 'cpu', 'cuda'), help='of slam3r (default: auto)')
    parser.add_argument('--precision', default='auto', help='of slam3r (default: auto)')
    parser.add_argument('--resolutions', nargs='+', default=[*RESOLUTIONS], choices=RESOLUTIONS,
                        help='of the video (default: both)')  # fmt: skip
    parser.add_argument('--stride', type=int, default=0, help='advised frames between keyframes; a small one lets '
                        'slam3r begin early in a short clip (default: as the motion asks)')  # fmt: skip
    parser.add_argument('--frames', type=int, default=300, help='of the bundled clip (default: 300, all)')
    parser.add_argument('--json', type=Path, help='file to write the figures to')
    parser.add_argument('--once', nargs=2, metavar=('VIDEO', 'PACE'), help=argparse.SUPPRESS)


def main(arguments: argparse.Namespace) -> int:
    """Measure, print the table and the limits; return 1 where one is missed."""
    isolate()
    if arguments.once:
        print(json.dumps(run_once(*arguments.once, arguments)))
        return 0
    results: dict[str, dict] = {}
    with tempfile.TemporaryDirectory() as folder:
        for resolution in arguments.resolutions:
            video = Path(folder, f'{resolution}.mp4')
            write_video(video, clip(arguments.frames, *RESOLUTIONS[resolution]), preset='veryfast')
            run = listen(video, 'paced', arguments)
            results[resolution] = sum_up(run.times, run.arrived) | {'engine': run.inside, 'about': run.about}
            results[resolution] |= speed(listen(video, 'free', arguments).times)
    print(format_table(results))
    figures = judge(results, arguments.engine)
    for figure in figures:
        print(figure)
    if arguments.json:
        rows = [figure._asdict() | {'missed': figure.missed} for figure in figures]
        arguments.json.write_text(json.dumps({'resolutions': results, 'figures': rows}, indent=2) + '\n')
    return int(any(figure.missed for figure in figures))


def clip(frames: int, width: int, height: int) -> Iterator[np.ndarray]:
    """Yield images (H, W, 3) uint8 of the bundled clip, cut to the aspect and enlarged."""
    with closing(open_source(str(bundled_clip() / 'video.mp4'))) as source:
        for frame in islice(source, frames):
            rows = round(frame.image.shape[1] * height / width)
            top = (len(frame.image) - rows) // 2
            yield cv2.resize(frame.image[top : top + rows], (width, height), interpolation=cv2.INTER_CUBIC)


def run_once(video: str, pace: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run the nodes in this process, at full speed then the engine alone; return when each stage began and ended."""
    paced = pace == 'paced'
    about, options = engine_options(arguments)
    parameters = {
        'video_decoder': {'input': video, 'realtime': paced},
        'keyframe_selector': {'keyframe_stride': arguments.stride},
        'slam3r': {
            'engine': arguments.engine, 'checkpoints_dir': arguments.checkpoints, 'precision': arguments.precision,
            'lossless': not paced,
        },
    }  # fmt: skip

    def opened(*words: Any, **more: Any) -> Any:
        sys.stdin.readline()  # the other process is ready to hear the poses
        return open_source(*words, **more)

    for_node = patch.object(slam3r_node, 'create_engine', partial(create_engine, **options))
    with for_node, patch.object(playback, 'open_source', opened), timed(arguments.engine) as times:
        run_graph(parameters)
    if not paced:
        engine = create_engine(arguments.engine, arguments.checkpoints, precision=arguments.precision, **options)
        times['alone'] = run_alone(video, FrameSelector(arguments.stride), engine)
    return {'about': about, 'times': {stage: list(each.items()) for stage, each in times.items()}}


def engine_options(arguments: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """Return what there is to say of the engine, and what it is made with beside the node's parameters."""
    if arguments.engine != 'slam3r':
        return arguments.engine, {}
    if not arguments.size and (arguments.checkpoints or available()):
        return 'slam3r, its own weights', {'device': arguments.device}
    from slam3r_ros.bench.wall import random_networks

    size, networks = random_networks(arguments.device, arguments.precision, arguments.size)
    return f'slam3r, {size} networks of random weights', {'device': arguments.device, 'networks': networks}


def run_alone(video: str, selector: FrameSelector, engine: Engine) -> dict[int, tuple[int, int]]:
    """Run an engine on the frames that a selector lets pass, one at a time; return when each began and ended."""
    times = {}
    with closing(open_source(video)) as source, closing(engine):
        frames = filter(None, map(selector.select, source))
        for frame, following in pairwise(chain(frames, [None])):
            start = time.monotonic_ns()
            if following is not None:
                engine.foresee(following)
            engine.process(frame)
            times[frame.stamp] = start, time.monotonic_ns()
    return times


def listen(video: Path, pace: str, arguments: argparse.Namespace) -> Run:
    """Run the nodes in a process of their own."""
    arrived: dict[int, int] = {}
    inside: dict[str, float] = {}
    context = Context()
    rclpy.init(context=context, signal_handler_options=rclpy.SignalHandlerOptions.NO)
    node, executor = Node('latency', context=context), SingleThreadedExecutor(context=context)

    def note(message: TFMessage) -> None:
        arrived.setdefault(from_stamp(message.transforms[0].header.stamp), time.monotonic_ns())

    def spin() -> None:
        try:
            executor.spin()
        except ExternalShutdownException:
            pass

    def learn(status: SlamStatus) -> None:
        inside.update(zip(status.stages, status.milliseconds, strict=True))

    node.create_subscription(TFMessage, '/tf', note, 100)
    node.create_subscription(SlamStatus, 'status', learn, 10)
    executor.add_node(node)
    thread = threading.Thread(target=spin, daemon=True)
    thread.start()
    command = [sys.executable, '-m', 'slam3r_ros.cli', 'bench', 'latency', '--once', str(video), pace]
    for name in ('engine', 'checkpoints', 'size', 'device', 'precision', 'stride'):
        if value := getattr(arguments, name):
            command += [f'--{name}', str(value)]
    try:
        environment = os.environ | tuning(os.environ)
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        ) as process:
            while process.poll() is None and not node.count_publishers('/tf'):
                time.sleep(0.01)
            printed, _ = process.communicate('go\n')
        if process.returncode:
            raise SystemExit(f'the nodes ended with status {process.returncode}')
    finally:
        context.try_shutdown()
        thread.join(5)
        node.destroy_node()
    content = json.loads(printed.splitlines()[-1])
    times = {stage: {key: tuple(span) for key, span in each} for stage, each in content['times'].items()}
    return Run(times, arrived, inside, content['about'])


def sum_up(times: Times, arrived: dict[int, int]) -> dict[str, Any]:
    """Return the median and the 95 % quantile of the stages and of the whole, milliseconds, of frames with a pose."""
    stamps = sorted(times['hand on'])
    first = stamps[0]
    begin = min(start - (stamp - first) for stamp, (start, _) in times['hand on'].items())  # the first may be late
    frames = []
    for stamp in stamps:
        if stamp not in arrived or stamp not in times['publish']:
            continue
        number, due = round((stamp - first) * FPS / 1e9), begin + stamp - first
        decoding = [end - start for start, end in (times[stage][number] for stage in ('decode', 'convert'))]
        spans = (times[stage][stamp] for stage in ('select', 'engine'))
        points = [due, times['hand on'][stamp][0], *chain(*spans), times['publish'][stamp][0], arrived[stamp]]
        frames.append([*decoding, *np.diff(points)])
    poses = len(frames)
    if not poses:
        print('not one pose came in time: the clip is too short, or this machine too slow or too busy', file=sys.stderr)
        frames = [[np.nan] * len(STAGES)]
    rows = dict(zip(STAGES, np.array(frames).T / 1e6, strict=True))
    rows['camera to TF'] = sum(rows.values())
    spread = {name: [float(np.quantile(row, q)) for q in (0.5, 0.95)] for name, row in rows.items()}
    return {'milliseconds': spread, 'frames': len(stamps), 'poses': poses}


def speed(times: Times) -> dict[str, float]:
    """Return the frames a second through the nodes and through the engine alone, and what becomes of the engine there.

    Returns:
        `fps` and `engine_fps`; their ratio is that of `busy`, the share of time that the engine is at work among the
        nodes, to `slower`, how many times as long as alone it takes there for a frame.
    """
    ends = sorted(end for _, end in times['engine'].values())
    first = int(READY * len(ends))
    seconds = (ends[-1] - ends[first]) / 1e9
    work = sum(end - start for start, end in times['engine'].values() if end > ends[first]) / 1e9
    alone = [(end - start) / 1e9 for start, end in sorted(times['alone'].values())][int(READY * len(times['alone'])) :]
    frames = len(ends) - 1 - first
    return {
        'fps': frames / seconds,
        'engine_fps': len(alone) / sum(alone),
        'busy': work / seconds,
        'slower': work / frames * len(alone) / sum(alone),
    }


def judge(results: dict[str, dict], engine: str) -> list[Figure]:
    """Return the limits: of the latency, and for networks of what the nodes around them leave of their speed."""
    figures = []
    for resolution, result in results.items():
        p95 = result['milliseconds']['camera to TF'][1] if result['poses'] else np.inf
        figures.append(Figure(f'{resolution}: camera to TF, 95 of 100', p95, 'ms', MAX_LATENCY))
        share = result['poses'] / result['frames']
        figures.append(Figure(f'{resolution}: frames that had a pose in time', share, '', MIN_POSES, at_least=True))
        if engine == 'slam3r':
            share = result['fps'] / result['engine_fps']
            name = f'{resolution}: frames a second, to those of the engine alone'
            figures.append(Figure(name, share, '', MIN_SHARE, at_least=True))
    return figures


def format_table(results: dict[str, dict]) -> str:
    """Return what the command prints."""
    lines = [next(iter(results.values()))['about']]
    lines.append(f'{"median, p95 in ms":<20}' + ''.join(f'{resolution:>22}' for resolution in results))
    for stage in (*STAGES, 'camera to TF'):
        cells = [result['milliseconds'][stage] for result in results.values()]
        lines.append(f'{stage:<20}' + ''.join(f'{median:>14.2f}{p95:>8.2f}' for median, p95 in cells))
    for stage in dict.fromkeys(stage for result in results.values() for stage in result['engine']):
        cells = [result['engine'].get(stage, np.nan) for result in results.values()]
        lines.append(f'{"engine: " + stage:<20}' + ''.join(f'{median:>14.2f}{"":>8}' for median in cells).rstrip())
    lines.append(f'{"frames, poses":<20}' + ''.join(f'{r["frames"]:>14}{r["poses"]:>8}' for r in results.values()))
    for line, names in {'FPS; engine alone': ('fps', 'engine_fps'), 'engine busy; slower': ('busy', 'slower')}.items():
        cells = ([result[name] for name in names] for result in results.values())
        lines.append(f'{line:<20}' + ''.join(f'{one:>14.2f}{other:>8.2f}' for one, other in cells))
    return '\n'.join(lines)
