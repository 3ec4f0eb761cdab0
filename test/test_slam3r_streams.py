# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A GPU's streams, simulated on the CPU: nothing is read before it is surely written, nor kept from those who use it.

Each stream has a vector clock (Fidge 1988, Mattern 1989), and an operation sees what its stream has waited for.
"""

import weakref
from contextlib import contextmanager
from itertools import chain
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip('torch', reason='the networks need torch')

from one_thread import one_thread  # noqa: F401
from slam3r_long_stream import TINY
from test_slam3r_cuda_graphs import OnCpu
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from slam3r_ros.engines.slam3r.layers import grid_rotation
from slam3r_ros.engines.slam3r.networks import Image2Points, Local2World
from slam3r_ros.engines.slam3r.online import OnlinePipeline
from slam3r_ros.engines.slam3r.scene import Scene
from slam3r_ros.engines.slam3r.settings import Settings
from slam3r_ros.values import Frame

SETTINGS = Settings(stride=2, buffer_size=6, scene_frames=3)


class Stream:
    """Knows how much of each stream's work is done before what it is told next."""

    def __init__(self):
        self.done = {self: 0}

    def record_event(self):
        return dict(self.done)

    def wait_event(self, event):
        for stream, count in event.items():
            self.done[stream] = max(count, self.done.get(stream, 0))


def storages(values):
    return [value.untyped_storage() for value in tree_leaves(values) if isinstance(value, torch.Tensor)]


class Gpu(TorchDispatchMode):
    """Follows what is made, written and read on which stream.

    Attributes:
        early: operations that read what may not be written yet.
        lost: memory that was freed, so that its stream may use it anew, when another stream may still read it.
    """

    def __init__(self):
        super().__init__()
        self.present = Stream()
        self.early, self.lost = [], []
        self._memory = {}  # by storage: its stream, when it was written last, who reads it, who holds it, a reference

    def current_stream(self, device):
        return self.present

    @contextmanager
    def stream(self, stream):
        before, self.present = self.present, stream
        try:
            yield
        finally:
            self.present = before

    def hold(self, tensor, stream):
        self._memory[tensor.untyped_storage()._cdata].holders.add(stream)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        now, given = self.present, {storage._cdata for storage in storages((args, kwargs))}
        for known in map(self._memory.get, given & self._memory.keys()):
            stream, count = known.written
            known.readers.add(now)
            if now.done.get(stream, 0) < count:
                self.early.append(function)
        result = function(*args, **(kwargs or {}))
        now.done[now] += 1
        for storage in storages(result):
            if storage._cdata not in given:
                self.make(storage, now)
            elif function._schema.is_mutable and storage._cdata in self._memory:  # else it is a view
                self._memory[storage._cdata].written = now, now.done[now]
        return result

    def make(self, storage, now):
        key = storage._cdata

        def freed(_):
            known = self._memory.pop(key)
            if not known.readers <= known.holders:
                self.lost.append(known)

        self._memory[key] = SimpleNamespace(
            written=(now, now.done[now]), readers=set(), holders={now}, alive=weakref.ref(storage, freed)
        )


@pytest.fixture
def gpu(monkeypatch):
    gpu = Gpu()
    monkeypatch.setattr(torch.Tensor, 'is_cuda', True)
    monkeypatch.setattr(torch.Tensor, 'record_stream', lambda tensor, stream: gpu.hold(tensor, stream))
    return gpu


@pytest.fixture(scope='module')
def networks():
    torch.manual_seed(0)
    return Image2Points(TINY).eval(), Local2World(TINY).eval()


def run(gpu, networks, ahead, recorded):
    """Run a stream of images, each encoded before its turn, beside the one before, or not."""
    grid_rotation.cache_clear()  # made on one stream, read on both
    scene = Scene(*networks, 1.5)
    scene._at, scene._beside = gpu, Stream()
    gpu.present.done[gpu.present] += 1
    scene.networks = networks  # which are on their way yet
    if recorded:
        scene._encoding, scene._decoding = OnCpu(True), OnCpu(True)
    pipeline, encoded, count = OnlinePipeline(scene, SETTINGS), [], 40
    stream = list(torch.rand(count, 3, 32, 32))
    for weight in chain(*(network.parameters() for network in networks)):
        gpu.make(weight.untyped_storage(), gpu.present)
    with gpu:
        for image, following in zip(stream, [*stream[1:], stream[-1]]):

            def look(following=following):
                if ahead:
                    before = dict(scene._beside.done)
                    encoded.append(scene.encoded(following[None]))
                    assert scene._beside.done[gpu.present] == before[gpu.present]  # it waits for nothing more

            pipeline.process(image, encoded.pop() if encoded else None, look)
    assert scene._beside.done[scene._beside] > count


@pytest.mark.parametrize('ahead', [False, True])
@pytest.mark.parametrize('recorded', [False, True])
def test_all_is_written_before_it_is_read_and_stays_until_it_was(gpu, networks, ahead, recorded):
    run(gpu, networks, ahead, recorded)
    assert not gpu.early and not gpu.lost


def test_a_stream_that_does_not_wait_is_found(gpu, networks, monkeypatch):
    monkeypatch.setattr(Stream, 'wait_event', lambda stream, event: stream.done.setdefault(gpu.present, 0))
    run(gpu, networks, True, False)
    assert gpu.early


def test_memory_that_goes_too_soon_is_found(gpu, networks, monkeypatch):
    monkeypatch.setattr(torch.Tensor, 'record_stream', lambda tensor, stream: None)
    run(gpu, networks, True, False)
    assert gpu.lost and not gpu.early


def test_the_next_frame_is_cut_beside_the_present_one_too(gpu, networks, monkeypatch):
    pytest.importorskip('PIL', reason='a CPU cuts with Pillow')
    from slam3r_ros.engines.slam3r import incoming

    scene, places, cut = Scene(*networks, 1.5), [], incoming.square_on
    scene._at, scene._beside, scene.can_do_two = gpu, Stream(), True
    scene.networks = networks
    monkeypatch.setattr(incoming, 'square_on', lambda *arguments: places.append(gpu.present) or cut(*arguments))
    ahead, frame, other = incoming.Lookahead(32, 'cpu'), *(Frame(i, i, np.zeros((48, 64, 3), np.uint8)) for i in (1, 2))
    present = gpu.present
    for comes in (frame, other):
        ahead.tell(frame)
        ahead.begin(scene)
        assert (ahead.take(comes) is not None) == (comes is frame)
    assert places == [scene._beside] * 2 and gpu.present is present
    assert ahead.take(frame) is None
    ahead.begin(scene)  # nobody has told it of another one
    scene.can_do_two = False
    ahead.tell(frame)
    ahead.begin(scene)
    assert ahead.take(frame) is None and len(places) == 2
