# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`slam3r bench container`: what loading and unloading a node leaves behind, beside a bare lifecycle node.

Middleware and rclpy may keep some memory of every node that ever was.  What counts is what the container adds to that.
"""

import argparse
import ctypes
import gc
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from slam3r_ros.graph import isolate

COMPONENT = 'slam3r_ros::KeyframeSelector'
MAX_EXCESS = 1.0  # kB a cycle
_WARM_UP = 50  # cycles, until all pools have their size
_SETTLE = 0.5  # seconds: the bus looks out for readers a moment longer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument('--cycles', type=int, default=2000, help='loads and unloads (default: %(default)s)')
    parser.add_argument('--component', default=COMPONENT, help='what is loaded (default: %(default)s)')
    parser.add_argument('--once', choices=('container', 'bare'), help='run one kind and print its figures')


def main(arguments: argparse.Namespace) -> int:
    """Run the benchmark and print its table."""
    isolate()
    if arguments.once:
        print(json.dumps(run_once(arguments.once, arguments.component, arguments.cycles)))
        return 0
    figures = {kind: _in_process_of_its_own(kind, arguments) for kind in ('bare', 'container')}
    print(f'{arguments.cycles} cycles of {arguments.component}')
    print(f'{"":<12}{"kB a cycle":>12}{"threads":>10}{"descriptors":>13}{"ms a cycle":>12}')
    for kind, each in figures.items():
        print(f'{kind:<12}{each["kb"]:>12.2f}{each["threads"]:>10}{each["descriptors"]:>13}{each["ms"]:>12.1f}')
    excess = figures['container']['kb'] - figures['bare']['kb']
    print(f'excess {excess:.2f} kB a cycle (at most {MAX_EXCESS:.0f})')
    left = any(figures['container'][name] > 0 for name in ('threads', 'descriptors'))
    return int(left or excess > MAX_EXCESS)


def run_once(kind: str, component: str, cycles: int) -> dict[str, float]:
    """Make and end a node again and again, in this process.

    Args:
        kind: `container`, or `bare` for a lifecycle node of rclpy with the same publishers, subscriptions and services.
        component: That is loaded, or imitated.
        cycles: How often.

    Returns:
        `kb` of memory a cycle, `threads` and `descriptors` more than before the first, `ms` a cycle.
    """
    import rclpy

    from slam3r_ros.container import Container

    rclpy.init()
    container = Container()
    try:
        if kind == 'bare':
            cycle = bare_cycle(container, component)
        else:

            def cycle() -> None:
                container.unload(container.load(component))

        for _ in range(_WARM_UP):
            cycle()
        gc.collect()
        gc.freeze()  # what is there need not be looked through each time
        before, start = _left(), time.monotonic()
        for _ in range(cycles):
            cycle()
        seconds = time.monotonic() - start
        after = _left()
    finally:
        container.close()
        rclpy.shutdown()
    memory, threads, descriptors = (b - a for a, b in zip(before, after, strict=True))
    return {
        'kb': memory / 1024 / cycles,
        'threads': threads,
        'descriptors': descriptors,
        'ms': 1e3 * seconds / cycles,
    }


def bare_cycle(container: 'Container', component: str) -> Callable[[], None]:  # noqa: F821
    """Return a function that makes and ends a bare lifecycle node with the endpoints of a component."""
    from rclpy.lifecycle import LifecycleNode

    from slam3r_ros.container import NO_TYPE_DESCRIPTION

    unique_id = container.load(component)
    node = container.hosted[unique_id].node
    name = node.get_name()
    publishers = {each.topic_name: (each.msg_type, each.qos_profile) for each in node.publishers}
    subscriptions = {each.topic_name: (each.msg_type, each.qos_profile) for each in node.subscriptions}
    services = {each.srv_name: each.srv_type for each in node.services}
    del node
    container.unload(unique_id)

    def cycle() -> None:
        node = LifecycleNode(name, parameter_overrides=[NO_TYPE_DESCRIPTION])
        own = {each.topic_name for each in node.publishers}
        for topic, (message_type, qos) in publishers.items():
            if topic not in own:
                node.create_publisher(message_type, topic, qos)
        for topic, (message_type, qos) in subscriptions.items():
            node.create_subscription(message_type, topic, print, qos)
        own = {each.srv_name for each in node.services}
        for service, service_type in services.items():
            if service not in own:
                node.create_service(service_type, service, print)
        node.destroy_node()
        del node
        gc.collect()

    return cycle


def _left() -> tuple[int, int, int]:
    """Return the bytes in memory, the threads and the open descriptors of this process."""
    gc.collect()
    time.sleep(_SETTLE)
    libc = ctypes.CDLL(None)
    if hasattr(libc, 'malloc_trim'):
        libc.malloc_trim(0)  # what is free does not count
    memory = int(Path('/proc/self/statm').read_text().split()[1]) * os.sysconf('SC_PAGE_SIZE')
    return memory, threading.active_count(), len(os.listdir('/proc/self/fd'))


def _in_process_of_its_own(kind: str, arguments: argparse.Namespace) -> dict[str, float]:
    command = [sys.executable, '-m', 'slam3r_ros.cli', 'bench', 'container', '--once', kind]
    command += ['--cycles', str(arguments.cycles), '--component', arguments.component]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])
