# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Live sources on loopback: refused, closed, half-open, slow; they come back by themselves, and end at once."""

import random
import shutil
import socket
import ssl
import subprocess
import threading
import time
from contextlib import contextmanager, suppress
from functools import partial
from types import SimpleNamespace

import av
import numpy as np
import pytest
from websockets.sync.server import serve

from slam3r_ros.bench.damage import decode, encode
from slam3r_ros.video import live as live_module
from slam3r_ros.video import network
from slam3r_ros.video import source as source_module
from slam3r_ros.video.live import Backoff, LiveSource
from slam3r_ros.video.picture import Picture, VideoError, printable
from slam3r_ros.video.source import first_frame, open_source

PATH = '/ws/video/consume'
PACKETS = encode({'bf': '0'}, 12)
CLEAN = {image.tobytes() for image in decode(PACKETS)}
WAIT = 30.0  # seconds until a test fails
_guards = []


@contextmanager
def server(handler, port=0, tls=None):
    """Serve WebSocket connections; yield the URL."""
    with serve(handler, '127.0.0.1', port, compression=None, ssl=tls) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        try:
            yield f'{"wss" if tls else "ws"}://127.0.0.1:{running.socket.getsockname()[1]}{PATH}'
        finally:
            running.shutdown()
            thread.join()


