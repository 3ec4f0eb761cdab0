# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A small HTTP server for a few pages, which nobody can exhaust.

A request has 8 KiB and 5 seconds in all, an answer 5 seconds; 16 clients are served at a time, more are turned away.
"""

import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from io import BytesIO
from socketserver import TCPServer, ThreadingMixIn
from typing import Any, NamedTuple

_MAX_HEAD = 8192  # bytes of request line and headers
_SECONDS = 5.0
_MAX_CLIENTS = 16
_END = b'\r\n\r\n'


class Page(NamedTuple):
    """What is answered."""

    content_type: str
    body: bytes
    status: HTTPStatus = HTTPStatus.OK


class PageServer(ThreadingMixIn, TCPServer):
    """Serves pages until it is closed.

    Attributes:
        served: Requests answered.
    """

    allow_reuse_address, request_queue_size = True, 2 * _MAX_CLIENTS

    def __init__(self, address: str, port: int, pages: Mapping[str, Callable[[str], Page]]) -> None:
        """Begin to serve.

        Args:
            address: To bind to; this one alone.
            port: The same; 0 for any that is free.
            pages: What makes a page when it is asked for, by its path; takes the header Accept.

        Raises:
            OSError: The address does not exist here, or the port is taken.
        """
        family, *_, place = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        self.address_family, self.pages, self.served = family, pages, 0
        self._clients: set[socket.socket] = set()
        super().__init__(place[:2], _Handler)
        self._thread = threading.Thread(target=self.serve_forever, name=f'http {address}:{self.port}', daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """Where it listens."""
        return self.server_address[1]

    def close(self) -> None:
        """Serve no more, and leave those who are being served."""
        self.shutdown()
        self._thread.join()
        for client in list(self._clients):
            try:
                client.shutdown(socket.SHUT_RDWR)
            except OSError:  # it has gone
                pass
        self.server_close()  # waits for their threads

    def verify_request(self, request: socket.socket, client_address: Any) -> bool:
        """Turn away who is one too many."""
        if len(self._clients) >= _MAX_CLIENTS:
            return False
        self._clients.add(request)
        return True

    def shutdown_request(self, request: socket.socket) -> None:
        """Part from a client."""
        self._clients.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: socket.socket, client_address: Any) -> None:
        """Say nothing of clients that go away."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server_version, sys_version = 'slam3r_ros', ''

    def handle(self) -> None:
        head = self._receive_head()
        if len(head) > _MAX_HEAD:
            self.wfile.write(b'HTTP/1.0 431 Request Header Fields Too Large\r\n\r\n')
        elif _END in head:
            self.connection.settimeout(_SECONDS)  # for the whole answer: what sendall takes counts as one
            self.rfile = BytesIO(head)
            super().handle()

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _receive_head(self) -> bytes:
        """Return what comes up to the end of the headers or of the time, hardly more than `_MAX_HEAD`."""
        head, deadline = b'', time.monotonic() + _SECONDS
        while _END not in head and len(head) <= _MAX_HEAD and (left := deadline - time.monotonic()) > 0:
            self.connection.settimeout(left)
            if not (part := self.connection.recv(_MAX_HEAD + 1 - len(head))):
                break
            head += part
        return head

    def _answer(self, with_body: bool) -> None:
        self.server.served += 1
        pages = self.server.pages
        make = pages.get(self.path.partition('?')[0])
        if make is None:
            page = Page('text/plain', f'there is {" and ".join(pages)}\n'.encode(), HTTPStatus.NOT_FOUND)
        else:
            page = make(self.headers.get('Accept', ''))
        self.send_response(page.status)
        self.send_header('Content-Type', page.content_type)
        self.send_header('Content-Length', str(len(page.body)))
        self.end_headers()
        if with_body:
            self.wfile.write(page.body)
