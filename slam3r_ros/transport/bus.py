# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Publish and subscribe on our own values: by reference inside the process, over DDS to the outside.

Type adaptation in the manner of REP-2007, which rclpy lacks.  Inside one process a subscriber gets the
very object that was published, through a bounded queue that its node's `Worker` serves.  The object
becomes a ROS message only while an outside subscriber exists, once, whatever their number.  A
subscription reads DDS only while no publisher of its topic lives in the process.

Values are frozen and their arrays are made read-only at publishing, the publisher's own included.
"""

import dataclasses
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.context import Context
from rclpy.node import Node
from rclpy.publisher import Publisher as DdsPublisher
from rclpy.qos import QoSProfile

from slam3r_ros.transport.credit import WINDOW, CreditAsker, CreditGiver
from slam3r_ros.transport.messages import adapter_of
from slam3r_ros.transport.worker import Worker

_NO_READER_NOTICE = 5.0  # seconds between two lines that say what is waited for


@dataclass
class _Topic:
    """Who publishes and who reads a topic inside this process; the lists are replaced, never changed."""

    publishers: tuple['Publisher', ...] = ()
    subscriptions: tuple['Subscription', ...] = ()


@dataclass
class _NodeParts:
    """What a node has on the bus."""

    worker: Worker
    ends: list = field(default_factory=list)  # its publishers and subscriptions


_lock = threading.RLock()
_topics: WeakKeyDictionary[Context, defaultdict[str, _Topic]] = WeakKeyDictionary()
_nodes: dict[Node, _NodeParts] = {}


def worker_of(node: Node) -> Worker:
    """Return the one thread on which the node's callbacks run; started at the first call."""
    return _parts_of(node).worker


def create_publisher(
    node: Node, value_type: type, topic: str, depth: int = 10, frame_id: str = '', lossless: bool = False
) -> 'Publisher':
    """Make a publisher of one of the values of `slam3r_ros.values`.

    Args:
        node: Whose name, namespace and remappings count.
        value_type: The class of what is published.
        topic: Its name, resolved as ROS does.
        depth: Messages kept for a slow outside reader.
        frame_id: For the header of the message.
        lossless: Wait for outside readers that ask for it, too; for values whose adapter has a `key`.
    """
    return Publisher(node, value_type, topic, depth, frame_id, lossless)


def create_subscription(
    node: Node, value_type: type, topic: str, callback: Callable[[Any], None], depth: int = 10, lossless: bool = False
) -> 'Subscription':
    """Call `callback` with each value published on a topic, on the node's worker.

    Args:
        node: Whose name, namespace and remappings count.
        value_type: The class of what is published.
        topic: Its name, resolved as ROS does.
        callback: Takes the value.
        depth: Values that may wait for the callback.
        lossless: When that many wait, the publisher waits too; else the oldest is dropped and counted.
    """
    return Subscription(node, value_type, topic, callback, depth, lossless)


def stop_node(node: Node) -> None:
    """Take nothing more for this node, and free those who wait for it; call `close_node` afterwards."""
    with _lock:
        parts = _nodes.get(node)
    if parts is not None:
        parts.worker.stop()


def close_node(node: Node) -> None:
    """End the node's worker, its publishers and its subscriptions; call it before destroying the node."""
    with _lock:
        parts = _nodes.pop(node, None)
    if parts is None:
        return
    if not parts.worker.close():
        node.get_logger().warning('a callback is still running; going on without it')
    for end in parts.ends:
        end.close()


class Publisher:
    """One end of a topic; see `create_publisher`."""

    def __init__(self, node: Node, value_type: type, topic: str, depth: int, frame_id: str, lossless: bool):
        """Join the topic."""
        self._node, self._frame_id, self._adapter = node, frame_id, adapter_of(value_type)
        self._worker = worker_of(node)
        self._dds = node.create_publisher(self._adapter.message_type, topic, QoSProfile(depth=depth))
        self._asker = CreditAsker(node, self._dds, depth, self._is_stopped) if lossless else None
        self._topic = _topic_of(node, topic)
        _parts_of(node).ends.append(self)
        with _lock:
            self._topic.publishers += (self,)
            _open_or_close(self._topic)

    @property
    def topic_name(self) -> str:
        """The full name of the topic."""
        return self._dds.topic_name

    def outside_readers(self) -> int:
        """Count the subscriptions that read over DDS."""
        return self._dds.get_subscription_count()

    def readers(self) -> int:
        """Count the subscriptions inside and outside."""
        return len(self._topic.subscriptions) + self.outside_readers()

    def reader_ids(self) -> set:
        """Return what tells the subscriptions inside and outside apart."""
        return set(map(id, self._topic.subscriptions)) | outside_reader_ids(self._node, self._dds)

    def publish(self, value: Any) -> None:
        """Hand a value to every subscriber; waits for the lossless ones whose queue is full."""
        make_read_only(value)
        for subscription in self._topic.subscriptions:
            subscription.inbox.put(value)
        if self.outside_readers():
            if self._asker:
                self._asker.wait(self._adapter.key(value))
            self._dds.publish(self._adapter.to_message(value, self._frame_id))

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
        """Leave the topic; subscriptions inside go back to DDS when this was the last publisher."""
        with _lock:
            self._topic.publishers = tuple(each for each in self._topic.publishers if each is not self)
            _open_or_close(self._topic)
        if self._asker:
            self._asker.close()
        self._node.destroy_publisher(self._dds)

    def _is_stopped(self) -> bool:
        return self._worker.closed or not self._node.context.ok()


