# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The geometric engine on a small rendered sequence: two textured walls and a card, seen by a moving camera."""

import logging
import threading
import time
from functools import partial
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from geometric_scenes import texture

from slam3r_ros.engines import create_engine
from slam3r_ros.engines.geometric import depth as depth_module
from slam3r_ros.engines.geometric import engine as engine_module
from slam3r_ros.engines.geometric import local_mapping, stereo
from slam3r_ros.engines.geometric.adjust import rotate
from slam3r_ros.engines.geometric.depth import DenseMapper, DepthMap
from slam3r_ros.engines.geometric.engine import GeometricEngine
from slam3r_ros.engines.geometric.sparse_map import Features, SparseKeyframe
from slam3r_ros.engines.geometric.tracker import Step
from slam3r_ros.engines.protocol import EngineError
from slam3r_ros.mapping.frames import T_MAP_OPTICAL, invert, rigid, transform
from slam3r_ros.mapping.registration import similarity
from slam3r_ros.values import Frame, Intrinsics, State

WIDTH, HEIGHT, FOCAL = 320, 240, 280.0
K = np.array([[FOCAL, 0, (WIDTH - 1) / 2], [0, FOCAL, (HEIGHT - 1) / 2], [0, 0, 1]])
INTRINSICS = Intrinsics(FOCAL, FOCAL, (WIDTH - 1) / 2, (HEIGHT - 1) / 2)
PLANES = (  # origin, edge along the texture's width, edge along its height; far ones first
    ((-4, -3, 4), (8, 0, 0), (0, 6, 0)),
    ((-3.5, 1.2, 5), (7, 0, 0), (0, 0.4, -4)),
    ((0.1, -0.7, 2.4), (0.9, 0, 0.2), (0, 0.8, 0)),
)


def render(T_world_camera: np.ndarray) -> np.ndarray:
    """Draw the planes as a camera sees them, (H, W, 3) uint8 RGB."""
    image = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
    T = invert(T_world_camera)
    for seed, (origin, u, v) in enumerate(PLANES):
        pattern = np.dstack([texture(512, 640, 3 * seed + channel) for channel in range(3)])
        corners = transform(T, np.array([origin, np.add(origin, u), np.add(np.add(origin, u), v), np.add(origin, v)],
                                        float))
        assert corners[:, 2].min() > 0.1
        pixels = (corners @ K.T)[:, :2] / corners[:, 2:]
        H = cv2.getPerspectiveTransform(np.float32([[0, 0], [639, 0], [639, 511], [0, 511]]), np.float32(pixels))
        drawn = cv2.warpPerspective(pattern, H, (WIDTH, HEIGHT), flags=cv2.INTER_AREA)
        mask = cv2.warpPerspective(np.full(pattern.shape[:2], 255, np.uint8), H, (WIDTH, HEIGHT)) > 127
        image[mask] = drawn[mask]
    return image


def pose(step: float) -> np.ndarray:
    """Return T_world_camera (4, 4) at a time of the sequence."""
    centre = [0.035 * step, 0.1 * np.sin(step / 8), 0.01 * step]
    return rigid(rotate(np.eye(3), [0.05 * np.sin(step / 9), -0.006 * step, 0.01 * np.sin(step / 5)]), np.array(centre))


@pytest.fixture(scope='module')
def images():
    """Return forty images, (H, W, 3) uint8."""
    return [render(pose(step)) for step in range(40)]


def frames(images, intrinsics=None) -> list[Frame]:
    """Wrap images as a stream of 30 frames a second."""
    last = len(images) - 1
    return [Frame(id, id * 33_000_000, image, intrinsics, last=id == last) for id, image in enumerate(images)]


def error(poses) -> float:
    """Return the root mean square distance to the true path after a similarity, relative to its length."""
    truth = np.array([pose(p.id)[:3, 3] for p in poses])
    found = np.array([p.T_map_camera[:3, 3] for p in poses])
    scale, R, t = similarity(found, truth)
    length = np.linalg.norm(np.diff(truth, axis=0), axis=1).sum()
    return float(np.sqrt((((scale * found @ R.T + t) - truth) ** 2).sum(1).mean()) / length)


