# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The engine around the networks, with networks that know the truth."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

torch = pytest.importorskip('torch', reason='the engine needs torch')

from scipy.spatial.transform import Rotation
from slam3r_oracle import FOCAL, SIDE, OracleImage2Points, OracleLocal2World, camera, image, points_seen

from slam3r_ros.engines import create_engine
from slam3r_ros.engines.protocol import EngineError
from slam3r_ros.engines.slam3r.engine import Slam3rEngine
from slam3r_ros.engines.slam3r.online import OnlinePipeline
from slam3r_ros.engines.slam3r.scene import Scene
from slam3r_ros.engines.slam3r.settings import Settings
from slam3r_ros.mapping.frames import T_MAP_OPTICAL, invert
from slam3r_ros.values import Frame, Intrinsics, State

MIDDLE = (SIDE - 1) / 2
KNOWN = Intrinsics(FOCAL, FOCAL, MIDDLE, MIDDLE)


def make(noise=0.0, confidence=20.0, **options):
    networks = OracleImage2Points(noise, confidence), OracleLocal2World(noise, confidence)
    options.setdefault('stride', 3)
    return Slam3rEngine(networks=networks, side=SIDE, device='cpu', **options)


def frames(count, **facts):
    return [Frame(i, i * 1000, image(i), **facts) for i in range(count)]


def run(engine, stream):
    outputs = [engine.process(frame) for frame in stream]
    return outputs, [keyframe for output in outputs for keyframe in output.keyframes]


def truth(number, unit):
    T = invert(camera(0)) @ camera(number)
    T[:3, 3] /= unit
    return T_MAP_OPTICAL @ T


def pose_errors(poses, unit):
    """Return errors of place in map units, and of the turn in degrees."""
    pairs = [(pose.T_map_camera, truth(pose.id, unit)) for pose in poses]
    place = [np.linalg.norm(found[:3, 3] - true[:3, 3]) for found, true in pairs]
    turn = [Rotation.from_matrix(found[:3, :3].T @ true[:3, :3]).magnitude() for found, true in pairs]
    return max(place), np.degrees(max(turn))


UNIT = float(np.median([points_seen(i)[..., 2] for i in range(0, 13, 3)]))


@pytest.mark.parametrize('noise, place, turn', [(0.0, 1e-3, 0.05), (0.02, 0.02, 0.5)])
@pytest.mark.parametrize('intrinsics', [None, KNOWN], ids=['unknown camera', 'known camera'])
def test_poses_and_maps_are_true(noise, place, turn, intrinsics):
    engine = make(noise)
    outputs, keyframes = run(engine, frames(40, intrinsics=intrinsics, stride=4))
    assert [output.pose is None for output in outputs] == [True] * 12 + [False] * 28
    trajectory = engine.trajectory()
    assert [pose.id for pose in trajectory] == list(range(40))
    error = pose_errors(trajectory, UNIT)
    print(error)
    assert error[0] < place and error[1] < turn
    assert engine.state == State.TRACKING
    for keyframe in keyframes:
        assert keyframe.intrinsics.fx == pytest.approx(FOCAL, rel=1e-6 if intrinsics else 0.02)
        difference = np.linalg.norm(keyframe.pointmap - points_seen(keyframe.id) / UNIT, axis=-1)
        assert np.nanmedian(difference) < 2 * place
        assert np.isfinite(keyframe.pointmap[keyframe.confidence > 0]).all()


def test_the_unit_is_the_median_depth_of_the_first_keyframes():
    _, keyframes = run(make(), frames(13))
    assert [keyframe.id for keyframe in keyframes] == [0, 3, 6, 9, 12]
    depths = np.concatenate([keyframe.pointmap[..., 2].ravel() for keyframe in keyframes])
    assert np.nanmedian(depths) == pytest.approx(1, rel=1e-3)
    np.testing.assert_allclose(keyframes[0].pose.T_map_camera, T_MAP_OPTICAL, atol=1e-6)


def test_keyframes_follow_the_advice():
    stream = frames(60)
    stream = [replace(f, stride=2 if f.id < 30 else 10, candidate=f.id != 24) for f in stream]
    _, keyframes = run(make(), stream)
    ids = [keyframe.id for keyframe in keyframes]
    assert 24 not in ids and 25 in ids
    assert {b - a for a, b in pairwise(ids) if 12 <= a < 22} == {2}
    assert {b - a for a, b in pairwise(ids) if a >= 30} == {10}
    assert all(keyframe.stride == keyframe.id - before for keyframe, before in zip(keyframes[1:], ids))