@contextmanager
def raw_server(handler):
    """Accept TCP connections and leave them to `handler(connection)`, each on a thread; yield the port."""
    with socket.create_server(('127.0.0.1', 0)) as listener:
        def accept():
            with suppress(OSError):
                while True:
                    connection = listener.accept()[0]
                    threading.Thread(target=handler, args=(connection,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


@contextmanager
def live(url, connect=network.websocket, silence=WAIT, backoff=None):
    """Open a live source that soon tries again."""
    source = LiveSource(url, partial(connect, url, url, silence=silence), backoff=backoff or Backoff(0.01, 0.05))
    try:
        yield source
    finally:
        source.close()
        source._thread.join(WAIT)
        assert not source._thread.is_alive()


def free_port():
    """Return a port where nobody listens, and which nobody else is given."""
    guard = socket.socket()
    guard.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a server of the test may take it
    guard.bind(('127.0.0.1', 0))
    _guards.append(guard)
    return guard.getsockname()[1]


def until(condition):
    end = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < end, 'it never came'
        time.sleep(0.005)


def send_all(connection, pause=0.0):
    """Send the video in pieces that end anywhere, again and again, until the client leaves."""
    data = b''.join(PACKETS)
    with suppress(Exception):
        while True:
            for at in range(0, len(data), 700):
                connection.send(data[at : at + 700])
                time.sleep(pause)


def test_h264_over_websocket_gives_whole_frames_with_rising_stamps():
    before = time.monotonic_ns()
    with server(partial(send_all, pause=0.001)) as url, live(url) as source:
        frames = [source.read(WAIT) for _ in range(20)]
        assert source.error == ''
    assert {frame.image.tobytes() for frame in frames} <= CLEAN
    assert (np.diff([frame.stamp for frame in frames]) >= 0).all()
    assert (np.diff([frame.id for frame in frames]) > 0).all()
    assert 0 <= frames[0].stamp <= time.monotonic_ns() - before
    assert source.skipped == 0 and not any(frame.last for frame in frames)


def test_the_newest_frames_are_kept_and_the_others_counted():
    with server(partial(send_all, pause=0.001)) as url, live(url) as source:
        first = source.read(WAIT)
        until(lambda: source.dropped > 20)
        later = source.read(WAIT)
        assert later.id >= first.id + 20
        assert later.id <= first.id + source.dropped + 3


def test_a_server_that_comes_later_is_found():
    port = free_port()
    with live(f'ws://127.0.0.1:{port}{PATH}') as source:
        until(lambda: 'next attempt' in source.error)
        assert 'Connection refused' in source.error
        with server(partial(send_all, pause=0.001), port):
            assert source.read(WAIT).image.tobytes() in CLEAN
            assert source.error == ''


def test_a_connection_that_is_closed_is_made_again():
    count = 0

    def handler(connection):
        nonlocal count
        count += 1
        for data in PACKETS[:8]:
            connection.send(data)

    with server(handler) as url, live(url) as source:
        until(lambda: count > 3)
        until(lambda: 'the stream has ended' in source.error)
        assert source.read(WAIT).image.tobytes() in CLEAN


def test_a_connection_that_breaks_is_made_again():
    count = 0

    def handler(connection):
        nonlocal count
        count += 1
        if count == 1:
            connection.send(b''.join(PACKETS[:8]) + PACKETS[8][:9])
            connection.socket.shutdown(socket.SHUT_RDWR)
        else:
            send_all(connection, 0.001)

    with server(handler) as url, live(url) as source:
        frames = [source.read(WAIT) for _ in range(20)]
    assert count == 2
    assert {frame.image.tobytes() for frame in frames} <= CLEAN


def test_silence_is_an_error_and_ends_with_the_next_connection():
    count, told = 0, threading.Event()

    def handler(connection):
        nonlocal count
        count += 1
        if told.is_set():
            send_all(connection, 0.001)
        else:
            connection.send(PACKETS[0] + PACKETS[1])
            told.wait(WAIT)

    with server(handler) as url, live(url, silence=0.3, backoff=Backoff(0.4, 0.8)) as source:
        until(lambda: 'nothing came for' in source.error)
        told.set()
        until(lambda: source.error == '')
        assert {source.read(WAIT).image.tobytes() for _ in range(5)} <= CLEAN
    assert count >= 2


def test_a_message_that_trickles_in_without_end_is_silence():
    def handler(connection):
        def trickle():
            while True:
                yield b'x'
                time.sleep(0.02)

        with suppress(Exception):
            connection.send(trickle())

    with server(handler) as url, live(url, silence=0.3) as source:
        until(lambda: 'nothing came for' in source.error)


@pytest.mark.parametrize('answer', [
    b'', b'HTTP/1.1 404 Not Found\r\n\r\n', b'\0' * 100, b'HTTP/1.1 101 \r\n' + b'a: b\r\n' * 100_000,
    b'HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n',
], ids=['closed', '404', 'noise', 'endless headers', 'vast body'])  # fmt: skip
def test_what_is_no_websocket_server_is_an_error(answer):
    def handler(connection):
        with connection, suppress(OSError):
            connection.recv(4096)
            connection.sendall(answer)

    with raw_server(handler) as port, live(f'ws://127.0.0.1:{port}{PATH}') as source:
        until(lambda: 'next attempt' in source.error)
        assert 'no connection' in source.error or 'Error' in source.error


@pytest.mark.parametrize('message', [
    bytes(network.MAX_MESSAGE + 1), [bytes(network.MAX_MESSAGE // 4)] * 5,
], ids=['whole', 'in fragments'])  # fmt: skip
def test_a_message_that_is_too_long_is_refused(message):
    def handler(connection):
        with suppress(Exception):
            connection.send(message)
            connection.recv()

    with server(handler) as url, live(url) as source:
        until(lambda: 'the connection was closed' in source.error)
        assert '1009' in source.error


def test_a_server_that_sends_us_elsewhere_is_not_followed():
    visits = []

    def elsewhere(connection):
        visits.append(connection)
        send_all(connection, 0.001)

    def handler(connection):
        with connection, suppress(OSError):
            connection.recv(4096)
            connection.sendall(f'HTTP/1.1 302 Found\r\nLocation: {url}\r\nContent-Length: 0\r\n\r\n'.encode())

    with server(elsewhere) as url, raw_server(handler) as port, live(f'ws://127.0.0.1:{port}{PATH}') as source:
        until(lambda: 'redirect' in source.error and 'next attempt' in source.error)
        assert source.read(0.1) is None
    assert not visits


def test_a_slow_server_is_no_error_and_its_pictures_are_whole():
    data, errors = b''.join(PACKETS), set()

    def handler(connection):
        with suppress(Exception):
            while True:
                for at in range(0, len(data), 100):
                    connection.send(data[at : at + 100])
                    time.sleep(0.01)

    with server(handler) as url, live(url, silence=3.0) as source:
        for _ in range(15):
            assert source.read(WAIT).image.tobytes() in CLEAN
            errors.add(source.error)
    assert errors == {''}


@pytest.fixture
def certificate(tmp_path):
    """Return the file of a self-signed certificate for 127.0.0.1, and that of its key."""
    if not shutil.which('openssl'):
        pytest.skip('openssl is not installed, which makes the certificate')
    files = tmp_path / 'certificate.pem', tmp_path / 'key.pem'
    subprocess.run(
        ['openssl', 'req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes', '-days', '1',
         '-subj', '/CN=127.0.0.1', '-addext', 'subjectAltName=IP:127.0.0.1', '-out', files[0], '-keyout', files[1]],
        check=True, capture_output=True,
    )  # fmt: skip
    return files


def test_wss_with_a_certificate_that_nobody_knows_is_an_error_that_names_the_way_out(certificate, monkeypatch):
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(*certificate)
    with server(partial(send_all, pause=0.001), tls=tls) as url, live(url) as source:
        until(lambda: 'next attempt' in source.error)
        assert 'its certificate is not trusted (self-signed certificate); name the file of its' in source.error
        monkeypatch.setenv('SSL_CERT_FILE', str(certificate[0]))
        assert source.read(WAIT).image.tobytes() in CLEAN
        assert source.error == ''


def test_wss_where_no_tls_is_spoken_is_an_error():
    with server(send_all) as url, live(url.replace('ws:', 'wss:')) as source:
        until(lambda: 'SSL' in source.error and 'next attempt' in source.error)


def test_text_and_noise_are_passed_over():
    def handler(connection):
        connection.send('{"type": "hello"}')
        connection.send(random.Random(1).randbytes(5000))
        send_all(connection, 0.001)

    with server(handler) as url, live(url) as source:
        assert source.read(WAIT).image.tobytes() in CLEAN


def test_data_without_a_picture_are_an_error(monkeypatch):
    monkeypatch.setattr(network, 'PATIENCE', 0.2)

    def handler(connection):
        with suppress(Exception):
            while True:
                connection.send(b''.join(PACKETS[1:6]))
                time.sleep(0.01)

    with server(handler) as url, live(url) as source:
        until(lambda: 'no picture could be decoded' in source.error)


def test_closing_ends_the_reader_and_the_back_off_at_once():
    source = LiveSource('x', partial(network.websocket, 'x', f'ws://127.0.0.1:{free_port()}/'), backoff=Backoff(60, 60))
    until(lambda: 'next attempt' in source.error)
    frames = []
    reader = threading.Thread(target=lambda: frames.extend(source))
    reader.start()
    source.close()
    reader.join(WAIT)  # half of what the back-off would take
    source._thread.join(WAIT)
    assert not reader.is_alive() and not source._thread.is_alive() and frames == []
    assert source.read(None) is None


def test_the_back_off_doubles_with_jitter_between_half_a_second_and_thirty():
    backoff = Backoff(rng=random.Random(1))
    for _ in range(2):
        waits = [backoff.next() for _ in range(12)]
        for i, wait in enumerate(waits):
            limit = min(30, 2**i)
            assert 0.5 <= limit / 2 <= wait <= limit
        backoff.reset()
    assert len({round(backoff._rng.uniform(15, 30), 3) for _ in range(9)}) == 9


class Pictures:
    """Connects to pictures that are there already."""

    def __init__(self, *connections):
        self.connections = list(connections)

    @contextmanager
    def __call__(self, closed):
        if not self.connections:
            closed.wait()
        yield iter(self.connections.pop(0) if self.connections else [])


def picture(width, height, value=0):
    return Picture(0, np.full((height, width, 3), value, np.uint8))


def read_all(source, count):
    frames = []
    for _ in range(count):
        frames.append(source.read(WAIT))
    source.close()
    return frames


def slowly(source_of, *pictures):
    """Yield each picture when the one before was read."""
    for each in pictures:
        until(lambda: not source_of[0]._waiting if source_of else False)
        yield each


def test_a_new_size_of_the_same_shape_is_scaled_and_another_shape_begins_anew():
    holder = []
    shown = [picture(640, 480, 1), picture(320, 240, 2), None, picture(640, 480, 3), picture(640, 360, 4)]
    pictures = slowly(holder, *shown)
    source = LiveSource('x', Pictures(pictures))
    holder.append(source)
    frames = read_all(source, 4)
    assert [frame.image.shape for frame in frames] == [(480, 640, 3)] * 3 + [(360, 640, 3)]
    assert [frame.id for frame in frames] == [0, 1, 3, 0]
    assert [frame.image.min() for frame in frames] == [1, 2, 3, 4] and source.skipped == 1


def test_any_exception_of_a_connection_is_an_error_that_passes():
    def broken():
        raise RuntimeError('out of\nluck')
        yield

    holder = []
    source = LiveSource('x', Pictures(broken(), slowly(holder, picture(64, 64))), backoff=Backoff(0.2, 0.4))
    until(lambda: 'x: RuntimeError: out of luck; next attempt in 0.' in source.error)
    holder.append(source)  # from now on there are pictures
    assert source.breaks == 1
    assert read_all(source, 1)[0].id == 0


@pytest.mark.parametrize('scheme', ['rtsp', 'http'])
@pytest.mark.parametrize('behaviour', ['refuses', 'closes', 'hangs', 'babbles'])
def test_servers_that_refuse_close_hang_or_babble(scheme, behaviour):
    gone = threading.Event()

    def handler(connection):
        with connection, suppress(OSError):
            if behaviour == 'hangs':
                gone.wait(WAIT)
            elif behaviour == 'babbles':
                connection.sendall(random.Random(2).randbytes(100_000))

    def connect(name, url, closed, silence):
        return network.ffmpeg(name, url, closed, silence=silence)

    with pytest.MonkeyPatch.context() as patch, raw_server(handler) as port:
        patch.setattr(network, '_OPEN', 0.3)
        port = free_port() if behaviour == 'refuses' else port
        with live(f'{scheme}://127.0.0.1:{port}/stream', connect, silence=0.3) as source:
            until(lambda: 'next attempt' in source.error)
            if behaviour == 'refuses':
                assert 'Connection refused' in source.error
            elif (scheme, behaviour) == ('http', 'hangs'):
                assert 'nothing came for' in source.error
        gone.set()


def test_video_over_http_is_shown(tmp_path):
    data = b''.join(PACKETS)

    def handler(connection):
        with connection, suppress(OSError):
            connection.recv(4096)
            connection.sendall(b'HTTP/1.0 200 OK\r\nContent-Type: video/h264\r\n\r\n' + 40 * data)

    with raw_server(handler) as port, live(f'http://127.0.0.1:{port}/a.h264', network.ffmpeg) as source:
        assert source.read(WAIT).image.tobytes() in CLEAN


def test_https_with_a_certificate_that_nobody_knows_is_an_error_that_names_the_way_out(certificate, monkeypatch):
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(*certificate)

    def handler(connection):
        with suppress(OSError), tls.wrap_socket(connection, server_side=True) as secure:
            secure.recv(4096)
            secure.sendall(b'HTTP/1.0 200 OK\r\nContent-Type: video/h264\r\n\r\n' + 40 * b''.join(PACKETS))

    with raw_server(handler) as port, live(f'https://127.0.0.1:{port}/a.h264', network.ffmpeg) as source:
        until(lambda: 'next attempt' in source.error)
        assert 'if its certificate is not trusted, name the file of its authority in SSL_CERT_FILE' in source.error
        assert source.read(0.1) is None
        monkeypatch.setenv('SSL_CERT_FILE', str(certificate[0]))
        assert source.read(WAIT).image.tobytes() in CLEAN


@pytest.mark.parametrize('cafile', [True, False])
def test_ffmpeg_trusts_whom_python_trusts(tmp_path, monkeypatch, cafile):
    """Where Python knows a folder only, as on Ubuntu, the file in it."""
    monkeypatch.setattr(ssl, 'get_default_verify_paths', lambda: SimpleNamespace(
        cafile=str(tmp_path / 'own.pem') if cafile else None, capath=str(tmp_path)))  # fmt: skip
    expected = tmp_path / ('own.pem' if cafile else 'ca-certificates.crt')
    for name in ('own.pem', 'ca-certificates.crt'):
        (tmp_path / name).touch()
    assert network._authorities() == {'ca_file': str(expected)}


def test_a_playlist_from_the_network_reads_no_file(tmp_path):
    from test_video_decoder import STREAMS, write

    path = write(tmp_path / 'secret.ts', STREAMS['cabac'])
    playlist = f'#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile://{path}\n#EXT-X-ENDLIST\n'.encode()

    def handler(connection):
        with connection, suppress(OSError):
            connection.recv(4096)
            head = b'HTTP/1.0 200 OK\r\nContent-Type: application/vnd.apple.mpegurl\r\n\r\n'
            connection.sendall(head + playlist)

    with raw_server(handler) as port, live(f'http://127.0.0.1:{port}/a.m3u8', network.ffmpeg) as source:
        until(lambda: 'next attempt' in source.error)
        assert source.read(0.1) is None


def test_a_camera_that_stands_still_is_an_error(monkeypatch):
    monkeypatch.setattr(live_module, '_SILENCE', 0.1)

    def stuck():
        yield picture(64, 64)
        go_on.wait(WAIT)

    go_on = threading.Event()
    source = LiveSource('x', Pictures(stuck()))
    assert source.read(WAIT) is not None
    until(lambda: source.error.startswith('x: no picture for'))
    source.close()
    go_on.set()


def test_who_does_not_wait_is_told_that_what_comes_gives_no_picture(monkeypatch):
    monkeypatch.setattr(source_module, '_PATIENCE', 0.2)

    def undecodable():
        yield None
        go_on.wait(WAIT)

    go_on = threading.Event()
    source = LiveSource('x', Pictures(undecodable()))
    with pytest.raises(VideoError, match='^x: no picture came in 0 s; what came, if anything, could not be decoded$'):
        first_frame(source)
    source.close()
    go_on.set()


@pytest.mark.parametrize('uri', ['camera:87', '/dev/video87'])
def test_a_missing_camera_is_an_error_and_tried_again(uri):
    source = open_source(uri)
    until(lambda: 'next attempt in' in source.error)
    source.close()
    assert source.error.startswith('/dev/video87: is no camera of this machine; cameras: ')


@pytest.mark.parametrize('codec, pix_fmt', [('rawvideo', 'yuyv422'), ('mjpeg', 'yuvj420p')])
def test_a_camera_that_is_plugged_in_later_is_found(tmp_path, monkeypatch, codec, pix_fmt):
    """What FFmpeg hands us of a V4L2 camera stands in a file here: no camera is needed."""
    from test_video_file import write

    recording, device, opened, there = write(tmp_path / 'camera.avi', 12, codec=codec, pix_fmt=pix_fmt), av.open, [], []

    def plugged_in(url, *arguments, format, **options):
        opened.append((url, format))
        return device(recording, *arguments, **options) if there else device(url, *arguments, format=format, **options)

    monkeypatch.setattr(av, 'open', plugged_in)
    path = tmp_path / 'video0'
    with live(str(path), network.ffmpeg) as source:
        until(lambda: 'video0: is no camera of this machine' in source.error)
        path.symlink_to('/dev/null')
        until(lambda: 'video0: is a device, but no camera; next attempt' in source.error)
        there.append(True)
        assert source.read(WAIT).image.shape == (64, 96, 3)
        until(lambda: 'the stream has ended' in source.error)  # unplugged
        until(lambda: source.read(WAIT).id > 24)
        assert source.skipped == 0
    assert set(opened) == {(str(path), 'v4l2')}


def test_passwords_and_tokens_do_not_reach_the_logs():
    assert printable('rtsp://me:p@ss@host:554/a') == 'rtsp://...@host:554/a'
    assert printable('wss://host/ws/video/consume?token=secret') == 'wss://host/ws/video/consume?...'
    assert printable('/data/a?b.mp4') == '/data/a?b.mp4'
    source = open_source(f'ws://me:secret@127.0.0.1:{free_port()}/?token=secret')
    until(lambda: 'next attempt' in source.error)
    source.close()
    assert 'secret' not in source.name + source.error
    source = open_source('ws://me:secret@?token=secret')
    until(lambda: 'next attempt' in source.error)
    source.close()
    assert 'secret' not in source.name + source.error
