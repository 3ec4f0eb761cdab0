# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A full GPU, simulated: networks that know the truth refuse calls that take in more views than there is room for."""

import logging

import numpy as np
import pytest

torch = pytest.importorskip('torch', reason='the engine needs torch')

from slam3r_oracle import FOCAL, SIDE, OracleImage2Points, OracleLocal2World, image, points_seen
from test_slam3r_engine import pose_errors

import slam3r_ros.engines.slam3r.engine as engine_module
from slam3r_ros.engines.protocol import EngineError
from slam3r_ros.engines.slam3r import models
from slam3r_ros.engines.slam3r.engine import Slam3rEngine
from slam3r_ros.engines.slam3r.settings import Settings
from slam3r_ros.values import Frame, Intrinsics, State

KNOWN = Intrinsics(FOCAL, FOCAL, (SIDE - 1) / 2, (SIDE - 1) / 2)
UNIT = float(np.median([points_seen(i)[..., 2] for i in range(0, 9, 2)]))
SETTINGS = Settings(buffer_size=20, scene_frames=8)


class Gpu:
    """Has room for so many views in a call of one kind; notes the calls, and the views in them."""

    def __init__(self, monkeypatch):
        self.room = {}
        self.calls = []
        self.freed = 0
        monkeypatch.setattr(torch.cuda, 'empty_cache', self._empty_cache)
        monkeypatch.setattr(torch.cuda, 'is_initialized', lambda: True)

    def _empty_cache(self):
        self.freed += 1

    def take(self, kind, views):
        self.calls.append((kind, views))
        if views > self.room.get(kind, np.inf):
            raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has a total ...')

    def most(self, kind):
        return max(views for called, views in self.calls if called == kind)


@pytest.fixture
def gpu(monkeypatch):
    return Gpu(monkeypatch)


@pytest.fixture
def make(gpu):
    class Image2Points(OracleImage2Points):
        def encode(self, images):
            gpu.take('encode', len(images))
            return super().encode(images)

        def __call__(self, reference, sources, *args, **options):
            gpu.take('window', 1 + len(sources))
            return super().__call__(reference, sources, *args, **options)

        def correlation(self, query, candidates, *args, at_once):
            gpu.take('correlation', min(at_once, len(candidates.tokens)))
            return super().correlation(query, candidates, *args)

    class Local2World(OracleLocal2World):
        def __call__(self, references, sources, *args, **options):
            gpu.take('register', len(references) + len(sources))
            return super().__call__(references, sources, *args, **options)

    def make(**options):
        options = {'stride': 2, 'settings': SETTINGS} | options
        return Slam3rEngine(networks=(Image2Points(), Local2World()), side=SIDE, device='cpu', **options)

    return make


def frames(first, last):
    return [Frame(i, i, image(i), KNOWN, stride=2) for i in range(first, last)]


def run(engine, first, last):
    return [engine.process(frame) for frame in frames(first, last)]


@pytest.mark.parametrize('kind, room', [('window', 6), ('register', 6), ('correlation', 5)])
def test_half_as_many_frames_at_once_and_nothing_is_lost(gpu, make, caplog, kind, room):
    engine = make()
    before = run(engine, 0, 60)
    pipeline, mapped = engine._pipeline, len(engine.trajectory())
    assert engine.degraded == '' and gpu.most(kind) > room
    gpu.room[kind] = room
    gpu.calls.clear()
    with caplog.at_level(logging.WARNING):
        after = run(engine, 60, 90)
    assert all(output.pose for output in after) and engine.state == State.TRACKING
    assert gpu.freed == 1 and engine._pipeline is pipeline
    assert [views for called, views in gpu.calls if called == kind and views > room] == [gpu.most(kind)]  # tried once
    assert engine.degraded == 'the memory of cpu was full: 4 scene frames and 1 neighbours instead of 8 and 3'
    assert [record.getMessage() for record in caplog.records] == [engine.degraded]
    assert mapped == 60 and [pose.id for pose in engine.trajectory()] == list(range(90))
    assert engine._pipeline.buffer.frames[0] < 60 and len(engine._pipeline.buffer.frames) == SETTINGS.buffer_size
    assert pose_errors(engine.trajectory(), UNIT)[0] < 1e-2
    assert sum(len(output.keyframes) for output in before + after) > 40


