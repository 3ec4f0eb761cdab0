# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Publish and subscribe on our own values: by reference inside the process, over DDS to the outside.

Type adaptation in the manner of REP-2007, which rclpy lacks:

    create_subscription(node, Frame, 'frames', callback, depth=2)
    publisher = create_publisher(node, Frame, 'frames')
    publisher.publish(Frame(...))

- Inside one process a subscriber gets the very object that was published, through a bounded queue that the one
  thread of its node, a `Worker`, serves.  When the queue is full the oldest value is dropped and counted, or, for a
  lossless subscription, the publisher waits.  What that asks of who publishes and who reads: `sealing`.
- The object becomes a ROS message only while a subscriber outside exists, once, whatever their number.
- A subscription reads DDS only while a publisher outside exists, beside what comes from inside; values are the
  same type either way.  What the process published itself is not taken from DDS a second time: `discovery`.
- Other packages' types join by `slam3r_ros.transport.messages.register_adapter`.

Outside is whatever speaks DDS, plain rclpy endpoints of the same process included.  A process here means one rclpy
context.  Call `close_node` before a node is destroyed.
"""

from collections.abc import Callable
from typing import Any

from rclpy.node import Node

from slam3r_ros.transport.ends import Publisher, Subscription, count_malformed, outside_reader_ids, queues_of
from slam3r_ros.transport.registry import close_node, stop_node, worker_of

__all__ = [
    'Publisher',
    'Subscription',
    'close_node',
    'count_malformed',
    'create_publisher',
    'create_subscription',
    'outside_reader_ids',
    'queues_of',
    'stop_node',
    'worker_of',
]


def create_publisher(
    node: Node, value_type: type, topic: str, depth: int = 10, frame_id: str = '', lossless: bool = False
) -> Publisher:
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
) -> Subscription:
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
