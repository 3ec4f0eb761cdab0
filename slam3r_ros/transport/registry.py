# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Who takes part in the bus: each topic's publishers and subscriptions in this process, each node's worker."""

import threading
from collections import defaultdict
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

from rclpy.context import Context
from rclpy.node import Node

from slam3r_ros.transport.discovery import Echoes
from slam3r_ros.transport.worker import Worker


@dataclass
class Topic:
    """Who publishes and who reads a topic inside this process; the lists are replaced, never changed."""

    publishers: tuple = ()
    subscriptions: tuple = ()
    echoes: Echoes = field(default_factory=Echoes)


@dataclass
class NodeParts:
    """What a node has on the bus."""

    worker: Worker
    ends: list = field(default_factory=list)  # its publishers and subscriptions


lock = threading.RLock()
_topics: WeakKeyDictionary[Context, defaultdict[str, Topic]] = WeakKeyDictionary()
_nodes: dict[Node, NodeParts] = {}


def nodes() -> set[Node]:
    """Return the nodes that are on the bus."""
    with lock:
        return set(_nodes)


def worker_of(node: Node) -> Worker:
    """Return the one thread on which the node's callbacks run; started at the first call."""
    return parts_of(node).worker


def stop_node(node: Node) -> None:
    """Take nothing more for this node, and free those who wait for it; call `close_node` afterwards."""
    with lock:
        parts = _nodes.get(node)
    if parts is not None:
        parts.worker.stop()


def close_node(node: Node, timeout: float = 10.0) -> bool:
    """End the node's worker, its publishers and its subscriptions; call it before destroying the node.

    Returns:
        Whether the callback that ran has ended within `timeout` seconds.
    """
    with lock:
        parts = _nodes.pop(node, None)
    if parts is None:
        return True
    if not (ended := parts.worker.close(timeout)):
        node.get_logger().warning('a callback is still running; going on without it')
    for end in parts.ends:
        end.close()
    return ended


def topic_of(node: Node, topic: str) -> Topic:
    """Return a topic by its name, resolved as the node does."""
    with lock:
        return _topics.setdefault(node.context, defaultdict(Topic))[node.resolve_topic_name(topic)]


def parts_of(node: Node) -> NodeParts:
    """Return what a node has on the bus; its worker is started at the first call."""
    with lock:
        if node not in _nodes:
            logger = node.get_logger()

            def report(traceback: str) -> None:
                if node.context.ok():  # else publishing fails since the process is ending
                    logger.error(traceback)

            _nodes[node] = NodeParts(Worker(node.get_fully_qualified_name(), report))
        return _nodes[node]
