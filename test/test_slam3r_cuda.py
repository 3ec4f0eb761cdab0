# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The networks, pipelines and engine on a GPU, in each precision; beside torch only the engine needs other packages."""

import copy

import numpy as np
import pytest

torch = pytest.importorskip('torch', reason='the networks need torch')

from slam3r_long_stream import TINY
from torch.nn.attention import SDPBackend

from slam3r_ros.bench.savings import Step, time_pairs
from slam3r_ros.engines.slam3r.networks import Image2Points, Local2World
from slam3r_ros.engines.slam3r.offline import OfflinePipeline, sample_points
from slam3r_ros.engines.slam3r.online import OnlinePipeline
from slam3r_ros.engines.slam3r.precision import available, convert
from slam3r_ros.engines.slam3r.scene import Scene
from slam3r_ros.engines.slam3r.settings import Settings

DEVICE = 'cuda'
SIDE = 32
PRECISIONS = pytest.mark.parametrize('precision', ['float32', 'bfloat16', 'float16'])
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device')


@pytest.fixture(scope='module')
def networks():
    """Both networks, plain on the CPU and by precision on the GPU, with the same weights."""
    torch.manual_seed(0)
    originals = Image2Points(TINY).eval(), Local2World(TINY).eval()
    on_gpu = {
        precision: tuple(convert(copy.deepcopy(network), precision, torch.device(DEVICE)) for network in originals)
        for precision in available(torch.device(DEVICE))
    }
    return {'cpu': originals, **on_gpu}


def images(count, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).uniform(-1, 1, (count, 3, SIDE, SIDE))).float()


def results_of(networks):
    """Return what every call of the networks gives, on the CPU."""
    with torch.inference_mode():
        scene = Scene(*networks, 1.5, normalise_input=True)
        scene.encode(images(6), 0)
        own, others = scene.reconstruct([[0, 1, 2, 3], [1, 0, 4, 5]], wanted='both')
        scene.begin([0, 1, 2, 3], shrink=False)
        scene.locate(4, [0, 1, 2])
        scene.register([4], [0, 1, 2, 3])
        scores = scene.correlate([4, 5], [0, 1, 2, 3])
        found = scene.views[4]
    results = [scene.views[0].tokens, *own, *others, scores, found.local, found.world, found.confidence]
    assert all(result.device.type == scene.device.type and result.dtype == torch.float32 for result in results)
    return [result.cpu() for result in results]


def test_float32_gives_what_the_cpu_gives(networks):
    """TF32, which torch leaves off for matrix products, would be off by 1e-3."""
    for found, expected in zip(results_of(networks['float32']), results_of(networks['cpu'])):
        assert (found - expected).norm() < 1e-4 * expected.norm()


@pytest.mark.parametrize('precision', ['bfloat16', 'float16'])
def test_reduced_precision_is_near(networks, precision):
    for found, expected in zip(results_of(networks[precision]), results_of(networks['cpu'])):
        assert (found - expected).norm() < 0.05 * expected.norm()


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_attention_is_compiled_already(networks, dtype):
    """CuDNN's, which torch takes first on Hopper, would be compiled for each shape."""
    parts = [torch.empty(2, 3, 49, 64, device=DEVICE, dtype=dtype) for _ in range(3)]
    assert SDPBackend(torch._fused_sdp_choice(*parts)) != SDPBackend.CUDNN_ATTENTION


@PRECISIONS
@pytest.mark.parametrize('mode', ['fixed', 'as_is'])
def test_online(networks, precision, mode):
    settings = Settings(stride=2, buffer_size=6, scene_frames=3, retrieve_every=2, mode=mode)
    pipeline = OnlinePipeline(Scene(*networks[precision], 1.5), settings)
    views = [view for image in images(40) for _, view in pipeline.process(image)]
    assert len(views) == 40
    assert all(view.world.device.type == DEVICE and torch.isfinite(view.world).all() for view in views)


