# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
import threading
import time

import pytest
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup, ReentrantCallbackGroup
from rclpy.executors import ExternalShutdownException
from rclpy.waitable import NumberOfEntities, Waitable
from ros_helpers import Ros, ros_fixture, wait_until  # noqa: F401
from std_msgs.msg import UInt64
from std_srvs.srv import Trigger

from slam3r_ros.nodes.spinner import Spinner
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


class Destroyer(Waitable):
    """Destroys a subscription when the executor has gathered what to wait for, but does not wait yet."""

    def __init__(self, node):
        super().__init__(ReentrantCallbackGroup())
        self.node, self.victims = node, []

    def get_num_entities(self):
        for victim in self.victims:
            self.node.destroy_subscription(victim)
        self.victims.clear()
        return NumberOfEntities()

    def __enter__(self):
        pass

    def __exit__(self, *_):
        pass

    def is_ready(self, wait_set):
        return False

    add_to_wait_set = take_data = execute = is_ready


@pytest.mark.parametrize('make', [
    lambda ros, node: PoolExecutor(2, context=ros.context), lambda ros, node: Spinner(node),
])  # fmt: skip
def test_what_is_destroyed_amid_the_gathering_ends_nothing(ros, make):
    node, ticks = ros.node(node_name='node'), []
    destroyer = Destroyer(node)
    node.add_waitable(destroyer)  # before the victims, thus asked before their events
    victims = [node.create_subscription(UInt64, f'topic{i}', print, 10) for i in range(5)]
    ros.executor.remove_node(node)
    node.create_timer(0.005, lambda: ticks.append(1))
    executor = make(ros, node)
    if not isinstance(executor, Spinner):
        executor.add_node(node)
        threading.Thread(target=spin, args=(executor,), daemon=True).start()
    for victim in victims:
        wait_until(lambda: len(ticks) > 3)
        destroyer.victims.append(victim)
        wait_until(lambda: not destroyer.victims)
        ticks.clear()
    wait_until(lambda: len(ticks) > 3)
    executor.remove_node(node)
    executor.close() if isinstance(executor, Spinner) else executor.shutdown()


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
