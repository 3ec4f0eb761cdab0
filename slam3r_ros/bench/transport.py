# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`slam3r bench transport`: images and clouds by the bus beside plain rclpy over Fast DDS, publish to callback."""

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile
from sensor_msgs.msg import Image, PointCloud2

from slam3r_ros.graph import isolate
from slam3r_ros.transport.bus import close_node, create_publisher, create_subscription
from slam3r_ros.transport.clouds import cloud_to_cdr, from_cloud, to_cloud
from slam3r_ros.transport.images import from_image, to_image
from slam3r_ros.transport.messages import Adapter, register_adapter
from slam3r_ros.transport.stamps import from_stamp, to_stamp
from slam3r_ros.transport.tuning import tuning

_QOS = QoSProfile(depth=5)
_WARM_UP = 3  # messages
_SECONDS = 30.0  # until a message is given up


@dataclass(frozen=True)
class Picture:
    """An image of our own type."""

    stamp: int  # nanoseconds
    image: np.ndarray  # (H, W, 3) uint8 RGB


@dataclass(frozen=True)
class Cloud:
    """Coloured points of our own type."""

    stamp: int  # nanoseconds
    points: np.ndarray  # (N, 3) float32
    colors: np.ndarray  # (N, 3) uint8 RGB


register_adapter(
    Picture,
    Adapter(
        Image,
        lambda value, frame_id: to_image(value.image, value.stamp, frame_id),
        lambda message: Picture(from_stamp(message.header.stamp), from_image(message)),
    ),
)
register_adapter(
    Cloud,
    Adapter(
        PointCloud2,
        lambda value, frame_id: cloud_to_cdr(value.points, value.colors, value.stamp, frame_id),
        lambda message: Cloud(from_stamp(message.header.stamp), *from_cloud(message)[:2]),
    ),
)
PAYLOADS = {'640x480': (480, 640), '1080p': (1080, 1920), '2M points': 2_000_000}
TYPES = {'640x480': (Image, Picture), '1080p': (Image, Picture), '2M points': (PointCloud2, Cloud)}

