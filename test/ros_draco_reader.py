# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A process that follows a compressed mesh until it holds something, and says what."""

import json
import sys
from contextlib import suppress

import rclpy
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node

from slam3r_ros import msg
from slam3r_ros.meshing.draco import decompress
from slam3r_ros.meshing.reader import MeshCopy
from slam3r_ros.transport.meshes import compressed_from_message


def main(topic):
    rclpy.init()
    node, copy = Node('draco_reader'), MeshCopy()

    def take(message):
        if copy.apply(decompress(compressed_from_message(message))) and copy.blocks:
            seen = {'frame': message.header.frame_id, 'blocks': len(copy.blocks), 'triangles': len(copy.mesh()[2])}
            print(json.dumps(seen), flush=True)

    node.create_subscription(msg.CompressedMesh, topic, take, 10)
    with suppress(ExternalShutdownException):
        rclpy.spin(node)


if __name__ == '__main__':
    main(*sys.argv[1:])
