# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What the nodes of the pipeline have in common: parameters, one worker, diagnostics, services, an orderly end."""

import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.executors import ExternalShutdownException, MultiThreadedExecutor
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.signals import uninstall_signal_handlers
from rclpy.task import Future

from slam3r_ros.engines.protocol import EngineError
from slam3r_ros.nodes.parameters import ParameterError, declare
from slam3r_ros.transport.bus import close_node, worker_of

NOT_YET = 'not available yet'
_FAREWELL = 0.5  # seconds


class PipelineNode(Node):
    """A node whose callbacks all run on its one worker.

    Attributes:
        parameters: Their values, by name.
        closing: What else is to be closed when the node is destroyed.
        worker: Runs every callback, service and timer of this node.
        failure: Why the node cannot go on; empty while it can.
        failed: Done, with that reason, when its process should end.
    """

    def __init__(self, name: str, **kwargs: Any):
        """Declare the parameters of the group `name`.

        Args:
            name: Of the node, unless it is remapped.
            kwargs: For rclpy's Node.

        Raises:
            ParameterError: A parameter makes no sense.
        """
        super().__init__(name, **kwargs)
        self.closing = ExitStack()
        try:
            self.parameters = declare(self, name)
        except ParameterError:
            self.destroy_node()  # else a half-made node stays in the graph
            raise
        self.worker = worker_of(self)
        self.failure = ''
        self.failed = Future()
        self._service_group = MutuallyExclusiveCallbackGroup()  # a service may wait for the worker: not the default group
        self._diagnostics = self.create_publisher(DiagnosticArray, '/diagnostics', 10)

    def start_diagnostics(self) -> None:
        """Tell /diagnostics how the node fares, once a second; to be called when the constructor is done."""
        self.worker.every(1.0, self.publish_diagnostics)

    def diagnostics(self) -> dict[str, Any]:
        """Return what /diagnostics shall say about this node."""
        return {}

    @property
    def last_error(self) -> str:
        """Why the node failed or, when it did not, what went wrong last; empty when nothing did."""
        return self.failure or self.worker.last_error

    def fail(self, reason: str) -> None:
        """Give up: log one line, tell others, and ask the process to end."""
        self.failure = reason
        self.get_logger().error(reason)
        self.tell_failure()
        time.sleep(_FAREWELL)
        self.tell_failure()  # for those who were discovered only now
        self.failed.set_result(reason)

    def tell_failure(self) -> None:
        """Publish that the node failed."""
        self.publish_diagnostics()

    def publish_diagnostics(self) -> None:
        """Tell /diagnostics how the node fares, when somebody listens."""
        if not self._diagnostics.get_subscription_count():
            return
        level = DiagnosticStatus.OK
        if self.last_error:
            level = DiagnosticStatus.ERROR if self.failure else DiagnosticStatus.WARN
        status = DiagnosticStatus(level=level, name=self.get_fully_qualified_name(), message=self.last_error or 'ok')
        status.values = [KeyValue(key=key, value=str(value)) for key, value in self.diagnostics().items()]
        message = DiagnosticArray(status=[status])
        message.header.stamp = self.get_clock().now().to_msg()
        self._diagnostics.publish(message)

    def serve(self, service_type: type, name: str, handler: Callable[[Any], dict[str, Any]]) -> None:
        """Answer a service on the worker, behind everything that came before.

        Args:
            service_type: With `success` and `message` in its response.
            name: Of the service.
            handler: Takes the request and returns fields of the response, `success` being true by default.  What it
                raises is answered as failure.
        """

        def answer(request: Any, response: Any) -> Any:
            try:
                fields = {'success': True} | self.worker.call(handler, request)
            except (OSError, ValueError, RuntimeError) as error:
                fields = {'success': False, 'message': str(error)}
            except Exception as error:  # noqa: BLE001 - a mistake of ours: the executor must live on
                self.get_logger().error(traceback.format_exc())
                fields = {'success': False, 'message': f'{type(error).__name__}: {error}'}
            for field, value in fields.items():
                setattr(response, field, value)
            return response

        self.create_service(service_type, name, answer, callback_group=self._service_group)

    def serve_not_yet(self, service_type: type, name: str) -> None:
        """Answer a service that a later version will bring."""
        self.serve(service_type, name, lambda request: {'success': False, 'message': NOT_YET})

    def destroy_node(self) -> None:
        """Wait for the callback that runs, then leave the graph."""
        close_node(self)
        super().destroy_node()
        self.closing.close()


class OnDemand:
    """A publisher for which nothing is computed while nobody listens.

    What is latched (transient local) is published anew for each new subscriber and when it has changed.
    """

    def __init__(self, publisher: Publisher):
        """Take over a publisher."""
        self._publisher, self._readers, self.changed = publisher, 0, False

    def publish(self, make: Callable[[], Any]) -> None:
        """Make a message and publish it, when somebody listens."""
        if self._publisher.get_subscription_count():
            self._publisher.publish(make())

    def publish_latched(self, make: Callable[[], Any]) -> None:
        """Do the same, when `changed` was set or a subscriber has come since the last time."""
        readers, before = self._publisher.get_subscription_count(), self._readers
        self._readers = readers
        if readers > before or (readers and self.changed):
            self.changed = False
            self._publisher.publish(make())


class Newcomers:
    """Notices new readers of what is not latched, one look later: by then DDS has matched both ends."""

    def __init__(self):
        """Begin with no readers."""
        self.settled: set = set()  # readers that were there at the last two looks
        self._seen: set = set()

    def look(self, readers: set) -> bool:
        """Take the ids of the present readers; return whether some have come that shall get everything."""
        settled, self._seen = self._seen & readers, readers
        came = bool(settled - self.settled)
        self.settled = settled
        return came


def shield_the_end() -> None:
    """Let no further SIGINT interrupt an orderly end: launch repeats the one that the terminal sent already."""
    uninstall_signal_handlers()  # of rclpy, which would put Python's own back
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def run(node_class: type[PipelineNode], arguments: Sequence[str] | None = None) -> int:
    """Run one node in this process until it fails or a signal ends it; return the exit status."""
    rclpy.init(args=arguments)
    node = None
    try:
        node = node_class()
        executor = MultiThreadedExecutor(num_threads=4)  # a service may block one, its worker wait for another
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
