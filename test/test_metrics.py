# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Readings, metrics and the HTTP server, without ROS."""

import contextlib
import http.client
import os
import socket
import threading
import time

import pytest
from ros_helpers import quick, wait_until  # noqa: F401

pytest.importorskip('prometheus_client', reason='prometheus-client is not installed')

from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from slam3r_ros.monitoring import pages
from slam3r_ros.monitoring.metrics import Metrics
from slam3r_ros.monitoring.pages import Page, PageServer
from slam3r_ros.monitoring.readings import PATIENCE, Readings
from slam3r_ros.values import SlamStatus, State

pytestmark = pytest.mark.usefixtures('quick')

LIMIT = 30.0  # seconds until a client fails
MESHER = {
    'mesh_fps': '1.8', 'vertices': '1200', 'triangles': '2300', 'memory_bytes': '5000000', 'compression_ratio': '21.5',
    'gpu_memory [bytes]': '1024', 'latency_ms': '240.0', 'device': 'cuda', 'queue keyframes': '3',
    'dropped status': '7', 'errors': '2', 'voxels': 'nan',
}  # fmt: skip
SLAM3R = {'keyframes_processed': '40', 'gpu_memory [bytes]': '0', 'errors': '0'}
STATUS = SlamStatus(
    5, State.TRACKING, 'geometric', 'cpu', map_id=77, frames_in=500, frames_decoded=480, frames_dropped=20,
    keyframes=31, depth_skipped=4, milliseconds={'track': 12.5, 'keyframe': 80.0}, memory_bytes=900,
)  # fmt: skip


@pytest.fixture
def readings():
    filled = Readings('/robot')
    filled.note_line('/robot/mesher', 0, 'ok', MESHER, 100.0)
    filled.note_line('/robot/slam3r', 1, 'the disc is nearly full', SLAM3R, 101.0)
    filled.note_status(STATUS, 101.0)
    return filled


def samples(readings, now, accept='', parse=text_string_to_metric_families):
    page = Metrics(readings, lambda: now).page(accept)
    families = list(parse(page.body.decode()))
    found = [sample for family in families for sample in family.samples]
    values = {(each.name, *each.labels.values()): each.value for each in found}
    assert len(values) == len(found)
    return values, {family.name: family.type for family in families}, page.content_type


def test_every_reading_becomes_a_metric(readings):
    values, types, _ = samples(readings, 102.0)
    assert values.items() >= {
        ('mesh_generation_fps', 'mesher'): 1.8,
        ('mesh_vertex_count', 'mesher'): 1200,
        ('mesh_face_count', 'mesher'): 2300,
        ('compression_ratio', 'mesher'): 21.5,
        ('gpu_memory_usage_bytes', 'mesher'): 1024,
        ('gpu_memory_usage_bytes', 'slam3r'): 0,
        ('keyframes_processed_total', 'slam3r'): 40,
        ('errors_total', 'mesher'): 2,
        ('queue_depth', 'keyframes', 'mesher'): 3,
        ('queue_dropped_total', 'status', 'mesher'): 7,
        ('processing_latency_seconds', 'track'): 0.0125,
        ('processing_latency_seconds', 'keyframe'): 0.08,
        ('processing_latency_seconds', 'mesh'): 0.24,
        ('map_id',): 77,
        ('map_keyframes',): 31,
        ('memory_usage_bytes',): 900,
        ('frames_received_total',): 500,
        ('frames_processed_total',): 480,
        ('frames_dropped_total',): 20,
        ('depth_skipped_total',): 4,
        ('slam_state', 'TRACKING'): 1,
        ('slam_state', 'LOST'): 0,
        ('slam_engine_info', 'cpu', 'geometric'): 1,
        ('node_up', 'mesher'): 1,
        ('diagnostic_level', 'slam3r'): 1,
        ('diagnostic_value', 'vertices', 'mesher'): 1200,
    }.items()
    assert not [key for key in values if 'device' in key or 'voxels' in key]  # no numbers
    for name, kind in {'mesh_generation_fps': 'gauge', 'keyframes_processed': 'counter', 'errors': 'counter'}.items():
        assert types[name] == kind
    assert {name for name, *_ in values if name.endswith('_total')} == {
        f'{name}_total'
        for name, kind in types.items()
        if kind == 'counter' and any(key[0] == f'{name}_total' for key in values)
    }


