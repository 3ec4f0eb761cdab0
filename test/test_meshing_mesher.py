# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Keyframes in, mesh updates out."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import trimesh
from meshing_scenes import HEIGHT, ROOM, WIDTH, around, keyframe, look_at, room_depth, room_poses, sphere_depth

from slam3r_ros.mapping.frames import rigid
from slam3r_ros.meshing import mesher as mesher_module
from slam3r_ros.meshing.backend import DeviceError
from slam3r_ros.meshing.cleaning import weld
from slam3r_ros.meshing.mesher import BOOK_BYTES, RING_BYTES, BlockMesher
from slam3r_ros.meshing.tsdf import BLOCK_BYTES
from slam3r_ros.values import Pose

VOXEL = 0.04


def room_keyframes(count=24):
    return [keyframe(room_depth(pose), pose, id=i) for i, pose in enumerate(room_poses(count))]


def triangles_of(vertices, colors, triangles):
    """Return every triangle with its colours as one sorted array, (M, 18), bit for bit."""
    soup = np.concatenate((vertices[triangles].reshape(-1, 9), colors[triangles].reshape(-1, 9)), axis=1)
    return soup[np.lexsort(soup.T)]


def assert_same_mesh(one, other):
    one, other = triangles_of(*one), triangles_of(*other)
    assert one.shape == other.shape and np.array_equal(one, other)


def to_walls(points):
    """Return the distance (N,) of points to the walls of the room."""
    outside = np.maximum(np.maximum(ROOM[0] - points, points - ROOM[1]), 0)
    inside = np.minimum(points - ROOM[0], ROOM[1] - points).min(axis=1)
    return np.where((outside > 0).any(axis=1), np.linalg.norm(outside, axis=1), np.abs(inside))


def test_sphere_from_all_sides_is_watertight_and_true():
    mesher = BlockMesher(0.03)
    for i, pose in enumerate(around(60, 1.5)):
        mesher.integrate(keyframe(sphere_depth(pose), pose, id=i))
    vertices, _, triangles = weld(*mesher.mesh())
    error = np.abs(np.linalg.norm(vertices, axis=1) - 0.5) / 0.03
    assert error.mean() < 0.5 and error.max() < 1
    mesh = trimesh.Trimesh(vertices, triangles, process=False)
    assert mesh.is_watertight and mesh.volume == pytest.approx(4 / 3 * np.pi * 0.5**3, rel=0.05)


def test_plane_faces_the_camera_where_it_is():
    mesher = BlockMesher(VOXEL)
    mesher.integrate(keyframe(np.full((HEIGHT, WIDTH), 1.013)))  # at x = 1.013, as the map's x is forward
    vertices, _, triangles = mesher.mesh()
    assert np.abs(vertices[:, 0] - 1.013).max() < 0.02 * VOXEL
    a, b, c = np.moveaxis(vertices[triangles], 1, 0)
    assert (np.cross(b - a, c - a)[:, 0] < 0).all()


def test_room_is_true_and_whole():
    mesher = BlockMesher(VOXEL)
    for frame in room_keyframes():
        mesher.integrate(frame)
    vertices, _, triangles = mesher.mesh()
    error = to_walls(vertices) / VOXEL
    assert error.mean() < 0.5 and np.percentile(error, 99) < 1
    walls = trimesh.Trimesh(vertices, triangles, process=False)
    around_the_waist = 2 * (np.ptp(ROOM, axis=0)[0] + np.ptp(ROOM, axis=0)[1]) * 0.8
    middle = np.abs(walls.triangles_center[:, 2]) < 0.4
    assert walls.area_faces[middle].sum() == pytest.approx(around_the_waist, rel=0.1)


def test_incremental_mesh_is_that_of_a_full_extraction():
    """After random keyframes and revisions of the last few, in a volume too small for all."""
    frames = room_keyframes()
    random = np.random.default_rng(0)
    mesher, replayed, sequence, newest = BlockMesher(VOXEL, max_blocks=350, min_weight=0.4), {}, 0, 0
    for step in range(80):
        newest += random.random() < 0.5
        id = max(newest - int(random.integers(5)), 0)
        frame = frames[id * 7 % len(frames)]
        shift = rigid(np.eye(3), random.normal(0, 0.02, 3)) @ frame.pose.T_map_camera
        mesher.integrate(replace(frame, pose=replace(frame.pose, id=id, T_map_camera=shift), revision=step,
                                 confidence=frame.confidence * random.uniform(0.2, 1)))
        if random.random() < 0.5 and (update := mesher.update()):
            assert update.sequence == sequence + 1 and not update.full
            sequence = update.sequence
            replayed |= {block.index: block for block in update.blocks}
    assert mesher.counters['dropped'] > 0 and mesher.counters['late'] == 0
    mesher.integrate(replace(frame, pose=replace(frame.pose, id=id), revision=100))
    replayed |= {block.index: block for block in mesher.update().blocks}
    update = mesher.update(full=True)
    assert update.full and mesher.update() is None
    full = BlockMesher(VOXEL, min_weight=0.4)
    full.volume = mesher.volume
    full.volume.dirty.update(mesher.volume.slots)
    assert len(full.mesh()[2]) > 1000
    told = {index: block for index, block in replayed.items() if len(block.vertices)}
    assert {block.index for block in update.blocks} == told.keys()
    blocks = full.snapshot().blocks
    assert {block.index for block in blocks} == told.keys()
    for block in blocks:
        for ours, theirs in zip(block, told[block.index], strict=True):
            assert np.array_equal(ours, theirs)


