# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A process that publishes frames on a topic and reads the same topic, both by the bus.

Says `ready` when it sees the other process on both ways; a line on stdin tells which ids to publish, the next one
that it shall print the ids that it has read, each with whether it was the very object that it published.
"""

import json
import sys

import numpy as np
from ros_helpers import Ros, wait_until

from slam3r_ros.transport.bus import create_publisher, create_subscription
from slam3r_ros.values import Frame

PATIENCE = 60.0  # seconds


def main() -> None:
    corner, depth, lossless = Ros(int(sys.argv[1])), int(sys.argv[2]), 'lossless' in sys.argv
    node = corner.node(node_name='twin')
    publisher = create_publisher(node, Frame, 'frames', depth, lossless=lossless)
    sent, seen = {}, []
    subscription = create_subscription(node, Frame, 'frames', seen.append, depth, lossless)
    wait_until(lambda: publisher.outside_readers() == 2 and subscription.dds_id, PATIENCE)
    wait_until(lambda: subscription._dds.get_publisher_count() == 2)  # matched too, not only known
    wait_until(lambda: not lossless or len(publisher._asker._consumed) == 2)  # and their words were heard
    print('ready', flush=True)
    for i in json.loads(sys.stdin.readline()):
        sent[i] = Frame(i, i, np.full((120, 160, 3), i % 256, np.uint8))
        publisher.publish(sent[i])
    expected = int(sys.stdin.readline())
    wait_until(lambda: len(seen) >= expected, PATIENCE)
    print(json.dumps([(each.id, each is sent.get(each.id)) for each in seen]), flush=True)
    corner.close()


if __name__ == '__main__':
    main()
