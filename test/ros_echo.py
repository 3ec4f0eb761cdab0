# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A process that sends back every message of this package, and answers its services with what was asked."""

from contextlib import suppress

import rclpy
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node

from slam3r_ros import msg, srv

MESSAGES = (msg.Frame, msg.Keyframe, msg.MeshBlock, msg.MeshUpdate, msg.CompressedMesh, msg.SlamStatus)


def answer_save(request, response):
    response.success, response.message = request.overwrite, f'{request.format} {request.method}'
    response.files = [request.path, 'second']
    return response


def answer_load(request, response):
    response.success, response.message, response.map_id = True, request.path, 4
    return response


def answer_get(request, response):
    response.success, response.mesh.map_id = True, request.map_id
    response.mesh.blocks = [msg.MeshBlock(vertices=[1.0, 2.0, 3.0], colors=[7, 8, 9])]
    return response


def answer_scale(request, response):
    response.success, response.message = True, str(request.metres_per_unit)
    return response


SERVICES = {
    srv.SaveMap: answer_save,
    srv.LoadMap: answer_load,
    srv.GetMesh: answer_get,
    srv.SetScale: answer_scale,
}


def main():
    rclpy.init()
    node = Node('echo')
    for kind in MESSAGES:
        publisher = node.create_publisher(kind, f'out/{kind.__name__}', 10)
        node.create_subscription(kind, f'in/{kind.__name__}', publisher.publish, 10)
    for kind, answer in SERVICES.items():
        node.create_service(kind, f'echo/{kind.__name__}', answer)
    print('ready', flush=True)
    with suppress(ExternalShutdownException):
        rclpy.spin(node)


if __name__ == '__main__':
    main()