@pytest.fixture(scope='module')
def run(images):
    """Run the engine over the sequence; return it with its live poses, its keyframes and its states."""
    engine = create_engine('auto', focal=0.0)
    live, keyframes, states = [], [], []
    for frame in frames(images, INTRINSICS):
        output = engine.process(frame)
        states.append(engine.state)
        keyframes += output.keyframes
        live += [output.pose] if output.pose else []
    output = engine.finish()
    keyframes += output.keyframes
    yield engine, live, keyframes, states
    engine.close()


def test_tracks_the_sequence(run):
    engine, live, _, states = run
    assert states[0] == State.INITIALIZING
    first = states.index(State.TRACKING)
    assert 0 < first <= 10
    assert set(states[first:]) == {State.TRACKING}
    assert [p.id for p in live] == list(range(first, 40))
    assert error(live) < 0.01
    assert engine.milliseconds['tracking'] > 0


def test_trajectory_is_back_filled(run):
    engine, *_ = run
    trajectory = engine.trajectory()
    assert [p.id for p in trajectory] == list(range(40))
    assert [p.stamp for p in trajectory] == [33_000_000 * i for i in range(40)]
    assert error(trajectory) < 0.01
    np.testing.assert_allclose(trajectory[0].T_map_camera, T_MAP_OPTICAL, atol=0.02)


def test_keyframes_carry_rising_revisions_and_depth(run):
    _, _, keyframes, _ = run
    by_id = {}
    for keyframe in keyframes:
        by_id.setdefault(keyframe.id, []).append(keyframe)
        assert keyframe.pose.id == keyframe.id and keyframe.map_id == 0 and keyframe.stride >= 1
        assert not keyframe.relocalised
    assert len(by_id) >= 4
    for revisions in by_id.values():
        assert [k.revision for k in revisions] == list(range(len(revisions)))
        assert revisions[0].pointmap is None
    first = by_id[min(by_id)]
    np.testing.assert_allclose(first[-1].pose.T_map_camera, T_MAP_OPTICAL, atol=1e-9)
    with_depth = [r[-1] for r in by_id.values() if r[-1].pointmap is not None]
    assert len(with_depth) >= 0.7 * len(by_id)
    for keyframe in with_depth:
        assert keyframe.pointmap.dtype == np.float32 and keyframe.pointmap.shape[:2] == keyframe.confidence.shape
        np.testing.assert_array_equal(np.isnan(keyframe.pointmap[..., 2]), keyframe.confidence == 0)


def test_unit_is_the_median_depth(run):
    _, _, keyframes, _ = run
    depths = [k.pointmap[..., 2] for k in keyframes if k.pointmap is not None and k.id < 10]
    assert 0.7 < np.nanmedian(np.concatenate([d.ravel() for d in depths])) < 1.4


def test_depth_is_true(run):
    _, live, keyframes, _ = run
    truth = np.array([pose(p.id)[:3, 3] for p in live])
    scale, *_ = similarity(np.array([p.T_map_camera[:3, 3] for p in live]), truth)
    last = {k.id: k for k in keyframes if k.pointmap is not None}
    errors = []
    for keyframe in last.values():
        points = keyframe.pointmap[keyframe.confidence > 0] * scale
        world = transform(pose(keyframe.id), points.astype(float))
        distances = []
        for origin, u, v in PLANES:
            normal = np.cross(u, v)
            distances.append(np.abs((world - origin) @ normal) / np.linalg.norm(normal))
        errors.append(np.min(distances, axis=0) / points[:, 2])
    assert np.mean(np.concatenate(errors)) < 0.03


def test_estimates_the_focal_length(images):
    engine = GeometricEngine(dense=False)
    live = [output.pose for output in map(engine.process, frames(images)) if output.pose]
    assert engine.focal == pytest.approx(FOCAL, rel=0.2)  # so little motion tells little
    engine.finish()
    assert engine.focal == pytest.approx(FOCAL, rel=0.1)
    assert error(live) < 0.02


