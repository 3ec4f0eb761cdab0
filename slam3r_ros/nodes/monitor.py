# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The optional node that shows others, over HTTP, how the nodes of its namespace fare: `/metrics` and `/health`."""

import json
import sys
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup

from slam3r_ros.monitoring.pages import Page, PageServer
from slam3r_ros.monitoring.readings import Readings
from slam3r_ros.nodes.base import PipelineNode
from slam3r_ros.nodes.parameters import ParameterError
from slam3r_ros.nodes.process import run
from slam3r_ros.transport.bus import create_subscription
from slam3r_ros.values import SlamStatus

_QUEUE = 100  # messages: a few seconds of all nodes


class Monitor(PipelineNode):
    """Follows `status` and `/diagnostics`; serves Prometheus' format and JSON."""

    NAME = 'monitor'

    def configure(self) -> None:
        """Open the port.

        Raises:
            ParameterError: prometheus-client is missing, or the port cannot be had.
        """
        try:
            from slam3r_ros.monitoring.metrics import Metrics  # only who monitors needs prometheus-client
        except ImportError as error:
            raise ParameterError(
                f'{self.get_fully_qualified_name()} cannot tell metrics ({error}): `pip install prometheus-client` or '
                '`apt install python3-prometheus-client`'
            ) from None
        self._readings = readings = Readings(self.get_namespace())
        lines = self.worker.inbox(self._note_lines, _QUEUE)
        group = MutuallyExclusiveCallbackGroup()
        self.create_subscription(DiagnosticArray, '/diagnostics', lines.put, _QUEUE, callback_group=group)
        create_subscription(self, SlamStatus, 'status', self._note_status)
        pages = {'/metrics': Metrics(readings).page, '/health': lambda accept: health_page(readings)}
        self._server = self._serve(pages)
        self.closing.callback(self._server.close)

    def diagnostics(self) -> dict[str, Any]:
        """Return where the pages are."""
        return {'port': self._server.port, 'served': self._server.served}

    def _serve(self, pages: dict[str, Callable[[str], Page]]) -> PageServer:
        p = self.parameters
        try:
            server = PageServer(p.metrics_address, p.metrics_port, pages)
        except OSError as error:
            raise ParameterError(
                f'parameters metrics_address and metrics_port of {self.get_fully_qualified_name()}: '
                f'{p.metrics_address}:{p.metrics_port}: {error.strerror}'
            ) from None
        self.get_logger().info(f'/metrics and /health on {p.metrics_address}:{server.port}')
        return server

    def _note_lines(self, message: DiagnosticArray) -> None:
        now = time.monotonic()
        for each in message.status:
            values = {pair.key: pair.value for pair in each.values}
            self._readings.note_line(each.name, ord(each.level), each.message, values, now)

    def _note_status(self, status: SlamStatus) -> None:
        self._readings.note_status(status, time.monotonic())


def health_page(readings: Readings) -> Page:
    """Return how all nodes fare: status 200 when that is well, else 503."""
    health = readings.health(time.monotonic())
    status = HTTPStatus.OK if health['healthy'] else HTTPStatus.SERVICE_UNAVAILABLE
    return Page('application/json', json.dumps(health, indent=1).encode() + b'\n', status)


def main(arguments: list[str] | None = None) -> int:
    """Run the node alone."""
    return run(Monitor, arguments)


if __name__ == '__main__':
    sys.exit(main())
