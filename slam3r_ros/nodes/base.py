# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What the nodes of the pipeline have in common: parameters, one worker, diagnostics, services, an orderly end."""

import math
import time
import traceback
from collections.abc import Callable
from typing import Any

from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.clock import JumpThreshold, TimeJump
from rclpy.duration import Duration
from rclpy.lifecycle import LifecycleState, TransitionCallbackReturn
from rclpy.publisher import Publisher
from rclpy.task import Future

from slam3r_ros.nodes.managed import ManagedNode
from slam3r_ros.nodes.parameters import ParameterError, declare
from slam3r_ros.nodes.pulse import Pulse
from slam3r_ros.transport.worker import WorkerError
from slam3r_ros.video.stamps import JUMP

_FAREWELL = 0.5  # seconds
_PATIENCE = 10.0  # seconds that a service waits for its turn


class PipelineNode(ManagedNode):
    """A managed node with parameters, diagnostics and services.

    A subclass has a `NAME`, which also is that of its group of parameters.  With the parameter `autostart` the node
    becomes active at once.

    Attributes:
        parameters: Their values, by name.
        failure: Why the node cannot go on; empty while it can.
        failed: Done, with that reason, when its process should end.
    """

    NAME = ''

    def __init__(self, **kwargs: Any):
        """Declare the parameters of the group `NAME`, and start if that is asked for.

        Args:
            kwargs: For rclpy's Node.

        Raises:
            ParameterError: A parameter makes no sense.
            Exception: What `configure` raises.
        """
        super().__init__(self.NAME, **kwargs)
        self.failure, self.failed = '', Future()
        self._pulse = Pulse(self)
        self._service_group = MutuallyExclusiveCallbackGroup()  # services may await the worker: not the default group
        self._long_group = MutuallyExclusiveCallbackGroup()  # what takes long must not hold up the others
        self._control_group = MutuallyExclusiveCallbackGroup()  # what must be answered while the worker itself waits
        self.offer_services()
        try:
            self.parameters = declare(self, self.NAME)
        except ParameterError:
            self.destroy_node()  # else a half-made node stays in the graph
            raise
        if self.parameters.autostart:
            self.start()

    def offer_services(self) -> None:
        """Call `serve` for each; they are there, and answered, in every state."""

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Let the subclass make what it works with."""
        self.failure = ''
        result = super().on_configure(state)
        if result == TransitionCallbackReturn.SUCCESS:
            self._pulse.look()  # before there is work, so that all values are there from the start
        return result

    def destroy_node(self) -> None:
        """Wait for the callbacks that run, then leave the graph."""
        self._pulse.end()
        super().destroy_node()

    def _deactivate(self) -> None:
        super()._deactivate()
        with self._pulse.stopped():  # a beat that had begun may still tell something
            pass

    def _clean_up(self) -> None:
        with self._pulse.stopped():
            super()._clean_up()

    def diagnostics(self) -> dict[str, Any]:
        """Return what /diagnostics shall say about this node; the keys stay the same, numbers are monitored."""
        return {}

    def beat(self) -> None:
        """Do more once a second while configured, on a thread of the executor: the worker may be busy."""

    @property
    def concern(self) -> str:
        """What is not as it should be, though the node goes on with its work; empty when nothing is."""
        return ''

    @property
    def trouble(self) -> str:
        """What keeps the node from its work now; empty when nothing does."""
        return self.failure

    @property
    def last_error(self) -> str:
        """What keeps the node from its work or, when nothing does, what went wrong last; empty when nothing did."""
        return self.trouble or self.worker.last_error

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
        self._pulse.publish()

    def follow_time(self, callback: Callable[[int, int], None]) -> None:
        """Call a function on the worker whenever the clock goes back by more than `JUMP`: simulated time may.

        To be called in `configure`; ends at `cleanup`.

        Args:
            callback: Takes the time before and after, nanoseconds.
        """
        clock = self.get_clock()
        jumps = self.worker.inbox(lambda times: callback(*times), depth=math.inf, always=True)

        def note(jump: TimeJump) -> None:  # on a thread of the executor
            after = clock.now().nanoseconds
            jumps.put((after - jump.delta.nanoseconds, after))

        threshold = JumpThreshold(min_forward=None, min_backward=Duration(nanoseconds=-JUMP), on_clock_change=False)
        self.closing.callback(clock.create_jump_callback(threshold, post_callback=note).unregister)

    def serve(
        self,
        service_type: type,
        name: str,
        handler: Callable[[Any], dict[str, Any] | Callable[[], dict[str, Any]]],
        at_once: bool = False,
        long: bool = False,
    ) -> None:
        """Answer a service on the worker, behind everything that came before; soon with failure, if that takes long.

        Args:
            service_type: With `success` and `message` in its response.
            name: Of the service.
            handler: Takes the request and returns fields of the response, `success` being true by default; or, for
                what takes long, a function that returns them and leaves the worker free.  What either raises is
                answered as failure.
            at_once: Answer whatever the worker does, on a thread of the executor.
            long: The handler returns such a function: services like this one are answered one after the other, the rest
                meanwhile.
        """

        def answer(request: Any, response: Any) -> Any:
            try:
                if not self.configured:
                    raise WorkerError('the node is not configured; configure it first')
                fields = handler(request) if at_once else self.worker.call(handler, request, patience=_PATIENCE)
                fields = {'success': True} | (fields() if callable(fields) else fields)
            except (OSError, ValueError, RuntimeError) as error:
                fields = {'success': False, 'message': str(error)}
            except Exception as error:  # noqa: BLE001 - a mistake of ours: the executor must live on
                self.get_logger().error(traceback.format_exc())
                fields = {'success': False, 'message': f'{type(error).__name__}: {error}'}
            for field, value in fields.items():
                setattr(response, field, value)
            return response

        group = self._control_group if at_once else self._long_group if long else self._service_group
        self.create_service(service_type, name, answer, callback_group=group)


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
