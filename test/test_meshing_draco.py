# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Compressed mesh updates: what comes back, block by block, and where."""

from dataclasses import replace

import DracoPy
import numpy as np
import pytest
from meshing_scenes import keyframe, room_depth, room_poses

from slam3r_ros.meshing import draco
from slam3r_ros.meshing.draco import DracoError, compress, decompress
from slam3r_ros.meshing.lattice import EDGE
from slam3r_ros.meshing.mesher import BlockMesher
from slam3r_ros.values import MeshBlock, MeshUpdate

VOXEL = 0.05


@pytest.fixture(scope='module')
def updates():
    """A room mapped view by view: every case of the triangle table, holes and ragged borders."""
    mesher, updates = BlockMesher(VOXEL), []
    for i, pose in enumerate(room_poses(6)):
        depth = room_depth(pose)
        depth *= 1 + 0.03 * np.random.default_rng(i).normal(size=depth.shape)
        mesher.integrate(keyframe(depth, pose, id=i))
        updates.append(mesher.update())
    return updates


def corners(block):
    """Return the triangles' corners (M, 3, 3), in an order of their own."""
    soup = block.vertices[block.triangles]
    first = np.argmin(soup @ [1.0, 1e3, 1e6], axis=1)  # triangles may be turned
    soup = soup[np.arange(len(soup))[:, None], (first[:, None] + np.arange(3)) % 3]
    return soup[np.lexsort(soup.reshape(-1, 9).T)]


def quantised(block):
    return block._replace(vertices=draco._to_lattice(block.vertices, VOXEL / draco.STEPS))


def test_every_block_comes_back_with_its_own_triangles(updates):
    for update in updates:
        again = decompress(compress(update))
        assert replace(again, blocks=()) == replace(update, blocks=())
        assert [block.index for block in again.blocks] == [block.index for block in update.blocks]
        for block, other in zip(update.blocks, again.blocks, strict=True):
            np.testing.assert_array_equal(corners(quantised(block)), corners(quantised(other)))
            assert [(each.dtype, each.shape) for each in other[1:]] == [(each.dtype, each.shape) for each in block[1:]]


def test_positions_stay_within_a_tenth_of_a_voxel_and_colours_within_three(updates):
    rng = np.random.default_rng(5)  # of both blocks on a border, too
    update = replace(updates[0], blocks=tuple(
        block._replace(colors=rng.integers(0, 256, block.colors.shape, np.uint8)) for block in updates[0].blocks))
    distances, hues = [], []
    for block, other in zip(update.blocks, decompress(compress(update)).blocks, strict=True):
        if len(block.vertices):
            apart = np.linalg.norm(block.vertices[:, None] - other.vertices[None], axis=2)
            distances += apart.min(axis=1).tolist()
            hues.append(np.abs(block.colors.astype(int) - other.colors[apart.argmin(axis=1)]))
    assert np.max(distances) < 0.1 * VOXEL
    half_a_step = VOXEL / draco.STEPS / 2
    assert np.mean(np.array(distances) < 1.01 * half_a_step) > 0.9
    assert np.concatenate(hues).max() <= 3


def test_the_same_block_is_the_same_bit_for_bit_whatever_it_is_sent_with(updates):
    whole = {block.index: block for block in decompress(compress(updates[0])).blocks}
    for start in range(0, len(updates[0].blocks), 7):
        part = replace(updates[0], blocks=updates[0].blocks[start:start + 7])
        for block in decompress(compress(part)).blocks:
            ours, theirs = block.vertices, whole[block.index].vertices
            np.testing.assert_array_equal(np.unique(ours, axis=0), np.unique(theirs, axis=0))


def test_any_draco_reader_sees_the_map_where_it_is(updates):
    mesh = DracoPy.decode(compress(updates[0]).data)
    vertices = np.concatenate([block.vertices for block in updates[0].blocks])
    np.testing.assert_allclose(mesh.points.min(axis=0), vertices.min(axis=0), atol=0.1 * VOXEL)
    np.testing.assert_allclose(mesh.points.max(axis=0), vertices.max(axis=0), atol=0.1 * VOXEL)


def test_kilometres_away_and_across_it_is_as_exact(updates):
    def moved(update, blocks):
        shift = np.float64(blocks) * EDGE * VOXEL
        return tuple(block._replace(index=tuple(np.add(block.index, blocks)), vertices=(block.vertices + shift)
                                    .astype(np.float32)) for block in update.blocks if len(block.triangles))

    wide = replace(updates[0], blocks=moved(updates[0], (4000, -4000, 0)) + moved(updates[0], (-3900, 0, 100)))
    again = decompress(compress(wide))
    assert [block.index for block in again.blocks] == [block.index for block in wide.blocks]
    for block, other in zip(wide.blocks, again.blocks, strict=True):
        assert len(block.triangles) == len(other.triangles)
        assert np.abs(np.sort(block.vertices, axis=0) - np.sort(other.vertices, axis=0)).max() < 0.12 * VOXEL


def test_removed_blocks_come_back_empty_and_cost_no_buffer():
    nothing = (np.empty((0, 3), np.float32), np.empty((0, 3), np.uint8), np.empty((0, 3), np.uint32))
    update = MeshUpdate(5, 1, 2, 0.4, False, (MeshBlock((1, 2, 3), *nothing), MeshBlock((-1, 0, 0), *nothing)))
    mesh = compress(update)
    assert mesh.data == b''
    blocks = [(block.index, len(block.triangles)) for block in decompress(mesh).blocks]
    assert blocks == [((1, 2, 3), 0), ((-1, 0, 0), 0)]


def test_it_is_several_times_smaller(updates):
    raw = sum(array.nbytes for block in updates[0].blocks for array in block[1:])
    assert raw / compress(updates[0]).nbytes > 5  # noise compresses badly; `slam3r bench draco` tells of real clips


def test_what_was_damaged_is_refused(updates):
    mesh = compress(updates[0])
    with pytest.raises(DracoError, match='damaged'):
        decompress(mesh._replace(data=b'not draco at all'))
    with pytest.raises(DracoError, match='damaged'):
        decompress(mesh._replace(data=mesh.data[:len(mesh.data) // 2]))
    with pytest.raises(DracoError, match='does not hold the blocks'):
        decompress(mesh._replace(indices=mesh.indices + np.int32(1)))


def test_without_dracopy_it_says_what_to_do(monkeypatch, updates):
    monkeypatch.setattr(draco, 'is_installed', lambda: False)
    with pytest.raises(DracoError, match='pip install DracoPy'):
        compress(updates[0])
