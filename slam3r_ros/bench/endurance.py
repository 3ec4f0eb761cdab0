# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`slam3r bench endurance`: whether an hour of video leaves memory, queues and speed as they were.

The video is a walk along a gallery (`gallery`) and back, six times in an hour, so that both windows that are compared,
minutes 10 to 20 and 50 to 60, hold one whole walk each.  The camera goes through new places and comes back to old ones,
and all that bounds the map is set low and reached: keyframes, cloud and mesh.  The four nodes run in the container and
lose no frame; this process listens from outside to what RViz shows and the recorder writes.  A shorter run is the same
in small, with shorter walks and shorter minutes.

Told beside: all that is resident, code of libraries included; and the time that the container's threads work for a
frame, for frames a second also depend on what else the machine does meanwhile.
"""

import argparse
import json
import os
import signal
import tempfile
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray
from nav_msgs.msg import Odometry
from nav_msgs.msg import Path as PathMessage
from rclpy.qos import DurabilityPolicy, QoSProfile
from sensor_msgs.msg import PointCloud2
from tf2_msgs.msg import TFMessage
from tqdm import tqdm
from visualization_msgs.msg import MarkerArray

from slam3r_ros.bench import gallery
from slam3r_ros.container import GRAPH
from slam3r_ros.graph import Graph
from slam3r_ros.msg import MeshUpdate, SlamStatus
from slam3r_ros.video.source import open_source

MINUTES = 60
WALKS = 6
EARLY, LATE = slice(10, 20), slice(50, 60)  # minutes, of an hour
LIMITS = {'memory_mb': 0.05, 'waiting': 0.05, 'fps': 0.15}  # how far apart the medians of both may lie
FIGURES = (*LIMITS, 'rss_mb', 'work_ms')
BOUNDS = {'slam3r': {'max_keyframes': 100, 'max_pointcloud_size': 200_000}, 'mesher': {'mesh_memory_mb': 32}}
_LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
_SHOWN = ((MeshUpdate, 'mesh', 10), (MarkerArray, 'mesh_markers', 10), (TFMessage, '/tf', 100),
          (Odometry, 'odometry', 100), (PointCloud2, 'map_cloud', _LATCHED), (PathMessage, 'path', _LATCHED))


class Sample(NamedTuple):
    """What was seen of the graph at a time."""

    seconds: float  # of the wall clock
    frames: int  # that the engine has had
    keyframes: int
    waiting: int  # values, in the inboxes of all nodes
    memory_mb: float  # of the container; see `usage`
    rss_mb: float
    work: float  # seconds, of all its threads


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument('--minutes', type=float, default=MINUTES, help='of video (default: %(default)s)')
    parser.add_argument('--video', type=Path, help='keep the video in this file; if it exists, take it from there')
    parser.add_argument('--json', type=Path, help='file to write the figures to')


def main(arguments: argparse.Namespace) -> int:
    """Run the benchmark and print its table; return 1 where a figure misses its limit."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # else the container would be left behind
    with tempfile.TemporaryDirectory(prefix='slam3r-endurance-') as folder:
        video = arguments.video or Path(folder) / 'gallery.mp4'
        if not video.exists():
            gallery.make_video(video, round(arguments.minutes * 60 * gallery.FPS), WALKS)
        with closing(open_source(str(video))) as source:
            frames = source.frames
        samples, counters = run(video, frames)
    table = by_minute(samples, frames)
    result = judge(table) | {'counters': counters, 'minutes': table}
    print(f'{"":<12}{"minutes 10-20":>14}{"minutes 50-60":>14}{"change":>9}{"at most":>9}')
    for name in FIGURES:
        early, late, change = (result[name][key] for key in ('early', 'late', 'change'))
        limit = f'{LIMITS[name]:>9.0%}  {"ok" if abs(change) <= LIMITS[name] else "MISSED"}' if name in LIMITS else ''
        print(f'{name:<12}{early:>14.2f}{late:>14.2f}{change:>+9.1%}{limit}')
    print(f'keyframes at minute 10: {result["keyframes"]:.0f}, of which {BOUNDS["slam3r"]["max_keyframes"]} are kept: '
          f'{"ok" if result["bounded"] else "MISSED"}')
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + '\n')
    return int(not result['kept'])


