# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Display chunks."""

import numpy as np

from slam3r_ros.meshing.chunks import DisplayChunks
from slam3r_ros.values import MeshBlock, MeshUpdate


def block(x, y, z, triangles=2):
    random = np.random.default_rng(abs(x) * 10007 + abs(y) * 101 + abs(z))
    vertices = random.normal(size=(triangles + 2, 3)).astype(np.float32)
    return MeshBlock((x, y, z), vertices if triangles else vertices[:0],
                     random.integers(0, 256, (triangles + 2 if triangles else 0, 3), np.uint8),
                     np.array([[i, i + 1, i + 2] for i in range(triangles)], np.uint32).reshape(-1, 3))


def update(*blocks, full=False):
    return MeshUpdate(0, 0, 1, 0.16, full, blocks)


class Display:
    """What RViz would show."""

    def __init__(self):
        """Show nothing."""
        self.markers = {}

    def take(self, changes):
        for change in changes:
            assert change.vertices.shape == change.colors.shape
            if change.delete:
                del self.markers[change.id]  # an unknown one is an error
            else:
                self.markers[change.id] = change

    def triangles(self):
        return sum(len(marker.triangles) for marker in self.markers.values())


def test_a_changed_block_sends_its_whole_chunk_only():
    chunks = DisplayChunks()
    first = chunks.apply(update(block(0, 0, 0), block(7, 7, 7), block(8, 0, 0), block(-1, 0, 0)))
    assert len(first) == len({c.id for c in first}) == 3
    second = chunks.apply(update(block(3, 3, 3, 5)))
    assert len(second) == 1 and len(second[0].triangles) == 2 + 2 + 5
    assert second[0].vertices.dtype == np.float32 and second[0].colors.dtype == np.uint8
    whole = [change for change in first if len(change.triangles) == 4]
    assert second[0].id == whole[0].id


def test_the_triangles_are_those_of_the_blocks():
    one, two = block(1, 2, 3, 4), block(0, 0, 0, 3)
    change, = DisplayChunks().apply(update(one, two))
    for name in ('vertices', 'colors'):
        expected = np.concatenate([getattr(each, name)[each.triangles] for each in (one, two)])
        assert np.array_equal(getattr(change, name)[change.triangles], expected)


def test_an_empty_chunk_is_deleted_once_and_its_id_used_again():
    chunks = DisplayChunks()
    kept, gone = chunks.apply(update(block(0, 0, 0), block(100, 0, 0)))
    change, = chunks.apply(update(block(100, 0, 0, 0)))
    assert change.delete and change.id == gone.id
    assert chunks.apply(update(block(100, 0, 0, 0))) == []
    again, = chunks.apply(update(block(0, 100, 0)))
    assert again.id == gone.id and not again.delete and kept.id != again.id


def test_a_full_update_forgets_the_rest():
    chunks, display = DisplayChunks(), Display()
    display.take(chunks.apply(update(block(0, 0, 0), block(100, 0, 0), block(1, 0, 0))))
    display.take(chunks.apply(update(block(100, 0, 0, 3), block(0, 0, 100), full=True)))
    assert display.triangles() == 5 and len(display.markers) == len(chunks) == 2
    display.take(chunks.apply(update(full=True)))
    assert not display.markers


def test_never_more_markers_than_allowed_and_nothing_is_lost():
    random = np.random.default_rng(0)
    chunks, display, blocks = DisplayChunks(size=4, max_chunks=30), Display(), {}
    for step in range(40):
        some = [block(*index, int(triangles)) for *index, triangles in
                np.column_stack((random.integers(-step - 1, step + 1, (12, 3)), random.integers(0, 4, 12))).tolist()]
        some = list({one.index: one for one in some}.values())
        blocks |= {one.index: len(one.triangles) for one in some}
        display.take(chunks.apply(update(*some)))
        assert len(display.markers) == len(chunks) <= 30
        assert display.triangles() == sum(blocks.values())
        assert all(0 <= id < 30 for id in display.markers)
    assert chunks.size > 4
    late = Display()
    late.take(chunks.shown())
    assert late.markers.keys() == display.markers.keys() and late.triangles() == display.triangles()


def test_a_new_small_map_is_shown_in_small_chunks_again():
    chunks, display = DisplayChunks(size=1, max_chunks=8), Display()
    display.take(chunks.apply(update(*(block(x, 0, 0) for x in range(30)))))
    assert chunks.size > 1
    display.take(chunks.apply(update(block(0, 0, 0), block(1, 0, 0), full=True)))
    assert chunks.size == 1 and len(display.markers) == 2 and display.triangles() == 4
