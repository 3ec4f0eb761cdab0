# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The networks without reference values: precision, exact savings, bad input, and that a long stream costs no more."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip('torch', reason='the networks need torch')

from one_thread import one_thread  # noqa: F401
from slam3r_long_stream import TINY

from slam3r_ros.bench.savings import MAX_OPERATIONS, Step, count_operations
from slam3r_ros.engines.slam3r.config import OFFICIAL
from slam3r_ros.engines.slam3r.networks import Image2Points, Local2World
from slam3r_ros.engines.slam3r.offline import OfflinePipeline, sample_points
from slam3r_ros.engines.slam3r.online import OnlinePipeline
from slam3r_ros.engines.slam3r.precision import convert
from slam3r_ros.engines.slam3r.scene import Scene
from slam3r_ros.engines.slam3r.settings import Settings

SIDE = 32


@pytest.fixture(scope='module')
def networks():
    torch.manual_seed(0)
    return Image2Points(TINY).eval(), Local2World(TINY).eval()


@pytest.fixture
def scene(networks):
    return Scene(*networks, min_confidence=1.5)


def images(count, side=SIDE, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).uniform(-1, 1, (count, 3, side, side))).float()


def test_sparing_spares_and_changes_nothing():
    plain, sparing = count_operations(OFFICIAL)
    assert sparing <= MAX_OPERATIONS * plain
    step = Step.make(TINY, references=4, candidates=7, side=SIDE)
    with torch.inference_mode():
        step.prepare()
        for found, expected in zip(step.run(sparing=True), step.run(sparing=False)):
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_what_is_kept_of_candidates_changes_no_score(networks, scene):
    with torch.inference_mode():
        scene.encode(images(9), 0)
        first = scene.correlate([0, 4], range(1, 9))
        assert 3 in scene.prepared
        again = scene.correlate([0, 4], range(1, 9))
        i2p = networks[0]
        anew = torch.cat([
            i2p.correlation(
                scene._tokens([query]), i2p.prepare(scene._tokens(range(1, 9)), SIDE, SIDE), SIDE, SIDE
            ) for query in (0, 4)
        ], dim=1)  # fmt: skip
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    torch.testing.assert_close(first, anew, rtol=1e-5, atol=1e-6)


def test_candidates_come_and_go(networks, scene, monkeypatch):
    """Each is prepared once, whichever slot it gets, and the scores are those of candidates prepared together."""
    network, prepared = networks[0], []
    prepare = network.prepare

    def noted(tokens, *size):
        prepared.append(len(tokens))
        return prepare(tokens, *size)

    monkeypatch.setattr(network, 'prepare', noted)
    rng, buffer, ever = np.random.default_rng(0), list(range(1, 21)), set(range(1, 21))
    with torch.inference_mode():
        scene.encode(images(60), 0)
        scene.correlate([0], buffer)
        storage = {part.data_ptr() for part in scene.prepared._parts}
        for number in range(21, 60):
            buffer.append(number)
            for _ in range(rng.integers(0, 3)):
                buffer.pop(rng.integers(len(buffer)))
            rng.shuffle(buffer)
            ever.update(buffer)
            found = scene.correlate([0], buffer)
            expected = network.correlation(
                scene._tokens([0]), prepare(scene._tokens(buffer), SIDE, SIDE), SIDE, SIDE
            )
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
        assert len(prepared) == len(ever)
        assert {part.data_ptr() for part in scene.prepared._parts} == storage  # 32 candidates are enough for all