def test_updates_add_up_to_the_mesh():
    mesher, replayed = BlockMesher(VOXEL), {}
    for frame in room_keyframes(8):
        mesher.integrate(frame)
        moved = rigid(np.eye(3), np.array([0.3, 0, 0])) @ frame.pose.T_map_camera
        for revision in (None, replace(frame, pose=replace(frame.pose, T_map_camera=moved), revision=1)):
            if revision:
                mesher.integrate(revision)
            for block in mesher.update().blocks:
                replayed[block.index] = block
    left = {index: block for index, block in replayed.items() if len(block.vertices)}
    assert len(left) < len(replayed)
    assert {block.index for block in mesher.snapshot().blocks} == left.keys()
    assert sum(len(block.triangles) for block in left.values()) == len(mesher.mesh()[2])


def test_revision_replaces_as_though_the_first_had_never_been():
    frames = room_keyframes(10)
    moved = [replace(frame, pose=replace(frame.pose, T_map_camera=rigid(np.eye(3), np.array([0.05, -0.03, 0.02]))
                                         @ frame.pose.T_map_camera), revision=3) for frame in frames]
    revised, fresh = BlockMesher(VOXEL), BlockMesher(VOXEL)
    for frame in [*frames, *moved]:
        revised.integrate(frame)
    for frame in moved:
        fresh.integrate(frame)
    assert_same_mesh(revised.mesh(), fresh.mesh())
    assert revised.volume.slots.keys() == fresh.volume.slots.keys()


def test_duplicates_and_frames_without_depth_change_nothing():
    frame = room_keyframes(1)[0]
    mesher = BlockMesher(VOXEL)
    mesher.integrate(replace(frame, pointmap=None, confidence=None, colors=None))
    assert mesher.update() is None
    mesher.integrate(replace(frame, revision=2))
    assert mesher.update() is not None
    for revision in (2, 1):
        mesher.integrate(replace(frame, revision=revision))
        mesher.integrate(replace(frame, pointmap=None, revision=7))
    assert mesher.update() is None
    assert mesher.counters['duplicates'] == 2


def test_revision_after_the_ring_is_late():
    frames = room_keyframes(4)
    mesher = BlockMesher(VOXEL, ring=2)
    for frame in frames:
        mesher.integrate(frame)
    before = mesher.mesh()
    mesher.integrate(replace(frames[0], revision=1))
    assert mesher.counters['late'] == 1
    assert_same_mesh(mesher.mesh(), before)


def test_another_map_begins_anew_with_a_full_update():
    frames = room_keyframes(3)
    mesher = BlockMesher(VOXEL)
    for frame in frames:
        mesher.integrate(frame)
    assert not mesher.update().full
    mesher.integrate(replace(frames[1], map_id=1))
    update, fresh = mesher.update(), BlockMesher(VOXEL)
    fresh.integrate(frames[1])
    assert update.full and update.map_id == 1 and update.sequence == 2 and update.stamp == frames[1].pose.stamp
    assert_same_mesh(mesher.mesh(), fresh.mesh())
    mesher.reset(2)
    empty = mesher.update()
    assert empty.full and empty.map_id == 2 and not empty.blocks
    assert mesher.update() is None and not len(mesher.mesh()[0])


def test_snapshot_takes_nothing_from_the_next_update():
    frames = room_keyframes(2)
    mesher = BlockMesher(VOXEL)
    mesher.integrate(frames[0])
    mesher.update()
    mesher.integrate(frames[1])
    snapshot = mesher.snapshot()
    assert snapshot.full and snapshot.sequence == 1
    update = mesher.update()
    assert update.sequence == 2 and len(update.blocks) > 10


@pytest.mark.parametrize('to_host', ['cpu', 'get'])  # of torch, of CuPy
def test_arrays_of_a_gpu_come_to_a_mesher_on_the_cpu(to_host):
    frame = room_keyframes(1)[0]
    there = {name: SimpleNamespace(**{to_host: getattr(frame, name).copy}, shape=getattr(frame, name).shape)
             for name in ('pointmap', 'confidence', 'colors')}
    one, other = BlockMesher(VOXEL, device='cpu'), BlockMesher(VOXEL, device='cpu')
    one.integrate(replace(frame, **there))
    other.integrate(frame)
    assert len(one.mesh()[0]) > 1000
    assert_same_mesh(one.mesh(), other.mesh())


