# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The networks in each precision and layout beside the plain ones; ratios of time are `slam3r bench inference`'s."""

import copy

import numpy as np
import pytest

torch = pytest.importorskip('torch', reason='the networks need torch')

from one_thread import one_thread  # noqa: F401
from slam3r_long_stream import TINY

from slam3r_ros.engines.protocol import EngineError
from slam3r_ros.engines.slam3r import precision as module
from slam3r_ros.engines.slam3r.layers import grid_rotation, paired, pairs, rotate
from slam3r_ros.engines.slam3r.networks import Image2Points, Local2World
from slam3r_ros.engines.slam3r.precision import PRECISIONS, CastLinear, PrecisionError, available, choose, convert
from slam3r_ros.engines.slam3r.scene import Scene

SIDE = 32
CPU = torch.device('cpu')


@pytest.fixture(scope='module')
def plain():
    torch.manual_seed(0)
    return Image2Points(TINY).eval().requires_grad_(False), Local2World(TINY).eval().requires_grad_(False)


def converted(networks, precision, as_on=None):
    return [convert(copy.deepcopy(network), precision, CPU, as_on) for network in networks]


def results_of(networks):
    """Return what every call of the networks gives."""
    images = torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, (6, 3, SIDE, SIDE))).float()
    with torch.inference_mode():
        scene = Scene(*networks, 1.5)
        scene.encode(images, 0)
        own, others = scene.reconstruct([[0, 1, 2, 3], [1, 0, 4, 5]], wanted='both')
        scene.begin([0, 1, 2, 3], shrink=False)
        scene.locate(4, [0, 1, 2])
        scene.register([4], [0, 1, 2, 3])
        scores = scene.correlate([4, 5], [0, 1, 2, 3])
        found = scene.views[4]
    return [scene.views[0].tokens, *own, *others, scores, found.local, found.world, found.confidence]


def errors(found, expected):
    assert all(a.dtype == b.dtype == torch.float32 and a.shape == b.shape for a, b in zip(found, expected))
    return [float((a - b).norm() / b.norm()) for a, b in zip(found, expected)]


def test_float32_by_onednn_is_exact(plain):
    networks = converted(plain, 'float32')
    linear = [isinstance(block.mlp.fc1, torch.nn.Linear) for block in networks[0].enc_blocks]
    assert not any(linear) or not module._has_onednn()
    assert max(errors(results_of(networks), results_of(plain))) < 1e-5


@pytest.mark.parametrize('precision, limit', [('bfloat16', 0.02), ('int8', 0.02)])
def test_reduced_precision_is_near(plain, precision, limit):
    if precision not in available(CPU):
        pytest.skip(f'no {precision} here')
    found = errors(results_of(converted(plain, precision)), results_of(plain))
    assert 1e-5 < max(found) < limit, found


@pytest.mark.parametrize('precision', ['bfloat16', 'float16'])
def test_layers_of_a_gpu_are_near_on_the_cpu_too(plain, precision):
    networks = converted(plain, precision, 'cuda')
    for layer in (networks[0].enc_blocks[0].mlp.fc1, networks[1].mv_dec_blocks1[0].cross_attn.projv):
        assert isinstance(layer, CastLinear) and layer.weight.dtype == getattr(torch, precision)
    found = errors(results_of(networks), results_of(plain))
    assert 1e-5 < max(found) < {'bfloat16': 0.02, 'float16': 0.003}[precision], found


def test_torch_takes_no_kernel_that_waits_for_its_compiler_or_sums_in_half_precision(plain):
    products = torch.backends.cuda.matmul
    torch.backends.cuda.enable_cudnn_sdp(True)
    products.allow_fp16_reduced_precision_reduction = products.allow_bf16_reduced_precision_reduction = True
    converted(plain[:1], 'float32')
    assert torch.backends.cuda.cudnn_sdp_enabled() and products.allow_fp16_reduced_precision_reduction  # it is a CPU
    converted(plain[:1], 'float16', 'cuda')
    assert not torch.backends.cuda.cudnn_sdp_enabled() and torch.backends.cuda.flash_sdp_enabled()
    assert not products.allow_fp16_reduced_precision_reduction
    assert not products.allow_bf16_reduced_precision_reduction


def test_int8_rounds_each_token_by_its_own_largest_number():
    if 'int8' not in available(CPU):
        pytest.skip('no int8 here')
    torch.manual_seed(0)
    linear = torch.nn.Linear(64, 96).requires_grad_(False)
    tokens = torch.randn(3, 50, 64) * torch.logspace(-3, 3, 50)[:, None]
    found, given = module.Int8Linear(linear)(tokens), tokens.clone()
    expected = linear(tokens) - linear.bias
    error = (found - linear.bias - expected).norm(dim=-1) / expected.norm(dim=-1)
    assert 1e-3 < error[:, 15:].max() < 0.03  # of smaller tokens nothing is seen beside the bias
    assert torch.equal(tokens, given) and torch.equal(module.Int8Linear(linear)(0 * tokens), linear(0 * tokens))


def test_half_the_weights_take_half_the_memory(plain):
    networks = plain[0], converted(plain, 'float16', 'cuda')[0]
    size = [sum(weight.nbytes for weight in network.mv_dec_blocks1.parameters()) for network in networks]
    assert size[1] < 0.55 * size[0]


def test_pairs_turn_as_halves_do():
    rotation, tokens = grid_rotation(3, 5, 16, 100.0, CPU), torch.randn(2, 4, 15, 16)
    order = pairs(16)
    found = rotate(tokens[..., order], paired(rotation))
    torch.testing.assert_close(found, rotate(tokens, rotation)[..., order], rtol=1e-6, atol=1e-6)


def test_auto_is_the_fastest_that_is_exact_enough(monkeypatch):
    assert choose('auto', CPU) == 'float32'
    for capability, able in (((7, 5), ('float32', 'float16')), ((9, 0), ('float32', 'float16', 'bfloat16'))):
        monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device, found=capability: found)
        assert available(torch.device('cuda')) == able and choose('auto', torch.device('cuda')) == 'float16'
    assert choose('bfloat16', torch.device('cuda')) == 'bfloat16'


@pytest.mark.parametrize('wrong', ['float16', 'float64', ''])
def test_what_the_cpu_cannot_is_refused(wrong):
    with pytest.raises(PrecisionError, match='on cpu: use one of auto, float32'):
        choose(wrong, CPU)


def test_the_node_offers_every_precision():
    parameters = pytest.importorskip('slam3r_ros.nodes.parameters', reason='the nodes need ROS')
    assert parameters.PRECISION.choices == PRECISIONS


def test_an_engine_loads_its_networks_in_the_precision(plain, monkeypatch):
    pytest.importorskip('safetensors', reason='the engine needs it')
    from slam3r_ros.engines.slam3r import models

    monkeypatch.setattr(models, 'find', lambda kind, folder: kind)
    monkeypatch.setattr(models, 'check', lambda kind, path: None)
    monkeypatch.setattr(models, 'load', lambda kind, *_, **__: (copy.deepcopy(plain[kind is models.L2W]), None))
    loaded = models.Models(device='cpu', precision='bfloat16')
    assert loaded.precision == 'bfloat16' and loaded.get()[1].pairs
    assert max(errors(results_of(loaded.get()), results_of(converted(plain, 'bfloat16')))) == 0
    with pytest.raises(EngineError, match="no precision 'float16' on cpu"):
        models.Models(device='cpu', precision='float16')