def run(video: Path, frames: int) -> tuple[list[Sample], dict[str, dict[str, str]]]:
    """Run the graph over a video of so many frames; return what was seen, and what each node counted in the end."""
    samples: list[Sample] = []
    waiting: dict[str, int] = {}
    counters: dict[str, dict[str, str]] = {}
    finished = threading.Event()
    progress = tqdm(total=frames, desc='mapping', unit='frame', disable=None)

    def note(status: SlamStatus) -> None:
        if status.engine:  # else of the decoder
            samples.append(Sample(time.monotonic(), status.frames_in, status.keyframes, sum(waiting.values()),
                                  *usage(graph.pid)))
            progress.update(status.frames_in - progress.n)
            if status.finished:
                finished.set()

    def count(array: DiagnosticArray) -> None:
        for status in array.status:
            counters[status.name] = {each.key: each.value for each in status.values}
            queues = (value for key, value in counters[status.name].items() if key.startswith('queue '))
            waiting[status.name] = sum(map(int, queues))

    with Graph('slam3r_endurance') as graph:
        graph.node.create_subscription(SlamStatus, 'status', note, 100)
        graph.node.create_subscription(DiagnosticArray, '/diagnostics', count, 100)
        for message_type, topic, qos in _SHOWN:
            graph.node.create_subscription(message_type, topic, lambda message: None, qos, raw=True)
        parameters = BOUNDS | {'video_decoder': {'input': str(video.resolve()), 'stamp_offset': 0.0}}
        parameters['slam3r'] = {'engine': 'geometric'} | parameters['slam3r']
        for name in GRAPH:
            graph.load(name, parameters.get(name, {}))
        while not finished.wait(1.0):
            graph.check()
        counters.clear()
        while counters.keys() < waiting.keys():  # they tell once a second
            graph.check()
            time.sleep(0.1)
    progress.close()
    return samples, counters


def usage(pid: int) -> tuple[float, float, float]:
    """Return a process' own memory and all that is resident, MB, and how many seconds it has computed.

    Own memory is what is resident but for pages of files: the system drops code of libraries, and reads it again, as it
    likes.
    """
    process = Path('/proc', str(pid))
    fields = process.joinpath('stat').read_text().rpartition(')')[2].split()
    lines = (line.split() for line in process.joinpath('status').read_text().splitlines())
    parts = {line[0]: int(line[1]) / 1024 for line in lines if line[0].startswith('Rss')}  # kB
    own = parts['RssAnon:'] + parts['RssShmem:']
    return own, own + parts['RssFile:'], sum(map(int, fields[11:13])) / os.sysconf('SC_CLK_TCK')


def by_minute(samples: list[Sample], frames: int) -> list[dict[str, float]]:
    """Return for each minute, a sixtieth of the video, how the graph fared; NaN where nothing was seen."""
    seen = np.array(samples)  # (N, fields)
    ends = np.linspace(0, frames, MINUTES + 1)
    seconds, work = (np.diff(np.interp(ends, seen[:, 1], seen[:, column])) for column in (0, 6))
    minutes = []
    for number in range(MINUTES):
        within = seen[(seen[:, 1] > ends[number]) & (seen[:, 1] <= ends[number + 1])]
        means = dict(zip(Sample._fields, within.mean(axis=0) if len(within) else np.full(7, np.nan), strict=True))
        fps = frames / MINUTES / seconds[number] if seconds[number] else np.nan
        minutes.append({'fps': fps, 'work_ms': 1e3 * work[number] / (frames / MINUTES)}
                       | {name: means[name] for name in ('memory_mb', 'rss_mb', 'waiting', 'keyframes')})
    return minutes


def judge(minutes: list[dict[str, float]]) -> dict:
    """Compare the medians of both windows, and see that the bound of the map was reached before the first."""
    result: dict = {'kept': True}
    for name in FIGURES:
        early, late = (float(np.nanmedian([minute[name] for minute in minutes[part]])) for part in (EARLY, LATE))
        change = late / early - 1 if late != early else 0.0
        result[name] = {'early': early, 'late': late, 'change': change}
        result['kept'] &= name not in LIMITS or abs(change) <= LIMITS[name]
    result['keyframes'] = minutes[EARLY.start]['keyframes']
    result['bounded'] = bool(result['keyframes'] > BOUNDS['slam3r']['max_keyframes'])
    result['kept'] &= result['bounded']
    return result
