# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The block TSDF."""

import numpy as np
import pytest
from meshing_scenes import CAMERA, HEIGHT, WIDTH, keyframe, look_at, room_depth, room_poses

from slam3r_ros.mapping.frames import invert
from slam3r_ros.meshing import reference
from slam3r_ros.meshing.lattice import pack, step, unpack
from slam3r_ros.meshing.tsdf import DISTANCE_STEPS, WEIGHT_STEPS, BlockVolume, band_keys, fuse, view_of

VOXEL = 0.04


def room_view(pose, seed=0):
    random = np.random.default_rng(seed)
    frame = keyframe(room_depth(pose), pose, confidence=random.uniform(0, 1, (HEIGHT, WIDTH)))
    return view_of(frame, VOXEL)[0]


def test_keys_are_invertible_and_add_up():
    indices = np.random.default_rng(0).integers(-2**20 + 2, 2**20 - 2, (1000, 3))
    assert np.array_equal(unpack(pack(indices)), indices)
    assert np.array_equal(pack(indices) + step(-1, 1, -1), pack(indices + [-1, 1, -1]))


def test_band_is_that_of_the_twin():
    pose = room_poses(5)[2]
    view = room_view(pose)
    arguments = view.depth, view.weight, np.array(CAMERA), pose, 8 * VOXEL, 4 * VOXEL
    assert np.array_equal(np.unique(band_keys(*arguments)), reference.band_keys(*arguments))


@pytest.mark.parametrize('max_weight', [10000, 300])
def test_fuse_is_that_of_the_twin(max_weight):
    poses = room_poses(12)[:3]
    views = [room_view(pose, seed) for seed, pose in enumerate(poses)]
    keys = np.unique(np.concatenate([reference.band_keys(
        view.depth, view.weight, np.array(CAMERA), view.T_map_camera, 8 * VOXEL, 4 * VOXEL) for view in views]))
    slots = np.random.default_rng(1).permutation(len(keys))
    ours, twins = np.zeros((2, len(keys), 512, 5), np.int32)
    for view, sign in ((views[0], 1), (views[1], 1), (views[2], 1), (views[1], -1)):
        arguments = (slots, unpack(keys), view.depth, view.weight, view.colors, np.array(CAMERA),
                     invert(view.T_map_camera), VOXEL, 4 * VOXEL, sign, max_weight)
        filled, twin_filled = fuse(ours, *arguments), reference.fuse(twins, *arguments)
        assert np.array_equal(filled, twin_filled)
        # Where a voxel falls on the border of two pixels or of two steps, rounding decides.
        assert (np.abs(ours - twins) > WEIGHT_STEPS).any(axis=-1).mean() < 1e-4
    assert ours[..., 0].max() > 250


def test_distance_is_that_to_a_plane():
    """Every voxel in sight within the band knows its distance to the wall ahead."""
    volume = BlockVolume(VOXEL, max_blocks=2000)
    pose = look_at((0, 0, 0), (1, 0, 0))
    volume.add(view_of(keyframe(np.full((HEIGHT, WIDTH), 0.91), pose), VOXEL)[0])
    x, y, z = np.mgrid[19:27, -7:8, -7:8].reshape(3, -1)
    indices = np.stack((x, y, z), axis=-1)
    slots = [volume.slots[key] for key in pack(indices // 8).tolist()]
    weight, distance, *_ = volume.sums[slots, (x % 8 * 8 + y % 8) * 8 + z % 8].T
    assert (weight == WEIGHT_STEPS).all()
    assert np.allclose(distance / weight / DISTANCE_STEPS, np.minimum((0.91 - x * VOXEL) / (4 * VOXEL), 1), atol=1e-4)


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
        view = view_of(keyframe(np.full((HEIGHT, WIDTH), depth), pose), VOXEL)[0]
        for _ in range(times):
            volume.add(view)
    weight, distance, *_ = volume.sums[volume.slots[int(pack([[3, 0, 0]])[0])], 1 * 64]  # the voxel at x = 1
    assert 4 * WEIGHT_STEPS <= weight <= 8 * WEIGHT_STEPS
    assert distance / weight / DISTANCE_STEPS == pytest.approx(0.25, abs=0.01)  # one voxel of four before the wall


def facing(x, y, z, depth=1.0):
    """Return a view of a wall a metre away, in that direction."""
    pose = look_at((0, 0, 0), (x, y, z))
    return view_of(keyframe(np.full((HEIGHT, WIDTH), depth), pose), VOXEL)[0]


def test_full_volume_drops_the_longest_untouched():
    one, two, three = facing(1, 0, 0), facing(-1, 0, 0), facing(0, 1, 0)
    volume = BlockVolume(VOXEL)
    volume.add(one)
    of_one = set(volume.slots)
    volume.add(two)
    cap = len(volume.slots)
    volume = BlockVolume(VOXEL, max_blocks=cap)
    volume.add(one)
    volume.add(two)
    of_two = volume.slots.keys() - of_one
    volume.dirty.clear()
    volume.add(three)
    gone = (of_one | of_two) - volume.slots.keys()
    assert gone and volume.dropped == len(gone) and gone <= volume.dirty
    assert len(volume.slots) <= cap
    assert of_one <= gone or gone <= of_one


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


def test_bad_points_are_left_out():
    depth = np.full((HEIGHT, WIDTH), 0.9)
    depth[0], depth[1], depth[2], depth[3] = np.nan, np.inf, -1, 1000
    frame = keyframe(depth)
    frame.confidence[4], frame.confidence[5], frame.confidence[6] = 0, np.nan, 7
    view, far = view_of(frame, VOXEL)
    assert far == WIDTH
    assert not view.weight[:6].any() and (view.weight[6:] == WEIGHT_STEPS).all()
    assert (view.depth[view.weight > 0] == np.float32(0.9)).all() and np.isfinite(view.depth).all()


def test_weight_falls_with_the_square_of_the_depth():
    depth = np.repeat([0.9, 1.9, 3.8, 7.5, 7.7], [20, 20, 20, 20, 4])[:, None] * np.ones(WIDTH)
    view, far = view_of(keyframe(depth), VOXEL)
    assert view.weight[::20, 0].tolist() == [255, 64, 16, 5, 0]  # rounded up: what counts at all weighs something
    assert far == 4 * WIDTH
