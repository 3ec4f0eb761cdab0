# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`slam3r bench markers`: what showing RViz a mesh that has changed everywhere takes, beside filling the messages."""

import argparse
import json
import statistics
import time
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import rclpy
from geometry_msgs.msg import Point
from rclpy.node import Node
from rclpy.publisher import Publisher
from std_msgs.msg import ColorRGBA
from visualization_msgs.msg import Marker, MarkerArray

from slam3r_ros.bench import rooms
from slam3r_ros.bench.mesher import Figure
from slam3r_ros.graph import isolate
from slam3r_ros.meshing.chunks import ChunkChange, DisplayChunks
from slam3r_ros.meshing.mesher import BlockMesher
from slam3r_ros.transport.cdr import marker_array
from slam3r_ros.values import MeshUpdate

MILLISECONDS = 20.0  # at most
TRIANGLES = 40_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument('--rounds', type=int, default=30, help='of which the median counts (default: 30)')
    parser.add_argument('--json', type=Path, help='file to write the figures to')


def main(arguments: argparse.Namespace) -> int:
    """Measure, print the figures, and return 1 where the limit is missed."""
    results = measure(arguments.rounds)
    stages = ', '.join(f'{name} {results[name]:.1f}' for name in ('chunks', 'serialise', 'publish'))
    triangles, markers, megabytes, filled = (results[name] for name in ('triangles', 'markers', 'megabytes', 'filled'))
    print(f'{triangles} triangles in {markers} markers, {megabytes:.1f} MB; ms: {stages}')
    print(f'filling the messages and publishing them: {filled:.0f} ms, {filled / results["total"]:.0f} times as long')
    figure = Figure('markers built and published', results['total'], 'ms', MILLISECONDS)
    print(figure)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + '\n')
    return int(figure.missed)


def measure(rounds: int) -> dict:
    """Publish a mesh of 40 000 triangles again and again to a reader over DDS; medians, in milliseconds."""
    isolate()
    update = part_of_rooms()
    context = rclpy.Context()
    rclpy.init(context=context)
    node = Node('bench_markers', context=context)
    try:
        publisher = node.create_publisher(MarkerArray, 'mesh_markers', 10)
        node.create_subscription(MarkerArray, 'mesh_markers', lambda _: None, 10, raw=True)
        while not publisher.get_subscription_count():
            time.sleep(0.01)
        laps = np.array([show(publisher, update) for _ in range(rounds)])  # (rounds, 3) seconds
        changes = DisplayChunks().apply(update)
        start = time.perf_counter()
        publisher.publish(fill(changes))
        filled = time.perf_counter() - start
    finally:
        node.destroy_node()
        rclpy.shutdown(context=context)
    return dict(zip(('chunks', 'serialise', 'publish'), (1e3 * np.median(laps, axis=0)).tolist(), strict=True)) | {
        'total': 1e3 * statistics.median(laps.sum(axis=1)),
        'filled': 1e3 * filled,
        'triangles': sum(len(block.triangles) for block in update.blocks),
        'markers': len(changes),
        'megabytes': 1e-6 * len(marker_array(changes, 'mesh', 0, 'map')),
    }


def show(publisher: Publisher, update: MeshUpdate) -> tuple[float, float, float]:
    """Build and publish all the markers of an update, as the mesher does; return the seconds of each stage."""
    times = [time.perf_counter()]
    changes = DisplayChunks().apply(update)
    times.append(time.perf_counter())
    data = marker_array(changes, 'mesh', 0, 'map')
    times.append(time.perf_counter())
    publisher.publish(data)
    times.append(time.perf_counter())
    return tuple(np.diff(times).tolist())


def fill(changes: list[ChunkChange]) -> MarkerArray:
    """Return the same as a message, the plain way."""
    message = MarkerArray()
    for change in changes:
        marker = Marker(type=Marker.TRIANGLE_LIST, ns='mesh', id=change.id)
        corners = change.triangles.reshape(-1)
        marker.points = [Point(x=x, y=y, z=z) for x, y, z in change.vertices[corners].tolist()]
        marker.colors = [ColorRGBA(r=r, g=g, b=b, a=1.0) for r, g, b in (change.colors[corners] / 255).tolist()]
        message.markers.append(marker)
    return message


def part_of_rooms() -> MeshUpdate:
    """Return a mesh of a little more than `TRIANGLES`."""
    mesher, steps = BlockMesher(rooms.VOXEL), count()
    while mesher.counters['triangles'] < TRIANGLES:
        mesher.integrate(rooms.keyframe(next(steps)))
        mesher.update()
    whole = mesher.snapshot()
    ends = np.cumsum([len(block.triangles) for block in whole.blocks])
    return replace(whole, blocks=whole.blocks[: int(np.searchsorted(ends, TRIANGLES)) + 1])