def test_coordinates_keep_their_precision(networks):
    """bfloat16 has 8 bits; registered points would be off by 0.6 % if they passed through it."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(5, 1, 4, 32, generator=generator)
    points = 3 + torch.randn(5, 1, SIDE, SIDE, 3, generator=generator)
    maps = []
    for network in (networks[1], convert(copy.deepcopy(networks[1]), 'bfloat16', torch.device('cpu'))):
        with torch.inference_mode():
            maps.append(network(tokens[:4], tokens[4:], points[:4], points[4:], wanted='sources')[1].points)
    assert 0 < (maps[1] - maps[0]).norm() < 2e-3 * maps[0].norm()


def run_script(*words):
    """Run Python on this tree in a process of its own; return what it printed."""
    root = Path(__file__).resolve().parents[1]
    path = os.pathsep.join([str(root), *filter(None, [os.environ.get('PYTHONPATH')])])
    environment = {**os.environ, 'PYTHONPATH': path}
    return subprocess.run([sys.executable, *words], env=environment, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize('absent, modules', [
    (('cv2', 'PIL', 'scipy', 'safetensors', 'rclpy', 'av', 'numba'),
     ('engines.slam3r.online', 'engines.slam3r.offline', 'bench.savings')),
    (('huggingface_hub', 'rclpy', 'av', 'numba'), ('engines.slam3r.engine',)),
    (('torch', 'safetensors', 'rclpy', 'av', 'numba'), ('engines.slam3r.download',)),
])  # fmt: skip
def test_what_each_part_does_without(absent, modules):
    names = ', '.join(f'slam3r_ros.{module}' for module in modules)
    run_script('-c', f'import sys; sys.modules.update(dict.fromkeys({absent})); import {names}')


def test_a_long_stream_costs_no_more():
    """What a frame computes, the lines run for it and the memory stay flat: counted, as other programs come and go."""
    result = json.loads(run_script(Path(__file__).with_name('slam3r_long_stream.py')))
    assert result['views'] <= 12 + 4 + 3 * 3
    early, late = result['costs']
    for kind, tolerance in (('operations', 0.03), ('steps', 0.03), ('pages', 0.02)):
        assert late[kind] == pytest.approx(early[kind], rel=tolerance) and early[kind] > 10_000, kind


@pytest.mark.parametrize('mode', ['fixed', 'as_is'])
def test_references_between_retrievals(networks, mode):
    settings = Settings(stride=2, buffer_size=8, scene_frames=4, retrieve_every=5, mode=mode)
    pipeline = OnlinePipeline(Scene(*networks, 1.5), settings)
    lengths, scene_frames = [], []
    register = pipeline.scene.register

    def note(sources, references):
        lengths.append(len(references))
        if pipeline.buffer and sources[0] % 5 == 0:
            scene_frames.append(set(references[:4]) <= set(pipeline.buffer.frames))
        register(sources, references)

    pipeline.scene.register = note
    for image in images(60):
        pipeline.process(image)
    # The official code lets the list grow, and takes positions in the buffer for frame numbers.
    assert (max(lengths) <= 4 + 3) == (mode == 'fixed')
    assert all(scene_frames) == (mode == 'fixed')
    assert (len(pipeline.scene.views) < 30) == (mode == 'fixed')


def test_a_window_of_one_view_is_refused(scene):
    with torch.inference_mode():
        scene.encode(images(1), 0)
        with pytest.raises(ValueError, match='two views'):
            scene.locate(0, [])


def test_frames_of_another_size_are_refused(scene):
    with torch.inference_mode():
        scene.encode(images(1), 0)
        with pytest.raises(ValueError, match='crop all to one size'):
            scene.encode(images(1, side=48), 1)
        with pytest.raises(ValueError, match='multiples of 16'):
            Scene(*scene_networks(scene), 1.5).encode(images(1, side=40), 0)


def test_a_refused_frame_leaves_the_stream_as_it_was(networks):
    pipeline = OnlinePipeline(Scene(*networks, 1.5), Settings(stride=2))
    views = []
    for number, image in enumerate(images(20)):
        if number in (2, 15):
            with pytest.raises(ValueError, match='crop all to one size'):
                pipeline.process(images(1, side=48)[0])
        views += pipeline.process(image)
    assert [number for number, _ in views] == list(range(20))


def scene_networks(scene):
    return scene._image2points, scene._local2world


@pytest.mark.parametrize('k', [4, 100])
def test_more_wanted_than_there_are_takes_all(scene, k):
    with torch.inference_mode():
        scene.encode(images(5), 0)
        assert scene.retrieve([0], [3, 1, 2, 4], k) == [0, 1, 2, 3]
        assert 1 not in scene.prepared  # nothing was scored


@pytest.mark.parametrize('count, stride', [(2, 3), (5, 100), (9, 4), (3, 0)])
def test_a_stride_longer_than_the_video_is_shortened(scene, count, stride):
    pipeline = OfflinePipeline(scene, Settings(stride=stride))
    views = pipeline.run(images(count))
    assert len(views) == count and pipeline.stride <= count // 2
    assert all(torch.isfinite(view.world).all() for view in views)


def test_one_frame_is_no_sequence(scene):
    with pytest.raises(ValueError, match='at least two frames'):
        OfflinePipeline(scene, Settings()).run(images(1))


@pytest.mark.parametrize('pipeline', [OfflinePipeline, OnlinePipeline])
def test_a_start_without_any_confidence(networks, pipeline):
    pipeline = pipeline(Scene(*networks, min_confidence=1e9), Settings(stride=1))
    views = pipeline.run(images(8)) if isinstance(pipeline, OfflinePipeline) else [
        view for image in images(8) for _, view in pipeline.process(image)
    ]  # fmt: skip
    assert len(views) == 8
    assert not views[0].world.any() and torch.isfinite(views[-1].world).all()


def test_normalised_input_keeps_the_scale_of_the_references(networks):
    results = []
    for unit in (1.0, 10.0):
        scene = Scene(*networks, 1.5, normalise_input=True)
        with torch.inference_mode():
            scene.encode(images(4), 0)
            scene.begin([0, 1, 2], shrink=False)
            for view in scene.views.values():
                view.world = unit * view.world if view.world is not None else None
            scene.locate(3, [0, 1, 2])
            scene.register([3], [0, 1, 2])
        results.append(scene.views[3].world)
    torch.testing.assert_close(10 * results[0], results[1], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize('wrong', [
    {'mode': 'fast'}, {'window': 1}, {'radius': 0}, {'stride': -1}, {'scene_frames': 0},
])  # fmt: skip
def test_settings_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Settings(**wrong)


def test_a_stream_needs_a_stride_and_room_for_its_keyframes(scene):
    with pytest.raises(ValueError, match='set a stride'):
        OnlinePipeline(scene, Settings(stride=0))
    with pytest.raises(ValueError, match='raise its size'):
        OnlinePipeline(scene, Settings(stride=1, buffer_size=3))
    with pytest.raises(ValueError, match='raise its size'):
        OfflinePipeline(scene, Settings(stride=1, buffer_size=2)).run(images(8))


def test_a_cloud_is_drawn_from_confident_points(scene):
    views = OfflinePipeline(scene, Settings(stride=1)).run(images(4))
    colors = np.random.default_rng(0).integers(0, 255, (4, SIDE, SIDE, 3), np.uint8)
    rng = np.random.RandomState(42)
    threshold = float(torch.stack([view.confidence for view in views]).median())
    points, drawn = sample_points(views, colors, threshold, 100, rng)
    assert points.shape == drawn.shape == (100, 3)
    assert len(sample_points(views, colors, threshold, 10**9, rng)[0]) == 4 * SIDE**2 // 2
    assert len(sample_points(views, colors, 1e9, 100, rng)[0]) == 0
