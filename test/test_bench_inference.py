# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`slam3r bench inference` and `accuracy` in small: what they measure is what they say, and the ratios hold."""

import json
import subprocess
import sys
from functools import partial

import numpy as np
import pytest

torch = pytest.importorskip('torch', reason='the networks need torch')

from one_thread import one_thread  # noqa: F401
from slam3r_long_stream import TINY
from torch.utils.flop_counter import FlopCounterMode

from slam3r_ros.bench import accuracy, golden, inference, workload
from slam3r_ros.bench.savings import Step, count_operations
from slam3r_ros.cli import main
from slam3r_ros.engines.slam3r.precision import CastLinear, available
from slam3r_ros.engines.slam3r.settings import Settings
from slam3r_ros.mapping.frames import rigid, transform

SIDE = 32
CPU = available(torch.device('cpu'))


@pytest.fixture(autouse=True)
def _without_gradients():
    with torch.inference_mode():
        yield


@pytest.fixture
def tiny(monkeypatch):
    """Networks and images are tiny, and the peak of the device is known."""
    for name in workload.SIZES:
        monkeypatch.setitem(workload.SIZES, name, TINY)
    for part in (inference.stages, inference.speed, inference.growth):
        monkeypatch.setattr(inference, part.__name__, partial(part, side=SIDE))
    monkeypatch.setattr(inference, 'peak', lambda device, precision: 100.0)


def step(references=workload.SCENE_FRAMES):
    return Step.make(TINY, references, 12, SIDE)


@pytest.mark.parametrize('precision', CPU)
def test_the_fast_step_gives_what_the_plain_one_gives(precision):
    plain = step()
    local, world = workload.plain_step(plain)
    fast = workload.FastStep(workload.in_precision(plain, precision))()
    error = max(
        workload.point_error(found, expected.points[0, 0])
        for found, expected in ((fast.local, local), (fast.world, world))
    )
    assert error < {'float32': 1e-5}.get(precision, 0.1)
    assert precision == 'float32' or error > 1e-5  # it is another precision indeed
    again, _ = workload.plain_step(plain)
    assert torch.equal(again.points, local.points)  # the networks of the plain step were left alone


def test_a_frame_costs_no_more_in_a_large_map():
    """Counted, not timed: other programs come and go."""
    operations, held = [], []
    for keyframes in (150, 2000):
        before = workload.held_bytes('cpu')
        walk = workload.Walk(step(), keyframes)
        walk()
        held.append(workload.held_bytes('cpu') - before)
        with FlopCounterMode(display=False) as counter:
            walk()
        operations.append(counter.get_total_flops())
        assert walk.pipeline.count == keyframes + 2 and len(walk.pipeline.buffer.frames) == Settings.buffer_size
    assert operations[1] <= 1.01 * operations[0] and operations[0] > 0
    assert held[1] <= 1.01 * held[0] and held[0] > 100 * 4 * 3 * SIDE**2


def test_the_stages_make_up_the_counted_step():
    config = workload.SIZES['small']
    counts = workload.operations(config, [11])
    assert sum(counts.values()) == pytest.approx(count_operations(config)[1] / 1e9)


def test_the_peak_is_that_of_a_matrix_product():
    size = 2048
    a = torch.randn(size, size)
    milliseconds = workload.in_turn('cpu', [lambda: a @ a], 2).min()
    peaks = (workload.peak('cpu', 'float32', 0.01) for _ in range(10))  # any may fall into a moment that is not ours
    assert any(peak > 0.2 * 2e-6 * size**3 / milliseconds for peak in peaks)