def test_keyframes_stand_closer_where_the_reconstruction_is_unsure():
    engine = make()
    run(engine, frames(13, stride=10))
    for network in engine._models.get():
        network.confidence = 3.5
    _, keyframes = run(engine, frames(60, stride=10)[13:])
    ids = [keyframe.id for keyframe in keyframes]
    assert {b - a for a, b in pairwise(ids)} == {9}  # 10 * (1 - 1/3.5) / 0.8


def test_unsure_points_are_left_out_of_keyframes():
    engine = make(min_confidence=5.0)
    run(engine, frames(13))
    for network in engine._models.get():
        network.confidence = 4.0
    _, keyframes = run(engine, frames(20)[13:])
    assert np.isnan(keyframes[-1].pointmap).all() and not keyframes[-1].confidence.any()
    assert engine.state == State.TRACKING


def test_a_given_focal_length_is_used():
    _, keyframes = run(make(focal=2 * FOCAL), frames(13))
    assert all(keyframe.intrinsics.fx == 2 * FOCAL for keyframe in keyframes)


def test_the_stride_of_the_reconstruction_is_the_advice_of_the_first_frames():
    engine = make(stride=0)
    outputs, _ = run(engine, frames(30, stride=5))
    assert next(i for i, output in enumerate(outputs) if output.pose) == 4 * 5


def test_the_stride_of_the_reconstruction_follows_the_advice(monkeypatch):
    strides, distances = [], []  # frames back to those that help to reconstruct one
    references_of = OnlinePipeline._references

    def noted(pipeline, number):
        references = references_of(pipeline, number)
        strides.append(pipeline.stride)
        distances.append({number - reference for reference in references})
        return references

    monkeypatch.setattr(OnlinePipeline, '_references', noted)
    engine = make(stride=0, settings=Settings(buffer_size=20, scene_frames=4))
    run(engine, [replace(f, stride=2 if f.id < 40 else 9 if f.id < 90 else 1) for f in frames(130)])
    assert strides[0] == 2 and set(strides[-60:-40]) == {9} and set(strides[-20:]) == {1}
    assert all(abs(b - a) <= 1 for a, b in pairwise(strides))  # so that farther neighbours come to be held
    assert {2, 4, 6} <= distances[0] and {9, 18, 27} <= distances[-45] and {1, 2, 3} <= distances[-1]
    assert [pose.id for pose in engine.trajectory()] == list(range(130))
    unit = float(np.median([points_seen(i)[..., 2] for i in range(0, 9, 2)]))
    assert pose_errors(engine.trajectory(), unit)[0] < 1e-2
    assert len(engine._pipeline.scene.views) <= 20 + 4 + 3


@pytest.mark.parametrize('stride', [1, 3, 15])
def test_a_given_stride_is_kept(stride):
    engine = make(stride=stride)
    run(engine, [replace(f, stride=8) for f in frames(70)])
    assert engine._pipeline.stride == stride


@pytest.mark.parametrize('favourite', [0, 6, 12])
def test_the_focal_length_is_known_from_the_first_pose_on(favourite):
    """Whichever keyframe becomes the world, and the others have no local map."""
    engine = make()
    engine._models.get()[0].favourite = favourite
    _, keyframes = run(engine, frames(20))
    assert all(keyframe.intrinsics.fx == pytest.approx(FOCAL, rel=0.02) for keyframe in keyframes)
    assert pose_errors(engine.trajectory(), UNIT)[0] < 1e-3


@pytest.mark.parametrize('count', [2, 3, 7, 12])
def test_a_short_stream_is_mapped_at_its_end(count):
    engine = make()
    run(engine, frames(count))
    assert engine.finish().keyframes and len(engine.trajectory()) > 1
    assert pose_errors(engine.trajectory(), 1.0)[1] < 0.1
    assert not engine.finish().keyframes


