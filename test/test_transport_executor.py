# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
import threading
import time

import pytest
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup, ReentrantCallbackGroup
from rclpy.executors import ExternalShutdownException
from ros_helpers import Ros, ros_fixture, wait_until  # noqa: F401
from std_msgs.msg import UInt64
from std_srvs.srv import Trigger

from slam3r_ros.transport.executor import PoolExecutor


def test_a_callback_is_handed_over_once(ros, monkeypatch):
    """Where it is handed over until a thread takes it, thousands of times, every thread of the process starves."""
    node, seen, handed_over = ros.node(node_name='reader'), [], []
    publisher = ros.apart().node(node_name='writer').create_publisher(UInt64, 'numbers', 100)
    node.create_subscription(UInt64, 'numbers', lambda message: seen.append(message.data), 100)
    wait_until(publisher.get_subscription_count)
    submit = ros.executor._executor.submit
    monkeypatch.setattr(ros.executor._executor, 'submit', lambda work: handed_over.append(work) or submit(work))
    for i in range(50):
        publisher.publish(UInt64(data=i))
        wait_until(lambda i=i: len(seen) > i)
    assert len(handed_over) == 50


def spin(executor):
    try:
        executor.spin()
    except ExternalShutdownException:
        pass


def test_callbacks_of_several_groups_run_at_the_same_time(ros):
    node, gate = ros.node(node_name='node'), threading.Event()
    started = []

    def wait():
        started.append(1)
        gate.wait(5)

    for _ in range(3):
        node.create_timer(0.01, wait, callback_group=MutuallyExclusiveCallbackGroup())
    wait_until(lambda: len(started) == 3)
    time.sleep(0.05)
    assert len(started) == 3  # each group one at a time
    gate.set()


@pytest.mark.parametrize('threads', [2, 8])
def test_services_are_answered_while_callbacks_block(threads):
    ros, gate = Ros(), threading.Event()
    try:
        executor = PoolExecutor(threads, context=ros.context)
        node = ros.node(node_name='server')
        ros.executor.remove_node(node)
        executor.add_node(node)
        thread = threading.Thread(target=spin, args=(executor,))
        thread.start()
        node.create_timer(0.01, lambda: gate.wait(5), callback_group=MutuallyExclusiveCallbackGroup())
        node.create_service(
            Trigger, 'answer', lambda request, response: response, callback_group=ReentrantCallbackGroup()
        )
        client = ros.node(node_name='client')
        for _ in range(20):
            ros.call(client, Trigger, 'answer')
        gate.set()
        executor.remove_node(node)
        executor.shutdown()
        thread.join(5)
    finally:
        ros.close()