def test_the_command_tells_all(tiny, tmp_path, capsys):
    path = tmp_path / 'figures.json'
    words = ['--repeats', '2', '--frames', '5', '--windows', '5', '11', '--maps', '10', '100', '150']
    status = main(['bench', 'inference', '--device', 'cpu', *words, '--json', str(path)])
    result = json.loads(path.read_text())
    stages = {(row['stage'], row['precision']) for row in result['rows']}
    for precision in CPU:
        assert {(stage, precision) for stage in ('encode', 'window 5', 'window 11', 'register, by 10')} <= stages
    for row in result['rows']:
        assert row['milliseconds'] > 0 and (row['p95'] is None or row['p95'] >= row['milliseconds'])
        if row['gflop']:
            assert row['share'] == pytest.approx(row['gflop'] / row['milliseconds'] * 1e3 / 100)
    assert status == int(any(figure['missed'] for figure in result['figures']))
    missed = [figure['name'] for figure in result['figures'] if figure['missed'] and 'time' not in figure['name']]
    assert not missed  # but times, which a busy machine spoils
    printed = capsys.readouterr().out
    assert all(row['stage'] in printed for row in result['rows']) and 'largest difference' in printed
    expected = {'slam3r'} if 'geometric: left out' in printed else {'slam3r', 'geometric'}
    assert expected == {row['engine'] for row in result['rows']}


def test_limits_are_for_the_official_size(tiny, monkeypatch):
    peaks = dict.fromkeys(CPU, 100.0)
    monkeypatch.setitem(inference.MIN_SPEEDUP, 'cpu', 1e9)
    for size, missed in (('small', 0), ('full', 1)):
        results = list(inference.speed('cpu', size, peaks, 1))
        figures = [each for each in results if isinstance(each, inference.Figure)]
        assert sum(figure.missed and 'default' in figure.name for figure in figures) == missed


