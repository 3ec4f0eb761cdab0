# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The two ends of a topic of the bus."""

import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.node import Node
from rclpy.publisher import Publisher as DdsPublisher
from rclpy.qos import QoSProfile

from slam3r_ros.transport.credit import WINDOW, CreditAsker, CreditGiver
from slam3r_ros.transport.discovery import Lookout, make_endpoint, publisher_ids, subscription_ids
from slam3r_ros.transport.inbox import Inbox, pausable
from slam3r_ros.transport.messages import adapter_of
from slam3r_ros.transport.registry import lock, parts_of, topic_of, worker_of
from slam3r_ros.transport.sealing import Sealed, is_watching
from slam3r_ros.transport.worker import Worker

_NO_READER_NOTICE = 5.0  # seconds between two lines that say what is waited for
_WATCHED = 8  # values that the debug mode still looks at when they were published
_LINGER = 1.0  # seconds without a message until what an outside publisher sent last is surely taken from DDS

_lookout = Lookout()


class Publisher:
    """One end of a topic; see `create_publisher`."""

    def __init__(self, node: Node, value_type: type, topic: str, depth: int, frame_id: str, lossless: bool):
        """Join the topic."""
        self._node, self._frame_id, self._adapter = node, frame_id, adapter_of(value_type)
        self._name, self._topic = node.get_fully_qualified_name(), topic_of(node, topic)
        self._worker = worker_of(node)
        self._published = 0  # messages, over DDS
        self._in_order = threading.Lock()
        self._watched: deque[Sealed] | None = deque(maxlen=_WATCHED) if is_watching() else None
        with lock:
            self._dds, self.dds_id = make_endpoint(
                node,
                node.resolve_topic_name(topic),
                node.get_publishers_info_by_topic,
                lambda: node.create_publisher(self._adapter.message_type, topic, QoSProfile(depth=depth)),
            )
            self._topic.publishers += (self,)
        self._asker = CreditAsker(node, self._dds, depth, self._is_stopped, self._is_inside) if lossless else None
        parts_of(node).ends.append(self)

    @property
    def topic_name(self) -> str:
        """The full name of the topic."""
        return self._dds.topic_name

    def outside_readers(self) -> int:
        """Count the subscriptions that read over DDS, but for those of the bus in this process."""
        if count := self._dds.get_subscription_count():
            ours = _ids(self._topic.subscriptions)
            return len(outside_reader_ids(self._node, self._dds) - ours) if ours else count
        return 0

    def readers(self) -> int:
        """Count the subscriptions inside and outside."""
        return len(self._topic.subscriptions) + self.outside_readers()

    def reader_ids(self) -> set:
        """Return what tells the subscriptions inside and outside apart."""
        inside = self._topic.subscriptions
        return set(map(id, inside)) | (outside_reader_ids(self._node, self._dds) - _ids(inside))

    def publish(self, value: Any) -> None:
        """Hand a value to every subscriber; waits for the lossless ones whose queue is full."""
        if self._watched is not None:
            self._watch()
        sealed = Sealed(value, self._name, watched=self._watched is not None)
        if self._watched is not None:
            self._watched.append(sealed)
        for subscription in self._topic.subscriptions:
            subscription.inbox.put((sealed, False))
        if self.outside_readers():
            if self._asker:
                self._asker.wait(self._adapter.key(value))
            message = self._adapter.to_message(value, self._frame_id)
            with self._in_order:
                self._published += 1
                comes_back = bool(_ids(self._topic.subscriptions))
                self._topic.echoes.publish(self._dds, self._published, message, comes_back)

    @pausable()
    def wait_for_reader(self) -> bool:
        """Wait until somebody subscribes, and say so now and then; False when the node stops first."""
        notice = time.monotonic() + _NO_READER_NOTICE
        while not self.readers():
            if self._is_stopped():
                return False
            if time.monotonic() > notice:
                self._node.get_logger().info(f'waiting for a subscriber of {self.topic_name}')
                notice += _NO_READER_NOTICE
            time.sleep(0.02)
        if self._asker and not self._topic.subscriptions:
            self._asker.discover()
        return True

    def close(self) -> None:
        """Leave the topic."""
        with lock:
            self._topic.publishers = tuple(each for each in self._topic.publishers if each is not self)
        if self._asker:
            self._asker.close()
        self._node.destroy_publisher(self._dds)

    def _watch(self) -> None:
        """Look whether somebody wrote to what was published lately."""
        for sealed in self._watched:
            _accuse(self._worker, self.topic_name, sealed)

    def _is_stopped(self) -> bool:
        return self._worker.closed or not self._node.context.ok()

    def _is_inside(self, name: str) -> bool:
        """Whether a reader is a node of this process, which gets its values by reference."""
        return name in [each.node_name for each in self._topic.subscriptions]


