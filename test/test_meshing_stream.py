# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The compressed stream: all that changed arrives in the end, within the bandwidth."""

import numpy as np
import pytest
from meshing_scenes import keyframe, room_depth, room_poses

from slam3r_ros.meshing.draco import decompress
from slam3r_ros.meshing.mesher import BlockMesher
from slam3r_ros.meshing.stream import DracoStream
from slam3r_ros.values import MeshUpdate

PERIOD = 0.2
MBPS = 0.05


@pytest.fixture(scope='module')
def room():
    """Return the updates of a room and the mesher that made them."""
    mesher, updates = BlockMesher(0.05), []
    for i, pose in enumerate(room_poses(12)):
        mesher.integrate(keyframe(room_depth(pose), pose, id=i))
        updates.append(mesher.update())
    return updates, mesher


class Reader:
    """Keeps what a reader of the topic would."""

    def __init__(self):
        self.blocks, self.sequence, self.messages = {}, 0, []

    def take(self, mesh):
        if mesh is None:
            return
        self.messages.append(mesh)
        assert mesh.full or mesh.sequence == self.sequence + 1
        self.sequence = mesh.sequence
        if mesh.full:
            self.blocks.clear()
        for block in decompress(mesh).blocks:
            if len(block.triangles):
                self.blocks[block.index] = len(block.triangles)
            else:
                del self.blocks[block.index]  # it was never told of others


def update_of(blocks, mesher, full=False, map_id=0):
    return MeshUpdate(0, map_id, 1, mesher.block_size, full, tuple(blocks))


def counts(update):
    return {block.index: len(block.triangles) for block in update.blocks if len(block.triangles)}


@pytest.mark.parametrize('mbps', [0.0, MBPS])
def test_everything_arrives_in_the_end(mbps):
    mesher, stream, reader, now = BlockMesher(0.05), DracoStream(mbps, PERIOD), Reader(), 100.0
    views = [keyframe(room_depth(pose), pose, id=i) for i, pose in enumerate(room_poses(12))]
    nothing = np.full_like(room_depth(room_poses(1)[0]), np.nan)
    views += [keyframe(nothing, pose, id=i, revision=1) for i, pose in enumerate(room_poses(12)[:4])]  # takes them out
    for i, view in enumerate(views):
        mesher.integrate(view)
        update = mesher.update()
        stream.put(mesher.snapshot() if i == 3 else update)  # a newcomer
        reader.take(stream.take(now))
        now += PERIOD
        assert mbps or not stream.waiting
    while stream.waiting:
        reader.take(stream.take(now))
        now += PERIOD
    assert stream.take(now) is None
    assert reader.blocks == counts(mesher.snapshot())
    assert sum(mesh.full for mesh in reader.messages) == 1
    assert any((mesh.vertex_counts == 0).any() for mesh in reader.messages)  # some were removed


def test_the_bandwidth_is_kept_from_message_to_message(room):
    updates, mesher = room
    stream, now, sent = DracoStream(MBPS, PERIOD), 0.0, []
    per_period = MBPS * 1e6 / 8 * PERIOD
    free = DracoStream()
    for i in range(80):
        if i < len(updates):
            stream.put(updates[i])
            free.put(updates[i])
            free.take(now)
        mesh = stream.take(now)
        sent.append(mesh.nbytes if mesh else 0)
        now += PERIOD
    assert free.sent_bytes > 3 * len(updates) * per_period  # it had to hold back
    assert not stream.waiting
    assert sum(sent[:30]) <= 30 * per_period + max(sent)
    assert sum(sent[:30]) > 0.8 * 30 * per_period
    assert max(sent) < 2 * per_period
    assert sum(sent) == stream.sent_bytes
    stream.put(mesher.snapshot())
    assert stream.take(now + 1000.0).nbytes < 2 * per_period  # what was not used before is gone


def test_what_waits_is_sent_once_in_its_newest_state(room):
    updates, _ = room
    stream = DracoStream(MBPS, PERIOD)
    for update in updates:
        stream.put(update)
    assert stream.waiting == len({index for update in updates for index in counts(update)})


def test_new_surface_goes_before_better_surface(room):
    _, mesher = room
    blocks = [block for block in mesher.snapshot().blocks if len(block.triangles) > 20]
    bytes_each = DracoStream()
    bytes_each.put(update_of(blocks[:6], mesher))
    stream = DracoStream(bytes_each.take(0.0).nbytes * 8 / 1e6 * 1.2, period=1.0)  # six go at once
    stream.put(update_of(blocks[:6], mesher))
    assert len(stream.take(0.0).indices) == 6
    stream.put(update_of(blocks[:12], mesher))
    told = [tuple(index) for index in stream.take(1.0).indices.tolist()]
    assert set(told[:6]) == {block.index for block in blocks[6:12]}


def test_a_block_that_came_and_went_unseen_is_not_told(room):
    updates, mesher = room
    block = next(block for block in updates[0].blocks if len(block.triangles))
    empty = block._replace(vertices=block.vertices[:0], colors=block.colors[:0], triangles=block.triangles[:0])
    stream = DracoStream()
    for each in (block, empty):
        stream.put(update_of([each], mesher))
    assert stream.take(0.0) is None


def test_a_full_update_of_nothing_is_told(room):
    updates, mesher = room
    stream = DracoStream(MBPS, PERIOD)
    stream.put(updates[0])
    stream.take(0.0)
    stream.put(update_of([], mesher, full=True, map_id=1))
    mesh = stream.take(100.0)
    assert mesh.full and mesh.map_id == 1 and mesh.sequence == 2 and not len(mesh.indices)
    assert not stream.waiting


def test_the_ratio_is_of_raw_bytes_to_sent_ones(room):
    updates, _ = room
    stream = DracoStream()
    assert stream.ratio == 0
    stream.put(updates[0])
    mesh = stream.take(0.0)
    raw = sum(array.nbytes for block in updates[0].blocks for array in block[1:])
    assert stream.ratio == pytest.approx(raw / mesh.nbytes)
    assert np.isclose(stream.raw_bytes, raw)


def test_blocks_that_went_count_towards_the_bandwidth(room):
    _, mesher = room
    block = mesher.snapshot().blocks[0]
    empty = block._replace(vertices=block.vertices[:0], colors=block.colors[:0], triangles=block.triangles[:0])
    many = [block._replace(index=(i, 0, 0)) for i in range(500)]
    stream = DracoStream(0.02, period=1.0)  # 2500 bytes, 125 blocks without a surface
    stream._shown = {each.index for each in many}
    stream.put(update_of([empty._replace(index=each.index) for each in many], mesher))
    sent = [stream.take(float(now)).nbytes for now in range(4)]
    assert sent == [2500] * 4 and not stream.waiting
