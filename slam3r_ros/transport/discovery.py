# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Who is outside: what the ROS graph knows of a topic, and which of our own messages DDS brings back to us.

rclpy tells neither the id of its own publishers nor, with a message, who sent it.  Both are had nevertheless:
an endpoint of this process is in the graph as soon as it is made, so that its id is the one that was not there
before; and a message carries its number among those of its writer, and the time of sending.
"""

import logging
import threading
import time
from array import array
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.serialization import deserialize_message

_log = logging.getLogger(__name__)
_PERIOD = 0.1  # seconds between two looks at the graph, 20 microseconds each for a topic
_REMEMBERED = 1024  # messages sent, more than wait in any queue
_SAMPLES = 64  # elements of a sequence that are compared
_ROUNDING = 1000  # nanoseconds; DDS counts time in fractions of 2^-32 s


def publisher_ids(node: Node, topic: str) -> set[bytes]:
    """Return the ids of all publishers of a topic, given by its full name."""
    return {bytes(each.endpoint_gid) for each in node.get_publishers_info_by_topic(topic)}


def subscription_ids(node: Node, topic: str) -> set[bytes]:
    """Return the ids of all subscriptions that read a topic, given by its full name, over DDS."""
    return {bytes(each.endpoint_gid) for each in node.get_subscriptions_info_by_topic(topic)}


def make_endpoint(
    node: Node, topic: str, infos: Callable[[str], list], make: Callable[[], Any]
) -> tuple[Any, bytes]:
    """Make a publisher or a subscription; return it and its id.

    Args:
        node: To which it shall belong.
        topic: Its full name.
        infos: The node's `get_publishers_info_by_topic` or `get_subscriptions_info_by_topic`.
        make: Makes it.
    """
    name = node.get_name(), node.get_namespace()

    def ids() -> set[bytes]:
        return {bytes(each.endpoint_gid) for each in infos(topic) if (each.node_name, each.node_namespace) == name}

    before = ids()
    endpoint = make()
    return endpoint, next(iter(ids() - before), b'')


class Echoes:
    """Tells our own messages on a topic, when DDS brings them back, from those of others.

    A message is ours when it bears the number, among those of its writer, of one that we sent, was sent during the
    very call that sent it, and looks the same.  The first two alone do not do: two programs that were started together
    and publish at the same pace agree in them for minutes.
    """

    def __init__(self):
        """Begin with none sent."""
        self._sent: deque[list] = deque(maxlen=_REMEMBERED)  # [number, earliest, latest nanosecond, fingerprint]

    def publish(self, publisher: Publisher, number: int, message: Any, comes_back: bool = True) -> None:
        """Publish a message and remember it.

        Args:
            publisher: Sends it.
            number: Counts the messages of that publisher, from 1.
            message: Of ROS, or serialised.
            comes_back: Whether somebody in this process reads the topic over DDS now.
        """
        looks = None
        if comes_back:
            is_serialised = isinstance(message, bytes)
            looks = fingerprint(deserialize_message(message, publisher.msg_type) if is_serialised else message)
        entry = [number, time.time_ns() - _ROUNDING, float('inf'), looks]
        self._sent.append(entry)  # the echo may be here before `publish` returns
        publisher.publish(message)
        entry[2] = time.time_ns() + _ROUNDING

    def contain(self, message: Any, info: dict[str, int | None]) -> bool:
        """Return whether a message is one of ours; `info` is what rclpy tells about it."""
        number, stamp = info['publication_sequence_number'], info['source_timestamp']
        looks = [
            looks
            for ours, earliest, latest, looks in list(self._sent)
            if earliest <= stamp <= latest and number in (None, ours)  # some middlewares do not number messages
        ]
        return bool(looks) and (None in looks or fingerprint(message) in looks)


def fingerprint(message: Any) -> tuple:
    """Return the whole numbers and texts of a message, the lengths of its sequences, and some of their elements."""
    found: list[Any] = []
    for name in message.get_fields_and_field_types():
        value = getattr(message, name)
        if isinstance(value, int | str | bytes):  # a float may be rounded on its way
            found.append(value)
        elif hasattr(value, 'get_fields_and_field_types'):
            found.append(fingerprint(value))
        elif isinstance(value, array | np.ndarray):
            found.append((len(value), value[:: max(1, len(value) // _SAMPLES)].tobytes()))
        elif not isinstance(value, float):
            found.append(len(value))
    return tuple(found)


class Lookout:
    """Looks at the ROS graph now and then on a thread of its own, as long as somebody wants to know.

    There are no callbacks for changes of the graph in rclpy, and a node's timer would wait for its other callbacks.
    """

    def __init__(self):
        """Look at nothing yet."""
        self._looks: tuple[Callable[[], None], ...] = ()
        self._running = False
        self._changed = threading.Condition()

    def watch(self, look: Callable[[], None]) -> None:
        """Call a function now and again."""
        with self._changed:
            self._looks += (look,)
            if not self._running:
                self._running = True
                threading.Thread(target=self._run, name='lookout', daemon=True).start()

    def forget(self, look: Callable[[], None]) -> None:
        """Call it no more."""
        with self._changed:
            self._looks = tuple(each for each in self._looks if each != look)
            self._changed.notify_all()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait(_PERIOD)
                if not self._looks:
                    self._running = False
                    return
                looks = self._looks
            for look in looks:
                try:
                    look()
                except Exception:  # noqa: BLE001 - the trouble of one topic must not blind the others
                    _log.exception('a look at the graph failed')
