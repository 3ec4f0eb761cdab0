# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Cuts to another place: a map of its own, the old one kept, both joined when one sees what the other knows."""

from itertools import pairwise

import numpy as np
import pytest
from geometric_scenes import Room, camera, make_map, stream, walk

from slam3r_ros.engines.geometric.adjust import rotate
from slam3r_ros.engines.geometric.atlas import Atlas
from slam3r_ros.engines.geometric.engine import GeometricEngine
from slam3r_ros.engines.geometric.merge import recognise
from slam3r_ros.engines.geometric.sparse_map import PointState
from slam3r_ros.engines.geometric.tracker import Step, Tracker
from slam3r_ros.mapping.frames import invert, transform
from slam3r_ros.mapping.registration import Similarity, similarity
from slam3r_ros.values import Frame, State

CUT = 45  # frames before the cut


class Run:
    """An engine with all that it said."""

    def __init__(self, frames: list[Frame], **options: bool | int) -> None:
        self.engine = GeometricEngine(**{'dense': False, 'max_features': 350} | options)
        self.states, self.map_ids, self.poses, self.outputs, self.others = [], [], {}, [], []
        for frame in frames:
            output = self.engine.process(frame)
            self.outputs.append(output)
            self.states.append(self.engine.state)
            self.map_ids.append(self.engine.map_id)
            self.others.append([len(poses) for poses in self.engine.other_trajectories()])
            if output.pose is not None:
                self.poses[frame.id] = output.pose
        self.outputs.append(self.engine.finish())

    def newest(self) -> dict:
        """Return the newest keyframe of each id that belongs to the present map, with depth where it ever had any."""
        mine = [k for output in self.outputs for k in output.keyframes if k.map_id == self.engine.map_id]
        return {k.id: k for k in mine} | {k.id: k for k in mine if k.pointmap is not None}


def aligned(poses, path) -> tuple[Similarity, float]:
    """Return the similarity from poses to the true path, and the largest distance after it."""
    found = np.array([pose.T_map_camera[:3, 3] for pose in poses])
    truth = np.array([path[pose.id][:3, 3] for pose in poses])
    moved = similarity(found, truth)
    return moved, float(np.linalg.norm(moved.apply(found) - truth, axis=1).max())


@pytest.fixture(scope='module')
def gallery():
    """Walk along a wall, be carried 8 units further, and walk back to where the walk began; return path and run."""
    path = walk(0, 0.07, CUT) + walk(9.5, -0.07, 90)
    room = Room()
    run = Run(stream([room.render(T) for T in path]), dense=True)
    yield path, run
    run.engine.close()


def test_unknown_place_gets_a_map_of_its_own(gallery):
    _, run = gallery
    assert run.states[CUT - 1] == State.TRACKING and run.states[CUT] == State.LOST
    begun = run.map_ids.index(1)
    assert set(run.states[CUT + 1:begun]) == {State.RELOCALIZING}
    assert run.states[begun] == State.TRACKING and not set(range(CUT, begun)) & set(run.poses)
    assert run.others[begun - 1] == [] and run.others[begun] == [CUT]  # what was mapped before is kept
    assert {k.map_id for k in run.outputs[begun].keyframes if k.id >= CUT} == {1}
    assert sum(k.id >= CUT for k in run.outputs[begun].keyframes) >= 10


def test_maps_that_meet_become_one(gallery):
    path, run = gallery
    joined = run.map_ids.index(2)
    assert run.map_ids[-1] == 2 and run.others[joined] == []
    before = {k.id: k for output in run.outputs[:joined] for k in output.keyframes}
    announced = [k for k in run.outputs[joined].keyframes if k.map_id == 2 and k.pointmap is None]
    assert [k.id for k in announced] == sorted(k.id for k in announced)
    assert {k.id for k in announced} >= set(before)  # everything of both maps comes again, at once
    assert all(k.revision > before[k.id].revision for k in announced if k.id in before)
    trajectory = run.engine.trajectory()
    assert {pose.id for pose in trajectory} >= set(range(CUT)) | set(range(CUT + 25, len(path)))
    _, worst = aligned(trajectory, path)
    assert worst < 0.15  # of 9.5 units
    live = [pose for id, pose in run.poses.items() if id < CUT or id >= joined]
    assert aligned(live, path)[1] < 0.15  # the world is that of the first map