@pytest.mark.parametrize('stride', [0, 1, 3])  # with 0 more frames are held than the first window takes
def test_a_start_without_confidence_is_tried_again(stride):
    engine = make(confidence=1.2, stride=stride)
    engine._models.get()[0].stretch = 1.5
    _, keyframes = run(engine, frames(30))
    assert not keyframes and engine.state == State.INITIALIZING and not engine.trajectory()
    for network in engine._models.get():
        network.confidence = 20.0
    engine._models.get()[0].stretch = 1.0
    stream = [Frame(i, i, image(i)) for i in range(30, 60)]
    _, keyframes = run(engine, stream)
    assert keyframes and engine.state == State.TRACKING
    # Nothing is left of what the first attempts believed.
    assert keyframes[-1].intrinsics.fx == pytest.approx(FOCAL, rel=0.02)


def test_lost_and_found():
    engine = make()
    run(engine, frames(20))
    engine._models.get()[1].blind = True
    assert engine.process(frames(21)[20]).pose is None and engine.state == State.LOST
    engine._models.get()[1].blind = False
    outputs, keyframes = run(engine, frames(30)[21:])
    assert outputs[0].pose.state == State.RELOCALIZING and engine.state == State.TRACKING
    assert keyframes


def test_reset_begins_another_map():
    engine = make()
    run(engine, frames(15))
    engine.reset()
    assert engine.state == State.INITIALIZING and not engine.trajectory()
    _, keyframes = run(engine, frames(15))
    assert keyframes[0].map_id == 1
    engine.close()


def test_a_camera_of_another_shape_keeps_its_focal_length():
    wide = np.pad(image(0), ((0, 0), (10, 10), (0, 0)))
    engine = make()
    engine.process(Frame(0, 0, wide, Intrinsics(FOCAL, FOCAL, MIDDLE + 10, MIDDLE)))
    assert engine._waiting[0].camera == KNOWN


RGB = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)


@pytest.mark.parametrize('given, expected', [
    (RGB, RGB),
    (RGB[..., 0], RGB[..., [0, 0, 0]]),
    (RGB[..., :1], RGB[..., [0, 0, 0]]),
    (np.dstack([RGB, 255 - RGB[..., 0]]), RGB),
    (RGB / 255, RGB),
    (np.where(RGB < 100, np.nan, RGB / 255), np.where(RGB < 100, 0, RGB)),
    (np.full((SIDE, SIDE), np.inf), np.zeros_like(RGB)),
])  # fmt: skip
def test_odd_images_are_taken(given, expected):
    engine = make()
    assert engine.process(Frame(0, 0, given)).pose is None
    np.testing.assert_array_equal(engine._waiting[0].image, expected)


@pytest.mark.parametrize('shape', [(3, 500, 3), (500, 2, 3), (1, 1, 3), (480, 640, 3)])
def test_images_of_any_size_are_cut_to_the_square(shape):
    engine = make()
    engine.process(Frame(0, 0, np.zeros(shape, np.uint8)))
    assert engine._waiting[0].image.shape == (SIDE, SIDE, 3)


def test_frames_may_change_their_size():
    engine = make()
    twice = np.ones((2, 2, 1), np.uint8)
    stream = [replace(f, image=np.kron(f.image, twice) if f.id % 2 else f.image) for f in frames(20)]
    run(engine, stream)
    assert len(engine.trajectory()) == 20


@pytest.mark.parametrize('picture', [
    np.zeros((0, 5, 3), np.uint8), np.zeros(7), np.zeros((5, 5, 2)), np.zeros((5, 5), int),
])  # fmt: skip
def test_what_is_no_image_is_refused(picture):
    with pytest.raises(EngineError, match='frame 0: an image'):
        make().process(Frame(0, 0, picture))


def test_missing_weights_and_wrong_options_are_named(tmp_path):
    with pytest.raises(EngineError, match='slam3r weights download'):
        create_engine('slam3r', str(tmp_path))
    with pytest.raises(EngineError, match='precision'):
        make(precision='float16')
    for device in ['gpu', *(['cuda'] if not torch.cuda.is_available() else [])]:
        with pytest.raises(EngineError, match=f"no device '{device}'.*use 'cpu'"):
            create_engine('slam3r', str(tmp_path), device=device)


def test_a_buffer_with_bounded_memory():
    engine = make(settings=Settings(buffer_size=6, scene_frames=4))
    run(engine, frames(120))
    assert len(engine._pipeline.scene.views) <= 6 + 4 + 3 * 3
    assert pose_errors(engine.trajectory(), UNIT)[0] < 1e-2


