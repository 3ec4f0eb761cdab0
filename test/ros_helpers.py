# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A corner of the ROS graph for one test, on a domain of its own."""

import os
import sys
import threading
import time
from socketserver import BaseServer

os.environ.setdefault('AMENT_PREFIX_PATH', sys.prefix)
os.environ.setdefault('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')

import pytest
import rclpy
from domains import next_domain
from rclpy.context import Context
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.task import Future

from slam3r_ros.nodes import base, pulse
from slam3r_ros.transport.bus import close_node, stop_node
from slam3r_ros.transport.executor import PoolExecutor
from slam3r_ros.transport.worker import Worker

PACE = 4
PATIENCE = 30.0  # seconds until what is waited for counts as missing, however busy the machine is


def wait_until(condition, seconds=PATIENCE, pause=0.005):
    """Wait for a condition that stays true once it is; fail when it does not come true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, 'waited in vain'
        time.sleep(pause)


def wait_for_match(writer, reader, *topics):
    """Wait until a node's publishers and another's subscriptions know each other: from then on nothing is lost."""

    def matched(topic):
        written = [each.get_subscription_count() for each in writer.publishers if each.topic_name == topic]
        read = [each.get_publisher_count() for each in reader.subscriptions if each.topic_name == topic]
        return written and read and all(written + read)

    wait_until(lambda: all(map(matched, topics)))


def end(process):
    """End another process of the graph in order: one killed amid a message may crash those it shares memory with."""
    process.terminate()
    try:
        process.communicate(timeout=PATIENCE)
    finally:
        process.kill()


class Ros:
    """Nodes of one process, spinning in the background; `apart` has a context, thus a DDS participant, of its own."""

    def __init__(self, domain=None):
        self.domain = next_domain() if domain is None else domain
        self.context = Context()
        rclpy.init(context=self.context, domain_id=self.domain)
        self.executor = PoolExecutor(8, context=self.context)
        self.nodes = []
        self._others = []
        self._clients = {}
        self._end = Future()
        self._thread = threading.Thread(target=self._spin, daemon=True)
        self._thread.start()

    def _spin(self):
        try:
            self.executor.spin_until_future_complete(self._end)
        except ExternalShutdownException:
            pass

    def node(self, node_class=Node, *args, parameters=None, **kwargs):
        overrides = [Parameter(name, value=value) for name, value in (parameters or {}).items()]
        node = node_class(*args, context=self.context, parameter_overrides=overrides, **kwargs)
        self.nodes.append(node)
        self.executor.add_node(node)
        return node

    def apart(self):
        """Return another corner on the same domain, which sees this one over DDS only."""
        self._others.append(Ros(self.domain))
        return self._others[-1]

    def client(self, node, service_type, name):
        """Return a node's client, once it and the service know each other: what is answered before that is lost."""
        key = node, service_type, name
        if key not in self._clients:
            self._clients[key] = node.create_client(service_type, name)

        def known():
            corners = [corner.nodes[0] for corner in (self, *self._others) if corner.nodes]
            return all(each.count_clients(name) >= node.count_clients(name) for each in corners)

        wait_until(lambda: self._clients[key].service_is_ready() and known())
        return self._clients[key]

    def call(self, node, service_type, name, request=None, seconds=PATIENCE):
        future = self.client(node, service_type, name).call_async(request or service_type.Request())
        wait_until(future.done, seconds)
        return future.result()

    def close(self):
        for other in self._others:
            other.close()
        for node in self.nodes:
            stop_node(node)
        for node in self.nodes:
            self.executor.remove_node(node)
            close_node(node)
            node.destroy_node()
        self._end.set_result(None)
        self._thread.join(PATIENCE)  # first: the executor may not lose what it waits with while it spins
        self.executor.shutdown(5.0)
        self.context.try_shutdown()


@pytest.fixture
def quick(monkeypatch):
    """Have nodes do `PACE` times as often what they do from time to time."""
    every = Worker.every
    monkeypatch.setattr(Worker, 'every', lambda self, seconds, callback: every(self, seconds / PACE, callback))
    monkeypatch.setattr(pulse, 'PERIOD', pulse.PERIOD / PACE)
    monkeypatch.setattr(base, '_FAREWELL', base._FAREWELL / PACE)
    monkeypatch.setattr(BaseServer.serve_forever, '__defaults__', (0.02,))  # seconds until it sees that it shall end


@pytest.fixture(name='ros')
def ros_fixture():
    corner = Ros()
    yield corner
    corner.close()
