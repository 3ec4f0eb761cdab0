# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Hosts Python nodes in one process, where they hand each other objects instead of messages.

It serves composition_interfaces as rclcpp's component_container does, so that `ros2 component` and launch_ros'
ComposableNodeContainer drive it.  `--graph` loads the four nodes of this package at once.
"""

import argparse
import ctypes
import importlib
import sys
import time
from collections.abc import Sequence
from typing import Any

import rclpy
from composition_interfaces.srv import ListNodes, LoadNode, UnloadNode
from rclpy.context import Context
from rclpy.executors import Executor, ExternalShutdownException, MultiThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.signals import SignalHandlerOptions
from rclpy.task import Future
from rclpy.utilities import remove_ros_args

from slam3r_ros.nodes.base import PipelineNode, shield_the_end
from slam3r_ros.transport.bus import close_node, create_subscription, stop_node
from slam3r_ros.values import MeshUpdate, SlamStatus

# By node name, from the last in the chain to the first, so that nothing is published into the void.
GRAPH = {
    'mesher': 'slam3r_ros::Mesher',
    'slam3r': 'slam3r_ros::Slam3r',
    'keyframe_selector': 'slam3r_ros::KeyframeSelector',
    'video_decoder': 'slam3r_ros::VideoDecoder',
}
PLUGINS = {
    'slam3r_ros::Mesher': 'slam3r_ros.nodes.mesher:Mesher',
    'slam3r_ros::Slam3r': 'slam3r_ros.nodes.slam3r:Slam3r',
    'slam3r_ros::KeyframeSelector': 'slam3r_ros.nodes.keyframe_selector:KeyframeSelector',
    'slam3r_ros::VideoDecoder': 'slam3r_ros.nodes.video_decoder:VideoDecoder',
}

_FAREWELL = 0.2  # seconds for the answer to whoever asked for a node that cannot be made
_THREADS = 8  # each node may block one by a service that waits for its worker


class ContainerError(RuntimeError):
    """A node cannot be hosted or has failed; the message names it and the reason."""


class Container(Node):
    """Loads, lists and unloads nodes on request.

    Attributes:
        failed: Done, with the reason, when one of the nodes cannot be made or cannot go on.
    """

    def __init__(self, executor: Executor, **kwargs: Any):
        """Serve; the nodes spin on `executor`."""
        super().__init__('slam3r_container', **kwargs)
        self.failed = Future()
        self.hosted: dict[int, Node] = {}  # by unique id
        self._executor, self._next_id = executor, 1
        executor.add_node(self)
        self.create_service(LoadNode, '~/_container/load_node', self._load)
        self.create_service(UnloadNode, '~/_container/unload_node', self._unload)
        self.create_service(ListNodes, '~/_container/list_nodes', self._list)

    def load(self, plugin: str, **kwargs: Any) -> int:
        """Make a node and spin it.

        Args:
            plugin: A name of `PLUGINS`, or `module:Class`.
            kwargs: For the node.

        Returns:
            its unique id.

        Raises:
            ContainerError: The plugin is unknown, the node refuses, or its name is taken.
        """
        try:
            node = resolve_plugin(plugin)(context=self.context, **kwargs)
        except ContainerError:
            raise
        except Exception as error:  # somebody else's code: the container must live on
            raise ContainerError(f'{plugin}: {error or type(error).__name__}') from error
        name = node.get_fully_qualified_name()
        if any(each.get_fully_qualified_name() == name for each in self.hosted.values()):
            node.destroy_node()
            raise ContainerError(f'{plugin}: a node named {name} is here already; give it another name')
        if isinstance(node, PipelineNode):
            node.failed.add_done_callback(lambda failed: self._note_failure(failed.result()))
        unique_id, self._next_id = self._next_id, self._next_id + 1
        self.hosted[unique_id] = node
        self._executor.add_node(node)
        return unique_id

    def unload(self, unique_id: int) -> None:
        """End a node.

        Raises:
            ContainerError: There is no such id.
        """
        node = self.hosted.pop(unique_id, None)
        if node is None:
            raise ContainerError(f'there is no node {unique_id}; the ids are {list(self.hosted)}')
        self._executor.remove_node(node)
        close_node(node)
        node.destroy_node()

    def close(self) -> None:
        """End every node; all take leave before the first is waited for."""
        for node in self.hosted.values():
            stop_node(node)
        for unique_id in reversed(list(self.hosted)):
            self.unload(unique_id)
        close_node(self)
        self.destroy_node()

    def _note_failure(self, reason: str) -> None:
        if not self.failed.done():
            self.failed.set_result(reason)

    def _load(self, request: LoadNode.Request, response: LoadNode.Response) -> LoadNode.Response:
        arguments = ['--ros-args']
        for rule in request.remap_rules:
            arguments += ['-r', rule]
        if request.node_name:
            arguments += ['-r', f'__node:={request.node_name}']
        if request.node_namespace:
            arguments += ['-r', f'__ns:={request.node_namespace}']
        try:
            response.unique_id = self.load(
                request.plugin_name,
                use_global_arguments=False,
                cli_args=arguments,
                parameter_overrides=[Parameter.from_parameter_msg(each) for each in request.parameters],
            )
        except ContainerError as error:
            self.get_logger().error(str(error))
            self._note_failure(str(error))
            response.error_message = str(error)
            return response
        node = self.hosted[response.unique_id]
        if request.log_level:
            node.get_logger().set_level(request.log_level)
        response.full_node_name = node.get_fully_qualified_name()
        response.success = True
        return response

    def _unload(self, request: UnloadNode.Request, response: UnloadNode.Response) -> UnloadNode.Response:
        try:
            self.unload(request.unique_id)
            response.success = True
        except ContainerError as error:
            response.error_message = str(error)
        return response

    def _list(self, request: ListNodes.Request, response: ListNodes.Response) -> ListNodes.Response:
        response.unique_ids = list(self.hosted)
        response.full_node_names = [node.get_fully_qualified_name() for node in self.hosted.values()]
        return response


def resolve_plugin(name: str) -> type[Node]:
    """Return the class of a plugin.

    Raises:
        ContainerError: The name is unknown, or its module cannot be imported.
    """
    module, separator, class_name = PLUGINS.get(name, name).partition(':')
    if not separator or class_name.startswith(':'):
        raise ContainerError(f'plugin {name!r} is unknown; use module:Class or one of {", ".join(PLUGINS)}')
    try:
        return getattr(importlib.import_module(module), class_name)
    except (ImportError, AttributeError) as error:
        raise ContainerError(f'plugin {name!r} cannot be imported: {error}') from error


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
    executor = MultiThreadedExecutor(_THREADS, context=context)
    container = Container(executor, context=context)
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
        for node in container.hosted.values():
            node.worker.call(lambda: None)  # behind everything that waits there
        return time.monotonic() - start
    finally:
        _end(container, executor)


def tune_malloc() -> None:
    """Have glibc keep large blocks for reuse: page faults are the main cost of large messages."""
    trim_threshold, mmap_threshold = -1, -3  # malloc.h
    libc = ctypes.CDLL(None)
    if hasattr(libc, 'mallopt'):
        libc.mallopt(mmap_threshold, 32 << 20)  # the most it accepts
        libc.mallopt(trim_threshold, (1 << 31) - 1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Host nodes until a signal ends it; return the exit status."""
    arguments = sys.argv if arguments is None else arguments
    parser = argparse.ArgumentParser(prog='slam3r_container', description=main.__doc__)
    parser.add_argument('--graph', action='store_true', help='load the four nodes of slam3r_ros, and do the following')
    parser.add_argument('--exit-on-failure', action='store_true', help='end with status 1 when a node cannot be made or go on')
    options = parser.parse_args(remove_ros_args(arguments)[1:])
    watch = options.graph or options.exit_on_failure
    tune_malloc()
    rclpy.init(args=list(arguments))
    executor = MultiThreadedExecutor(_THREADS)
    container = Container(executor)
    try:
        if options.graph:
            for plugin in GRAPH.values():
                container.load(plugin)
        if watch:
            executor.spin_until_future_complete(container.failed)
            time.sleep(_FAREWELL)
        else:
            executor.spin()
    except ContainerError as error:
        if container.context.ok():  # else a signal came while a node was made
            print(f'slam3r_container: {error}', file=sys.stderr)
            return 1
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    except RuntimeError:  # of rcl, when a signal ends the context between two of its calls
        if container.context.ok():
            raise
    finally:
        shield_the_end()
        _end(container, executor)
    return int(watch and container.failed.done())


def _end(container: Container, executor: Executor) -> None:
    context = container.context
    try:
        container.close()
        executor.shutdown(timeout_sec=5.0)
    finally:
        context.try_shutdown()


if __name__ == '__main__':
    sys.exit(main())