@pytest.mark.parametrize('cores, threads', [(8, 7), (3, 2), (2, 2)])
def test_a_core_is_left_to_the_rest(monkeypatch, cores, threads):
    before = torch.get_num_threads()
    monkeypatch.setattr('os.sched_getaffinity', lambda process: set(range(cores)))
    try:
        torch.set_num_threads(8)
        make()
        assert torch.get_num_threads() == threads
        torch.set_num_threads(1)  # as OMP_NUM_THREADS does
        make()
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_frames_that_were_foreseen_come_out_the_same(monkeypatch):
    """Whether they come or not; each is encoded once, when the work on the one before has begun."""
    stream, other = frames(40, stride=4), Frame(7, 7000, image(3))
    expected = run(make(), stream)
    engine, calls = make(), []
    encode, register = OracleImage2Points.encode, OracleLocal2World.__call__

    def note(self, *arguments, **options):
        calls.append('register')
        return register(self, *arguments, **options)

    monkeypatch.setattr(OracleImage2Points, 'encode', lambda self, batch: calls.append('encode') or encode(self, batch))
    monkeypatch.setattr(OracleLocal2World, '__call__', note)
    found = []
    for number, frame in enumerate(stream):
        if engine._pipeline:
            engine._pipeline.scene.can_do_two = True  # as on a GPU
            engine.foresee(other if number == 20 else stream[min(number + 1, 39)])
        found.append(engine.process(frame))
    assert calls.count('encode') == 40 + 1  # one in vain
    assert calls[-7:] == [*3 * ['register', 'encode'], 'register']
    for output, other in zip(found, expected[0], strict=True):
        assert (output.pose is None) == (other.pose is None) and len(output.keyframes) == len(other.keyframes)
        assert output.pose is None or np.array_equal(output.pose.T_map_camera, other.pose.T_map_camera)
        assert all(np.array_equal(a.pointmap, b.pointmap, True) for a, b in zip(output.keyframes, other.keyframes))


def ahead_by_one():
    """Return an engine that can begin with the next frame beside the present one, amid a stream, and what follows."""
    engine, stream = make(), frames(22, stride=4)
    for frame in stream[:20]:
        engine.process(frame)
    engine._pipeline.scene.can_do_two = True  # as on a GPU
    return engine, stream[20:]


def test_what_is_wrong_with_the_next_frame_is_said_when_its_turn_comes():
    engine, stream = ahead_by_one()
    broken = Frame(21, 21, np.zeros(7))
    engine.foresee(broken)
    assert engine.process(stream[0]).pose
    with pytest.raises(EngineError, match='frame 21'):
        engine.process(broken)


def test_a_gpu_that_is_too_full_for_the_next_frame_does_the_present_one(monkeypatch):
    engine, stream = ahead_by_one()
    encoded, calls = Scene.encoded, []

    def full(scene, images):
        calls.append(images)
        if len(calls) == 2:
            raise torch.OutOfMemoryError
        return encoded(scene, images)

    monkeypatch.setattr(Scene, 'encoded', full)
    engine.foresee(stream[1])
    assert engine.process(stream[0]).pose and len(calls) == 2
    assert engine.process(stream[1]).pose and len(calls) == 3


@pytest.mark.parametrize('end', ['release', 'reset'])
def test_nothing_that_was_begun_outlives_the_map_or_the_networks(end):
    engine, stream = ahead_by_one()
    engine.foresee(stream[1])
    engine.process(stream[0])
    assert engine._ahead._begun
    getattr(engine, end)()
    assert not engine._ahead._begun


def test_networks_that_overflow_are_an_error_that_names_the_precision(monkeypatch):
    engine = make()
    run(engine, frames(20))
    know = OracleLocal2World.__call__

    def overflow(self, *arguments, **options):
        none, maps = know(self, *arguments, **options)
        return none, maps._replace(confidence=torch.full_like(maps.confidence, torch.nan))

    monkeypatch.setattr(OracleLocal2World, '__call__', overflow)
    with pytest.raises(EngineError, match='overflow in float32: set another precision, and reset the map'):
        engine.process(frames(21)[20])
    assert len(engine.trajectory()) == 20
    monkeypatch.undo()
    engine.reset()
    _, keyframes = run(engine, frames(20))
    assert keyframes and engine.state == State.TRACKING
