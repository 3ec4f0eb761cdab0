# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""rclpy's lifecycle node with one worker, and with its traps closed.

rclpy hides why a transition fails, and its executors end when somebody asks for a transition that does not exist in
the present state.
"""

import traceback
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from lifecycle_msgs.srv import ChangeState
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn

from slam3r_ros.gpu_memory import give_back_gpu_memory
from slam3r_ros.transport.bus import close_node, worker_of

_PATIENCE = 30.0  # seconds that a callback may go on when the node is deactivated


class ManagedNode(LifecycleNode):
    """A managed node whose callbacks all run on its one worker.

    A subclass makes in `configure` what it works with: publishers, subscriptions, an engine.  All that, and every
    attribute set there, is gone after `cleanup`.  While the node is inactive its worker is paused: input waits or is
    dropped, as the subscription says; calls are served, unless the worker was caught waiting for others; nothing else
    runs.

    Attributes:
        configured: Whether what the node works with is there.
        active: Whether the node is at work.
        closing: What else is to be closed at `cleanup`.
        worker: Runs every callback of this node; there from `configure` to `cleanup`.
    """

    def __init__(self, name: str, **kwargs: Any):
        """Stay unconfigured.

        Args:
            name: Of the node, unless it is remapped.
            kwargs: For rclpy's Node.
        """
        super().__init__(name, **kwargs)
        self.configured, self.active, self.closing = False, False, ExitStack()
        self._error: Exception | None = None  # why the last transition failed
        self._before: tuple[set, set] | None = None  # attributes and entities before `configure`
        self._change_state = self._service_change_state.callback
        self._service_change_state.callback = self._answer_change_state

    def configure(self) -> None:
        """Make what the node works with; nothing of it runs before the node is active.

        Raises:
            Exception: It cannot be made; the node stays unconfigured.
        """

    def activate(self) -> None:
        """Do what comes before the first callback runs."""

    def deactivate(self) -> None:
        """Do what comes after the last callback has run, or while one waits for others."""

    def start(self) -> None:
        """Configure and activate the node.

        Raises:
            Exception: What `configure` or `activate` raises; the node is destroyed then.
        """
        try:
            for trigger in (self.trigger_configure, self.trigger_activate):
                if trigger() != TransitionCallbackReturn.SUCCESS:
                    error, self._error = self._error, None
                    raise error or RuntimeError('the node could not be started; its log says why')
        except BaseException:  # Ctrl-C, too: its threads must not outlive it
            self.destroy_node()
            raise

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Let the subclass make what it works with."""
        return self._attempt(self._configure)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Go to work."""
        return self._attempt(self._activate)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Let what runs come to its end, and begin nothing new."""
        return self._attempt(self._deactivate)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Forget everything that was made since the node was unconfigured."""
        return self._attempt(self._clean_up, TransitionCallbackReturn.ERROR)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Do the same, for good."""
        return self._attempt(self._clean_up, TransitionCallbackReturn.ERROR)

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Go back to the beginning, whatever went wrong."""
        return TransitionCallbackReturn.SUCCESS

    def destroy_node(self) -> None:
        """Wait for the callback that runs, then leave the graph."""
        self._clean_up()
        super().destroy_node()
        self._state_machine.destroy_when_not_in_use()  # it would keep the node in the graph until garbage is collected

    def _attempt(
        self, step: Callable[[], None], otherwise: TransitionCallbackReturn = TransitionCallbackReturn.FAILURE
    ) -> TransitionCallbackReturn:
        try:
            step()
        except Exception as error:  # noqa: BLE001 - of the subclass
            self._error = error
            return otherwise
        return TransitionCallbackReturn.SUCCESS

    def _configure(self) -> None:
        self._before = {*vars(self)}, {*self._entities()}
        self.worker = worker_of(self)
        self.worker.pause()
        try:
            self.configure()
        except BaseException:
            self._clean_up()
            raise
        self.configured = True

    def _activate(self) -> None:
        self.activate()
        self.active = True
        self.worker.resume()

    def _deactivate(self) -> None:
        if not self.worker.pause(_PATIENCE):
            raise TimeoutError(f'a callback still ran after {_PATIENCE:.0f} s; the node stays active')
        self.active = False
        self.worker.pause(_PATIENCE)  # somebody may have resumed it while the node was active still
        self.deactivate()

    def _clean_up(self) -> None:
        self.configured = self.active = False
        close_node(self)
        if self._before is not None:
            attributes, entities = self._before
            for entity, destroy in self._entities().items():
                if entity not in entities:
                    destroy(entity)
            for name in vars(self).keys() - attributes:
                delattr(self, name)
        try:
            self.closing.close()
        finally:
            give_back_gpu_memory()

    def _entities(self) -> dict[Any, Callable[[Any], bool]]:
        """Return what the node has in the graph, and what destroys each."""
        kinds = (
            (self.publishers, self.destroy_publisher),
            (self.subscriptions, self.destroy_subscription),
            (self.services, self.destroy_service),
        )
        return {entity: destroy for entities, destroy in kinds for entity in entities}

    def _answer_change_state(
        self, request: ChangeState.Request, response: ChangeState.Response
    ) -> ChangeState.Response:
        """Answer, and log why a transition fails."""
        self._error = None
        try:
            response = self._change_state(request, response)
        except RuntimeError as error:  # of rcl: there is no such transition now
            self._error = error
        if (error := self._error) is not None:
            expected = isinstance(error, (OSError, ValueError, RuntimeError))
            self.get_logger().error(str(error) if expected else ''.join(traceback.format_exception(error)))
            self._error = None
        return response
