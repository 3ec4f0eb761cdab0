# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`slam3r bench memory` beside what really is allocated."""

import copy
import json
from dataclasses import replace
from functools import lru_cache
from itertools import accumulate

import pytest

torch = pytest.importorskip('torch', reason='the networks need torch')

from one_thread import one_thread  # noqa: F401
from slam3r_long_stream import TINY
from torch.profiler import ProfilerActivity, profile

from slam3r_ros.bench import memory, workload
from slam3r_ros.bench.savings import Step
from slam3r_ros.cli import main
from slam3r_ros.engines.slam3r import precision as precision_module
from slam3r_ros.engines.slam3r import scene as scene_module
from slam3r_ros.engines.slam3r.cuda_graphs import streams_of
from slam3r_ros.engines.slam3r.layers import attend
from slam3r_ros.engines.slam3r.networks import Local2World
from slam3r_ros.engines.slam3r.precision import convert

SIDE = 64
counted = lru_cache(memory.count)


def walked(config, side, device, precision='float32'):
    """Return a real walk that has prepared all candidates."""
    step = Step.make(config, 1, 1, side)
    networks = [convert(network, precision, torch.device(device)) for network in (step.image2points, step.local2world)]
    step = replace(step, image2points=networks[0], local2world=networks[1], image=step.image.to(device))
    walk = workload.Walk(step, memory.KEYFRAMES)
    walk()
    return walk


def test_the_workspace_is_what_a_cpu_allocates(monkeypatch):
    """By torch's profiler, which sees every allocation; a CPU scores few candidates at once, unless it is let."""
    monkeypatch.setattr(scene_module, '_IN_CACHE', 1000)
    monkeypatch.setattr(precision_module, '_has_onednn', lambda: False)
    walk = walked(TINY, SIDE, 'cpu')
    assert counted(TINY, 'float32', SIDE).workspace == pytest.approx(most_allocated(walk), rel=0.02)


def test_attention_makes_no_scores_as_its_kernel_on_a_cpu_does_not():
    shape = 4, 12, 196, 64
    with memory.LiveBytes() as live, torch.inference_mode():
        parts = [torch.empty(shape, device='meta') for _ in range(3)]
        before = live.begin()
        attend(*parts)
        most = live.most - before
    parts = [torch.randn(shape) for _ in range(3)]
    assert most == pytest.approx(most_allocated(lambda: attend(*parts)), rel=0.15)


def most_allocated(function):
    """Return the bytes that a function has allocated on the CPU at once."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler, torch.inference_mode():
        function()
    found, waiting = [], profiler.profiler.kineto_results.experimental_event_tree()
    while waiting:
        event = waiting.pop()
        waiting += event.children
        if event.name == '[memory]':
            found.append(event)
    found.sort(key=lambda event: event.start_time_ns)
    return max(accumulate(event.extra_fields.alloc_size for event in found))


def test_weights_and_map_are_what_they_are_made_of():
    exact, half = (counted(TINY, precision, SIDE) for precision in ('float32', 'float16'))
    step = Step.make(TINY, 1, 1, SIDE, 'meta')
    networks = step.image2points, step.local2world
    assert exact.weights == sum(weight.nbytes for network in networks for weight in network.parameters())
    assert 0.5 < half.weights / exact.weights < 0.75 and half.workspace < exact.workspace
    tokens, pixels = (SIDE // TINY.patch) ** 2, SIDE**2
    view = 4 * (tokens * TINY.encoder_width + 2 * (3 + 1) * pixels)  # tokens, two pointmaps with their confidences
    candidate = 4 * 4 * tokens * TINY.decoder_width  # tokens, queries, keys, values
    assert exact.map == pytest.approx(103 * view + 128 * candidate, rel=0.03)


def test_recordings_hold_their_inputs_and_a_workspace_of_their_own():
    found = counted(TINY, 'float32', SIDE)
    view = 4 * (SIDE // TINY.patch) ** 2 * TINY.encoder_width  # tokens
    inputs = sum((2 * (1 + references)) * view + (1 + references) * 12 * SIDE**2 for references in range(10, 14))
    assert inputs < found.graphs < 2 * inputs + found.workspace


def test_only_what_lives_is_counted():
    with memory.LiveBytes() as live, torch.inference_mode():
        held = torch.empty(1000, device='meta')
        torch.empty(5000, device='meta')
        view = held[:10] + torch.zeros(10, device='meta')
        assert live.held == 4096 + 512 and live.most == 4096 + 20480
        torch.empty(10_000), held.view(10, 100), held.add_(1)
        assert live.begin() == live.most == 4096 + 512
        del held
        assert live.held == 512 and view.shape == (10,)
    del view
    assert live.held == 0


def test_weights_come_to_the_device_in_half_precision(monkeypatch):
    """A network is never there in float32 first."""
    network = Local2World(TINY).requires_grad_(False)
    size = sum(weight.nbytes for weight in network.parameters())
    with memory.LiveBytes() as live:
        converted = convert(copy.deepcopy(network), 'float16', torch.device('meta'))
        assert live.most == live.held < 0.75 * size + 512 * len(list(network.parameters()))
    assert converted.dec_norm.weight.is_meta


def test_the_command_tells_all(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(memory, 'count', lambda config, precision: counted(TINY, precision, SIDE))
    path = tmp_path / 'figures.json'
    words = ['bench', 'memory', '--size', 'small', '--json', str(path), '--precisions']
    assert main([*words, 'float16']) == 0
    result = json.loads(path.read_text())
    (row,), (figure,) = result['rows'], result['figures']
    assert row['whole'] == row['weights'] + row['map'] + row['workspace'] + row['graphs'] == figure['value'] * 1e9
    assert 'float16' in capsys.readouterr().out
    monkeypatch.setattr(memory, 'MAX_VRAM', 0.001)
    assert main([*words, 'float16']) == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device')
@pytest.mark.parametrize('precision', ['float16', 'float32'])
def test_a_gpu_takes_what_was_counted(precision):
    expected = counted(workload.SIZES['small'], precision)
    for stream in (torch.cuda.current_stream(), streams_of(torch.device('cuda', 0))[0]):
        for dtype in (torch.float32, getattr(torch, precision)):  # cuBLAS and cuBLASLt take their own
            with torch.cuda.stream(stream):
                torch.nn.Linear(8, 8, device='cuda', dtype=dtype)(torch.ones(8, 8, device='cuda', dtype=dtype))
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    walk = walked(workload.SIZES['small'], 224, 'cuda', precision)
    torch.cuda.reset_peak_memory_stats()
    walk()
    assert torch.cuda.max_memory_allocated() - before == pytest.approx(expected.whole - expected.graphs, rel=0.1)
