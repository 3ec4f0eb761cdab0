# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Recorded calls and frames encoded beside others; on a CPU a recording computes anew from where its arguments lie."""

import logging
from contextlib import contextmanager
from itertools import pairwise
from types import SimpleNamespace

import pytest

torch = pytest.importorskip('torch', reason='the networks need torch')

from one_thread import one_thread  # noqa: F401
from slam3r_long_stream import TINY

from slam3r_ros.engines.slam3r.cuda_graphs import OFTEN, CudaGraphs, streams_of
from slam3r_ros.engines.slam3r.networks import Image2Points, Local2World, Maps
from slam3r_ros.engines.slam3r.online import OnlinePipeline
from slam3r_ros.engines.slam3r.scene import Scene
from slam3r_ros.engines.slam3r.settings import Settings

SETTINGS = Settings(stride=2, buffer_size=6, scene_frames=3)


class OnCpu(CudaGraphs):
    """Records as a GPU does: what is replayed reads the recorded arguments and writes to the recorded result."""

    recorded = 0

    def record(self, call):
        self.recorded += 1
        result = call()

        def replay():
            for place, value in zip(_flat(result), _flat(call())):
                place.copy_(value)

        return result, replay


def _flat(result):
    return [result] if isinstance(result, torch.Tensor) else [tensor for part in result or () for tensor in _flat(part)]


class Double:
    """A function that counts how often it is called."""

    def __init__(self):
        self.calls = []

    def __call__(self, a, factor, b=None):
        self.calls.append(a.data_ptr())
        return Maps(factor * a, a + 1), None


def test_what_comes_often_is_replayed_with_new_values():
    function, graphs = Double(), OnCpu(True)
    results = []
    for number in range(OFTEN + 5):
        given = torch.full((3,), float(number))
        results.append((graphs(function, given, 2.0), given))
    assert graphs.recorded == 1
    assert len(set(function.calls[OFTEN:])) == 1  # only the recording's own argument is read from then on
    for number, ((maps, none), given) in enumerate(results):  # none was written over by a later one
        assert none is None and isinstance(maps, Maps)
        assert maps.points.tolist() == [2 * number] * 3 and maps.confidence.tolist() == [number + 1] * 3
        assert given.tolist() == [number] * 3


def test_calls_of_other_kinds_are_kept_apart():
    function, graphs = Double(), OnCpu(True)
    kinds = [(torch.ones(3), 2.0), (torch.ones(4), 2.0), (torch.ones(3), 3.0), (torch.ones(3).double(), 2.0)]
    other = Double()
    for _ in range(OFTEN + 2):
        for a, factor in kinds:
            for options in ({}, {'b': 1}):
                maps, _ = graphs(function, a, factor, **options)
                assert torch.equal(maps.points, factor * a) and maps.points.dtype == a.dtype
        graphs(other, *kinds[0])
    assert graphs.recorded == 9


def test_the_recordings_are_bounded():
    """What was not replayed for longest goes, and is recorded anew when it comes again."""
    function, graphs = Double(), OnCpu(True)
    for size in range(1, 30):
        for _ in range(OFTEN + 1):
            maps, _ = graphs(function, torch.ones(size), 2.0)
            assert maps.points.shape == (size,)
        graphs(function, torch.ones(1), 2.0)
    assert graphs.recorded == 29 and len(graphs._recordings) == 12

    def records(size):
        before = graphs.recorded
        for _ in range(OFTEN):
            graphs(function, torch.ones(size), 2.0)
        return graphs.recorded > before

    assert not any(map(records, [1, *range(19, 30)])) and records(2)


def refuse(call):
    raise RuntimeError('operation not permitted when stream is capturing\nmore')


def stale(call):
    result = call()
    result[0].points.mul_(1.5)
    return result, lambda: None


def no_number(call):
    result = call()
    return result, lambda: result[0].confidence.fill_(float('nan'))


CASES = [(refuse, 'operation not permitted when'), (stale, 'off by'), (no_number, 'off by nan')]