def test_min_weight_hides_what_was_seen_weakly():
    wall = np.full((HEIGHT, WIDTH), 1.0)
    weak, strong = keyframe(wall, confidence=0.3), keyframe(wall, id=1)
    mesher = BlockMesher(VOXEL, min_weight=0.5)
    mesher.integrate(weak)
    assert not len(mesher.mesh()[0])
    mesher.integrate(strong)
    assert len(mesher.mesh()[0])


def test_memory_cap_holds_along_a_corridor():
    mesher = BlockMesher(VOXEL, max_blocks=BlockMesher.blocks_within(13))
    for i in range(30):
        pose = look_at((0.4 * i, 0, 0), (0.4 * i + 1, 0.01, 0))
        mesher.integrate(keyframe(np.full((HEIGHT, WIDTH), 1.2), pose, id=i))
        mesher.update()
        assert mesher.memory <= 5e6  # and 8 MB to work with
        assert mesher.counters['triangles'] == len(mesher.mesh()[2])
    assert mesher.counters['dropped'] > 100
    assert 1 < mesher.counters['keyframes'] < 30  # the ring is under the cap too
    assert mesher.mesh()[0][:, 0].max() == pytest.approx(0.4 * 29 + 1.2, abs=VOXEL)  # the newest is there


def test_surfaces_are_under_the_cap_too(monkeypatch):
    share = 500  # bytes a block: the room's surface takes more
    monkeypatch.setattr(mesher_module, 'SURFACE_BYTES', share)
    mesher, replayed = BlockMesher(VOXEL, max_blocks=400), {}
    for frame in room_keyframes():
        mesher.integrate(frame)
        replayed |= {block.index: block for block in mesher.update().blocks}
        kept = mesher.snapshot().blocks
        assert sum(array.nbytes for block in kept for array in block[1:]) < 400 * share
    assert 10 < mesher.counters['blocks'] < 350 and mesher.counters['dropped'] > 0
    assert mesher.memory <= 400 * (BLOCK_BYTES + share + RING_BYTES + BOOK_BYTES)
    assert {block.index for block in kept} == {index for index, block in replayed.items() if len(block.vertices)}


def test_what_is_remembered_of_keyframes_is_bounded():
    mesher = BlockMesher(VOXEL, ring=3)
    small = keyframe(np.full((2, 2), 0.9))
    full = None
    for id in range(5, 300):
        mesher.integrate(replace(small, pose=replace(small.pose, id=id)))
        size = sum(len(value) for value in vars(mesher).values() if hasattr(value, '__len__'))
        full = size if id == 10 else full
    assert size == full and mesher.counters['keyframes'] == 3
    mesher.integrate(replace(small, pose=replace(small.pose, id=298)))
    mesher.integrate(replace(small, pose=replace(small.pose, id=3)))  # never seen, but from before the ring
    assert mesher.counters['duplicates'] == 1 and mesher.counters['late'] == 1


def corridor(steps):
    """Yield keyframes that look at a wall, each further along."""
    for i in range(steps):
        pose = look_at((0.6 * i, 0, 0), (0.6 * i + 1, 0.01, 0))
        yield keyframe(np.full((HEIGHT, WIDTH), 1.2), pose, id=i)


def test_what_nobody_asks_for_is_not_remembered_for_ever():
    """And is told rightly when somebody does ask."""
    lonely, followed, told = BlockMesher(VOXEL, max_blocks=150), BlockMesher(VOXEL, max_blocks=150), {}
    for frame in corridor(60):
        for mesher in (lonely, followed):
            mesher.integrate(frame)
        followed.update()
        assert len(lonely.volume.dirty) <= 4 * 150
        if frame.id in (3, 59):  # what it tells first is gone in the end
            told |= {block.index: len(block.triangles) for block in lonely.update().blocks}
    assert followed.counters['dropped'] > 1000
    assert_same_mesh(lonely.mesh(), followed.mesh())
    assert {index for index, count in told.items() if count} == {block.index for block in followed.snapshot().blocks}


def test_snapshots_alone_make_the_next_update_a_full_one_in_the_end():
    mesher = BlockMesher(VOXEL, max_blocks=150)
    mesher.integrate(room_keyframes(1)[0])
    assert not mesher.update().full
    for frame in corridor(60):
        mesher.integrate(frame)
        assert mesher.snapshot().full and len(mesher._changed) <= 4 * 150
    update = mesher.update()
    assert update.full
    assert {block.index for block in update.blocks} == {block.index for block in mesher.snapshot().blocks}