@pytest.mark.parametrize('kind, room', [('window', 3), ('register', 3)])
def test_the_first_keyframes_are_fewer_where_there_is_no_room(gpu, make, kind, room):
    gpu.room[kind] = room
    engine = make()
    outputs = run(engine, 0, 40)
    assert next(i for i, output in enumerate(outputs) if output.pose) == 8  # not a frame later
    assert engine.state == State.TRACKING and engine.degraded
    assert [pose.id for pose in engine.trajectory()] == list(range(40))
    assert gpu.freed == 3


@pytest.mark.parametrize('kind', ['encode', 'window', 'register'])
@pytest.mark.parametrize('at', [3, 8, 30], ids=['before the first window', 'in the first window', 'later'])
def test_no_room_at_all_is_said_and_later_frames_go_on(gpu, make, kind, at):
    engine = make()
    run(engine, 0, at)
    gpu.room[kind] = 0
    refused = 0
    for frame in frames(at, at + 10):
        try:
            engine.process(frame)
        except EngineError as error:
            refused += 1
            for part in ('memory of cpu is full', 'precision', 'engine:=geometric', 'Tried to allocate 2.00 GiB'):
                assert part in str(error)
    assert refused
    mapped = [pose.id for pose in engine.trajectory()]
    gpu.room.clear()
    outputs = run(engine, at + 10, at + 40)
    assert outputs[-1].pose and engine.state == State.TRACKING
    assert [pose.id for pose in engine.trajectory()][: len(mapped)] == mapped
    assert len(engine.trajectory()) == at + 40 - refused


def test_frames_that_were_held_back_do_not_fall_with_one(gpu, make, monkeypatch):
    """Among the ten frames that wait for advice, the ninth fails; what the eight before gave is handed out."""
    engine = make(stride=0, settings=Settings(window=2))
    take = engine._take

    def fails(frame):
        if engine._pipeline and frame.id == 8:
            raise EngineError('full')
        return take(frame)

    monkeypatch.setattr(engine, '_take', fails)
    outputs = run(engine, 0, 10)
    assert outputs[-1].keyframes and outputs[-1].pose.id == 9


def test_smaller_numbers_are_proposed_only_to_larger_ones(gpu, make):
    engine = make()
    gpu.room['encode'] = 0
    for precision, proposed in (('float32', True), ('float16', False), ('bfloat16', False)):
        engine._models.precision = precision
        with pytest.raises(EngineError, match='engine:=geometric') as caught:
            engine.process(frames(0, 1)[0])
        assert ('precision:=float16' in str(caught.value)) is proposed


def test_poses_are_kept_up_to_a_number(make, monkeypatch):
    monkeypatch.setattr(engine_module, 'MAX_FRAMES', 20)
    engine = make()
    published = {}
    for frame in frames(0, 70):
        published[frame.id] = engine.process(frame).pose
        assert len(engine.trajectory()) <= 20
    poses = engine.trajectory()
    ids = [pose.id for pose in poses]
    assert len(ids) > 10 and ids == sorted(set(ids)) and ids[0] == 0 and ids[-10:] == list(range(60, 70))
    assert pose_errors(poses, UNIT)[0] < 1e-2
    for pose in poses[-10:]:
        same = published[pose.id]
        assert (pose.stamp, pose.state) == (same.stamp, same.state) == (pose.id, State.TRACKING)
        np.testing.assert_array_equal(pose.T_map_camera, same.T_map_camera)


def test_a_memory_that_is_full_before_the_networks_are_loaded(monkeypatch, gpu):
    monkeypatch.setattr(models, 'find', lambda kind, folder: 'file')
    monkeypatch.setattr(models, 'check', lambda kind, path: None)
    monkeypatch.setattr(models, 'load', lambda *args, **options: gpu.take('load', np.inf + 1))
    gpu.room['load'] = 0
    engine = Slam3rEngine(device='cpu', stride=3)
    for frame in frames(0, 2):
        with pytest.raises(EngineError, match='full, for the networks: .*gpu_memory_mb.*precision.*engine:=geometric'):
            engine.process(frame)
    assert not engine._held and not engine._waiting  # frames that nothing was done with are not kept