@pytest.mark.parametrize('record, reason', CASES)
def test_what_cannot_be_recorded_or_replays_wrongly_is_computed(caplog, record, reason):
    function, graphs = Double(), OnCpu(True)
    graphs.record = record
    with caplog.at_level(logging.WARNING):
        for number in range(3 * OFTEN):
            maps, _ = graphs(function, torch.full((3,), 1.0 + number), 2.0)
            assert maps.points.tolist() == [2 * (1.0 + number)] * 3
    assert not graphs.enabled
    (warning,) = caplog.messages
    assert reason in warning and '\n' not in warning


def test_disabled_it_only_calls():
    function, graphs = Double(), OnCpu(False)
    given = torch.ones(3)
    for _ in range(3 * OFTEN):
        graphs(function, given, 2.0)
    assert graphs.recorded == 0 and set(function.calls) == {given.data_ptr()}


@pytest.fixture(scope='module')
def networks():
    torch.manual_seed(0)
    return Image2Points(TINY).eval(), Local2World(TINY).eval()


@pytest.fixture(scope='module')
def images():
    return torch.rand(60, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1


def worlds(pipeline, images):
    return [view.world for image in images for _, view in pipeline.process(image)]


def recorded(scene):
    scene._encoding, scene._decoding = OnCpu(True), OnCpu(True)
    return scene


def test_a_stream_gives_the_same(networks, images):
    scene = recorded(Scene(*networks, 1.5))
    expected = worlds(OnlinePipeline(Scene(*networks, 1.5), SETTINGS), images)
    found = worlds(OnlinePipeline(scene, SETTINGS), images)
    assert scene._encoding.recorded == 1 and scene._decoding.recorded >= 4  # both networks, by how many references
    assert scene._encoding.enabled and scene._decoding.enabled
    assert len(found) == 60 and all(map(torch.equal, found, expected))


def test_networks_that_go_take_their_recordings_along(networks, images):
    scene = Scene(*networks, 1.5)
    pipeline = OnlinePipeline(recorded(scene), SETTINGS)
    worlds(pipeline, images[:40])
    old = scene._encoding, scene._decoding
    assert scene.networks == networks
    scene.networks = None
    assert scene.networks is None and scene._encoding not in old and scene._decoding not in old
    scene.networks = networks
    before = worlds(OnlinePipeline(Scene(*networks, 1.5), SETTINGS), images)[40:]
    assert all(map(torch.equal, worlds(pipeline, images[40:]), before))


def test_a_full_memory_first_costs_the_recordings(networks, images, caplog):
    """And nothing else: as many frames as before are looked at."""
    scene = recorded(Scene(*networks, 1.5))
    pipeline = OnlinePipeline(scene, SETTINGS)
    expected = worlds(OnlinePipeline(Scene(*networks, 1.5), SETTINGS), images)
    found = worlds(pipeline, images[:50])
    graphs, room = scene._decoding, []

    def full(call, *arguments, **options):
        if not room:
            room.append(True)
            raise torch.OutOfMemoryError('CUDA out of memory.')
        return graphs(call, *arguments, **options)

    full.give_up = graphs.give_up
    scene._decoding = full
    with caplog.at_level(logging.WARNING):
        found += worlds(pipeline, images[50:])
    assert caplog.messages == [pipeline.degraded] == ['the memory of cpu was full: no CUDA graphs']
    assert pipeline.reach == (3, 3) and not graphs.enabled and not scene._encoding.enabled
    assert all(map(torch.equal, found, expected))


def test_frames_may_be_encoded_before_their_turn(networks, images, monkeypatch):
    scene = Scene(*networks, 1.5)
    pipeline, begun = OnlinePipeline(scene, SETTINGS), []
    encode = networks[0].encode
    monkeypatch.setattr(networks[0], 'encode', lambda batch: begun.append(len(batch)) or encode(batch))
    found = []
    for number, image in enumerate(images):
        encoded = scene.encoded(image[None]) if number % 3 else None
        found += [view.world for _, view in pipeline.process(image, encoded)]
    assert begun == [1] * 60
    assert all(map(torch.equal, found, worlds(OnlinePipeline(Scene(*networks, 1.5), SETTINGS), images)))


class Stream:
    """Notes what is to be done on it, and what it waits for."""

    def __init__(self):
        self.told, self.done = [], 0

    def record_event(self):
        self.done += 1
        return self, self.done

    def wait_event(self, event):
        self.told.append(event)


def test_a_frame_waits_for_its_own_encoding_only(networks, images, monkeypatch):
    """Not for that of the next one, which has begun by then."""
    scene = Scene(*networks, 1.5)
    scene._beside, present = Stream(), Stream()
    monkeypatch.setattr(torch.cpu, 'current_stream', lambda device: present)
    scene.networks = networks
    pipeline, encoded = OnlinePipeline(scene, SETTINGS), None
    for image, following in pairwise(images[:5]):
        coming = scene.encoded(following[None])
        pipeline.process(image, encoded)
        encoded = coming
    assert scene._beside.told == [(present, 1)] * 5  # the weights may be on their way
    assert present.told == [(scene._beside, number) for number in (2, 1, 3, 4)]  # the first was not foreseen


def test_nothing_but_recordings_is_done_on_their_stream(networks):
    """Else what another scene does meanwhile, on another thread, would be recorded instead of done."""
    first, second = Scene(*networks, 1.5), Scene(*networks, 1.5)
    assert first._beside is second._beside and first._recorder is second._recorder is not first._beside
    assert first._encoding._stream is first._decoding._stream is first._recorder


def test_streams_are_of_the_device_that_computes(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'Stream', lambda device: (device, object()))
    (one, a), (other, b) = streams_of.__wrapped__(torch.device('cuda', 1))
    assert one == other == torch.device('cuda', 1) and a is not b


@pytest.fixture
def told(monkeypatch):
    """What torch is told when a call is recorded, on a GPU that is not there."""
    told, streams = [], []

    @contextmanager
    def stream(which):
        before = streams.copy()
        streams.append(which)
        try:
            yield
        finally:
            streams[:] = before

    @contextmanager
    def graph(graph, pool, stream, capture_error_mode):
        told.append(('begin', pool, stream.name, capture_error_mode))
        streams.append(stream)
        yield  # what fails leaves the stream
        told.append('end')
        streams.pop()

    monkeypatch.setattr(torch.cuda, 'CUDAGraph', lambda: SimpleNamespace(replay=lambda: told.append('replay')))
    monkeypatch.setattr(torch.cuda, 'graph_pool_handle', lambda: (0, 7))
    monkeypatch.setattr(torch.cuda, 'stream', stream)
    monkeypatch.setattr(torch.cuda, 'graph', graph)
    for name in ('_cuda_endAllocateToPool', '_cuda_releasePool', '_cuda_clearCublasWorkspaces'):
        monkeypatch.setattr(torch._C, name, lambda *place, name=name: told.append((name, *place)), raising=False)
    yield told
    assert not streams


RECORDER = SimpleNamespace(name='recorder', device_index=3)


def test_a_recording_keeps_its_workspace_in_its_pool(told):
    """And torch does not take it away with another recording of the same stream (pytorch/pytorch#193402)."""
    graphs = CudaGraphs(True, RECORDER)
    for _ in range(2):
        result, replay = graphs.record(lambda: told.append('call') or 5)
        replay()
        assert result == 5
    begin = ('begin', (0, 7), 'recorder', 'thread_local')
    assert told == 2 * [begin, 'call', 'end', ('_cuda_clearCublasWorkspaces',), 'replay']


@pytest.mark.parametrize('ended', [False, True])
def test_a_recording_that_fails_leaves_the_allocator_as_it_was(told, monkeypatch, ended):
    """Where torch could not end it; else torch has done the same."""
    def fail():
        raise RuntimeError('operation not permitted when stream is capturing')

    if ended:
        monkeypatch.setattr(torch._C, '_cuda_endAllocateToPool', lambda *place: fail())
    with pytest.raises(RuntimeError, match='not permitted'):
        CudaGraphs(True, RECORDER).record(fail)
    names = [] if ended else ['_cuda_endAllocateToPool', '_cuda_releasePool']
    assert told[1:] == [*((name, 3, (0, 7)) for name in names), ('_cuda_clearCublasWorkspaces',)]


@pytest.mark.parametrize('name', ['_cuda_endAllocateToPool', '_cuda_releasePool', '_cuda_clearCublasWorkspaces'])
def test_a_torch_that_lacks_a_name_goes_without(told, monkeypatch, caplog, name):
    monkeypatch.delattr(torch._C, name)
    graphs = CudaGraphs(True, RECORDER)
    assert [float(graphs(torch.neg, torch.ones(1))) for _ in range(OFTEN + 1)] == (OFTEN + 1) * [-1]
    assert not graphs.enabled and not told and name in caplog.text


@pytest.fixture
def on_gpu():
    """Both networks on a GPU, in float16."""
    if not torch.cuda.is_available():
        pytest.skip('no CUDA device')
    from slam3r_ros.engines.slam3r.precision import convert

    torch.manual_seed(0)
    return [convert(kind(TINY).eval(), 'float16', torch.device('cuda')) for kind in (Image2Points, Local2World)]


@pytest.mark.parametrize('ahead', [False, True])
def test_on_a_gpu_it_gives_what_it_gives_without(on_gpu, images, caplog, ahead):
    results = []
    for cuda_graphs in (False, True):
        scene = Scene(*on_gpu, 1.5, cuda_graphs=cuda_graphs)
        pipeline = OnlinePipeline(scene, SETTINGS)
        assert scene._encoding.enabled == scene._decoding.enabled == cuda_graphs
        stream, views, encoded = list(images), [], None
        for image, following in zip(stream, [*stream[1:], stream[-1]]):
            coming = scene.encoded(following[None]) if ahead else None
            views += pipeline.process(image, encoded)
            encoded = coming
        results.append(torch.stack([view.world for _, view in views]).cpu())
    assert len(scene._encoding._recordings) == 1 and len(scene._decoding._recordings) >= 4, caplog.messages
    distance = (results[1] - results[0]).flatten(1).norm(dim=1) / results[0].flatten(1).norm(dim=1)
    assert distance.max() < 0.02


def test_on_a_gpu_recordings_stay_when_others_go(on_gpu, images):
    """What cuBLAS works in is freed with the recording it was taken for, and with no other."""
    expected = worlds(OnlinePipeline(Scene(*on_gpu, 1.5, cuda_graphs=False), SETTINGS), images)
    kept, gone = (OnlinePipeline(Scene(*on_gpu, 1.5), SETTINGS) for _ in range(2))
    found = worlds(kept, images[:40])
    worlds(gone, images[:40])
    assert kept.scene._decoding._recordings and gone.scene._decoding._recordings
    del gone
    torch.cuda.empty_cache()
    found += worlds(kept, images[40:])
    assert max(float((a - b).norm() / b.norm()) for a, b in zip(found, expected, strict=True)) < 0.02


def test_on_a_gpu_another_thread_may_work_meanwhile(on_gpu, images):
    """As the mesher does: it takes memory, frees it, and waits for the GPU, while calls are recorded."""
    import threading

    ended, failures = threading.Event(), []

    def work():
        try:
            while not ended.is_set():
                a = torch.ones(300, 300, device='cuda')
                float((a @ a).sum())
                del a
                torch.cuda.empty_cache()
        except RuntimeError as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        scene = Scene(*on_gpu, 1.5)
        found = worlds(OnlinePipeline(scene, SETTINGS), images)
    finally:
        ended.set()
        thread.join()
    assert not failures and scene._decoding.enabled and scene._encoding.enabled
    assert all(torch.isfinite(world).all() for world in found)
