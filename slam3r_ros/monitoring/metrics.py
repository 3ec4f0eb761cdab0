# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The readings as Prometheus metrics, made when they are asked for; needs prometheus-client.

What comes from a node's line on /diagnostics has the label `node`.  Who is silent has no values, so that none outlives
its node; counters begin at 0 with each start of their node, as Prometheus expects.
"""

import time
from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    InfoMetricFamily,
    Metric,
    StateSetMetricFamily,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from slam3r_ros.monitoring.pages import Page
from slam3r_ros.monitoring.readings import Line, Readings
from slam3r_ros.values import SlamStatus, State

# Metric, key on /diagnostics, meaning.
GAUGES = (
    ('mesh_generation_fps', 'mesh_fps', 'Mesh updates a second; 0 while nobody reads the mesh.'),
    ('mesh_vertex_count', 'vertices', 'Vertices of the mesh, which is made only while somebody reads it.'),
    ('mesh_face_count', 'triangles', 'Triangles of the same.'),
    ('mesh_memory_bytes', 'memory_bytes', 'Memory of mesh and voxels.'),
    ('compression_ratio', 'compression_ratio', 'Raw bytes of the mesh per compressed byte; 0 while nobody reads that.'),
    ('gpu_memory_usage_bytes', 'gpu_memory [bytes]', 'GPU memory that the node holds; 0 where it uses none.'),
    ('busy_seconds', 'busy [s]', 'For how long the node has been working on one value.'),
)
COUNTERS = (
    ('keyframes_processed', 'keyframes_processed', 'Keyframes made, in all maps.'),
    ('errors', 'errors', 'Errors that the node has survived.'),
    ('malformed_messages', 'malformed', 'Messages that made no sense.'),
    ('reconnects', 'reconnects', 'Breaks of the connection to a camera or a stream.'),
)
# Metric, first word of the key on /diagnostics, meaning; the rest of the key is the label `input`.
QUEUE_GAUGES = (('queue_depth', 'queue ', 'Values that wait.'),)
QUEUE_COUNTERS = (('queue_dropped', 'dropped ', 'Values dropped since newer ones came.'),)
# Metric, field of the engine's status, meaning.
STATUS_GAUGES = (
    ('map_id', 'map_id', 'The present map.'),
    ('map_keyframes', 'keyframes', 'Keyframes of the present map.'),
    ('memory_usage_bytes', 'memory_bytes', "Resident memory of the engine's process."),
)
STATUS_COUNTERS = (
    ('frames_received', 'frames_in', 'Frames that the source had; begins anew with another video.'),
    ('frames_processed', 'frames_decoded', 'Frames that reached the engine.'),
    ('frames_dropped', 'frames_dropped', 'Frames that did not: unreadable, blurred, or too late.'),
    ('depth_skipped', 'depth_skipped', 'Keyframes left without depth.'),
)
_MESH_LATENCY = 'latency_ms'  # key on /diagnostics


class Metrics:
    """Writes the readings as text for Prometheus."""

    def __init__(self, readings: Readings, now: Callable[[], float] = time.monotonic) -> None:
        """Take the readings from here.

        Args:
            readings: That are kept up to date.
            now: Their clock.
        """
        self._registry = CollectorRegistry()
        self._registry.register(_Readings(readings, now))

    def page(self, accept: str = '') -> Page:
        """Return the text, in the format that the HTTP header Accept asks for."""
        encode, content_type = choose_encoder(accept)
        return Page(content_type, encode(self._registry))


class _Readings(Collector):
    def __init__(self, readings: Readings, now: Callable[[], float]) -> None:
        self._readings, self._now = readings, now

    def collect(self) -> Iterable[Metric]:
        now = self._now()
        lines, status = self._readings.fresh_lines(now), self._readings.status(now)
        yield from _of_nodes(self._readings.lines(), lines)
        yield from _of_lines({name: line.numbers() for name, line in lines.items()})
        yield from _of_status(status)
        yield _latency(lines, status)


def _of_nodes(known: dict[str, Line], fresh: dict[str, Line]) -> Iterator[Metric]:
    up = GaugeMetricFamily('node_up', 'Whether the node was heard of lately and reports no error.', labels=['node'])
    level = GaugeMetricFamily('diagnostic_level', '0 OK, 1 WARN, 2 ERROR, 3 STALE.', labels=['node'])
    for name in known:
        reached = fresh[name].level if name in fresh else 3
        up.add_metric([name], reached < 2)
        level.add_metric([name], reached)
    yield from (up, level)


def _of_lines(numbers: dict[str, dict[str, float]]) -> Iterator[Metric]:
    for family, rows in ((GaugeMetricFamily, GAUGES), (CounterMetricFamily, COUNTERS)):
        for metric, key, meaning in rows:
            each = family(metric, meaning, labels=['node'])
            for name, values in numbers.items():
                if key in values:
                    each.add_metric([name], values[key])
            yield each
    for family, rows in ((GaugeMetricFamily, QUEUE_GAUGES), (CounterMetricFamily, QUEUE_COUNTERS)):
        for metric, word, meaning in rows:
            each = family(metric, meaning, labels=['node', 'input'])
            for name, values in numbers.items():
                for key in values:
                    if key.startswith(word):
                        each.add_metric([name, key.removeprefix(word)], values[key])
            yield each
    others = GaugeMetricFamily('diagnostic_value', 'Every number on /diagnostics.', labels=['node', 'key'])
    for name, values in numbers.items():
        for key, value in values.items():
            others.add_metric([name, key], value)
    yield others


def _of_status(status: SlamStatus | None) -> Iterator[Metric]:
    if status is None:
        return
    yield InfoMetricFamily('slam_engine', 'The engine.', {'engine': status.engine, 'device': status.device})
    states = {each.name: each == status.state for each in State}
    yield StateSetMetricFamily('slam_state', 'The state of the engine.', states)
    for family, rows in ((GaugeMetricFamily, STATUS_GAUGES), (CounterMetricFamily, STATUS_COUNTERS)):
        for metric, field, meaning in rows:
            yield family(metric, meaning, value=getattr(status, field))


def _latency(lines: dict[str, Line], status: SlamStatus | None) -> Metric:
    latency = GaugeMetricFamily(
        'processing_latency_seconds',
        "Median of the latest: the engine's stages, and `mesh` from a keyframe's coming to its update.",
        labels=['stage'],
    )
    for stage, milliseconds in (status.milliseconds if status else {}).items():
        latency.add_metric([stage], 1e-3 * milliseconds)
    for line in lines.values():
        if milliseconds := line.numbers().get(_MESH_LATENCY):
            latency.add_metric(['mesh'], 1e-3 * milliseconds)
            break
    return latency
