# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A small RTSP server: H.264 in RTP, interleaved in the TCP connection (RFC 2326, RFC 6184)."""

import base64
import socket
import struct
import threading
from contextlib import contextmanager, suppress

from slam3r_ros.video.h264 import split_annex_b

_PAYLOAD = 400  # bytes of a NAL unit in one RTP packet: larger ones are fragmented
_FRAGMENT = 28  # FU-A
_TICKS = 3000  # of 90 kHz, from one picture to the next


class Player:
    """Sends pictures to a client that has asked for them."""

    def __init__(self, connection):
        self.connection = connection
        self._sequence = self._time = 0

    def send(self, picture):
        """Send the NAL units of an access unit, Annex B, in RTP packets."""
        for packet in self.packets(picture):
            self.connection.sendall(packet)

    def packets(self, picture):
        """Return the RTP packets of an access unit as they go into the TCP connection."""
        units = split_annex_b(picture)
        payloads = [payload for unit in units for payload in _payloads(unit)]
        packets = []
        for payload in payloads:
            marker = 0x80 if payload is payloads[-1] else 0
            head = struct.pack('>BBHII', 0x80, marker | 96, self._sequence & 0xFFFF, self._time & 0xFFFFFFFF, 7)
            packets.append(b'$\0' + struct.pack('>H', len(head + payload)) + head + payload)
            self._sequence += 1
        self._time += _TICKS
        return packets


def _payloads(unit):
    if len(unit) <= _PAYLOAD:
        return [unit]
    parts = [unit[at : at + _PAYLOAD] for at in range(1, len(unit), _PAYLOAD)]
    indicator, of_type = unit[0] & 0xE0 | _FRAGMENT, unit[0] & 31
    ends = [0x80 * (i == 0) | 0x40 * (i == len(parts) - 1) for i in range(len(parts))]
    return [bytes([indicator, end | of_type]) + part for end, part in zip(ends, parts)]


@contextmanager
def rtsp_server(play, parameter_sets=(), port=0, status='200 OK', tls=None):
    """Serve on loopback; yield the URL.

    Args:
        play: Called with a `Player` for each client; when it returns, the connection is closed.
        parameter_sets: SPS and PPS that the description names.
        port: To listen on; 0: any.
        status: Of the answer to DESCRIBE.
        tls: An `SSLContext` to speak rtsps.
    """
    sets = ','.join(base64.b64encode(each).decode() for each in parameter_sets)
    description = (
        'v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=test\r\nc=IN IP4 0.0.0.0\r\nt=0 0\r\nm=video 0 RTP/AVP 96\r\n'
        'a=rtpmap:96 H264/90000\r\na=fmtp:96 packetization-mode=1'
        f'{"; sprop-parameter-sets=" + sets if sets else ""}\r\na=control:track1\r\n'
    )
    answers = {
        'OPTIONS': ('200 OK', 'Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN\r\n', ''),
        'DESCRIBE': (status, 'Content-Type: application/sdp\r\n', description),
        'SETUP': ('200 OK', 'Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\nSession: 1\r\n', ''),
        'PLAY': ('200 OK', 'Session: 1\r\n', ''),
    }

    def secured(connection):
        return tls.wrap_socket(connection, server_side=True) if tls else connection

    def serve(connection):
        with connection, suppress(OSError), secured(connection) as channel, channel.makefile('rb') as lines:
            while words := lines.readline().split():
                fields = dict(line.split(b': ', 1) for line in iter(lines.readline, b'\r\n'))
                status, head, body = answers[words[0].decode()]
                number = fields[b'CSeq'].decode().strip()
                head = f'RTSP/1.0 {status}\r\nCSeq: {number}\r\n{head}Content-Length: {len(body)}\r\n\r\n'
                channel.sendall((head + body).encode())
                if words[0] == b'PLAY':
                    play(Player(channel))
                    return

    with socket.create_server(('127.0.0.1', port)) as listener:
        def accept():
            with suppress(OSError):
                while True:
                    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield f'{"rtsps" if tls else "rtsp"}://127.0.0.1:{listener.getsockname()[1]}/stream'
        listener.shutdown(socket.SHUT_RDWR)
