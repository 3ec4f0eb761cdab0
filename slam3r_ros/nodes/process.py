# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A process that runs nodes: beginning and ending in order."""

import ctypes
import os
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import rclpy
from rclpy.executors import ExternalShutdownException
from rclpy.signals import uninstall_signal_handlers
from rclpy.utilities import remove_ros_args

from slam3r_ros.engines.protocol import EngineError
from slam3r_ros.nodes.base import PipelineNode
from slam3r_ros.nodes.parameters import ParameterError
from slam3r_ros.transport.executor import PoolExecutor

_PR_SET_PDEATHSIG = 1  # prctl.h
_PLACE = re.compile(r', at \S+:\d+')  # in rcl's own source


def reason_of(error: Exception) -> str:
    """Return in one line what rcl complains about, without the places in its source that it names behind that."""
    return _PLACE.split(' '.join(str(error).split()))[0]


@contextmanager
def _end_with_one_line(program: str) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # of rcl
        sys.exit(f'{Path(program).name}: {reason_of(error)}')


def own_arguments(arguments: Sequence[str]) -> list[str]:
    """Return the arguments behind the program's name that are not for ROS; needs no `begin`.

    Ends with one line where those for ROS make no sense.
    """
    with _end_with_one_line(arguments[0]):
        return remove_ros_args(arguments)[1:]


def begin(arguments: Sequence[str]) -> None:
    """Begin with ROS, or end with one line where the arguments for it make no sense."""
    with _end_with_one_line(arguments[0]):
        rclpy.init(args=list(arguments))


def shield_the_end() -> None:
    """Let no further SIGINT interrupt an orderly end: launch repeats the one that the terminal sent already."""
    uninstall_signal_handlers()  # of rclpy, which would put Python's own back
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def end_with(parent: int) -> None:
    """End this process in order as soon as the one whose main thread has started it does, however that ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it has already
        os.kill(os.getpid(), signal.SIGTERM)


def hush_the_half_made() -> None:
    """Keep rclpy's guard conditions from complaining when a signal ends the context while they are made."""
    show = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if rclpy.ok() or not isinstance(unraisable.exc_value, AttributeError):
            show(unraisable)

    sys.unraisablehook = hook


def run(node_class: type[PipelineNode], arguments: Sequence[str] | None = None) -> int:
    """Run one node in this process until it fails or a signal ends it; return the exit status."""
    begin(sys.argv if arguments is None else arguments)
    hush_the_half_made()
    node = None
    try:
        node = node_class()
        executor = PoolExecutor(5)  # as in a container: services may block some, their worker wait for another
        executor.add_node(node)
        executor.spin_until_future_complete(node.failed)
        return int(node.failed.done())
    except (ParameterError, EngineError) as error:
        print(f'{node_class.__name__}: {error}', file=sys.stderr)
        return 1
    except (KeyboardInterrupt, ExternalShutdownException):
        return 0
    except RuntimeError:  # of rcl
        if rclpy.ok():
            raise
        return 0  # a signal came while the node was made
    finally:
        shield_the_end()
        if node is not None:
            node.destroy_node()
        rclpy.try_shutdown()
