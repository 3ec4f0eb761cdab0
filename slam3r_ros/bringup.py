# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Brings up managed nodes: configures all of them in the order given, then activates them in that order.

The launch file uses it for nodes that it starts with `autostart:=false`.
"""

import argparse
import signal
import sys
import time
from collections.abc import Sequence

import rclpy
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from rclpy.client import Client
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node

from slam3r_ros.container import GRAPH
from slam3r_ros.nodes.process import begin, own_arguments, shield_the_end

TRANSITIONS = {'configure': Transition.TRANSITION_CONFIGURE, 'activate': Transition.TRANSITION_ACTIVATE}
_NOTICE = 5.0  # seconds between two lines that say what is waited for


class BringUpError(RuntimeError):
    """A node refuses, or has gone; the message names it."""


def bring_up(node: Node, names: Sequence[str]) -> None:
    """Configure nodes, then activate them; waits for those that are not there yet.

    Args:
        node: That asks them; nobody else spins it.
        names: Of the nodes, relative to the namespace of `node`; those that read before those that publish.

    Raises:
        BringUpError: A node refuses, or has gone.
    """
    executor = SingleThreadedExecutor(context=node.context)
    executor.add_node(node)
    clients = {name: node.create_client(ChangeState, f'{name}/change_state') for name in names}
    for label, transition in TRANSITIONS.items():
        for name, client in clients.items():
            request = ChangeState.Request()
            request.transition.id = transition
            _wait_for_service(node, name, client)
            answer = client.call_async(request)
            while not answer.done():
                executor.spin_until_future_complete(answer, timeout_sec=1.0)
                if not answer.done() and not client.service_is_ready():
                    raise BringUpError(f'{name} has gone while it was asked to {label}')
            if not answer.result().success:
                raise BringUpError(f'{name} does not {label}; its log says why')
    node.get_logger().info(f'active: {", ".join(names)}')


def _wait_for_service(node: Node, name: str, client: Client) -> None:
    notice = time.monotonic() + _NOTICE
    while not client.wait_for_service(timeout_sec=0.2):
        if time.monotonic() > notice:
            node.get_logger().info(f'waiting for {name}')
            notice += _NOTICE


def main(arguments: Sequence[str] | None = None) -> int:
    """Bring up nodes; return the exit status."""
    arguments = sys.argv if arguments is None else arguments
    parser = argparse.ArgumentParser(prog='bring_up', description=main.__doc__)
    parser.add_argument('names', nargs='*', default=list(GRAPH), help='nodes, in order (default: %(default)s)')
    names = parser.parse_args(own_arguments(arguments)).names
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # rclpy ends the context; no KeyboardInterrupt at the very end
    begin(arguments)
    try:
        node = Node('bring_up')
        bring_up(node, names)
        return 0
    except BringUpError as error:
        node.get_logger().error(str(error))
        return 1
    except ExternalShutdownException:
        return 0
    except RuntimeError:  # of rcl
        if rclpy.ok():
            raise
        return 0  # a signal ended the context between two of its calls
    finally:
        shield_the_end()
        rclpy.try_shutdown()


if __name__ == '__main__':
    sys.exit(main())
