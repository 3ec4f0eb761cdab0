# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The benchmarks of what leaves the mesher, in small."""

import time

import numpy as np
import pytest

from slam3r_ros.bench import draco, markers, rooms
from slam3r_ros.meshing.chunks import DisplayChunks
from slam3r_ros.transport.cdr import marker_array


def test_the_compressed_mesh_stays_below_its_cap_and_arrives_whole(monkeypatch):
    def walk(video, engine, mesher):
        for step in range(25):
            mesher.integrate(rooms.keyframe(step))
            yield mesher.update()

    monkeypatch.setattr(draco, 'map_video', walk)
    results = draco.measure('a walk', 'none', rooms.VOXEL, cap=0.5)
    free, capped = results['free'], results['capped']
    assert capped['mean_mbps'] < 0.5 < free['mean_mbps']
    assert capped['p95_mbps'] < 0.7
    assert free['rest'] == 0 < capped['rest'] < 10
    assert min(free['ratio'], capped['ratio']) > 5


def test_a_reader_that_lacks_something_is_noticed(monkeypatch):
    def walk(video, engine, mesher):
        mesher.integrate(rooms.keyframe(0))
        yield mesher.update()
        mesher.integrate(rooms.keyframe(30))
        mesher.update()  # is lost

    monkeypatch.setattr(draco, 'map_video', walk)
    with pytest.raises(RuntimeError, match='does not hold the mesh'):
        draco.measure('a walk', 'none', rooms.VOXEL, cap=0.5)


def test_markers_of_40000_triangles_take_less_than_20_ms():
    update = markers.part_of_rooms()
    assert 40_000 <= sum(len(block.triangles) for block in update.blocks) < 41_000
    seconds = []
    for _ in range(10):
        start = time.perf_counter()
        marker_array(DisplayChunks().apply(update), 'mesh', 0, 'map')
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.020  # some 3 ms; others may use the machine, too


def test_filling_the_messages_takes_many_times_as_long():
    change = DisplayChunks(size=1).apply(markers.part_of_rooms())[0]
    change = change._replace(triangles=np.resize(change.triangles, (4000, 3)))
    seconds = {markers.fill: [], lambda changes: marker_array(changes, 'mesh', 0, 'map'): []}
    for _ in range(3):
        for make, each in seconds.items():
            start = time.perf_counter()
            make([change])
            each.append(time.perf_counter() - start)
    slow, fast = map(min, seconds.values())
    assert slow > 20 * fast