@PRECISIONS
def test_offline(networks, precision):
    scene = Scene(*networks[precision], 1.5)
    pipeline = OfflinePipeline(scene, Settings(stride=0, scene_frames=3, sources=2))
    views = pipeline.run(images(24))
    assert len(views) == 24 and all(torch.isfinite(view.world).all() for view in views)
    colors = np.zeros((24, SIDE, SIDE, 3), np.uint8)
    threshold = float(torch.stack([view.confidence for view in views]).median())
    points, _ = sample_points(views, colors, threshold, 100, np.random.RandomState(0))
    assert points.shape == (100, 3) and points.dtype == np.float32


def test_the_memory_of_the_device_is_bounded(networks):
    settings = Settings(stride=1, buffer_size=6, scene_frames=3)
    pipeline = OnlinePipeline(Scene(*networks['float32'], 1.5), settings)
    held = []
    for image in images(50).repeat(4, 1, 1, 1):
        pipeline.process(image)
        held.append(torch.cuda.memory_allocated())
    assert max(held[100:]) <= 1.05 * max(held[20:100])


def test_savings_are_exact_here_too():
    step = Step.make(TINY, references=4, candidates=7, side=SIDE, device=DEVICE)
    assert all(seconds > 0 for pair in time_pairs(step, 1) for seconds in pair)
    with torch.inference_mode():
        for found, expected in zip(step.run(sparing=True), step.run(sparing=False)):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('suffix', ['.safetensors', '.pth'])
def test_weights_are_loaded_to_the_device(networks, tmp_path, suffix):
    safetensors = pytest.importorskip('safetensors.torch')
    from slam3r_ros.engines.slam3r.checkpoints import load
    from slam3r_ros.engines.slam3r.weights import I2P

    weights, path = networks['cpu'][0].state_dict(), tmp_path / f'slam3r_i2p{suffix}'
    safetensors.save_file(weights, path) if suffix == '.safetensors' else torch.save({'model': weights}, path)
    network, _ = load(I2P, path, TINY, DEVICE)
    for key, value in network.state_dict().items():
        assert value.device.type == DEVICE and torch.equal(value.cpu(), weights[key])


@pytest.fixture
def engine_of():
    for package in ('cv2', 'PIL', 'scipy', 'safetensors'):
        pytest.importorskip(package, reason=f'the engine needs {package}')
    from slam3r_ros.engines.slam3r.engine import Slam3rEngine

    return Slam3rEngine


def test_engine(engine_of):
    """Networks that know the truth: poses and pointmaps come off the device right."""
    from slam3r_oracle import FOCAL, OracleImage2Points, OracleLocal2World, image, points_seen
    from slam3r_oracle import SIDE as SQUARE

    from slam3r_ros.values import Frame, State

    oracles = OracleImage2Points(device=DEVICE), OracleLocal2World(device=DEVICE)
    engine = engine_of(networks=oracles, side=SQUARE, device=DEVICE, stride=3)
    outputs = [engine.process(Frame(i, i, image(i))) for i in range(20)]
    assert engine.state == State.TRACKING and len(engine.trajectory()) == 20
    keyframe = outputs[-1].keyframes[0]
    assert keyframe.intrinsics.fx == pytest.approx(FOCAL, rel=0.02)
    ratio = keyframe.pointmap[..., 2] / points_seen(19)[..., 2]
    assert np.nanmax(ratio) == pytest.approx(np.nanmin(ratio), rel=1e-3)


@PRECISIONS
def test_engine_with_networks(engine_of, networks, precision):
    """Random weights see nothing of use, but every frame goes through."""
    from slam3r_ros.values import Frame

    settings = Settings(min_confidence=1.01)
    engine = engine_of(networks=networks[precision], side=SIDE, device=DEVICE, precision=precision, settings=settings)
    pictures = np.random.default_rng(0).integers(0, 256, (60, 48, 64, 3), np.uint8)
    stream = [Frame(number, number, picture, stride=2) for number, picture in enumerate(pictures)]
    for frame, following in zip(stream, [*stream[1:], stream[-1]]):
        engine.foresee(following)
        output = engine.process(frame)
        for keyframe in output.keyframes:
            assert keyframe.pointmap.dtype == keyframe.confidence.dtype == np.float32
    assert engine.milliseconds['networks'] > 0
    engine.finish()