def test_it_needs_neither_ros_nor_video_nor_compilers():
    code = (
        'import sys; sys.modules.update(dict.fromkeys(["rclpy", "av", "numba", "ament_index_python"]))\n'
        'from functools import partial\n'
        'import torch; torch.set_num_threads(1)\n'
        'from slam3r_ros.bench import inference, workload, accuracy\n'
        'from slam3r_ros.cli import main\n'
        'from slam3r_ros.engines.slam3r.config import NetworkConfig\n'
        'workload.SIZES["small"] = NetworkConfig(32, 1, 2, 32, 3, 2)\n'
        'inference.peak = lambda *_: 1.0\n'
        'for part in (inference.stages, inference.speed, inference.growth):\n'
        '    setattr(inference, part.__name__, partial(part, side=32))\n'
        'accuracy.SIDE = 32\n'
        'accuracy.on_vectors = lambda *_: ()\n'
        'main("bench inference --device cpu --repeats 1 --windows 5 --maps 10 --precisions float32".split())\n'
        'print(len(accuracy.video(14)))\n'
        'main("bench accuracy --device cpu --frames 14 --precisions float32 --as-on-gpu".split())\n'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert 'geometric: left out' in done.stdout and "14 frames, float32's choices        float16 (GPU)" in done.stdout


@pytest.mark.parametrize('degrees, shift', [(0.01, 0.0), (30.0, 0.2), (170.0, 1.0)])
def test_the_motion_between_two_maps_is_found(degrees, shift):
    points = golden.pointmap(0, 24, 32).astype(float)
    angle = np.radians(degrees)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    moved = transform(rigid(turn, np.array([shift, 0, 0])), points)
    found = accuracy.pose_error(torch.from_numpy(points), torch.from_numpy(moved))
    assert found == pytest.approx((degrees, shift / np.linalg.norm(moved, axis=-1).mean()), rel=1e-6, abs=1e-9)


def test_what_overflows_is_a_miss():
    points = torch.ones(4, 4, 3)
    for broken in (torch.inf, torch.nan):
        found = points.clone()
        found[0, 0, 0] = broken
        row = accuracy.compare('golden a', 'float16', [(points, points), (found, points)])
        assert row.worst == np.inf and accuracy.judge([row], ['float16'])[0].missed


def test_points_that_one_map_has_dropped_are_not_compared():
    points = torch.from_numpy(golden.pointmap(0, 24, 32))
    found, expected = points.clone(), points.clone()
    found[0], expected[1] = 0, 0
    row = accuracy.compare('a', 'float16', [(found, expected)])
    assert max(row.worst, row.angle, row.shift) < 1e-6
    assert accuracy.compare('a', 'float16', [(0 * points, points)]).worst == np.inf


def frames(count):
    return [np.random.default_rng(i // 4).integers(0, 256, (SIDE, SIDE, 3), np.uint8) for i in range(count)]


def test_errors_grow_with_the_precision_lost():
    rows = list(accuracy.on_video('cpu', TINY, ['float32', *accuracy.HALF], frames(9), Settings(stride=1)))
    names = [(row.what, row.precision) for row in rows]
    ways = '9 frames, on its own', "9 frames, float32's choices"
    assert names == [(way, precision) for precision in accuracy.HALF for way in ways]
    fine, rough = rows[:2], rows[2:]
    for a, b in zip(fine, rough):
        assert 1e-5 < a.point < b.point / 3 and b.point < 0.3
        assert a.worst >= a.point and a.angle > 0 and a.shift > 0


def test_the_choices_of_another_run_are_taken():
    """Of other networks even, which would choose otherwise."""
    settings = Settings(stride=1, buffer_size=6, scene_frames=3)
    runs = []
    for salt, leader in (('a', None), ('b', None), ('b', 0)):
        networks = accuracy.make_networks(TINY, 'cpu', (salt, salt))
        scene = accuracy.Witness(networks, None if leader is None else runs[leader][0].notes)
        asked = []
        scene.register = lambda new, known, plain=scene.register, asked=asked: (asked.append(known), plain(new, known))
        accuracy.worlds(scene, frames(30), settings)
        runs.append((scene, asked))
    first, other, following = runs
    assert first[1] == following[1] != other[1]
    for number, view in first[0].views.items():
        found = following[0].views[number]
        assert torch.equal(found.confidence, view.confidence) and not torch.equal(found.world, view.world)


@pytest.mark.parametrize('precision', accuracy.HALF)
def test_a_layer_is_rounded_as_on_a_gpu(precision):
    cast = CastLinear(torch.nn.Linear(64, 96), accuracy.HALF[precision])
    tokens = torch.randn(5, 64)
    expected, layer = cast(tokens), accuracy.RoundedLinear(cast)
    found = layer(tokens)
    assert found.dtype == expected.dtype == accuracy.HALF[precision] and layer.largest == float(found.abs().max())
    difference = (found.float() - expected.float()).abs() / expected.float().abs()
    assert difference.max() <= torch.finfo(found.dtype).eps  # of one step, where the order of the sum matters
    networks = accuracy.made(accuracy.make_networks(TINY, 'cpu', ('a', 'b')), precision)
    layers = [module for network in networks for module in network.modules()]
    assert not any(isinstance(module, CastLinear) for module in layers)
    assert any(isinstance(module, accuracy.RoundedLinear) for module in networks[0].enc_blocks.modules())


@pytest.mark.parametrize('value', [60000.0, torch.nan])
def test_a_layer_that_overflows_is_told(value):
    linear = torch.nn.Linear(4, 4)
    torch.nn.init.ones_(linear.weight)
    layer = accuracy.RoundedLinear(CastLinear(linear, torch.float16))
    layer(torch.full((1, 4), 100.0))
    assert layer.largest == pytest.approx(400, abs=2)
    layer(torch.full((1, 4), value))
    assert layer.largest == np.inf


def test_the_default_and_int8_are_held_to_the_limit_on_the_vectors():
    cases = [('golden a', 'float16', 0.009), ('golden a', 'int8', 0.02), ('9 frames', 'float16', 0.5)]
    cases += [("9 frames, float32's choices", 'float16', 0.02), ("9 frames, float32's choices", 'int8', 0.02)]
    rows = [accuracy.Row(what, precision, 0.005, worst, 0.0, 0.0) for what, precision, worst in cases]
    missed = {figure.name: figure.missed for figure in accuracy.judge(rows, ['float16'])}
    assert missed == {
        'float16: golden a': False, 'int8: golden a': True, "float16: 9 frames, float32's choices": True,
    }  # fmt: skip
