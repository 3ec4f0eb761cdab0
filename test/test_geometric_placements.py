# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Where and when each frame of a long video was, in little memory."""

import tracemalloc

import numpy as np
import pytest
from geometric_scenes import FOCAL, camera

from slam3r_ros.engines.geometric import engine as engine_module
from slam3r_ros.engines.geometric.engine import GeometricEngine
from slam3r_ros.engines.geometric.placements import Placements, Stamps
from slam3r_ros.engines.geometric.sparse_map import SparseKeyframe, SparseMap
from slam3r_ros.engines.geometric.tracker import Step
from slam3r_ros.mapping.frames import T_MAP_OPTICAL, invert
from slam3r_ros.values import Frame


def make_map(count: int) -> SparseMap:
    """Return a map of keyframes 0, 10, 20 and so on."""
    sparse = SparseMap(FOCAL)
    sparse.keyframes = [SparseKeyframe(10 * i, pose(10 * i), np.zeros(0, int), np.zeros((0, 2))) for i in range(count)]
    return sparse


def pose(id: int) -> np.ndarray:
    """Return T_camera_world (4, 4) of a frame."""
    return camera((0.1, 0.01 * id, -0.2), (0.1 * id, np.sin(id), 0.3))


def put(frames: Placements, sparse: SparseMap, ids: range) -> None:
    for id in ids:
        frames.put(id, pose(id), sparse.keyframes[min(id // 10, len(sparse.keyframes) - 1)])


def test_frames_are_where_they_were_put_and_move_with_their_keyframe():
    sparse, frames = make_map(3), Placements()
    put(frames, sparse, range(5, 30))
    put(frames, sparse, range(5))
    found = frames.poses(sparse)
    assert [id for id, _ in found] == list(range(30))
    for id, T in found:
        np.testing.assert_allclose(T, invert(pose(id)), atol=1e-12)
    change = camera((0, 0.2, 0), (1, 2, 3))
    sparse.keyframes[1].T_camera_world = sparse.keyframes[1].T_camera_world @ change
    for id, T in frames.poses(sparse):
        moved = invert(change) if 10 <= id < 20 else np.eye(4)
        np.testing.assert_allclose(T, moved @ invert(pose(id)), atol=1e-12)


@pytest.mark.parametrize('between', [[], [7]])
def test_of_two_places_of_a_frame_the_later_counts(between):
    sparse, frames = make_map(2), Placements()
    for id, T in [(4, pose(0)), *((each, pose(each)) for each in between), (4, pose(4))]:
        frames.put(id, T, sparse.keyframes[0])
    found = dict(frames.poses(sparse))
    assert sorted(found) == [4, *between]
    np.testing.assert_allclose(found[4], invert(pose(4)), atol=1e-12)


def test_frames_of_forgotten_keyframes_stay_and_move_with_another():
    sparse, frames = make_map(3), Placements()
    put(frames, sparse, range(30))
    frames.lean([(sparse.keyframes[1], sparse.keyframes[0])])
    del sparse.keyframes[1]
    for id, T in frames.poses(sparse):
        np.testing.assert_allclose(T, invert(pose(id)), atol=1e-12)
    change = camera((0, 0.2, 0), (1, 2, 3))
    sparse.keyframes[0].T_camera_world = sparse.keyframes[0].T_camera_world @ change
    np.testing.assert_allclose(dict(frames.poses(sparse))[15], invert(change) @ invert(pose(15)), atol=1e-12)


def test_frames_of_many_keyframes_are_moved_to_others_in_one_go():
    sparse, frames = make_map(30), Placements()
    put(frames, sparse, range(100, 300))
    put(frames, sparse, range(100))
    frames.put(5, pose(5), sparse.keyframes[29])  # once more
    pairs = [(sparse.keyframes[i], sparse.keyframes[i - 1]) for i in (17, 3, 1, 11)]
    frames.lean(iter(pairs))
    frames.lean([])
    sparse.keyframes = [keyframe for keyframe in sparse.keyframes if keyframe not in [gone for gone, _ in pairs]]
    change = camera((0, 0.2, 0), (1, 2, 3))
    moved = sparse.keyframes[1:3]  # 20, which took over 30 to 39, and 40
    for keyframe in moved:
        keyframe.T_camera_world = keyframe.T_camera_world @ change
    found = frames.poses(sparse)
    assert [id for id, _ in found] == list(range(300))
    for id, T in found:
        expected = invert(change) @ invert(pose(id)) if 20 <= id < 50 else invert(pose(id))
        np.testing.assert_allclose(T, expected, atol=1e-12)


def test_lengths_and_maps_come_together():
    sparse, first, second = make_map(4), Placements(), Placements()
    put(first, sparse, range(20))
    put(second, sparse, range(20, 40))
    for keyframe in sparse.keyframes:
        keyframe.T_camera_world = keyframe.T_camera_world.copy()
        keyframe.T_camera_world[:3, 3] *= 2
    first.rescale(2.0)
    second.rescale(2.0)
    second.take(first)
    found = second.poses(sparse)
    assert [id for id, _ in found] == list(range(40))
    for id, T in found:
        np.testing.assert_allclose(T[:3, 3], 2 * invert(pose(id))[:3, 3], atol=1e-12)


def test_a_frame_takes_little_memory():
    """Of an hour at 10 frames a second, below 10 MB with all room for more."""
    sparse, stamps, frames, T = make_map(1), Stamps(), Placements(), pose(1)
    tracemalloc.start()
    for id in range(36_000):
        stamps[id] = 100_000_000 * id
        frames.put(id, T, sparse.keyframes[0])
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert used < 280 * 36_000


def test_there_is_an_end_to_it(monkeypatch):
    """When and where frames were is forgotten together; two maps take turns, and not every frame has a place."""
    monkeypatch.setattr(engine_module, 'MAX_FRAMES', 40)
    engine = GeometricEngine(focal=FOCAL, dense=False)
    image = np.zeros((64, 64, 3), np.uint8)
    engine.process(Frame(0, 0, image))
    sparse, atlas = make_map(20), engine._atlas
    put(atlas.present.placements, sparse, range(1))
    atlas.others.append(atlas._make(0.0))
    for tracker in (atlas.present, *atlas.others):
        tracker.map = sparse

    def track(id, image, candidate):
        if id % 9 == 0:
            atlas.present, atlas.others = atlas.others[0], [atlas.present]
        if id % 7:
            put(atlas.present.placements, sparse, range(id, id + 1))
        return Step(None)

    monkeypatch.setattr(atlas, 'track', track)
    for id in range(1, 200):
        engine.process(Frame(id, 1000 * id, image))
        assert len(engine._stamps) <= 40
    assert all(len(tracker.placements._rows) <= 40 for tracker in (atlas.present, *atlas.others))
    poses = [*engine.trajectory(), *engine.other_trajectories()[0]]
    ids = sorted(each.id for each in poses)
    assert 20 < len(ids) <= 40 and ids[0] == 0
    assert ids[-15:] == [id for id in range(200) if id % 7][-15:]  # the newest are all there
    for each in poses:
        assert each.stamp == 1000 * each.id
        np.testing.assert_allclose(each.T_map_camera, T_MAP_OPTICAL @ invert(pose(each.id)), atol=1e-12)
    atlas.present.placements.put(3, pose(3), sparse.keyframes[0])  # found again, too late
    assert len(engine.trajectory()) + len(engine.other_trajectories()[0]) == len(ids)


def test_stamps_by_frame():
    stamps = Stamps([5, 6, 7])
    for id, stamp in ((10, 100), (20, 200), (15, 150), (20, 201), (-1, 1)):
        stamps[id] = stamp
    assert [stamps[id] for id in (-1, 0, 2, 10, 15, 20)] == [1, 5, 7, 100, 150, 201] and len(stamps) == 7
