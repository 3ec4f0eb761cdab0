# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`slam3r bench`: what the parts of the program cost on this machine, as ratios taken in one run.

Each benchmark is a module with `add_arguments(parser)` and `main(arguments) -> int`, which is not 0 where a figure
misses its limit.
"""

import argparse
import importlib

BENCHMARKS = {
    'mesher': 'what a keyframe costs the mesher, in small and large maps, beside Open3D; memory; true geometry',
    'draco': 'the bandwidth of the compressed mesh while a video is mapped',
    'markers': 'what it takes to show RViz 40 000 triangles that have changed',
    'container': 'what loading and unloading a node leaves behind',
    'graph': 'the ROS graph beside the same stages on plain threads and queues',
    'transport': 'images and clouds by the bus beside plain rclpy over DDS',
    'selection': 'the advised strides in corridors, rooms and fast motion, and the blurred frames caught',
    'recovery': 'how soon the camera is found again after black frames, and how well it is tracked from then on',
    'savings': 'one step of SLAM3R without and with its exact savings: operations, time and difference',
    'inference': 'what a frame costs the engines, by stage, precision, window and map size, beside the plain way',
    'memory': 'what SLAM3R takes of a GPU, counted without one: weights, map, workspace, in each precision',
    'accuracy': 'what reduced precision does to points and poses',
    'latency': 'from the camera to the pose on TF through the nodes, and where the time goes',
    'endurance': 'an hour of video through the graph: memory, queues and speed at its end beside those before',
    'fuzz': 'damaged H.264 streams and random WebSocket messages: crashes, hangs, exceptions',
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line; a benchmark reads the rest of it, so that the others need not be importable."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = '\n'.join(f'{name:<12}{summary}' for name, summary in BENCHMARKS.items())
    parser.add_argument('what', choices=BENCHMARKS, help='see below; `slam3r bench WHAT --help` says more')
    parser.add_argument('rest', nargs=argparse.REMAINDER, metavar='...', help='arguments of that benchmark')


def main(arguments: argparse.Namespace) -> int:
    """Run one benchmark."""
    name = arguments.what
    module = importlib.import_module(f'{__name__}.{name}')
    parser = argparse.ArgumentParser(prog=f'slam3r bench {name}', description=BENCHMARKS[name])
    module.add_arguments(parser)
    return module.main(parser.parse_args(arguments.rest))
