# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Maps in files: what comes back, mapping that goes on, files that lie; and maps in metres."""

import io
import pickle
import zipfile

import cv2
import numpy as np
import pytest
from geometric_scenes import Room, stream, walk

from slam3r_ros.engines.geometric.engine import GeometricEngine
from slam3r_ros.engines.protocol import EngineError
from slam3r_ros.mapping.map_file import MapFileError, read_arrays, write_arrays
from slam3r_ros.values import State

COUNT = 40  # frames of the map that is saved


def make(**options) -> GeometricEngine:
    return GeometricEngine(**{'max_features': 350, 'dense': False, **options})


@pytest.fixture(scope='module')
def images():
    """Return the images of a walk, and of the way on from where the map ends."""
    room = Room()
    return [room.render(T) for T in walk(0, 0.07, COUNT + 25)]


@pytest.fixture(scope='module')
def mapped(images, tmp_path_factory):
    """Map the first images with depth and save that; return the file, the newest keyframes and the live poses."""
    engine = make(dense=True)
    outputs = [engine.process(frame) for frame in stream(images[:COUNT])] + [engine.finish()]
    path = tmp_path_factory.mktemp('maps') / 'map.npz'
    engine.save(path)
    keyframes = {k.id: k for output in outputs for k in output.keyframes if k.pointmap is not None}
    poses = engine.trajectory()
    engine.close()
    return path, keyframes, poses


@pytest.fixture
def idle():
    """Return an engine that has seen nothing."""
    return make()


def all_resent(engine) -> list:
    """Return all that waits to be sent again."""
    keyframes = []
    while (output := engine.resend()).keyframes:
        keyframes += output.keyframes
    return keyframes


def test_keyframes_come_back_with_their_depth(mapped):
    path, before, _ = mapped
    engine = make(map_id=7)
    engine.load(path)
    assert engine.state == State.LOST and engine.map_id == 8
    keyframes = all_resent(engine)
    assert {k.map_id for k in keyframes} == {8}
    after = {k.id: k for k in keyframes if k.pointmap is not None}
    assert sorted({k.id for k in keyframes}) == list(range(len({k.id for k in keyframes})))
    assert len(after) == len(before) > 5
    for old, new in zip([before[id] for id in sorted(before)], [after[id] for id in sorted(after)], strict=True):
        assert new.pose.stamp == old.pose.stamp
        np.testing.assert_allclose(new.pose.T_map_camera, old.pose.T_map_camera, atol=0.02)
        np.testing.assert_allclose(new.pointmap, old.pointmap, rtol=0.02, atol=1e-3)
        np.testing.assert_allclose(new.confidence, old.confidence, atol=0.005)
        np.testing.assert_array_equal(new.colors, old.colors)
    assert all_resent(engine) == []
    assert [p.stamp for p in engine.trajectory()] == sorted(k.pose.stamp for k in keyframes if k.pointmap is None)


def test_mapping_goes_on_in_the_loaded_frame(mapped, images):
    path, _, poses = mapped
    engine = make(dense=True)
    engine.load(path)
    loaded = {k.id for k in all_resent(engine)}
    outputs = [engine.process(frame) for frame in stream(images[COUNT - 8:])]
    assert engine.map_id == 1 and engine.state == State.TRACKING
    found = [output.pose for output in outputs[:8]]
    assert sum(pose is not None for pose in found) >= 6
    for pose, old in zip(found, poses[COUNT - 8:], strict=True):
        if pose is not None:
            np.testing.assert_allclose(pose.T_map_camera, old.T_map_camera, atol=0.03)
    keyframes = [k for output in [*outputs, engine.finish()] for k in output.keyframes]
    new = {k.id for k in keyframes} - loaded
    assert len(new) >= 3 and min(new) > max(loaded)
    assert {k.id for k in keyframes if k.pointmap is not None} & new
    unit = np.linalg.norm(poses[-1].T_map_camera[:3, 3] - poses[0].T_map_camera[:3, 3]) / (39 * 0.07)
    way_on = outputs[-1].pose.T_map_camera[:3, 3] - poses[0].T_map_camera[:3, 3]
    assert np.linalg.norm(way_on) / unit == pytest.approx(64 * 0.07, rel=0.03)
    engine.close()


def test_several_maps_come_back(images, tmp_path):
    other = Room(seed=1)
    cut = images[:COUNT] + [other.render(T) for T in walk(0, 0.07, 70)]
    engine = make()
    for frame in stream(cut):
        engine.process(frame)
    assert len(engine.other_trajectories()) == 1
    engine.set_scale(2.0)
    engine.save(tmp_path / 'map.npz')
    again = make()
    again.load(tmp_path / 'map.npz')
    assert len(again.trajectory()) == len(engine._tracker.map.keyframes) and again.scale_known
    assert len(again.other_trajectories()) == 1
    for frame in stream(images[20:24]):  # the place of the other map
        again.process(frame)
    assert again.state == State.TRACKING and again.map_id == 2 and not again.scale_known


def test_loaded_map_is_found_in_images_of_another_size(mapped, images):
    engine = make()
    engine.load(mapped[0])
    large = [cv2.resize(image, (640, 480), interpolation=cv2.INTER_LINEAR) for image in images[20:24]]
    outputs = [engine.process(frame) for frame in stream(large)]
    assert engine.state == State.TRACKING and engine.map_id == 1
    for output, old in zip(outputs, mapped[2][20:], strict=False):
        np.testing.assert_allclose(output.pose.T_map_camera, old.T_map_camera, atol=0.03)


def spoiled(path, name: str, change) -> dict:
    with np.load(path) as file:
        arrays = dict(file)
    arrays[name] = change(arrays[name])
    return arrays


def nan(array: np.ndarray) -> np.ndarray:
    return np.full_like(array, np.nan)


