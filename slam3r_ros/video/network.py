# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Connections to live video: H.264 over WebSocket, RTSP and HTTP, cameras of this machine."""

import errno
import logging
import socket
import ssl
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import av

from slam3r_ros.video.decoder import Decoder, accelerator, picture
from slam3r_ros.video.file import find_stream
from slam3r_ros.video.live import Connect, Pictures
from slam3r_ros.video.picture import Picture, VideoError, one_line
from slam3r_ros.video.streams import H264Stream

SILENCE = 5.0  # seconds without data after which a connection counts as dead
PATIENCE = 15.0  # seconds of data without a whole picture, likewise: a new connection mostly begins with a key picture
MAX_MESSAGE = 4 << 20  # bytes of a WebSocket message
_POLL = 0.5  # seconds between two looks at whether the source was closed
_OPEN = 10.0  # seconds to connect

# What a stream may open besides; above all no files, which a playlist could name.
_PROTOCOLS = {
    'rtsp': 'tcp,udp,rtp',
    'rtsps': 'tcp,udp,rtp,srtp,tls',
    'http': 'http,https,tcp,tls,crypto',
    'https': 'https,tcp,tls,crypto',
}
_AUTHORITY = 'name the file of its authority in SSL_CERT_FILE'

SILENT = logging.getLogger(__name__)  # of websockets: what it would say comes as an exception too
SILENT.setLevel(logging.CRITICAL + 1)

Batches = Iterator[list[Picture | None]]


@contextmanager
def websocket(
    name: str, url: str, closed: threading.Event, hardware: str = '', silence: float = SILENCE
) -> Iterator[Pictures]:
    """Connect to a server that sends an H.264 byte stream in binary messages, cut anywhere.

    Text messages are passed over.  Nothing is sent, no proxy is used, and the server cannot send us elsewhere.

    Args:
        name: For errors.
        url: ws:// or wss://
        closed: Ends the pictures.
        hardware: As in `Decoder.of`.
        silence: Seconds without a message after which the connection counts as dead.

    Raises:
        VideoError: There is no connection, or none any more.
    """
    from websockets.exceptions import ConnectionClosed, ConnectionClosedOK, WebSocketException
    from websockets.sync.client import connect
    from websockets.uri import parse_uri

    def batches() -> Batches:
        stream, heard = H264Stream(name, hardware), time.monotonic()
        while not closed.is_set():
            try:
                message = connection.recv(timeout=min(_POLL, silence))
            except TimeoutError:
                if time.monotonic() - heard > silence:
                    raise VideoError(f'{name}: nothing came for {silence:.0f} s') from None
                continue
            except ConnectionClosedOK:
                yield stream.flush()
                return
            heard = time.monotonic()
            if isinstance(message, bytes):
                yield stream.feed(message, time.monotonic_ns())

    try:
        server = parse_uri(url)
        with socket.create_connection((server.host, server.port), _OPEN) as tcp:
            tcp.settimeout(None)
            with connect(  # to a socket of ours: it follows no redirection
                url, sock=tcp, max_size=MAX_MESSAGE, compression=None, proxy=None, open_timeout=_OPEN,
                close_timeout=_POLL, ping_interval=None, logger=SILENT,
            ) as connection:  # fmt: skip
                yield _watched(name, batches())
    except ssl.SSLCertVerificationError as error:
        reason = f'its certificate is not trusted ({error.verify_message})'
        raise VideoError(f'{name}: {reason}; {_AUTHORITY}') from None
    except ConnectionClosed as error:
        raise VideoError(f'{name}: the connection was closed ({one_line(error)})') from None
    except (WebSocketException, TimeoutError) as error:
        raise VideoError(f'{name}: no connection ({one_line(error).replace(url, name)})') from None


@contextmanager
def ffmpeg(
    name: str, url: str, closed: threading.Event, hardware: str = '', silence: float = SILENCE
) -> Iterator[Pictures]:
    """Connect by FFmpeg to rtsp://, http:// or a camera's device file; arguments and errors as in `websocket`."""
    scheme = url.partition('://')[0] if '://' in url else ''
    if not scheme and not Path(url).is_char_device():
        found = ', '.join(sorted(map(str, Path('/dev').glob('video[0-9]*')))) or 'none'
        raise VideoError(f'{name}: is no camera of this machine; cameras: {found}')
    options = {'fpsprobesize': '0'}  # what comes while FFmpeg looks for the rate would come late
    if scheme in ('rtsp', 'rtsps'):
        options['rtsp_flags'] = 'prefer_tcp'
    if scheme in ('http', 'https', 'rtsps'):  # http may lead to https
        options |= {'tls_verify': '1'} | _authorities()
    if scheme:
        options['protocol_whitelist'] = _PROTOCOLS[scheme]

    def batches(container: av.container.InputContainer) -> Batches:
        stream = find_stream(name, container)
        decoder = Decoder(stream.codec_context)
        for packet in container.demux(stream):
            if closed.is_set():
                return
            came = time.monotonic_ns()
            yield [frame and picture(name, frame, came) for frame in decoder.decode(packet)]

    try:
        with av.open(
            url, 'r', format=None if scheme else 'v4l2', options=options, timeout=(_OPEN, silence),
            hwaccel=accelerator(hardware),
        ) as container:  # fmt: skip
            yield _watched(name, batches(container))
    except av.error.ExitError:  # the timeout
        raise VideoError(f'{name}: nothing came for {silence:.0f} s') from None
    except av.FFmpegError as error:
        reason = 'is a device, but no camera' if error.errno == errno.ENOTTY else error.strerror
        if scheme in ('https', 'rtsps') and error.errno == errno.EIO:  # it says no more
            reason += f'; if its certificate is not trusted, {_AUTHORITY}'
        raise VideoError(f'{name}: {reason}') from None


def _authorities() -> dict[str, str]:
    """Return the option that tells FFmpeg whom to trust, as Python does: the one that comes with PyAV does not know."""
    known = ssl.get_default_verify_paths()
    folders = filter(None, (known.capath, '/etc/ssl/certs'))
    places = [known.cafile, *(Path(folder, 'ca-certificates.crt') for folder in folders)]
    return next(({'ca_file': str(path)} for path in places if path and Path(path).is_file()), {})


def connection(uri: str, name: str, hardware: str = '') -> Connect:
    """Return what connects to a URI; nothing is opened yet.

    Raises:
        VideoError: The scheme is unknown.
    """
    scheme = uri.partition('://')[0] if '://' in uri else ''
    if scheme and scheme not in _PROTOCOLS and scheme not in ('ws', 'wss'):
        raise VideoError(f'{name}: {scheme} is not supported; give ws, wss, {", ".join(_PROTOCOLS)}')
    connect = websocket if scheme in ('ws', 'wss') else ffmpeg
    return partial(connect, name, uri, hardware=hardware)


def _watched(name: str, batches: Iterable[list[Picture | None]]) -> Pictures:
    """Yield the pictures; an error when none comes for long though data do."""
    last = time.monotonic()
    for batch in batches:
        yield from batch
        if any(batch):
            last = time.monotonic()
        elif time.monotonic() - last > PATIENCE:
            raise VideoError(f'{name}: data come, but no picture could be decoded for {PATIENCE:.0f} s')