def test_keyframes_of_both_maps_keep_their_depth(gallery):
    path, run = gallery
    moved, _ = aligned(run.engine.trajectory(), path)
    before = {k.id for output in run.outputs for k in output.keyframes if k.pointmap is not None}
    keyframes = {id: k for id, k in run.newest().items() if k.pointmap is not None}
    assert set(keyframes) == before and min(before) < CUT < max(before)
    for side in (lambda id: id < CUT, lambda id: id >= CUT):
        errors = []
        for id, keyframe in keyframes.items():
            if side(id):
                points = moved.apply(transform(keyframe.pose.T_map_camera,
                                               keyframe.pointmap[keyframe.confidence > 0].astype(float)))
                errors.append(np.min([distance(points, *plane) for plane in Room().planes], axis=0))
        assert np.median(np.concatenate(errors)) < 0.1  # of 3 to 4 units of depth


def distance(points: np.ndarray, origin: tuple, u: tuple, v: tuple) -> np.ndarray:
    """Return the distances of points (N, 3) to a plane."""
    normal = np.cross(u, v)
    return np.abs((points - origin) @ normal) / np.linalg.norm(normal)


def test_map_ids_only_rise_and_keyframes_come_a_few_at_once(gallery):
    _, run = gallery
    joined = run.map_ids.index(2)
    dense = [[k for k in output.keyframes if k.pointmap is not None] for output in run.outputs]
    assert max(len(each) for each in dense[joined + 1:-1]) < 15
    ids = [k.map_id for output in run.outputs for k in output.keyframes]
    assert all(before <= after for before, after in pairwise(ids))  # no reader ever sees an old map come back


@pytest.fixture(scope='module')
def rooms():
    """Look about in one room, then in another, then in the first again."""
    first, second = Room(), Room(seed=1)
    images = [first.render(T) for T in walk(0, 0.07, CUT)]
    run = Run(stream(images + [second.render(T) for T in walk(0, 0.07, 85)] + images[30:10:-1]))
    return run


def test_first_room_is_known_again(rooms):
    back = CUT + 85
    found = rooms.map_ids.index(2)
    assert rooms.map_ids[back - 1] == 1 and back <= found < back + 5
    assert rooms.others[found] and rooms.others[found][0] > 40  # the second room is kept meanwhile
    assert rooms.states[-1] == State.TRACKING and rooms.map_ids[-1] == 2
    assert {k.id for k in rooms.outputs[found].keyframes if k.map_id == 2} >= {0}
    for id in range(found, back + 20):
        then = rooms.poses[30 - (id - back)].T_map_camera
        np.testing.assert_allclose(rooms.poses[id].T_map_camera[:3, 3], then[:3, 3], atol=0.05)


def test_different_rooms_are_never_joined(rooms):
    (other,) = rooms.engine._atlas.others
    present = rooms.engine._tracker.map
    for keyframe in present.keyframes:
        assert recognise(present, keyframe, other.map, np.arange(len(other.map.keyframes))) is None