@pytest.mark.parametrize('name, change, words', [
    ('version', lambda a: a + 1, 'version 2'),
    ('point_position', nan, 'not finite'),
    ('keyframe_pose', nan, 'not finite'),
    ('keyframe_pose', lambda a: 2 * a, 'contradicts itself'),
    ('keyframe_observations', lambda a: a + 1, 'contradicts itself'),
    ('keyframe_observations', lambda a: a + (1 << 62), 'contradicts itself'),
    ('map_keyframes', lambda a: -a, 'contradicts itself'),
    ('observation_point', lambda a: a - 1, 'contradicts itself'),
    ('feature_point', lambda a: a + 100_000, 'contradicts itself'),
    ('feature_point', lambda a: np.zeros_like(a), 'contradicts itself'),
    ('point_state', lambda a: np.full_like(a, 9), 'contradicts itself'),
    ('frame_size', lambda a: a * 1_000_000, 'contradicts itself'),
    ('map_focal', lambda a: -a, 'contradicts itself'),
    ('depth_color', lambda a: a[:, :5], 'does not fit'),
    ('feature_descriptor', lambda a: a.astype(np.float32), 'float32'),
    ('keyframe_stamp', lambda a: np.array([object()] * len(a)), 'object'),
])
def test_files_that_lie_are_refused(mapped, tmp_path, name, change, words):
    np.savez(tmp_path / 'map.npz', **spoiled(mapped[0], name, change))
    engine = make(map_id=3)
    with pytest.raises(EngineError, match=words) as caught:
        engine.load(tmp_path / 'map.npz')
    assert 'map.npz' in str(caught.value)
    assert engine.map_id == 3 and engine.state == State.INITIALIZING  # all stays as it was


def test_files_that_are_no_maps_are_refused(idle, mapped, tmp_path):
    whole = mapped[0].read_bytes()
    bad = {'empty': b'', 'half': whole[:len(whole) // 2], 'text': b'hello' * 100, 'pickle': pickle.dumps([1, 2])}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **spoiled(mapped[0], 'version', np.copy))
    bad['deflated'] = buffer.getvalue()
    buffer = io.BytesIO(whole)
    with zipfile.ZipFile(buffer, 'a') as archive:
        archive.writestr('more.npy', b'')
    bad['more'] = buffer.getvalue()
    for name, data in bad.items():
        (tmp_path / name).write_bytes(data)
    for name in (*bad, 'missing'):
        with pytest.raises(EngineError, match=name):
            idle.load(tmp_path / name)


def test_huge_claims_cost_no_memory(tmp_path):
    layout = {'a': (np.uint8, ('n',))}
    write_arrays(tmp_path / 'a.npz', {'a': np.zeros(8, np.uint8)}, layout)
    data = (tmp_path / 'a.npz').read_bytes()
    member = data[data.index(b'\x93NUMPY'):][:136]
    with zipfile.ZipFile(tmp_path / 'b.npz', 'w') as archive:
        archive.writestr('a.npy', member.replace(b'(8,), }' + b' ' * 12, b'(9000000000000,), }'))
    with pytest.raises(MapFileError, match='another size than it says'):
        read_arrays(tmp_path / 'b.npz', layout)


def test_damaged_files_end_in_a_clear_error(idle, mapped, tmp_path):
    whole, random = mapped[0].read_bytes(), np.random.default_rng(0)
    for place in [*random.integers(0, len(whole), 20), *random.integers(len(whole) - 3000, len(whole), 60)]:
        damaged = bytearray(whole)
        damaged[place] ^= int(random.integers(1, 256))
        (tmp_path / 'map.npz').write_bytes(damaged)
        try:
            idle.load(tmp_path / 'map.npz')
        except EngineError as error:
            assert 'map.npz' in str(error)


def test_nothing_to_save_or_to_scale(idle, tmp_path):
    with pytest.raises(EngineError, match='map something first'):
        idle.save(tmp_path / 'map.npz')
    with pytest.raises(EngineError, match='map something first'):
        idle.set_scale(2.0)
    assert not list(tmp_path.iterdir())


def test_scale_multiplies_poses_and_keyframes(mapped, images):
    path = mapped[0]
    engine = make()
    engine.load(path)
    old = {k.id: k for k in all_resent(engine) if k.pointmap is not None}
    for factor in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(EngineError, match='makes no sense'):
            engine.set_scale(factor)
    assert not engine.scale_known
    poses = engine.trajectory()
    engine.set_scale(2.0)
    engine.set_scale(1.25)  # metres of the unit as it is by then
    assert engine.scale_known and engine.map_id == 3
    new = {k.id: k for k in all_resent(engine) if k.pointmap is not None}
    assert set(new) == set(old)
    for id, keyframe in new.items():
        assert keyframe.map_id == 3
        np.testing.assert_allclose(keyframe.pose.T_map_camera[:3, 3], 2.5 * old[id].pose.T_map_camera[:3, 3], atol=1e-9)
        np.testing.assert_allclose(keyframe.pose.T_map_camera[:3, :3], old[id].pose.T_map_camera[:3, :3])
        np.testing.assert_allclose(keyframe.pointmap, 2.5 * old[id].pointmap, rtol=2e-3)
    for pose, scaled in zip(poses, engine.trajectory(), strict=True):
        np.testing.assert_allclose(scaled.T_map_camera[:3, 3], 2.5 * pose.T_map_camera[:3, 3], atol=1e-9)
    output = [engine.process(frame) for frame in stream(images[30:33])][-1]
    assert np.linalg.norm(output.pose.T_map_camera[:3, 3]) > 2 * np.linalg.norm(poses[0].T_map_camera[:3, 3])
    engine.reset()
    assert not engine.scale_known
