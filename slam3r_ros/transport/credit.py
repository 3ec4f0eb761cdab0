# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Back-pressure between processes, which DDS does not give without losses or endless queues.

A lossless reader says on `<topic>/consumed` (diagnostic_msgs/KeyValue: its name, the key of the value it has
done with) how far it is, and the publisher has at most as many values on the way as its queue is deep.
Readers that say nothing, such as `ros2 topic echo`, are not waited for.
"""

import threading
import time
from collections import deque
from collections.abc import Callable

from diagnostic_msgs.msg import KeyValue
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import DurabilityPolicy, QoSProfile

from slam3r_ros.transport.inbox import pausable

WINDOW = 16  # values on their way at most; lossless readers keep that many for their executor
_DISCOVERY = 0.5  # seconds until a reader's first word must be here once it is matched
_CENSUS = 1.0  # seconds between two looks at whether the readers waited for still live
_GIVE_QOS = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)  # what was said before is void
_ASK_QOS = QoSProfile(depth=100, durability=DurabilityPolicy.TRANSIENT_LOCAL)  # several readers speak at once


class CreditGiver:
    """The reader's part."""

    def __init__(self, node: Node, topic: str):
        """Say that the reader is there."""
        self._node, self._name = node, node.get_fully_qualified_name()
        self._publisher = node.create_publisher(KeyValue, f'{topic}/consumed', _GIVE_QOS)
        self.give('')

    def give(self, key: str) -> None:
        """Say that everything up to the value with this key is consumed."""
        self._publisher.publish(KeyValue(key=self._name, value=key))

    def close(self) -> None:
        """Say nothing more."""
        self._node.destroy_publisher(self._publisher)


class CreditAsker:
    """The publisher's part."""

    def __init__(
        self,
        node: Node,
        publisher: Publisher,
        depth: int,
        stopped: Callable[[], bool],
        is_inside: Callable[[str], bool] = lambda name: False,
    ):
        """Listen to the readers of a publisher.

        Args:
            node: Whose publisher it is.
            publisher: Of the values.
            depth: Messages that it keeps.
            stopped: Whether waiting has become pointless.
            is_inside: Whether a reader, told by its node's full name, gets the values in another way.
        """
        self._node, self._topic = node, publisher.topic_name
        self._stopped, self._is_inside = stopped, is_inside
        self._count = 0  # values sent
        self._consumed: dict[str, int] = {}  # of them, by reader
        self._sent: deque[str] = deque(maxlen=min(depth, WINDOW))  # keys of those that may be on their way
        self._changed = threading.Condition()
        self._closed = self._discovered = False
        self._subscription = node.create_subscription(
            KeyValue, f'{self._topic}/consumed', self._hear, _ASK_QOS, callback_group=MutuallyExclusiveCallbackGroup()
        )

    def discover(self) -> None:
        """Wait a moment, once, for the readers to say that they are here."""
        with self._changed:
            if not self._discovered:
                self._changed.wait_for(lambda: self._consumed or self._closed, _DISCOVERY)
            self._discovered = True

    @pausable()
    def wait(self, key: str) -> None:
        """Wait until every reader has room for one more value, and take note that this one goes out."""
        census = time.monotonic() + _CENSUS
        with self._changed:
            while self._count - self._slowest() >= self._sent.maxlen and not self._closed and not self._stopped():
                self._changed.wait(0.1)
                if time.monotonic() > census:
                    self._forget_the_dead()
                    census = time.monotonic() + _CENSUS
            self._sent.append(key)
            self._count += 1

    def close(self) -> None:
        """Free whoever waits."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._node.destroy_subscription(self._subscription)

    def _slowest(self) -> int:
        return min(self._consumed.values(), default=self._count)

    def _hear(self, message: KeyValue) -> None:
        if self._is_inside(message.key):
            return
        with self._changed:
            if message.value in self._sent:
                still_on_the_way = len(self._sent) - 1 - self._sent.index(message.value)
                self._consumed[message.key] = self._count - still_on_the_way
            elif not message.value or message.key not in self._consumed:
                self._consumed[message.key] = self._count  # it has just come: it owes nothing for what went before
            self._changed.notify_all()

    def _forget_the_dead(self) -> None:
        living = {
            f'{each.node_namespace.rstrip("/")}/{each.node_name}'
            for each in self._node.get_subscriptions_info_by_topic(self._topic)
        }
        self._consumed = {name: count for name, count in self._consumed.items() if name in living}