def test_prometheus_own_format_is_spoken_too(readings):
    plain, _, content_type = samples(readings, 102.0)
    assert content_type.startswith('text/plain')
    accept = 'application/openmetrics-text; version=1.0.0'
    openmetrics, _, content_type = samples(readings, 102.0, accept, parse_openmetrics)
    assert content_type.startswith('application/openmetrics-text') and openmetrics == plain


def test_who_went_in_order_is_forgotten(readings):
    readings.note_line('/robot/mesher', 3, 'ended', {}, 102.0)
    values, _, _ = samples(readings, 102.0)
    assert ('node_up', 'mesher') not in values and ('node_up', 'slam3r') in values
    assert readings.health(102.0 + PATIENCE / 2)['healthy']
    readings.note_line('/robot/slam3r', 3, 'stale', {}, 103.0)  # as others say it
    assert readings.troubles(103.0) == ['slam3r: stale']


def test_who_is_silent_has_no_values_and_is_down(readings):
    values, _, _ = samples(readings, 100.5 + PATIENCE)
    assert values[('node_up', 'mesher')] == 0 and values[('diagnostic_level', 'mesher')] == 3
    assert values[('node_up', 'slam3r')] == 1
    assert not [key for key in values if 'mesher' in key and key[0] not in ('node_up', 'diagnostic_level')]
    values, _, _ = samples(readings, 101.5 + PATIENCE)
    assert not [key for key in values if key[0] in ('map_id', 'slam_state')]


def test_health_names_what_is_wrong(readings):
    assert readings.health(102.0) == {
        'healthy': True,
        'reasons': [],
        'state': 'TRACKING',
        'nodes': {
            'mesher': {'level': 'OK', 'message': 'ok', 'age': 2.0},
            'slam3r': {'level': 'WARN', 'message': 'the disc is nearly full', 'age': 1.0},
        },
    }
    readings.note_line('/robot/mesher', 2, 'mesh is on fire', {}, 102.0)
    assert readings.troubles(102.0) == ['mesher: mesh is on fire']
    readings.note_status(SlamStatus(6, State.ERROR, 'geometric', last_error='GPU fell off'), 102.0)
    assert readings.troubles(102.0) == ['mesher: mesh is on fire', 'engine: GPU fell off']
    assert readings.troubles(115.0) == [
        'mesher: not heard of for 13 s', 'slam3r: not heard of for 14 s', 'the engine tells no status'
    ]  # fmt: skip
    assert Readings().troubles(0.0) == ['the engine tells no status']


@pytest.mark.parametrize(
    'namespace, name, counts',
    [
        ('/', '/slam3r', True),
        ('/', '/robot/slam3r', False),
        ('/', 'camera: frame rate', False),
        ('/robot', '/robot/slam3r', True),
        ('/robot', '/robot/arm/slam3r', False),
        ('/robot', '/robots/slam3r', False),
        ('/robot', '/slam3r', False),
        ('/a.b', '/axb/slam3r', False),
    ],
)
def test_only_nodes_of_the_own_namespace_count(namespace, name, counts):
    readings = Readings(namespace)
    readings.note_line(name, 0, 'ok', {}, 0.0)
    assert bool(readings.lines()) == counts


def test_a_flood_of_names_is_bounded_and_known_nodes_are_still_heard():
    readings = Readings()
    for number in range(1000):
        readings.note_line(f'/node_{number}', 0, 'ok', {}, 0.0)
    readings.note_line('/node_0', 2, 'late', {}, 1.0)
    assert len(readings.lines()) == 64 and readings.lines()['node_0'].message == 'late'


def test_what_the_decoder_says_when_it_fails_is_no_status_of_the_engine(readings):
    readings.note_status(SlamStatus(9, State.ERROR, frames_in=1), 102.0)
    assert readings.status(102.0) is STATUS


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(pages, '_SECONDS', 0.5)
    ready = PageServer('127.0.0.1', 0, {'/page': lambda accept: Page('text/plain', accept.encode())})
    yield ready
    ready.close()