class Subscription:
    """The other end of a topic; see `create_subscription`."""

    def __init__(
        self, node: Node, value_type: type, topic: str, callback: Callable[[Any], None], depth: int, lossless: bool
    ):
        """Join the topic."""
        self.node_name = node.get_fully_qualified_name()
        self.dds_id = b''  # while it reads DDS
        self._node, self._callback, self._topic = node, callback, topic_of(node, topic)
        self.name, self._full_name = topic, node.resolve_topic_name(topic)
        self._depth, self._lossless, self._adapter = depth, lossless, adapter_of(value_type)
        self.malformed = 0  # messages from outside that made no sense
        self._dds = self._giver = None
        self._receiving = False
        self._heard = 0.0  # when there was last an outside publisher, or a message of one
        # A group of its own: a service that waits for the worker must not hold up the input.
        self._group = MutuallyExclusiveCallbackGroup()
        self._worker = worker_of(node)
        self.inbox = self._worker.inbox(self._deliver, depth, lossless)
        parts_of(node).ends.append(self)
        with lock:
            self._topic.subscriptions += (self,)
        self.look()
        _lookout.watch(self.look)

    @property
    def dropped(self) -> int:
        """Values dropped since the queue was full."""
        return self.inbox.dropped

    @property
    def first(self) -> Any:
        """The value that comes next, still closed: read it on the CPU only; None when none waits."""
        item = self.inbox.first
        return item and item[0].value

    def look(self) -> None:
        """Read from DDS as soon as an outside publisher is known, and no longer once the last one is gone."""
        with lock, suppress(RuntimeError):  # of rcl: the node, or its context, ends meanwhile
            if self.inbox.closed or not self._node.context.ok():
                return
            now = time.monotonic()
            if publisher_ids(self._node, self._full_name) - _ids(self._topic.publishers):
                self._heard = now
                self._open()
            elif self._dds is not None and not self._receiving and now - self._heard > _LINGER:
                self._shut()

    def close(self) -> None:
        """Leave the topic; what waits is forgotten."""
        self.inbox.close()  # first: else a look that has begun would open DDS again
        _lookout.forget(self.look)
        with lock:
            self._topic.subscriptions = tuple(each for each in self._topic.subscriptions if each is not self)
            self._shut()

    def _open(self) -> None:
        if self._dds is None:
            if self._lossless and self._adapter.key:
                self._giver = CreditGiver(self._node, self._full_name)
            # Lossless: room for what an outside publisher has on its way, and for echoes.
            qos = QoSProfile(depth=max(self._depth, WINDOW) + WINDOW if self._lossless else self._depth)
            self._dds, self.dds_id = make_endpoint(
                self._node,
                self._full_name,
                self._node.get_subscriptions_info_by_topic,
                lambda: self._node.create_subscription(
                    self._adapter.message_type, self.name, self._receive, qos, callback_group=self._group
                ),
            )

    def _shut(self) -> None:
        if self._dds is not None:
            self._node.destroy_subscription(self._dds)
            self._dds, self.dds_id = None, b''
        if self._giver is not None:
            self._giver.close()
            self._giver = None

    def _receive(self, message: Any, info: dict[str, int | None]) -> None:
        """Take a message from DDS, on a thread of the executor."""
        if self._topic.echoes.contain(message, info):
            return
        self._receiving = True
        try:
            value = self._adapter.from_message(message)
        except Exception as error:  # noqa: BLE001 - a malformed message from outside must not stop the executor
            self.malformed += 1
            self._worker.last_error = f'{self._full_name}: {error}'
            self._node.get_logger().error(self._worker.last_error, throttle_duration_sec=5.0)
        else:
            self.inbox.put((Sealed(value, 'outside', is_watching()), True))
        finally:
            self._heard, self._receiving = time.monotonic(), False

    def _deliver(self, item: tuple[Sealed, bool]) -> None:
        sealed, is_from_outside = item
        value = sealed.open()
        _accuse(self._worker, self._full_name, sealed)
        sealed.readers.append(self.node_name)
        try:
            self._callback(value)
        finally:
            _accuse(self._worker, self._full_name, sealed)
            sealed.readers.remove(self.node_name)
            if is_from_outside and (giver := self._giver):
                giver.give(self._adapter.key(value))


def count_malformed(node: Node) -> int:
    """Count the messages from outside that made no sense to the subscriptions of a node."""
    return sum(end.malformed for end in parts_of(node).ends if isinstance(end, Subscription))


def queues_of(node: Node) -> dict[str, Inbox]:
    """Return what waits for a node, by the names of its topics."""
    return {end.name: end.inbox for end in parts_of(node).ends if isinstance(end, Subscription)}


def outside_reader_ids(node: Node, publisher: DdsPublisher) -> set[bytes]:
    """Return the ids of the subscriptions that read a publisher of a node over DDS."""
    return subscription_ids(node, publisher.topic_name) if publisher.get_subscription_count() else set()


def _accuse(worker: Worker, topic: str, sealed: Sealed) -> None:
    """Report who wrote to a published value, which only the debug mode notices."""
    for name in sealed.changes():
        who = ' or '.join(sealed.readers) or f'{sealed.publisher}, or a reader that kept it,'
        what = f'{type(sealed.value).__name__}{name}'
        worker.note(f'{topic}: {who} wrote to {what} after {sealed.publisher} published it')


def _ids(ends: tuple) -> set[bytes]:
    return {each.dds_id for each in ends if each.dds_id}
