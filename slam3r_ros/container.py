# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Hosts Python nodes in one process, where they hand each other objects instead of messages.

It serves composition_interfaces as rclcpp's component_container does, so that `ros2 component` and launch_ros'
ComposableNodeContainer and LoadComposableNodes drive it.  Each node spins on threads of its own.  `--graph` loads the
four nodes of this package at once.

Any package may register components: subclasses of rclpy's Node whose constructors hand `**kwargs` on to it.

- With CMake: `ament_index_register_resource(slam3r_ros_components CONTENT_FILE components.txt)`; the file holds a line
  `my_package::MyNode;my_package.my_node:MyNode` for each.
- With setup.py alone: that file, called `my_package`, is one of the `data_files`, for the folder
  `share/ament_index/resource_index/slam3r_ros_components`.
- With an entry point: `"my_package::MyNode" = "my_package.my_node:MyNode"` below
  `[project.entry-points."slam3r_ros.components"]` in pyproject.toml.

What is not registered is loaded as `module:Class`.  The package name in a request is not looked at: names carry it.
Nodes here do not serve get_type_description, unless their parameter `start_type_description_service` says so.
"""

import argparse
import gc
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import rclpy
from composition_interfaces.srv import ListNodes, LoadNode, UnloadNode
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.clock import Clock, ClockType
from rclpy.executors import ExternalShutdownException
from rclpy.logging import get_logger
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.task import Future

from slam3r_ros.components import ComponentError, component_class, node_arguments
from slam3r_ros.nodes.base import PipelineNode
from slam3r_ros.nodes.process import begin, end_with, hush_the_half_made, own_arguments, shield_the_end
from slam3r_ros.nodes.spinner import Spinner
from slam3r_ros.transport.bus import close_node, stop_node
from slam3r_ros.transport.executor import PoolExecutor
from slam3r_ros.transport.registry import nodes
from slam3r_ros.transport.shared_memory import remove_segments
from slam3r_ros.transport.tuning import tune_malloc

# By node name, from the last in the chain to the first, so that nothing is published into the void.
GRAPH = {
    'mesher': 'slam3r_ros::Mesher',
    'slam3r': 'slam3r_ros::Slam3r',
    'keyframe_selector': 'slam3r_ros::KeyframeSelector',
    'video_decoder': 'slam3r_ros::VideoDecoder',
}
MONITOR = {'monitor': 'slam3r_ros::Monitor'}  # beside it, when it is asked for

# rclpy never ends the service get_type_description: it would outlive its node in the graph, with 100 kB.
NO_TYPE_DESCRIPTION = Parameter('start_type_description_service', value=False)

_FAREWELL = 0.2  # seconds for the answer to whoever asked for a node that cannot be made
_THREADS = 2  # of the container itself: one to load and unload, one for the rest
_PATIENCE = 10.0  # seconds that a callback may still run when its node is unloaded


class ContainerError(RuntimeError):
    """A node cannot be hosted or has failed; the message names it and the reason."""


class Container(Node):
    """Loads, lists and unloads nodes on request.

    Attributes:
        failed: Done, with the reason, when a node cannot go on, or one of this package cannot be made.
        hosted: What spins the nodes, by unique id.
    """

    def __init__(self, **kwargs: Any):
        """Serve; whoever makes the container spins it."""
        super().__init__('slam3r_container', **kwargs)
        self.failed = Future()
        self.hosted: dict[int, Spinner] = {}
        self._next_id = 1
        self._loaded: set[str] = set()  # plugins that were
        # Listing is answered while a node takes its time to begin or to end.
        changes = MutuallyExclusiveCallbackGroup()
        self.create_service(LoadNode, '~/_container/load_node', self._load, callback_group=changes)
        self.create_service(UnloadNode, '~/_container/unload_node', self._unload, callback_group=changes)
        self.create_service(ListNodes, '~/_container/list_nodes', self._list)
        self._diagnostics = self.create_publisher(DiagnosticArray, '/diagnostics', 10)
        self.create_timer(1.0, self._publish_diagnostics, clock=Clock(clock_type=ClockType.STEADY_TIME))

    def load(
        self, plugin: str, name: str = '', parameter_overrides: Sequence[Parameter] = (), **kwargs: Any
    ) -> int:
        """Make a node and spin it.

        Args:
            plugin: A registered name, or `module:Class`.
            name: The full name that the node will have, if known: a taken one is refused before anything is made.
            parameter_overrides: For the node.
            kwargs: For the node.

        Returns:
            its unique id.

        Raises:
            ContainerError: The plugin is unknown, the node refuses, or its name is taken.
        """
        self._check_name(plugin, name)
        before = nodes()
        try:
            found = component_class(plugin)
            overrides = [NO_TYPE_DESCRIPTION, *parameter_overrides]
            node = found(context=self.context, parameter_overrides=overrides, **kwargs)
        except ComponentError as error:
            raise ContainerError(str(error)) from error
        except (Exception, SystemExit) as error:  # somebody else's code: the container must live on
            for half_made in nodes() - before:
                if type(half_made) is found:
                    _discard(half_made)
            raise ContainerError(f'{plugin}: {error or type(error).__name__}') from error
        try:
            self._check_name(plugin, node.get_fully_qualified_name())
            spinner = Spinner(node)
        except BaseException:  # also of rcl when a signal has ended the context, or that signal itself
            _discard(node)
            raise
        if isinstance(node, PipelineNode):
            node.failed.add_done_callback(lambda failed: self._note_failure(failed.result()))
        unique_id, self._next_id = self._next_id, self._next_id + 1
        self.hosted[unique_id] = spinner
        self._loaded.add(plugin)
        return unique_id

    def unload(self, unique_id: int) -> None:
        """End a node.

        Raises:
            ContainerError: There is no such id, or one of the node's callbacks does not end; the node is gone then,
                but for the thread of that callback.
        """
        if unique_id not in self.hosted:
            raise ContainerError(f'there is no node {unique_id}; the ids are {list(self.hosted)}')
        reason = _end_node(self.hosted.pop(unique_id))
        gc.collect()  # rclpy's lifecycle nodes are reference cycles, which stay in the graph until they are freed
        if reason:
            raise ContainerError(reason)

    def stop(self) -> None:
        """Have every node take leave; waits for none."""
        for spinner in list(self.hosted.values()):
            stop_node(spinner.node)

    def close(self) -> None:
        """End every node; all take leave before the first is waited for."""
        self.stop()
        while self.hosted:
            if reason := _end_node(self.hosted.popitem()[1]):
                self.get_logger().warning(reason)
        close_node(self)
        self.destroy_node()

    def _check_name(self, plugin: str, name: str) -> None:
        present = [self, *(spinner.node for spinner in list(self.hosted.values()))]
        if name in [node.get_fully_qualified_name() for node in present]:
            raise ContainerError(f'{plugin}: a node named {name} is here already; give it another name')

    def _load(self, request: LoadNode.Request, response: LoadNode.Response) -> LoadNode.Response:
        try:
            name = f'{request.node_namespace.rstrip("/")}/{request.node_name}' if request.node_name else ''
            response.unique_id = self.load(request.plugin_name, name, **node_arguments(request))
        except (ComponentError, ContainerError) as error:
            if self.context.ok():  # else the end came meanwhile
                self.get_logger().error(str(error))
            # A slip of the pen must not end a graph that runs.
            if request.plugin_name in {*GRAPH.values(), *MONITOR.values()} - self._loaded:
                self._note_failure(str(error))
            response.error_message = str(error)
        if response.error_message:
            gc.collect()  # what there was of the node leaves the graph
            return response
        node = self.hosted[response.unique_id].node
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
        hosted = dict(self.hosted)
        response.unique_ids = list(hosted)
        response.full_node_names = [spinner.node.get_fully_qualified_name() for spinner in hosted.values()]
        return response

    def _note_failure(self, reason: str) -> None:
        if not self.failed.done():
            self.failed.set_result(reason)

    def _publish_diagnostics(self) -> None:
        """Tell how the container fares, and those nodes that have no line of their own."""
        if not self._diagnostics.get_subscription_count():
            return
        hosted = list(self.hosted.values())
        message = DiagnosticArray()
        message.header.stamp = self.get_clock().now().to_msg()
        recent = [f'{each.name}: {error}' for each in hosted if (error := each.recent_error)]
        last = [f'{each.name}: {error}' for each in hosted if (error := each.last_error)]
        counts = {'nodes': len(hosted), 'failed': len(recent), 'errors': sum(each.errors for each in hosted)}
        message.status = [_line(self.get_fully_qualified_name(), '; '.join(recent), '; '.join(last), **counts)]
        foreign = [each for each in hosted if not isinstance(each.node, PipelineNode)]
        message.status += [_line(each.name, each.recent_error, each.last_error, errors=each.errors) for each in foreign]
        self._diagnostics.publish(message)


def _line(name: str, recent: str, last: str, **counts: int) -> DiagnosticStatus:
    level = DiagnosticStatus.WARN if recent else DiagnosticStatus.OK
    values = [KeyValue(key=key, value=str(value)) for key, value in (counts | {'last_error': last}).items()]
    return DiagnosticStatus(level=level, name=name, message=recent or 'ok', values=values)


def _end_node(spinner: Spinner) -> str:
    """Take a node out of the process; return what is wrong: nothing, if all its callbacks have ended."""
    name = spinner.node.get_fully_qualified_name()
    stop_node(spinner.node)
    ended = spinner.close(_PATIENCE)
    ended &= _discard(spinner.node)
    return '' if ended else f'{name} was unloaded while one of its callbacks still ran after {_PATIENCE:.0f} s'


def _discard(node: Node) -> bool:
    ended = close_node(node, _PATIENCE)
    try:
        node.destroy_node()
    except Exception as error:  # noqa: BLE001 - somebody else's code: the container must live on
        get_logger('slam3r_container').error(f'{type(node).__name__}.destroy_node: {error!r}')
    return ended


def main(arguments: Sequence[str] | None = None) -> int:
    """Host nodes until a signal ends it; return the exit status."""
    arguments = sys.argv if arguments is None else arguments
    parser = argparse.ArgumentParser(prog='slam3r_container', description=main.__doc__)
    parser.add_argument('--graph', action='store_true', help='load the four nodes of slam3r_ros, and do the following')
    failure = 'end with status 1 when a node cannot go on, or the graph lacks one'
    parser.add_argument('--exit-on-failure', action='store_true', help=failure)
    parser.add_argument('--parent', type=int, help='end when this process does, which has started the container')
    options = parser.parse_args(own_arguments(arguments))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # rclpy ends the context; no KeyboardInterrupt while a node is made
    if options.parent:
        end_with(options.parent)
    tune_malloc()
    remove_segments()
    begin(arguments)
    watch = options.graph or options.exit_on_failure
    hush_the_half_made()
    container = None
    with ExitStack() as end:
        end.callback(rclpy.try_shutdown)
        try:
            executor = PoolExecutor(_THREADS)
            container = Container()
            end.callback(container.close)
            end.callback(executor.finish)  # a node may be about to be loaded, and take its time
            end.callback(container.stop)
            end.callback(shield_the_end)
            executor.add_node(container)
            if options.graph:
                for plugin in GRAPH.values():
                    container.load(plugin)
            if watch:
                executor.spin_until_future_complete(container.failed)
                time.sleep(_FAREWELL)
            else:
                executor.spin()
        except ContainerError as error:
            if rclpy.ok():  # else a signal came while a node was made
                print(f'slam3r_container: {error}', file=sys.stderr)
                return 1
        except (KeyboardInterrupt, ExternalShutdownException):
            pass
        except RuntimeError:  # of rcl, when a signal ends the context between two of its calls
            if rclpy.ok():
                raise
    return int(watch and container is not None and container.failed.done())


if __name__ == '__main__':
    sys.exit(main())