def get(server, path='/page', method='GET', **headers):
    connection = http.client.HTTPConnection('127.0.0.1', server.port, timeout=LIMIT)
    with contextlib.closing(connection):
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read()


def talk(server, *parts, pause=0.0):
    """Send bytes until the server closes; return the answer and how many of the parts were sent."""
    sent = 0
    with socket.create_connection(('127.0.0.1', server.port), timeout=LIMIT) as client:
        answer = b''
        with contextlib.suppress(ConnectionError):
            for part in parts:
                client.sendall(part)
                sent += 1
                time.sleep(pause)
            while part := client.recv(4096):
                answer += part
    return answer, sent


def test_pages_are_served_and_nothing_else(server):
    assert get(server, Accept='text/plain') == (200, b'text/plain')
    assert get(server, '/page?query', Accept='a') == (200, b'a')
    assert get(server, '/etc/passwd') == (404, b'there is /page\n')
    assert get(server, '/page', 'HEAD', Accept='a') == (200, b'')
    assert get(server, '/page', 'POST')[0] == 501
    assert server.served == 4


@pytest.mark.parametrize('head', [
    b'GET /', b'GET /page HTTP/1.1\r\nX: ', b'GET /page HTTP/1.1\r\n' + b'X: y\r\n' * 1000,
])  # fmt: skip
def test_an_endless_head_is_cut_off(server, head):
    answer, sent = talk(server, head, *[b'a' * 4096] * 10_000)
    assert sent < 10_000 and b'200' not in answer
    assert get(server)[0] == 200


@pytest.mark.parametrize('parts', [[], [b'GET /page HTTP/1.1\r\nHost: x\r\n']])
def test_a_half_open_client_is_let_go(server, parts):
    start = time.monotonic()
    assert talk(server, *parts)[0] == b''  # else it waits for `LIMIT`, and fails
    assert time.monotonic() - start > 0.4


def test_a_slow_client_has_no_more_time_for_many_small_pieces(server):
    answer, sent = talk(server, *[b'G'] * 200, pause=0.1)
    assert answer == b'' and sent < 200
    wait_until(lambda: not server._clients)


def test_a_client_that_does_not_read_is_let_go(monkeypatch):
    monkeypatch.setattr(pages, '_SECONDS', 0.5)
    server = PageServer('127.0.0.1', 0, {'/page': lambda accept: Page('text/plain', bytes(50_000_000))})
    try:
        with socket.create_connection(('127.0.0.1', server.port), timeout=LIMIT) as client:
            client.sendall(b'GET /page HTTP/1.0\r\n\r\n')
            wait_until(lambda: server.served)
            wait_until(lambda: not server._clients)
    finally:
        server.close()


def test_many_clients_take_no_more_than_their_places(server, monkeypatch):
    monkeypatch.setattr(pages, '_SECONDS', 30.0)
    idle = [socket.create_connection(('127.0.0.1', server.port)) for _ in range(40)]
    wait_until(lambda: len(server._clients) == 16)
    with contextlib.suppress(ConnectionError):
        assert idle[-1].recv(1) == b''  # turned away
    for each in idle:
        each.close()
    wait_until(lambda: not server._clients)
    assert get(server)[0] == 200


def test_closing_frees_the_port_at_once_whoever_still_waits(monkeypatch):
    monkeypatch.setattr(pages, '_SECONDS', 10 * LIMIT)  # of the client that says nothing
    threads, descriptors = set(threading.enumerate()), len(os.listdir('/proc/self/fd'))
    server = PageServer('127.0.0.1', 0, {})
    with socket.create_connection(('127.0.0.1', server.port)) as client:
        wait_until(lambda: server._clients)
        start = time.monotonic()
        server.close()
        assert time.monotonic() - start < LIMIT
        assert client.recv(1) == b''
    again = PageServer('127.0.0.1', server.port, {})
    again.close()
    assert set(threading.enumerate()) <= threads and len(os.listdir('/proc/self/fd')) <= descriptors


def test_it_listens_where_it_was_told_alone(server):
    with pytest.raises(OSError):
        socket.create_connection(('127.0.0.2', server.port), timeout=1)
    with pytest.raises(OSError):
        PageServer('127.0.0.1', server.port, {})
    with pytest.raises(OSError):
        PageServer('', 0, {})
