# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Drives the ROS graph: a container in a process of its own, loaded by its services, or one in this process."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import rclpy
from ament_index_python.packages import get_package_share_directory
from composition_interfaces.srv import LoadNode, UnloadNode
from rclpy.context import Context
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.signals import SignalHandlerOptions
from rclpy.task import Future

from slam3r_ros.container import GRAPH, Container, ContainerError
from slam3r_ros.transport.bus import create_subscription
from slam3r_ros.transport.domains import take_domain
from slam3r_ros.transport.tuning import tuning
from slam3r_ros.values import MeshUpdate, SlamStatus

CONTAINER = 'slam3r_container'
SERVICE_SECONDS = 60.0
_PATIENCE = 10.0  # seconds that the container may take to end
_guards: list[socket.socket] = []


class GraphError(RuntimeError):
    """The graph could not be started, or ended by itself."""


class ContainerKilled(GraphError):
    """A signal has ended the container's process; who is told should end by `os._exit`.

    Fast DDS may crash while it ends in order, over what a process that was killed has left in shared memory.
    """


def bundled_clip() -> Path:
    """Return the folder of the clip that comes with the package, with its ground truth."""
    return Path(get_package_share_directory('slam3r_ros'), 'demo', 'room')


def isolate() -> None:
    """Stay on this machine, on a domain of this process' own, unless the environment says otherwise.

    Raises:
        GraphError: All domains are taken.
    """
    if 'ROS_DOMAIN_ID' not in os.environ:
        try:
            domain, guard = take_domain()
        except RuntimeError as error:
            raise GraphError(str(error)) from None
        _guards.append(guard)  # until this process has ended
        os.environ['ROS_DOMAIN_ID'] = str(domain)
    os.environ.setdefault('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')


@contextmanager
def undisturbed() -> Iterator[None]:
    """Keep signals back: amid the making of a subscription they leave a node that rclpy cannot destroy."""
    all_ends = signal.SIGINT, signal.SIGTERM, signal.SIGHUP
    numbers = [each for each in all_ends if signal.getsignal(each) is signal.default_int_handler]
    came: list[int] = []
    try:
        for number in numbers:
            signal.signal(number, lambda number, _: came.append(number))
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.default_int_handler)
    if came:
        raise KeyboardInterrupt


def run_graph(parameters: dict[str, dict[str, Any]], arguments: Sequence[str] = ()) -> float:
    """Run the four nodes in this process until the input is through.

    Args:
        parameters: By node name, then by parameter name.
        arguments: ROS arguments, such as `--ros-args -r __ns:=/left`.

    Returns:
        Seconds from the decoder's start until every node had done its work.

    Raises:
        ContainerError: A node refuses or fails.
        KeyboardInterrupt: A signal came first.
    """
    context = Context()
    rclpy.init(args=list(arguments), context=context, signal_handler_options=SignalHandlerOptions.ALL)
    executor = SingleThreadedExecutor(context=context)
    container = Container(context=context)
    executor.add_node(container)
    finished = Future()
    container.failed.add_done_callback(lambda failed: finished.set_result(None))

    def follow(status: SlamStatus) -> None:
        if status.finished and not finished.done():
            finished.set_result(None)

    try:
        create_subscription(container, SlamStatus, 'status', follow)
        create_subscription(container, MeshUpdate, 'mesh', lambda update: None)  # unread, it would not be extracted
        for name, plugin in GRAPH.items():
            start = time.monotonic()
            overrides = [Parameter(key, value=value) for key, value in parameters.get(name, {}).items()]
            container.load(plugin, parameter_overrides=overrides)
        executor.spin_until_future_complete(finished)
        if container.failed.done():
            raise ContainerError(container.failed.result())
        if not finished.done():
            raise KeyboardInterrupt
        for spinner in container.hosted.values():
            spinner.node.worker.call(lambda: None)  # behind everything that waits there
        return time.monotonic() - start
    finally:
        container.close()
        executor.shutdown()
        context.try_shutdown()