@pytest.mark.parametrize('spoil', [
    lambda frame: replace(frame, pointmap=np.full_like(frame.pointmap, np.nan)),
    lambda frame: replace(frame, pointmap=np.full_like(frame.pointmap, np.inf)),
    lambda frame: replace(frame, confidence=np.zeros_like(frame.confidence)),
    lambda frame: replace(frame, pointmap=frame.pointmap[:0], confidence=frame.confidence[:0], colors=frame.colors[:0]),
], ids=['nan', 'inf', 'unsure', 'no pixels'])
def test_keyframes_without_a_point_add_nothing(spoil):
    mesher = BlockMesher(VOXEL)
    mesher.integrate(spoil(room_keyframes(1)[0]))
    assert mesher.counters['blocks'] == 0 and mesher.update() is None
    assert mesher.counters['far_points'] == 0


def test_points_a_kilometre_away_make_no_blocks_and_are_counted():
    frame, mesher = room_keyframes(1)[0], BlockMesher(VOXEL)
    mesher.integrate(replace(frame, pointmap=frame.pointmap * 1000))
    assert mesher.counters['blocks'] == 0 and mesher.update() is None
    assert mesher.counters['far_points'] == WIDTH * HEIGHT


@pytest.mark.parametrize('T_map_camera', [
    np.zeros((4, 4)), np.full((4, 4), np.nan), np.diag([2.0, 2, 2, 1]), np.diag([1.0, 1, -1, 1]),
    rigid(np.eye(3), np.full(3, np.nan)), rigid(np.eye(3), np.full(3, 1e12)),
], ids=['singular', 'nan', 'scaled', 'mirrored', 'nowhere', 'out of the lattice'])
def test_keyframes_with_an_unusable_pose_are_rejected(T_map_camera):
    frame, mesher = room_keyframes(1)[0], BlockMesher(VOXEL)
    mesher.integrate(replace(frame, pose=Pose(frame.id, 0, T_map_camera)))
    assert mesher.counters['rejected'] == 1 and mesher.counters['blocks'] == 0 and mesher.update() is None
    mesher.integrate(frame)
    assert mesher.counters['blocks'] > 0


@pytest.mark.parametrize('spoilt', [{'fx': -95.0}, {'fy': 0.0}, {'fx': np.inf}, {'cx': np.nan}], ids=str)
def test_keyframes_with_an_unusable_lens_are_rejected(spoilt):
    frame, mesher = room_keyframes(1)[0], BlockMesher(VOXEL)
    mesher.integrate(replace(frame, intrinsics=frame.intrinsics._replace(**spoilt)))
    assert mesher.counters['rejected'] == 1 and mesher.counters['blocks'] == 0 and mesher.update() is None


@pytest.mark.parametrize('name', ['pointmap', 'confidence', 'colors'])
def test_keyframes_whose_arrays_differ_in_size_are_rejected(name):
    """A revision, too: then the earlier one stays."""
    frame, mesher = room_keyframes(1)[0], BlockMesher(VOXEL)
    mesher.integrate(frame)
    before = mesher.mesh()
    mesher.integrate(replace(frame, revision=1, **{name: getattr(frame, name)[:-1]}))
    assert mesher.counters['rejected'] == 1 and mesher.counters['keyframes'] == 1
    assert_same_mesh(mesher.mesh(), before)


def test_a_revision_that_cannot_be_taken_leaves_the_earlier_one_where_it_is():
    frame, mesher = room_keyframes(1)[0], BlockMesher(VOXEL)
    mesher.integrate(frame)
    before = mesher.mesh()
    with pytest.raises(TypeError):
        mesher.integrate(replace(frame, revision=1, pointmap=np.full(frame.pointmap.shape, {})))
    assert mesher.counters['keyframes'] == 1 and len(before[0]) > 1000
    assert_same_mesh(mesher.mesh(), before)


def test_another_voxel_size_begins_anew():
    frame, mesher, fresh = room_keyframes(1)[0], BlockMesher(VOXEL), BlockMesher(2 * VOXEL)
    mesher.integrate(frame)
    assert mesher.update().sequence == 1
    mesher.reset(3, 2 * VOXEL)
    frame = replace(frame, map_id=3)
    for each in (mesher, fresh):
        each.integrate(frame)
    assert_same_mesh(mesher.mesh(), fresh.mesh())
    update = mesher.update()
    assert update.full and update.sequence == 2 and update.block_size == fresh.block_size == 16 * VOXEL


def test_a_volume_too_large_for_the_machine_is_an_error_that_says_so():
    with pytest.raises(DeviceError, match='102400000000 MB of voxels .*; allow less memory'):
        BlockMesher(VOXEL, max_blocks=10**13)
