# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The block TSDF."""

import numpy as np
import pytest
from meshing_scenes import CAMERA, HEIGHT, ROOM, WIDTH, keyframe, look_at, room_depth, room_poses

from slam3r_ros.mapping.frames import invert, rigid, transform
from slam3r_ros.meshing import kernels_cpu, reference
from slam3r_ros.meshing.lattice import CORNERS, NEIGHBOURS, pack, step, unpack
from slam3r_ros.meshing.tsdf import BLOCKS_PER_PIXEL, DISTANCE_STEPS, WEIGHT_STEPS, BlockVolume
from slam3r_ros.meshing.tsdf import view_of as make_view

VOXEL = 0.04


def view_of(frame):
    return make_view(frame, VOXEL, kernels_cpu)


def room_view(pose, seed=0):
    random = np.random.default_rng(seed)
    frame = keyframe(room_depth(pose), pose, confidence=random.uniform(0, 1, (HEIGHT, WIDTH)))
    return view_of(frame)[0]


def camera(T):
    return np.concatenate((CAMERA, T[:3].ravel()))


def test_keys_are_invertible_and_add_up():
    indices = np.random.default_rng(0).integers(-2**20 + 2, 2**20 - 2, (1000, 3))
    assert np.array_equal(unpack(pack(indices)), indices)
    assert np.array_equal(pack(indices) + step(-1, 1, -1), pack(indices + [-1, 1, -1]))


def test_band_is_that_of_the_twin():
    view = room_view(room_poses(5)[2])
    view.depth[:10] *= 0.05  # the band begins behind the camera
    view.weight[:, :20] = 0
    for far in (0, 3e5, 6e5, 1e12):  # the lattice ends at 335544
        T = rigid(view.T_map_camera[:3, :3], (0, far, far))  # at a corner of blocks: others lie behind
        arguments = view.depth, view.weight, camera(T), 8 * VOXEL, 4 * VOXEL
        keys = kernels_cpu.band_keys(*arguments)
        assert np.array_equal(keys, reference.band_keys(*arguments))
        assert len(keys) == 0 if far > 5e5 else len(keys) > 20


@pytest.mark.parametrize('max_weight', [10000, 300])
def test_fuse_is_that_of_the_twin(max_weight):
    poses = room_poses(12)[:3]
    views = [room_view(pose, seed) for seed, pose in enumerate(poses)]
    keys = np.unique(np.concatenate([reference.band_keys(
        view.depth, view.weight, camera(view.T_map_camera), 8 * VOXEL, 4 * VOXEL) for view in views]))
    slots = np.random.default_rng(1).permutation(len(keys))
    ours, twins = np.zeros((2, len(keys), 512, 5), np.int32)
    for view, sign in ((views[0], 1), (views[1], 1), (views[2], 1), (views[1], -1)):
        arguments = (slots, unpack(keys), view.depth, view.weight, view.colors, camera(invert(view.T_map_camera)),
                     VOXEL, 4 * VOXEL, sign, max_weight)
        for one, other in zip(kernels_cpu.fuse(ours, *arguments), reference.fuse(twins, *arguments), strict=True):
            assert np.array_equal(one, other)
        assert np.array_equal(ours, twins)
    assert ours[..., 0].max() > 250