def test_lost_and_found_again(images):
    engine = GeometricEngine(focal=FOCAL, dense=False)
    blank = np.full_like(images[0], 128)
    stream = images[:30] + [blank] * 5 + images[25:20:-1]
    outputs, states = [], []
    for frame in frames(stream):
        outputs.append(engine.process(frame))
        states.append(engine.state)
    assert states[30] == State.LOST and states[31] == State.RELOCALIZING
    assert all(output.pose is None for output in outputs[30:35])
    assert states[35] == State.TRACKING and outputs[35].keyframes[-1].relocalised
    np.testing.assert_allclose(outputs[35].pose.T_map_camera, outputs[25].pose.T_map_camera, atol=0.03)
    assert {p.id for p in engine.trajectory()} == set(range(30)) | set(range(35, 40))


def test_young_map_that_stays_lost_is_given_up(images):
    engine = GeometricEngine(focal=FOCAL, dense=False)
    other = [np.ascontiguousarray(np.rot90(image, 2)) for image in images]
    stream = images[:12] + [np.zeros_like(images[0])] * 40 + other + other[::-1]  # blindness is no reason to give up
    keyframes = []
    for frame in frames(stream):
        keyframes += engine.process(frame).keyframes
        assert frame.id > 75 or {k.map_id for k in keyframes} <= {0}
    assert {k.map_id for k in keyframes} == {0, 1}
    assert engine.state == State.TRACKING
    assert min(p.id for p in engine.trajectory()) >= 81


def test_reset_starts_another_map(images):
    engine = create_engine('geometric', focal=FOCAL, dense=False, map_id=4)
    first = [k for frame in frames(images[:12]) for k in engine.process(frame).keyframes]
    engine.reset()
    assert engine.state == State.INITIALIZING and engine.trajectory() == []
    small = [cv2.resize(image, (240, 180), interpolation=cv2.INTER_AREA) for image in images[:12]]
    second = [k for frame in frames(small, INTRINSICS.scaled(0.75, 0.75)) for k in engine.process(frame).keyframes]
    assert {k.map_id for k in first} == {4} and {k.map_id for k in second} == {5}
    np.testing.assert_allclose(second[0].pose.T_map_camera, T_MAP_OPTICAL, atol=1e-9)


def test_tracks_on_when_depth_has_failed(images, monkeypatch, caplog):
    def fail(*_):
        raise MemoryError('no room for costs')

    engine = GeometricEngine(focal=FOCAL)
    monkeypatch.setattr(stereo, 'sweep', fail)
    with caplog.at_level(logging.ERROR, 'slam3r_ros.engines.geometric'):
        outputs = [engine.process(frame) for frame in frames(images)]
        outputs.append(engine.finish())
    (record,) = caplog.records
    assert 'no room for costs' in record.message and 'reset' in record.message
    assert sum(output.pose is not None for output in outputs) >= 30
    keyframes = [keyframe for output in outputs for keyframe in output.keyframes]
    assert all(keyframe.pointmap is None for keyframe in keyframes)
    assert 0 < engine.depth_skipped < len(keyframes)
    monkeypatch.undo()
    engine.reset()
    outputs = [engine.process(frame) for frame in frames(images)] + [engine.finish()]
    assert any(keyframe.pointmap is not None for output in outputs for keyframe in output.keyframes)
    assert engine.depth_skipped == 0
    engine.close()


@pytest.fixture
def sweeps(monkeypatch):
    """Let sweeps wait for an event, list those that are through, and note that one waits."""
    through, event, begun, sweep = [], threading.Event(), threading.Event(), stereo.sweep
    monkeypatch.setattr('slam3r_ros.engines.geometric.optional_depth.DenseMapper', partial(DenseMapper, queue=1))

    def held(*arguments):
        begun.set()
        event.wait(60)
        through.append(sweep(*arguments))
        return through[-1]

    def hold():
        monkeypatch.setattr(stereo, 'sweep', held)
        return event, through, begun

    yield hold
    event.set()


def test_slow_depth_does_not_hold_up_a_live_camera(images, sweeps):
    engine = GeometricEngine(focal=FOCAL, lossless=False)
    event, through, _ = sweeps()
    keyframes = {k.id for frame in frames(images + images[::-1]) for k in engine.process(frame).keyframes}
    assert not through  # tracking has waited for none
    assert 0 < engine.depth_skipped < len(keyframes)
    event.set()
    skipped = engine.depth_skipped
    engine.close()
    assert engine.depth_skipped == skipped


