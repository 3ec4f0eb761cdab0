# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The networks are read when they are wanted, freed, and read again; nothing else of the reconstruction changes."""

import os
import weakref

import numpy as np
import pytest

torch = pytest.importorskip('torch', reason='the networks need torch')
safetensors = pytest.importorskip('safetensors.torch', reason='the weights are in its format')

from one_thread import one_thread  # noqa: F401
from slam3r_long_stream import TINY
from test_slam3r_engine import frames as oracle_frames
from test_slam3r_engine import make as with_oracles

from slam3r_ros.engines.protocol import EngineError
from slam3r_ros.engines.slam3r import checkpoints, models, precision
from slam3r_ros.engines.slam3r.engine import Slam3rEngine
from slam3r_ros.engines.slam3r.models import Models
from slam3r_ros.engines.slam3r.settings import Settings
from slam3r_ros.engines.slam3r.weights import I2P, L2W
from slam3r_ros.values import Frame, State

SIDE = 32
SETTINGS = Settings(window=3, buffer_size=8, scene_frames=3, min_confidence=1.0)


class Disk:
    """Holds the weights of small networks, and notes what is read."""

    def __init__(self, folder, monkeypatch):
        self.folder, self.reads, self.networks = folder, [], []
        torch.manual_seed(0)
        for kind in (I2P, L2W):
            safetensors.save_file(checkpoints.NETWORKS[kind](TINY).state_dict(), self.path(kind))
        monkeypatch.setattr(models, 'check', lambda kind, path: checkpoints.check(kind, path, TINY))
        monkeypatch.setattr(models, 'load', self._load)

    def path(self, kind):
        return self.folder / f'{kind.name}.safetensors'

    def _load(self, kind, path, checksum):
        network, report = checkpoints.load(kind, path, TINY, checksum=checksum)
        self.reads.append((kind, report.sha256 != ''))
        self.networks.append(weakref.ref(network))
        return network, report

    @property
    def held(self):
        return [network() for network in self.networks if network() is not None]


@pytest.fixture
def disk(tmp_path, monkeypatch):
    return Disk(tmp_path, monkeypatch)


def make(disk):
    return Slam3rEngine(str(disk.folder), 'cpu', stride=1, min_confidence=1.0, settings=SETTINGS, side=SIDE)


def frames(count):
    rng = np.random.default_rng(0)
    return [Frame(i, i, rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8)) for i in range(count)]


def views_of(engine):
    """Return all that is known of every frame that is held."""
    return {number: vars(view) for number, view in engine._pipeline.scene.views.items()}


def test_nothing_is_read_before_there_are_frames(disk):
    engine = make(disk)
    assert not disk.reads and engine.degraded == '' and engine.finish().pose is None
    engine.process(frames(1)[0])
    assert disk.reads == [(I2P, True), (L2W, True)]
    engine.close()
    assert not disk.held


def test_what_is_prepared_no_frame_waits_for(disk):
    engine = make(disk)
    engine.prepare()
    assert disk.reads == [(I2P, True), (L2W, True)]
    engine.process(frames(1)[0])
    assert len(disk.reads) == 2


@pytest.mark.parametrize('at', [[1], [3], [1, 2, 3, 7, 8, 14]], ids=str)
def test_what_was_freed_and_read_again_gives_the_same(disk, at):
    """Freed before the first window is complete, right after, and often."""
    kept, freed = make(disk), make(disk)
    for frame in frames(18):
        if frame.id in at:
            before = len(disk.held)
            freed.release()
            assert len(disk.held) == before - 2 and freed.degraded == '' and freed.state == kept.state
        kept.process(frame), freed.process(frame)
    assert len(disk.reads) == 4 + 2 * len(at) and len(disk.held) == 4
    expected, found = views_of(kept), views_of(freed)
    assert found.keys() == expected.keys() and freed._pipeline.buffer.frames == kept._pipeline.buffer.frames
    for number, facts in expected.items():
        for name, value in facts.items():
            torch.testing.assert_close(found[number][name], value, rtol=0, atol=0)


def test_the_checksum_is_taken_once(disk):
    networks = Models(str(disk.folder), 'cpu')
    for _ in range(3):
        assert networks.get() is networks.get()
        networks.release()
    assert [checksum for _, checksum in disk.reads] == [True, True, False, False, False, False]


def test_layers_are_converted_one_after_the_other(disk, monkeypatch):
    """Of a layer that has its new form the old one is gone, so that never all are there twice."""
    before, made = [], precision._made

    def noted(linear, *rest):
        assert not any(old() for old in before)
        before.append(weakref.ref(linear))
        return made(linear, *rest)

    monkeypatch.setattr(precision, '_made', noted)
    Models(str(disk.folder), 'cpu', 'bfloat16').get()
    assert len(before) > 20


def test_networks_that_were_given_are_kept():
    engine = with_oracles()
    for frame in oracle_frames(40):
        if frame.id % 9 == 5:
            engine.release()
        engine.process(frame)
    assert engine.state == State.TRACKING and [pose.id for pose in engine.trajectory()] == list(range(40))


@pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device')
def test_a_gpu_gets_its_memory_back(disk):
    engine = Slam3rEngine(str(disk.folder), 'cuda', stride=1, settings=SETTINGS, side=SIDE)
    for frame in frames(12):
        engine.process(frame)
    weights = sum(weight.nbytes for network in disk.held for weight in network.parameters())
    held = torch.cuda.memory_allocated()
    engine.release()
    assert torch.cuda.memory_allocated() <= held - weights < held and not disk.held
    engine.process(frames(13)[12])
    assert engine._pipeline.count == 13


def cut(disk):
    os.truncate(disk.path(L2W), disk.path(L2W).stat().st_size - 4)


def mix_up(disk):
    disk.path(L2W).write_bytes(disk.path(I2P).read_bytes())


def halve(disk):
    weights = safetensors.load_file(disk.path(L2W))
    safetensors.save_file({key: value.half() for key, value in weights.items()}, disk.path(L2W))


def widen(disk):
    weights = safetensors.load_file(disk.path(L2W))
    safetensors.save_file(weights | {'dec_norm.bias': torch.zeros(5)}, disk.path(L2W))


@pytest.mark.parametrize('spoil, reason', [
    (lambda disk: disk.path(L2W).unlink(), 'no weights of slam3r_l2w'),
    (cut, 'no complete safetensors file'),
    (mix_up, 'holds slam3r_i2p, not slam3r_l2w'),
    (halve, 'is torch.float16 instead of torch.float32'),
    (widen, r'dec_norm.bias is \(5,\) instead of \(32,\)'),
])  # fmt: skip
def test_a_wrong_file_is_refused_at_once_and_when_it_is_read_again(disk, spoil, reason):
    engine, stream = make(disk), frames(12)
    for frame in stream[:8]:
        engine.process(frame)
    engine.release()
    good, reads = disk.path(L2W).read_bytes(), len(disk.reads)
    spoil(disk)
    with pytest.raises(EngineError, match=reason):
        make(disk)
    assert len(disk.reads) == reads  # a look was enough
    if not disk.path(L2W).exists():
        reason = 'No such file'
    with pytest.raises(EngineError, match=f'slam3r_l2w.*{reason}'):
        engine.process(stream[8])
    disk.path(L2W).write_bytes(good)
    for frame in stream[9:]:
        engine.process(frame)
    assert engine._pipeline.count == 11  # the same map; the frame that could not be looked at is missing
