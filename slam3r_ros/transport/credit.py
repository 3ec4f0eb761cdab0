# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Back-pressure between processes, which DDS does not give without losses or endless queues.

A lossless reader says on `<topic>/consumed` (diagnostic_msgs/KeyValue: its name, the id of the value it has
done with) how far it is, and the publisher has at most as many values on the way as its queue is deep.
Readers that say nothing, such as `ros2 topic echo`, are not waited for.
"""

import threading
import time
from collections import deque

from diagnostic_msgs.msg import KeyValue
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import DurabilityPolicy, QoSProfile

WINDOW = 16  # values on their way at most; lossless readers keep that many for their executor
_DISCOVERY = 0.5  # seconds until a reader's first word must be here once it is matched
_CENSUS = 1.0  # seconds between two looks at whether the readers waited for still live
_QOS = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)


class CreditGiver:
    """The reader's part."""

    def __init__(self, node: Node, topic: str):
        """Say that the reader is there."""
        self._node, self._name = node, node.get_fully_qualified_name()
        self._publisher = node.create_publisher(KeyValue, f'{topic}/consumed', _QOS)
        self.give(-1)

    def give(self, value_id: int) -> None:
        """Say that everything up to this id is consumed."""
        self._publisher.publish(KeyValue(key=self._name, value=str(value_id)))

    def close(self) -> None:
        """Say nothing more."""
        self._node.destroy_publisher(self._publisher)


class CreditAsker:
    """The publisher's part."""

    def __init__(self, node: Node, publisher: Publisher, depth: int):
        """Listen to the readers of a publisher that keeps `depth` messages."""
        self._node, self._topic = node, publisher.topic_name
        self._consumed: dict[str, int] = {}  # by reader
        self._sent: deque[int] = deque(maxlen=min(depth, WINDOW))  # ids that may be on their way
        self._changed = threading.Condition()
        self._closed = self._discovered = False
        self._subscription = node.create_subscription(
            KeyValue, f'{self._topic}/consumed', self._hear, _QOS, callback_group=MutuallyExclusiveCallbackGroup()
        )

    def discover(self) -> None:
        """Wait a moment, once, for the readers to say that they are here."""
        with self._changed:
            if not self._discovered:
                self._changed.wait_for(lambda: self._consumed or self._closed, _DISCOVERY)
            self._discovered = True

    def wait(self, value_id: int) -> None:
        """Wait until every reader has room for one more value, and take note that this one goes out."""
        census = time.monotonic() + _CENSUS
        with self._changed:
            while len(self._sent) == self._sent.maxlen and self._sent[0] > self._slowest() and not self._closed:
                if not self._changed.wait(0.1) and not self._node.context.ok():
                    return
                if time.monotonic() > census:
                    self._forget_the_dead()
                    census = time.monotonic() + _CENSUS
            self._sent.append(value_id)

    def close(self) -> None:
        """Free whoever waits."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._node.destroy_subscription(self._subscription)

    def _slowest(self) -> float:
        return min(self._consumed.values(), default=float('inf'))

    def _hear(self, message: KeyValue) -> None:
        value_id = int(message.value)
        with self._changed:
            if message.key not in self._consumed and self._sent:
                value_id = max(value_id, self._sent[-1])  # it came late: it owes nothing for what went before
            self._consumed[message.key] = value_id
            self._changed.notify_all()

    def _forget_the_dead(self) -> None:
        living = {
            f'{each.node_namespace.rstrip("/")}/{each.node_name}'
            for each in self._node.get_subscriptions_info_by_topic(self._topic)
        }
        self._consumed = {name: value_id for name, value_id in self._consumed.items() if name in living}