class Graph:
    """A container process, and a node of this process to talk to it.

    Use it as a context manager: both are gone at the end, whatever happens in between.  Make it in the main thread: the
    container ends with the thread that has started it.
    """

    def __init__(self, name: str = 'graph_client') -> None:
        """Start the container, still empty.

        Args:
            name: What this process' own node is called.
        """
        isolate()
        os.environ.update(tuning(os.environ))  # Fast DDS reads it when it begins, the container from its start
        rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
        self.node = Node(name)
        self._loaded: dict[str, int] = {}
        self._failure: Exception | None = None  # of a callback in this process
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self.node)
        self._thread = threading.Thread(target=self._spin, name='graph client', daemon=True)
        self._thread.start()
        # A session of its own: Ctrl-C is for this process, which then ends the other one in order.
        command = [sys.executable, '-m', 'slam3r_ros.container', '--parent', str(os.getpid())]
        names = ['--ros-args', '-r', f'__node:={CONTAINER}']
        self._process = subprocess.Popen([*command, *names], start_new_session=True)

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the container, then this process' node; that is left as it is beside a container that was killed."""
        if (status := self._process.poll()) is not None and status < 0:  # see ContainerKilled
            return
        if status is None:
            self._process.terminate()  # SIGINT would leave a traceback while it still imports
            try:
                self._process.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
                return
        self.leave()

    def leave(self) -> None:
        """End this process' node and its context; beside a container that was killed, Fast DDS may crash."""
        self._executor.shutdown(5)
        self._thread.join(5)
        self.node.destroy_node()  # before the context: rcl may crash in the other order
        rclpy.try_shutdown()

    @property
    def pid(self) -> int:
        """The id of the container's process."""
        return self._process.pid

    def _spin(self) -> None:
        try:
            self._executor.spin()
        except ExternalShutdownException:
            pass
        except Exception as error:  # noqa: BLE001 - whoever waits for the graph must know
            self._failure = error

    def load(self, name: str, parameters: dict[str, Any]) -> None:
        """Load one of the graph's nodes into the container.

        Args:
            name: Of the node.
            parameters: Its parameters, by name.

        Raises:
            GraphError: If the node refuses, with its reason.
        """
        request = LoadNode.Request(package_name='slam3r_ros', plugin_name=GRAPH[name], node_name=name)
        request.parameters = [Parameter(key, value=value).to_parameter_msg() for key, value in parameters.items()]
        answer = self.call(LoadNode, f'/{CONTAINER}/_container/load_node', request)
        if not answer.success:
            raise GraphError(f'{name} could not be started: {answer.error_message}')
        self._loaded[name] = answer.unique_id

    def unload(self, name: str) -> None:
        """Take a node out of the container."""
        request = UnloadNode.Request(unique_id=self._loaded.pop(name))
        self.call(UnloadNode, f'/{CONTAINER}/_container/unload_node', request)

    def call(self, service_type: type, service: str, request: Any) -> Any:
        """Call a service and return its answer.

        Raises:
            GraphError: If it does not answer within a minute, or the container has ended.
        """
        client = self.node.create_client(service_type, service)
        deadline = time.monotonic() + SERVICE_SECONDS
        while not client.service_is_ready():  # `wait_for_service` looks four times a second
            self.check()
            time.sleep(0.01)
            if time.monotonic() > deadline:
                raise GraphError(f'{service} did not appear within {SERVICE_SECONDS:.0f} s')
        future = client.call_async(request)
        while not future.done():
            self.check()
            if time.monotonic() > deadline:
                raise GraphError(f'{service} did not answer within {SERVICE_SECONDS:.0f} s')
            time.sleep(0.01)
        # Only when answered: destroyed amid a call, the spinning thread would complain; else it goes with the node.
        self.node.destroy_client(client)
        return future.result()

    def check(self) -> None:
        """Raise `GraphError` when the container has ended, `ContainerKilled` if by a signal; or what a callback did."""
        if isinstance(self._failure, OSError):  # in a callback: what comes could not be written
            raise self._failure
        if self._failure is not None:
            raise GraphError(f'listening to the graph failed: {self._failure!r}') from self._failure
        if (code := self._process.poll()) is not None:
            if code < 0:
                reason = f'was ended by signal {-code} ({signal.strsignal(-code)})'
                raise ContainerKilled(f'the container process {reason}; if nobody sent it, `dmesg` may say why')
            raise GraphError(f'the container process ended by itself with status {code}; its output says why')
