# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A reader's copy of the mesh."""

from dataclasses import replace

import numpy as np
from meshing_scenes import keyframe, room_depth, room_poses

from slam3r_ros.meshing.mesher import BlockMesher
from slam3r_ros.meshing.reader import MeshCopy


def stream(views=6):
    """Return a mesher and its updates, the last of which removes blocks."""
    mesher, updates = BlockMesher(0.1), []
    poses = room_poses(views)
    for i, pose in enumerate(poses):
        mesher.integrate(keyframe(room_depth(pose), pose, id=i))
        updates.append(mesher.update(full=i == 0))
    mesher.integrate(keyframe(np.full_like(room_depth(poses[0]), np.nan), poses[0], id=0, revision=1))
    updates.append(mesher.update())
    assert any(not len(block.triangles) for block in updates[-1].blocks)
    return mesher, updates


def same(copy, mesher):
    return {index: block.vertices.tobytes() for index, block in copy.blocks.items()} == {
        block.index: block.vertices.tobytes() for block in mesher.snapshot().blocks}


def test_the_copy_is_the_mesh():
    mesher, updates = stream()
    copy = MeshCopy()
    assert copy.missed
    assert all(copy.apply(update) for update in updates)
    assert same(copy, mesher)
    assert sum(map(len, copy.mesh())) == sum(map(len, mesher.mesh()))


def test_a_gap_is_noticed_and_a_full_one_mends_it():
    mesher, updates = stream()
    copy = MeshCopy()
    told = [copy.apply(update) for update in updates[:3] + updates[4:]]
    assert told == [True, True, True, False, False, False]
    assert copy.apply(mesher.snapshot()) and same(copy, mesher)
    assert copy.apply(updates[-2]) and same(copy, mesher)  # it was overtaken


def test_increments_of_what_was_never_told_are_a_gap():
    _, updates = stream()
    assert not MeshCopy().apply(updates[1])
    copy = MeshCopy()
    copy.apply(updates[0])
    assert not copy.apply(replace(updates[1], map_id=7))