def test_blocks_hold_what_a_dense_field_holds():
    """The field once more without blocks, keys or integers: every voxel of the room, averaged in float."""
    views = [room_view(pose, seed) for seed, pose in enumerate(room_poses(8))]
    volume = BlockVolume(VOXEL)
    for view in views:
        volume.add(view)
    low, high = np.floor(ROOM[0] / VOXEL).astype(int) - 6, np.ceil(ROOM[1] / VOXEL).astype(int) + 6
    lattice = np.stack(np.meshgrid(*map(np.arange, low, high), indexing='ij'), axis=-1).reshape(-1, 3)
    weights, distances, near = np.zeros(len(lattice)), np.zeros(len(lattice)), np.zeros(len(lattice), bool)
    for view in views:
        points = transform(invert(view.T_map_camera), lattice * VOXEL)
        with np.errstate(all='ignore'):
            column, row = np.round(points[:, :2] / points[:, 2:] * CAMERA[:2] + CAMERA[2:]).T
        seen = (points[:, 2] > 0) & (column >= 0) & (column < WIDTH) & (row >= 0) & (row < HEIGHT)
        pixel = np.where(seen, row, 0).astype(int), np.where(seen, column, 0).astype(int)
        distance = (view.depth[pixel] - points[:, 2]) / (4 * VOXEL)
        share = np.clip((1 + distance) / 0.25, 0, 1)  # behind the surface it fades
        weight = np.where(seen, np.ceil(view.weight[pixel] * share), 0.0)
        weights += weight
        distances += weight * np.minimum(distance, 1)
        near |= (weight > 0) & (np.abs(distance) < 0.5)  # of the band, no matter how rays are sampled
    keys = pack(lattice // 8)
    held = np.isin(keys, list(volume.slots))
    assert near.sum() > 10000 and held[near].all()
    slots = np.array([volume.slots[key] for key in keys[held].tolist()])
    weight, distance = volume.sums[slots, lattice[held] % 8 @ [64, 8, 1], :2].T
    alike = np.abs(weight - weights[held]) < 0.5  # but for voxels between two pixels, or at the end of the band
    assert alike[near[held]].mean() > 0.999
    compared = alike & (weight > 0) & near[held]
    error = distance[compared] / weight[compared] / DISTANCE_STEPS - distances[held][compared] / weights[held][compared]
    assert np.abs(error).max() < 1e-4


def test_dirty_are_just_the_blocks_with_a_cell_that_reads_what_changed():
    """A cell reads the voxels at its corners and belongs to the block of the lowest."""
    volume = BlockVolume(VOXEL, max_blocks=3000)
    for seed, pose in enumerate(room_poses(5)):
        volume.add(room_view(pose, seed))
    frame = keyframe(np.full((HEIGHT, WIDTH), 0.6), room_poses(5)[1])
    frame.confidence[:20] = frame.confidence[60:] = 0
    view, entered = view_of(frame)[0], None
    for _ in ('add', 'remove'):
        sums, slots = volume.sums.copy(), dict(volume.slots)
        volume.dirty.clear()
        if entered is None:
            entered = volume.add(view)
        else:
            volume.remove(view, entered)
        slots |= volume.slots
        block, voxel = np.nonzero((volume.sums != sums)[list(slots.values())].any(axis=-1))
        lattice = unpack(list(slots))[block] * 8 + np.stack(np.unravel_index(voxel, (8, 8, 8)), axis=-1)
        readers = {key for corner in CORNERS for key in pack((lattice - corner) // 8).tolist()}
        assert volume.dirty == readers
        assert len(readers) > 15 and not readers <= slots.keys()  # neighbours without voxels of their own too
        touched = set(pack(lattice // 8).tolist())
        assert readers < {key - neighbour for key in touched for neighbour in NEIGHBOURS.tolist()}


def test_distance_is_that_to_a_plane():
    """Every voxel in sight within the band knows its distance to the wall ahead; behind it, it soon counts for less."""
    volume = BlockVolume(VOXEL, max_blocks=2000)
    pose = look_at((0, 0, 0), (1, 0, 0))
    volume.add(view_of(keyframe(np.full((HEIGHT, WIDTH), 0.91), pose))[0])
    x, y, z = np.mgrid[19:27, -7:8, -7:8].reshape(3, -1)
    indices = np.stack((x, y, z), axis=-1)
    slots = [volume.slots[key] for key in pack(indices // 8).tolist()]
    weight, distance, *_ = volume.sums[slots, (x % 8 * 8 + y % 8) * 8 + z % 8].T
    truth = (0.91 - x * VOXEL) / (4 * VOXEL)
    assert (weight[x < 26] == WEIGHT_STEPS).all() and (weight[x == 26] == 192).all()  # three quarters, rounded up
    assert np.allclose(distance / weight / DISTANCE_STEPS, np.minimum(truth, 1), atol=1e-4)


def test_removing_leaves_nothing_and_order_does_not_matter():
    views = [room_view(pose, seed) for seed, pose in enumerate(room_poses(6))]
    one, other = BlockVolume(VOXEL), BlockVolume(VOXEL)
    entered = [one.add(view) for view in views]
    one.remove(views[2], entered[2])
    for view in (views[5], views[0], views[4], views[3], views[1]):
        other.add(view)
    assert one.slots.keys() == other.slots.keys()
    keys = list(one.slots)
    assert np.array_equal(one.sums[[one.slots[key] for key in keys]], other.sums[[other.slots[key] for key in keys]])
    for i in (0, 1, 3, 4, 5):
        one.remove(views[i], entered[i])
    assert not one.slots and not one.sums.any()


def test_weight_is_capped_and_old_views_fade():
    volume = BlockVolume(VOXEL, max_views=8)
    pose = look_at((0, 0, 0), (1, 0, 0))
    for depth, times in ((1.0, 30), (1.04, 30)):
        view = view_of(keyframe(np.full((HEIGHT, WIDTH), depth), pose))[0]
        for _ in range(times):
            volume.add(view)
    weight, distance, *_ = volume.sums[volume.slots[int(pack([[3, 0, 0]])[0])], 1 * 64]  # the voxel at x = 1
    assert 4 * WEIGHT_STEPS <= weight <= 8 * WEIGHT_STEPS
    assert distance / weight / DISTANCE_STEPS == pytest.approx(0.25, abs=0.01)  # one voxel of four before the wall


def facing(x, y, z, depth=1.0):
    """Return a view of a wall a metre away, in that direction."""
    pose = look_at((0, 0, 0), (x, y, z))
    return view_of(keyframe(np.full((HEIGHT, WIDTH), depth), pose))[0]


@pytest.mark.parametrize('again', [False, True])
def test_full_volume_drops_the_longest_untouched(again):
    """That is the first view's surface, unless it was seen again."""
    one, two, three = facing(1, 0, 0), facing(-1, 0, 0), facing(0, 1, 0)
    volume = BlockVolume(VOXEL)
    volume.add(one)
    of_one = set(volume.slots)
    volume.add(two)
    of_two = volume.slots.keys() - of_one
    volume = BlockVolume(VOXEL, max_blocks=len(volume.slots))
    for view in (one, two, one) if again else (one, two):
        volume.add(view)
    volume.dirty.clear()
    volume.add(three)
    gone = (of_one | of_two) - volume.slots.keys()
    assert gone and volume.dropped == len(gone) and gone <= volume.dirty
    assert len(volume.slots) <= volume.max_blocks
    longest = of_two if again else of_one
    assert longest <= gone or gone <= longest


def test_one_view_larger_than_the_volume_is_cut():
    volume = BlockVolume(VOXEL, max_blocks=20)
    volume.add(room_view(room_poses(1)[0]))
    assert len(volume.slots) <= 20 and volume.dropped > 0


def test_a_block_born_again_does_not_lose_what_it_never_had():
    one, other, third = facing(1, 0, 0), facing(1, 0, 0, 1.02), facing(-1, 0, 0)
    volume = BlockVolume(VOXEL)
    volume.add(one)
    volume = BlockVolume(VOXEL, max_blocks=len(volume.slots))
    entered = volume.add(one)
    volume.add(third)  # drops all of them
    volume.add(other)
    sums = volume.sums.copy()
    volume.remove(one, entered)
    assert np.array_equal(volume.sums, sums) and sums.any()


def test_noise_makes_no_more_blocks_than_a_surface_could():
    random = np.random.default_rng(0)
    noise = view_of(keyframe(random.uniform(0.1, 7, (HEIGHT, WIDTH))))[0]
    most = round(BLOCKS_PER_PIXEL * WIDTH * HEIGHT)
    volume = BlockVolume(VOXEL)
    entered = volume.add(noise)
    assert most * 0.9 < len(volume.slots) + len(volume._freed) <= most and volume.dropped > 300
    furthest = np.abs(unpack(list(volume.slots))).max() * 8 * VOXEL
    assert furthest < 6  # what is near stays
    volume.remove(noise, entered)
    assert not volume.slots and not volume.sums.any()


def test_bad_points_are_left_out():
    depth = np.full((HEIGHT, WIDTH), 0.9)
    depth[0], depth[1], depth[2], depth[3] = np.nan, np.inf, -1, 1000
    frame = keyframe(depth)
    frame.confidence[4:9] = np.reshape([0, np.nan, np.inf, -1, 7], (5, 1))
    view, far = view_of(frame)
    assert far == WIDTH
    assert not view.weight[:8].any() and (view.weight[8:] == WEIGHT_STEPS).all()
    assert (view.depth[view.weight > 0] == np.float32(0.9)).all() and np.isfinite(view.depth).all()


def test_weight_falls_with_the_square_of_the_depth():
    depth = np.repeat([0.9, 1.9, 3.8, 7.5, 7.7], [20, 20, 20, 20, 4])[:, None] * np.ones(WIDTH)
    view, far = view_of(keyframe(depth))
    assert view.weight[::20, 0].tolist() == [255, 64, 16, 5, 0]  # rounded up: what counts at all weighs something
    assert far == 4 * WIDTH