def test_slow_depth_skips_nothing_of_a_file(images, sweeps, monkeypatch):
    engine, hour = GeometricEngine(focal=FOCAL), [0]
    event, through, begun = sweeps()
    clock = SimpleNamespace(perf_counter=lambda: time.perf_counter() + hour[0])
    for module in (engine_module, depth_module):
        monkeypatch.setattr(module, 'time', clock)

    def open_after_an_hour():
        begun.wait(60)
        while not engine._depth._mapper._changed._waiters:  # that is tracking: the other thread is in a sweep
            time.sleep(0.005)
        hour[0] = 3600
        event.set()

    opener = threading.Thread(target=open_after_an_hour, daemon=True)
    opener.start()
    keyframes = [k for frame in frames(images + images[::-1]) for k in engine.process(frame).keyframes]
    keyframes += engine.finish().keyframes
    assert through  # tracking has waited
    assert engine.depth_skipped == 0
    assert {k.id for k in keyframes if k.pointmap is not None} == {k.id for k in keyframes}
    assert hour[0] and max(engine._times['keyframe']) < 1e6  # the wait for the queue is not counted
    opener.join()
    engine.close()


def test_whatever_an_adjustment_moves_is_sent_again(images):
    """As many keyframes as are ever adjusted at once, and more."""
    engine = GeometricEngine(focal=FOCAL, dense=False)
    engine.process(frames(images)[0])
    random = np.random.default_rng(0)
    confidence = np.where(random.random((6, 8)) < 0.2, 0, random.uniform(0.3, 1, (6, 8))).astype(np.float32)
    features = Features(np.zeros(0, int), np.zeros((0, 2)), np.zeros((0, 128), np.uint8))
    sent, count = {}, 2 * local_mapping.MAX_WIDE
    for id in range(count):
        sparse = SparseKeyframe(id, np.eye(4), np.zeros(0, int), np.zeros((0, 2)), features)
        engine._stamps[id] = id
        engine._insert(Step(None, ((sparse, images[0]),)))
        depth_map = DepthMap(id, random.uniform(1, 3, (6, 8)).astype(np.float32), confidence,
                             INTRINSICS.scaled(1 / 40, 1 / 40), np.full((6, 8, 3), id % 256, np.uint8))
        (sent[id],) = engine._records.with_depth([depth_map])
    moved = range(count - local_mapping.MAX_WIDE, count)
    for id in moved:
        engine._records[id].sparse.T_camera_world = rigid(np.eye(3), np.array([0.5, 0, 0]))
    revised = {keyframe.id: keyframe for keyframe in engine._records.revise(count)}
    assert set(revised) == set(moved)
    for id, keyframe in revised.items():
        assert keyframe.revision == sent[id].revision + 1
        np.testing.assert_allclose(keyframe.pose.T_map_camera[:3, 3], T_MAP_OPTICAL[:3, :3] @ [-0.5, 0, 0])
        np.testing.assert_allclose(keyframe.pointmap, sent[id].pointmap, rtol=1e-3)
        np.testing.assert_allclose(keyframe.confidence, confidence, atol=0.002)
        np.testing.assert_array_equal(np.isnan(keyframe.pointmap[..., 2]), keyframe.confidence == 0)
        np.testing.assert_array_equal(keyframe.colors, sent[id].colors)
        assert keyframe.pointmap.dtype == keyframe.confidence.dtype == np.float32
    for id in range(0, count, 2):
        engine._records[id].sparse.forget()
    engine._insert(Step(None))
    assert set(engine._records) == set(range(1, count, 2))


def test_the_same_again(images):
    def run() -> np.ndarray:
        engine = GeometricEngine(dense=False, seed=3)
        for frame in frames(images[:20]):
            engine.process(frame)
        return np.array([p.T_map_camera for p in engine.trajectory()])

    np.testing.assert_array_equal(run(), run())


