# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A corner of the ROS graph for one test, on a domain of its own."""

import itertools
import os
import sys
import threading
import time

os.environ.setdefault('AMENT_PREFIX_PATH', sys.prefix)
os.environ.setdefault('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')

import pytest
import rclpy
from rclpy.context import Context
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.parameter import Parameter

from slam3r_ros.transport.bus import close_node, stop_node
from slam3r_ros.transport.executor import PoolExecutor

_domains = itertools.count(os.getpid() * 7)


def next_domain() -> int:
    """Return a domain that the tests before did not use; those above 101 meet the ephemeral ports."""
    return 1 + next(_domains) % 100


def wait_until(condition, seconds=10.0):
    """Wait for a condition; fail when it does not come true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, 'waited in vain'
        time.sleep(0.005)


class Ros:
    """Nodes of one process, spinning in the background; `apart` has a context, thus a DDS participant, of its own."""

    def __init__(self, domain=None):
        self.domain = next_domain() if domain is None else domain
        self.context = Context()
        rclpy.init(context=self.context, domain_id=self.domain)
        self.executor = PoolExecutor(8, context=self.context)
        self.nodes = []
        self._others = []
        self._thread = threading.Thread(target=self._spin, daemon=True)
        self._thread.start()

    def _spin(self):
        try:
            self.executor.spin()
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

    def call(self, node, service_type, name, request=None, seconds=20.0):
        client = node.create_client(service_type, name)
        try:
            assert client.wait_for_service(seconds), f'{name} did not appear'
            future = client.call_async(request or service_type.Request())
            wait_until(future.done, seconds)
            return future.result()
        finally:
            node.destroy_client(client)

    def close(self):
        for other in self._others:
            other.close()
        for node in self.nodes:
            stop_node(node)
        for node in self.nodes:
            self.executor.remove_node(node)
            close_node(node)
            node.destroy_node()
        self.executor.shutdown(5.0)
        self.context.try_shutdown()
        self._thread.join(5)


@pytest.fixture(name='ros')
def ros_fixture():
    corner = Ros()
    yield corner
    corner.close()
