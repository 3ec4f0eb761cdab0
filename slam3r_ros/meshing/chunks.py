# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Group the mesh's blocks into few display chunks: RViz makes one object per marker, and thousands stop it."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from slam3r_ros.meshing.mesher import join
from slam3r_ros.values import MeshBlock, MeshUpdate

Index = tuple[int, int, int]


class ChunkChange(NamedTuple):
    """A chunk to be shown anew or, when it has no triangles, to be deleted."""

    id: int  # of the marker
    vertices: np.ndarray  # (N, 3) float32, map
    colors: np.ndarray  # (N, 3) uint8 RGB
    triangles: np.ndarray  # (M, 3) uint32, into vertices

    @property
    def delete(self) -> bool:
        """The chunk has become empty: an empty triangle list is an error in RViz."""
        return not len(self.triangles)


class DisplayChunks:
    """Turns mesh updates into changes of at most `max_chunks` chunks.

    Attributes:
        size: blocks along a chunk; doubled whenever there would be too many chunks, until a full update.
    """

    def __init__(self, size: int = 8, max_chunks: int = 300) -> None:
        """Start with nothing shown.

        Args:
            size: blocks along a chunk.
            max_chunks: markers at most; at least 8, one for each octant about the origin.
        """
        self.size = self._smallest = size
        self.max_chunks = max(max_chunks, 8)
        self._chunks: dict[Index, dict[Index, MeshBlock]] = {}  # the blocks in each, by their index
        self._ids: dict[Index, int] = {}  # of the marker of each chunk

    def __len__(self) -> int:
        """Return how many chunks are shown."""
        return len(self._chunks)

    def apply(self, update: MeshUpdate) -> list[ChunkChange]:
        """Return what an update changes on display: deletions first, then chunks to show, each one whole."""
        before = set(self._ids.values())
        if update.full:
            self._chunks.clear()
            self.size = self._smallest
        touched = self._put(update.blocks)
        while len(self._chunks) > self.max_chunks:
            blocks = [block for chunk in self._chunks.values() for block in chunk.values()]
            self.size *= 2
            self._chunks.clear()
            self._ids.clear()
            touched = self._put(blocks)
        return self._renumber(before) + [self._show(chunk) for chunk in sorted(touched & self._chunks.keys())]

    def shown(self) -> list[ChunkChange]:
        """Return every chunk there is, for a new subscriber."""
        return [self._show(chunk) for chunk in sorted(self._chunks)]

    def _put(self, blocks: Iterable[MeshBlock]) -> set[Index]:
        """File blocks into their chunks; return the chunks touched."""
        touched = set()
        for block in blocks:
            chunk = tuple(axis // self.size for axis in block.index)
            touched.add(chunk)
            if len(block.triangles):
                self._chunks.setdefault(chunk, {})[block.index] = block
            elif chunk in self._chunks:
                self._chunks[chunk].pop(block.index, None)
                if not self._chunks[chunk]:
                    del self._chunks[chunk]
        return touched

    def _renumber(self, before: set[int]) -> list[ChunkChange]:
        """Give new chunks a marker, keep those of the others; return which of those `before` are no longer used."""
        self._ids = {chunk: id for chunk, id in self._ids.items() if chunk in self._chunks}
        free = iter(sorted(set(range(self.max_chunks)) - set(self._ids.values())))
        self._ids |= {chunk: next(free) for chunk in sorted(self._chunks.keys() - self._ids.keys())}
        return [ChunkChange(id, *join(())) for id in sorted(before - set(self._ids.values()))]

    def _show(self, chunk: Index) -> ChunkChange:
        return ChunkChange(self._ids[chunk], *join(self._chunks[chunk].values()))