def test_pixels_need_not_be_square(images):
    wide = [cv2.resize(image, (480, 240), interpolation=cv2.INTER_LINEAR) for image in images[:25]]
    engine = GeometricEngine(dense=False)
    outputs = [engine.process(frame) for frame in frames(wide, INTRINSICS.scaled(1.5, 1))]
    assert error([output.pose for output in outputs if output.pose]) < 0.02
    keyframe = [k for output in outputs for k in output.keyframes][-1]
    assert keyframe.intrinsics.fx / keyframe.intrinsics.fy == pytest.approx(1.5, rel=0.01)


def test_large_images_are_tracked_small(images):
    engine = GeometricEngine(focal=4 * FOCAL, dense=False)
    large = [cv2.resize(image, (1280, 960), interpolation=cv2.INTER_CUBIC) for image in images[:15]]
    outputs = [engine.process(frame) for frame in frames(large)]
    assert outputs[-1].pose is not None
    assert next(k for o in outputs for k in o.keyframes).intrinsics.fx == pytest.approx(4 * FOCAL)


def test_blank_video_never_starts():
    engine = GeometricEngine(dense=False)
    for frame in frames([np.full((120, 160, 3), 50, np.uint8)] * 10):
        assert engine.process(frame).pose is None
    assert engine.state == State.INITIALIZING
    assert engine.finish() == (None, ()) and engine.trajectory() == []


@pytest.mark.parametrize('image, words', [
    (np.zeros((1, 1, 3), np.uint8), '1 x 1 pixels, too small'),
    (np.zeros((240, 63, 3), np.uint8), '63 x 240 pixels, too small'),
    (np.zeros((240, 320), np.uint8), 'RGB'),
    (np.zeros((240, 320, 3), np.float32), 'float32'),
])
def test_bad_images_are_named(image, words):
    with pytest.raises(EngineError, match=words):
        GeometricEngine(dense=False).process(Frame(0, 0, image))


def test_tracks_on_when_the_size_changes(images):
    """As a stream that adapts to its network, or a topic whose publisher is set anew."""
    sizes = [(320, 240)] * 15 + [(640, 480)] * 10 + [(160, 120)] * 5 + [(320, 240)] * 10
    changing = [
        cv2.resize(image, size, interpolation=cv2.INTER_AREA) for image, size in zip(images, sizes, strict=True)
    ]
    engine = GeometricEngine(focal=FOCAL, dense=False)
    outputs = [engine.process(frame) for frame in frames(changing)]
    assert engine.map_id == 0 and engine.state == State.TRACKING
    assert all(output.pose for output in outputs[15:])
    assert error(engine.trajectory()) < 0.01
    assert {k.intrinsics.fx for output in outputs for k in output.keyframes} == {FOCAL}


def test_another_shape_begins_another_map(images, caplog):
    engine = GeometricEngine(focal=FOCAL, dense=False)
    wide = [image[:180] for image in images]
    outputs = [engine.process(frame) for frame in frames(images[:20] + wide[20:])]
    assert engine.map_id == 1 and engine.state == State.TRACKING
    assert [record.getMessage() for record in caplog.records] == [
        'frames were 320 x 240 pixels and are 320 x 180 now: another map begins']
    assert outputs[19].pose and not outputs[20].pose and outputs[39].pose
    assert min(pose.id for pose in engine.trajectory()) == 20
    assert {k.map_id for output in outputs[20:] for k in output.keyframes} == {1}


def test_unsuitable_frame_in_between_changes_nothing(images):
    engine = GeometricEngine(focal=FOCAL, dense=False)
    for frame in frames(images[:20]):
        engine.process(frame)
    for image in (np.zeros((240, 320), np.uint8), np.zeros((12, 16, 3), np.uint8)):
        with pytest.raises(EngineError):
            engine.process(Frame(20, 20, image))
    assert engine.process(Frame(21, 21, images[20])).pose and engine.map_id == 0


def test_engines_by_name(tmp_path):
    with pytest.raises(EngineError, match='pip install|weights download'):
        create_engine('slam3r', str(tmp_path))
    assert create_engine('auto', str(tmp_path), dense=False).name == 'geometric'
    with pytest.raises(EngineError, match="no engine 'lidar'"):
        create_engine('lidar')