@pytest.mark.parametrize('older_first', [True, False])
@pytest.mark.parametrize('metres', [(None, None), (2.0, None), (None, 3.0), (2.0, 3.0)])
def test_joined_maps_keep_the_world_of_the_older_and_the_known_unit(older_first, metres):
    random = np.random.default_rng(0)
    points = random.uniform(-1, 1, (200, 3)) * [1.5, 1, 0.5] + [0.5, 0, 2.5]
    path = [camera((0, -0.02 * i, 0), (0.15 * i, 0, 0)) for i in range(9)]
    there, here = (make_map(points, part, np.random.default_rng(1)) for part in (path[:6], path[3:]))
    for keyframe in here.keyframes if older_first else there.keyframes:
        keyframe.id += 100
    for map in (here, there):
        map.positions[:200], map.states[:200] = points, PointState.GOOD
    there.metres, here.metres = metres
    moved = Similarity(0.5, rotate(np.eye(3), [0.3, 1.0, -0.2]), np.array([4.0, -2, 1]))
    here.transform(moved)
    link = recognise(here, here.keyframes[-1], there, np.arange(6))
    np.testing.assert_allclose(link.similarity.scale, 2.0, rtol=1e-3)
    trackers = []
    for map in (here, there):
        trackers.append(Tracker(640, 480, (0.0, 0.0), focal=500.0))
        trackers[-1].load(map)
    present, other = trackers
    present._T = here.keyframes[-1].T_camera_world.copy()
    present.join(other, link)
    truth = path[:6] + path[3:]
    for keyframe, T in zip(present.map.keyframes, truth, strict=True):
        if older_first:
            np.testing.assert_allclose(keyframe.T_camera_world, T, atol=1e-3)
        else:
            np.testing.assert_allclose(keyframe.centre, moved.apply(invert(T)[:3, 3]), atol=1e-3)
    np.testing.assert_allclose(present.T_world_camera, invert(present.map.keyframes[-1].T_camera_world), atol=1e-3)
    placed = dict(present.placements.poses(present.map))
    for keyframe in present.map.keyframes:
        np.testing.assert_allclose(placed[keyframe.id], invert(keyframe.T_camera_world), atol=1e-3)
    of_there, of_here = metres
    kept = (of_there, of_here and of_here / 2) if older_first else (of_here, of_there and of_there * 2)
    assert present.map.metres == (pytest.approx(kept[0] or kept[1], rel=1e-3) if any(metres) else None)
    assert len(np.unique(np.concatenate([k.ids for k in present.map.keyframes]))) < 400  # points are shared


def test_maps_are_thinned_out_together():
    images = [Room().render(T) for T in walk(0, 0.07, CUT)]
    engine = GeometricEngine(dense=False, max_features=350, max_keyframes=6)
    keyframes = {k.id for frame in stream(images) for k in engine.process(frame).keyframes}
    map = engine._tracker.map
    assert len(map.keyframes) <= 6 < len(keyframes) == len(map.keyframes) + map.forgotten
    assert len(engine._records) <= 6
    before = engine.trajectory()
    assert [pose.id for pose in before] == list(range(CUT)) and aligned(before, walk(0, 0.07, CUT))[1] < 0.15
    engine._tracker.thin()
    assert len(map.keyframes) >= 4
    for pose, old in zip(engine.trajectory(), before, strict=True):  # what stood by forgotten keyframes stays there
        np.testing.assert_allclose(pose.T_map_camera, old.T_map_camera, atol=1e-9)
    held = {id for keyframe in map.keyframes for id in keyframe.features.ids}
    assert map.count == len(held) and set(engine._tracker._tracks.ids) <= held
    for frame in stream(images[::-1], CUT):  # tracking goes on
        engine.process(frame)
    assert engine.state == State.TRACKING and len(engine.trajectory()) == 2 * CUT


@pytest.mark.parametrize('present, oldest_stays', [(4, False), (12, True)])
def test_of_many_small_maps_the_oldest_is_forgotten(present, oldest_stays):
    """Thinned out, they would become maps of nothing; a large one can give some."""
    random = np.random.default_rng(0)
    points = random.uniform(-1, 1, (40, 3)) + [0, 0, 3]
    trackers = []
    for first, count in ((0, present), (300, 4), (100, 4), (200, 4)):
        trackers.append(Tracker(640, 480, (0.0, 0.0), focal=500.0))
        trackers[-1].load(make_map(points, [camera((0, 0, 0), (0.1 * i, 0, 0)) for i in range(count)], random))
        for keyframe in trackers[-1].map.keyframes:
            keyframe.id += first
    made = iter(trackers)
    atlas = Atlas(lambda focal: next(made), max_keyframes=12 + present - 1)
    atlas.others = trackers[1:]
    atlas.present.state = State.TRACKING
    newest = (atlas.present.map.keyframes[-1], np.zeros((480, 640, 3), np.uint8))
    atlas.present.track = lambda *_: Step(None, (newest,))
    oldest = trackers[2]
    atlas.track(999, newest[1])
    assert (oldest in atlas.others) == oldest_stays and len(atlas.others) == 2 + oldest_stays
    assert bool(oldest.map.keyframes) == oldest_stays
    assert sum(len(each.map.keyframes) for each in (atlas.present, *atlas.others)) <= 12 + present - 1
    assert all(len(each.map.keyframes) == 4 for each in atlas.others)