# In the order of the table; the first two are of one process each.
ROWS = {
    'rclpy': 'rclpy, one process',
    'hand_over': 'bus, one process',
    'hand_over_p99': 'bus, one process, 99 of 100 within',
    'rclpy_apart': 'rclpy, two processes',
    'rclpy_apart_tuned': 'rclpy, two processes, tuned',
    'bus_apart_tuned': 'bus to another process, tuned, filling included',
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument('--quick', action='store_true', help='fewer messages')
    parser.add_argument('--json', type=Path, help='file to write the figures to')
    parser.add_argument('--part', choices=('one', 'two'), help='measure in this process and print JSON')
    parser.add_argument('--receive', action='store_true', help=argparse.SUPPRESS)


def main(arguments: argparse.Namespace) -> int:
    """Measure, print the table and the limits; return 1 where a limit is missed."""
    isolate()
    messages, values = (8, 200) if arguments.quick else (30, 2000)
    if arguments.receive:
        return receive()
    if arguments.part == 'one':
        print(json.dumps({name: measure_one_process(name, messages, values) for name in PAYLOADS}))
        return 0
    if arguments.part == 'two':
        print(json.dumps(measure_two_processes(messages)))
        return 0
    plain = {name: text for name, text in os.environ.items() if name not in tuning({})}
    parts = [
        _run_part(arguments.quick, 'one', plain),
        _run_part(arguments.quick, 'two', plain),
        _run_part(arguments.quick, 'two', plain | tuning(plain)),
    ]
    table = {name: {**parts[0][name]} for name in PAYLOADS}
    for name, row in table.items():
        row['rclpy_apart'] = parts[1][name]['rclpy']
        row['rclpy_apart_tuned'], row['bus_apart_tuned'] = parts[2][name]['rclpy'], parts[2][name]['bus']
    figures = judge(table)
    print(format_table(table, figures))
    if arguments.json:
        arguments.json.write_text(json.dumps({'milliseconds': table, 'figures': figures}, indent=2) + '\n')
    return int(not all(figure['holds'] for figure in figures))


def judge(table: dict[str, dict[str, float]]) -> list[dict[str, Any]]:
    """Return the figures, their limits, and whether they hold; a limit that begins with > is a lower one."""
    figures = []

    def hold(name: str, value: float, limit: float, at_least: bool = False) -> None:
        holds = value >= limit if at_least else value <= limit
        figures.append({'name': name, 'value': value, 'limit': limit, 'at_least': at_least, 'holds': holds})

    for name, factor in (('1080p', 20), ('2M points', 500)):
        row = table[name]
        hold(f'{name}: hand-over, milliseconds', row['hand_over'], 0.1)
        hold(f'{name}: hand-over, 99 of 100, milliseconds', row['hand_over_p99'], 1.0)
        hold(f'{name}: rclpy in one process / hand-over', row['rclpy'] / row['hand_over'], factor, at_least=True)
        hold(f'{name}: to another process / rclpy, tuned both', row['bus_apart_tuned'] / row['rclpy_apart_tuned'], 1.3)
    return figures


def format_table(table: dict[str, dict[str, float]], figures: list[dict[str, Any]]) -> str:
    """Return what the command prints."""
    lines = [f'{"publish to callback, median, ms":<50}' + ''.join(f'{name:>12}' for name in table)]
    for row, title in ROWS.items():
        lines.append(f'{title:<50}' + ''.join(f'{each[row]:>12.3f}' for each in table.values()))
    lines.append('')
    for figure in figures:
        sign = '>=' if figure['at_least'] else '<='
        verdict = '' if figure['holds'] else '  MISSED'
        lines.append(f'{figure["name"]:<50}{figure["value"]:>12.3f}   {sign} {figure["limit"]:g}{verdict}')
    return '\n'.join(lines)


def measure_one_process(name: str, messages: int, values: int) -> dict[str, float]:
    """Measure rclpy and the bus in one process, milliseconds."""
    message_type, value_type = TYPES[name]
    message, make = _payload(name)
    with _spinning('writer') as writer, _spinning('reader') as reader:
        arrived, times = threading.Event(), [0.0, 0.0]

        def note(_: Any) -> None:
            times[1] = time.perf_counter()
            arrived.set()

        def measure(publish: Callable[[], None], count: int) -> list[float]:
            milliseconds = []
            for _ in range(count + _WARM_UP):
                arrived.clear()
                times[0] = time.perf_counter()
                publish()
                _expect(arrived.wait(_SECONDS))
                milliseconds.append(1e3 * (times[1] - times[0]))
            return milliseconds[_WARM_UP:]

        publisher = writer.create_publisher(message_type, 'plain', _QOS)
        reader.create_subscription(message_type, 'plain', note, _QOS)
        _wait_until(publisher.get_subscription_count)
        plain = measure(lambda: publisher.publish(message), messages)
        bus = create_publisher(writer, value_type, 'bus')
        create_subscription(reader, value_type, 'bus', note)
        prepared = iter([make(i) for i in range(values + _WARM_UP)])
        handed_over = measure(lambda: bus.publish(next(prepared)), values)
        return {
            'rclpy': float(np.median(plain)),
            'hand_over': float(np.median(handed_over)),
            'hand_over_p99': float(np.quantile(handed_over, 0.99)),
        }


def measure_two_processes(messages: int) -> dict[str, dict[str, float]]:
    """Measure rclpy and the bus towards another process, in turn since the machine's speed may drift, milliseconds."""
    command = [sys.executable, '-m', 'slam3r_ros.cli', 'bench', 'transport', '--receive']
    receiver = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    result = {}
    try:
        _expect(receiver.stdout.readline() == 'ready\n')
        with _spinning('writer') as writer:
            for i, (name, (message_type, value_type)) in enumerate(TYPES.items()):
                message, make = _payload(name)
                publisher = writer.create_publisher(message_type, f'plain_{i}', _QOS)
                bus = create_publisher(writer, value_type, f'bus_{i}', depth=5, frame_id='map')

                def publish_plain(message: Any = message, publisher: Any = publisher) -> None:
                    message.header.stamp = to_stamp(time.monotonic_ns())
                    publisher.publish(message)

                def publish_value(make: Callable = make, bus: Any = bus) -> None:
                    bus.publish(make(time.monotonic_ns()))

                _wait_until(lambda p=publisher, b=bus: p.get_subscription_count() and b.outside_readers())
                ways = {'rclpy': publish_plain, 'bus': publish_value}
                milliseconds: dict[str, list[float]] = {way: [] for way in ways}
                for _ in range(messages + _WARM_UP):
                    for way, publish in ways.items():
                        publish()
                        milliseconds[way].append(float(receiver.stdout.readline()))
                result[name] = {way: float(np.median(each[_WARM_UP:])) for way, each in milliseconds.items()}
        return result
    finally:
        receiver.communicate(timeout=_SECONDS)  # it ends with stdin; killed amid a message it may crash this process


def receive() -> int:
    """Print the milliseconds that each message took since its stamp."""

    def note(message: Any) -> None:
        print((time.monotonic_ns() - from_stamp(message.header.stamp)) / 1e6, flush=True)

    with _spinning('receiver') as node:
        for i, (message_type, _) in enumerate(TYPES.values()):
            for topic in ('plain', 'bus'):
                node.create_subscription(message_type, f'{topic}_{i}', note, _QOS)
        print('ready', flush=True)
        sys.stdin.read()  # until the other process ends
    return 0


def _payload(name: str) -> tuple[Any, Callable[[int], Any]]:
    """Return a message, filled, and what makes the same as a value with a stamp."""
    random = np.random.default_rng(0)
    size = PAYLOADS[name]
    if isinstance(size, tuple):
        image = random.integers(0, 256, (*size, 3), np.uint8)
        return to_image(image, 0, 'map'), lambda stamp: Picture(stamp, image)
    points, colors = random.random((size, 3), np.float32), random.integers(0, 256, (size, 3), np.uint8)
    return to_cloud(points, colors, 0, 'map'), lambda stamp: Cloud(stamp, points, colors)


@contextmanager
def _spinning(name: str) -> Iterator[Node]:
    """Make a node that spins on a thread of its own."""
    if not rclpy.ok():
        rclpy.init(signal_handler_options=rclpy.SignalHandlerOptions.NO)
    node, executor = Node(name), SingleThreadedExecutor()
    executor.add_node(node)

    def spin() -> None:
        try:
            executor.spin()
        except ExternalShutdownException:
            pass

    thread = threading.Thread(target=spin, daemon=True)
    thread.start()
    try:
        yield node
    finally:
        close_node(node)
        executor.shutdown()
        thread.join(5)
        node.destroy_node()


def _run_part(quick: bool, part: str, environment: dict[str, str]) -> dict[str, dict[str, float]]:
    command = [sys.executable, '-m', 'slam3r_ros.cli', 'bench', 'transport', '--part', part, *['--quick'] * quick]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def _wait_until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + _SECONDS
    while not condition():
        _expect(time.monotonic() < deadline)
        time.sleep(0.01)
    time.sleep(0.3)  # both sides know of each other


def _expect(condition: bool) -> None:
    if not condition:
        raise TimeoutError(f'nothing was heard of the reader for {_SECONDS:.0f} s')
