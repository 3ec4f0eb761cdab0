# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""RTSP on loopback: it plays; refused, closed, half-open and slow servers are an error that passes by itself."""

import random
import ssl
import threading
import time
from contextlib import contextmanager, suppress

import numpy as np
import pytest
from rtsp_server import rtsp_server
from test_video_live import WAIT, certificate, free_port, live, until  # noqa: F401

from slam3r_ros.bench.damage import decode, encode
from slam3r_ros.video import network
from slam3r_ros.video.h264 import split_annex_b
from slam3r_ros.video.live import Backoff

PACKETS = encode({'bf': '0'}, 12)
CLEAN = {image.tobytes() for image in decode(PACKETS)}
SETS = [unit for unit in split_annex_b(PACKETS[0]) if unit[0] & 31 in (7, 8)]


def without_sets(data):
    return b''.join(b'\0\0\1' + unit for unit in split_annex_b(data) if unit[0] & 31 not in (7, 8))


def play_on(player, packets=PACKETS):
    """Play the video again and again until the client leaves."""
    with suppress(OSError):
        while True:
            for data in packets:
                player.send(data)
                time.sleep(0.005)


@contextmanager
def stream(url, silence=WAIT, backoff=None):
    with live(url, network.ffmpeg, silence=silence, backoff=backoff or Backoff(0.05, 0.1)) as source:
        yield source


def shown(source, count):
    return {source.read(WAIT).image.tobytes() for _ in range(count)}


@pytest.mark.parametrize('sets', [SETS, ()], ids=['in the description', 'in the stream'])
def test_rtsp_gives_whole_frames_with_rising_stamps(sets):
    before = time.monotonic_ns()
    packets = [*map(without_sets, PACKETS)] if sets else PACKETS
    with rtsp_server(lambda player: play_on(player, packets), sets) as url, stream(url) as source:
        frames = [source.read(WAIT) for _ in range(20)]
        assert source.error == '' and source.skipped == 0
    assert {frame.image.tobytes() for frame in frames} <= CLEAN
    assert (np.diff([frame.stamp for frame in frames]) >= 0).all()
    assert (np.diff([frame.id for frame in frames]) > 0).all()
    assert 0 <= frames[0].stamp <= time.monotonic_ns() - before


def test_the_first_pictures_come_soon():
    """FFmpeg would look at a second of video before it gives the first, and then give all of that at once."""
    go_on = threading.Event()

    def play(player):
        for data in PACKETS + PACKETS[:4]:
            player.send(data)
        go_on.wait(WAIT)

    with rtsp_server(play, SETS) as url, stream(url) as source:
        assert shown(source, 1) <= CLEAN
        go_on.set()


def test_a_refused_connection_is_an_error_until_the_server_is_there():
    port = free_port()
    with stream(f'rtsp://127.0.0.1:{port}/stream') as source:
        until(lambda: 'Connection refused; next attempt in' in source.error)
        with rtsp_server(play_on, SETS, port):
            assert shown(source, 3) <= CLEAN
            assert source.error == ''


@pytest.mark.parametrize('status, reason', [('401 Unauthorized', '401'), ('404 Not Found', '404')])
def test_a_server_that_says_no_is_an_error_that_says_why(status, reason):
    with rtsp_server(play_on, status=status) as url, stream(url) as source:
        until(lambda: reason in source.error and 'next attempt in' in source.error)


@pytest.mark.parametrize('amid', [False, True], ids=['between pictures', 'amid a picture'])
def test_a_stream_that_is_closed_goes_on_by_itself(amid):
    clients, told = [], threading.Event()

    def play(player):
        clients.append(player)
        if len(clients) > 1:
            told.wait(WAIT)
            play_on(player)
        for data in PACKETS[:8]:
            player.send(data)
            time.sleep(0.005)
        if amid:
            player.connection.sendall(b''.join(player.packets(PACKETS[8]))[:-30])

    with rtsp_server(play, SETS) as url, stream(url, backoff=Backoff(0.3, 0.6)) as source:
        until(lambda: 'next attempt in' in source.error)
        told.set()
        until(lambda: source.error == '')
        assert shown(source, 20) <= CLEAN
    assert len(clients) == 2


def test_a_server_that_falls_silent_without_closing_is_left_for_a_new_connection():
    clients, told = [], threading.Event()

    def play(player):
        clients.append(player)
        if told.is_set():
            play_on(player)
        with suppress(OSError):
            for data in 3 * PACKETS:
                player.send(data)
                time.sleep(0.005)
        told.wait(WAIT)

    with rtsp_server(play, SETS) as url, stream(url, silence=0.4, backoff=Backoff(0.3, 0.6)) as source:
        assert shown(source, 1) <= CLEAN
        until(lambda: 'nothing came for' in source.error)
        told.set()
        until(lambda: source.error == '')
        assert shown(source, 20) <= CLEAN
    assert len(clients) >= 2


def test_a_slow_server_is_no_error_and_its_pictures_are_whole():
    def play(player):
        with suppress(OSError):
            while True:
                for data in PACKETS:
                    for packet in player.packets(data):
                        for at in range(0, len(packet), 150):
                            player.connection.sendall(packet[at : at + 150])
                            time.sleep(0.005)

    errors = set()
    with rtsp_server(play, SETS) as url, stream(url, silence=3.0) as source:
        first = source.read(WAIT)
        for _ in range(15):
            assert source.read(WAIT).image.tobytes() in CLEAN
            errors.add(source.error)
    assert errors == {''} and first.image.tobytes() in CLEAN


def test_a_picture_that_trickles_in_without_end_is_silence():
    def play(player):
        with suppress(OSError):
            for data in 3 * PACKETS:
                player.send(data)
            for byte in b''.join(player.packets(bytes(b'\0\0\1\x41' + b'\x9a' * 50_000))):
                player.connection.sendall(bytes([byte]))
                time.sleep(0.01)

    with rtsp_server(play, SETS) as url, stream(url, silence=0.4) as source:
        until(lambda: 'nothing came for' in source.error)


def test_lost_rtp_packets_cost_what_needs_them():
    """Whole NAL units here; of UDP's losses within one the depacketiser of FFmpeg tells nothing."""
    rng = random.Random(3)

    def play(player):
        with suppress(OSError):
            while True:
                for data in PACKETS:
                    if rng.random() < 0.1:
                        player.packets(data)  # numbered, never sent
                    else:
                        player.send(data)
                    time.sleep(0.005)

    with rtsp_server(play, SETS) as url, stream(url) as source:
        assert shown(source, 40) <= CLEAN
        until(lambda: source.skipped > 0)


def test_noise_between_the_packets_does_no_harm():
    rng = random.Random(4)

    def play(player):
        with suppress(OSError):
            for _ in range(3):
                for data in PACKETS:
                    player.send(data)
                    time.sleep(0.005)
                player.connection.sendall(rng.randbytes(2000))

    with rtsp_server(play, SETS) as url, stream(url) as source:
        assert shown(source, 30) <= CLEAN


def test_rtsps_with_a_certificate_that_nobody_knows_is_an_error_that_names_the_way_out(certificate, monkeypatch):  # noqa: F811
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(*certificate)
    with rtsp_server(play_on, SETS, tls=tls) as url, stream(url) as source:
        assert url.startswith('rtsps://')
        until(lambda: 'next attempt' in source.error)
        assert 'if its certificate is not trusted, name the file of its authority in SSL_CERT_FILE' in source.error
        assert source.read(0.1) is None
        monkeypatch.setenv('SSL_CERT_FILE', str(certificate[0]))
        assert shown(source, 3) <= CLEAN