class Subscription:
    """The other end of a topic; see `create_subscription`."""

    def __init__(
        self, node: Node, value_type: type, topic: str, callback: Callable[[Any], None], depth: int, lossless: bool
    ):
        """Join the topic."""
        self._node, self._name, self._callback = node, topic, callback
        self._depth, self._lossless, self._adapter = depth, lossless, adapter_of(value_type)
        self._dds = self._giver = None
        # A group of its own: a service that waits for the worker must not hold up the input.
        self._group = MutuallyExclusiveCallbackGroup()
        self.inbox = worker_of(node).inbox(self._deliver, depth, lossless)
        self._topic = _topic_of(node, topic)
        _parts_of(node).ends.append(self)
        with _lock:
            self._topic.subscriptions += (self,)
            _open_or_close(self._topic)

    @property
    def dropped(self) -> int:
        """Values dropped since the queue was full."""
        return self.inbox.dropped

    def open(self) -> None:
        """Read from DDS; nothing to do when it does already, or when the end has come."""
        if self._dds is None and not self.inbox.closed and self._node.context.ok():
            if self._lossless and self._adapter.key:
                self._giver = CreditGiver(self._node, self._node.resolve_topic_name(self._name))
            qos = QoSProfile(depth=max(self._depth, WINDOW) if self._lossless else self._depth)
            self._dds = self._node.create_subscription(
                self._adapter.message_type, self._name, self._receive, qos, callback_group=self._group
            )

    def shut(self) -> None:
        """Read no longer from DDS."""
        if self._dds is not None:
            self._node.destroy_subscription(self._dds)
            self._dds = None
        if self._giver is not None:
            self._giver.close()
            self._giver = None

    def close(self) -> None:
        """Leave the topic; what waits is forgotten."""
        with _lock:
            self._topic.subscriptions = tuple(each for each in self._topic.subscriptions if each is not self)
            self.shut()
        self.inbox.close()

    def _receive(self, message: Any) -> None:
        """Take a message from DDS, on a thread of the executor."""
        try:
            value = self._adapter.from_message(message)
        except Exception as error:  # noqa: BLE001 - a malformed message from outside must not stop the executor
            self._node.get_logger().error(f'{self._name}: {error!r}', throttle_duration_sec=5.0)
            return
        make_read_only(value)
        self.inbox.put(value)

    def _deliver(self, value: Any) -> None:
        try:
            self._callback(value)
        finally:
            if giver := self._giver:
                giver.give(self._adapter.key(value))


def outside_reader_ids(node: Node, publisher: DdsPublisher) -> set[bytes]:
    """Return the ids of the subscriptions that read a publisher of a node over DDS."""
    if not publisher.get_subscription_count():
        return set()
    return {bytes(each.endpoint_gid) for each in node.get_subscriptions_info_by_topic(publisher.topic_name)}


def make_read_only(value: Any) -> None:
    """Forbid writing to the arrays of a value, nested ones included."""
    if isinstance(value, np.ndarray):
        value.setflags(write=False)
    elif dataclasses.is_dataclass(value):
        for each in dataclasses.fields(value):
            make_read_only(getattr(value, each.name))
    elif isinstance(value, tuple):
        for each in value:
            make_read_only(each)


def _topic_of(node: Node, topic: str) -> _Topic:
    with _lock:
        return _topics.setdefault(node.context, defaultdict(_Topic))[node.resolve_topic_name(topic)]


def _open_or_close(topic: _Topic) -> None:
    for subscription in topic.subscriptions:
        if topic.publishers:
            subscription.shut()
        else:
            subscription.open()


def _parts_of(node: Node) -> _NodeParts:
    with _lock:
        if node not in _nodes:
            logger = node.get_logger()

            def report(traceback: str) -> None:
                if node.context.ok():  # else publishing fails since the process is ending
                    logger.error(traceback)

            _nodes[node] = _NodeParts(Worker(node.get_fully_qualified_name(), report))
        return _nodes[node]
