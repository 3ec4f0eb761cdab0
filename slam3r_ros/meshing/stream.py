# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The mesh as Draco buffers within a bandwidth: what does not fit waits, and only its newest state is sent."""

from collections.abc import Iterator
from dataclasses import replace

from slam3r_ros.meshing.draco import TABLE_BYTES, CompressedMesh, compress
from slam3r_ros.values import MeshBlock, MeshUpdate

Index = tuple[int, int, int]


class DracoStream:
    """Turns mesh updates into compressed ones of its own numbering.

    While a bandwidth is set, no message is larger than what one period may carry, but for the error of the estimate; it
    is made up for by the next ones.  Blocks never shown go first, then those that have waited longest.

    Attributes:
        sequence: Of the last message; 0 before the first.
        raw_bytes: Of the blocks that were sent.
        sent_bytes: Of what they became, block tables included.
    """

    def __init__(self, mbps: float = 0.0, period: float = 0.2) -> None:
        """Start with nothing sent.

        Args:
            mbps: Megabits a second at most; 0 for any.
            period: Seconds between two messages.
        """
        self.sequence = self.raw_bytes = self.sent_bytes = 0
        self._rate, self._period = mbps * 1e6 / 8, period  # bytes a second, seconds
        self._allowance = 0.0  # bytes
        self._last: float | None = None  # when it was reckoned
        self._bytes_per_triangle = 2.0  # of the last message
        self._head: MeshUpdate | None = None  # the newest
        self._full = False
        self._waiting: dict[Index, MeshBlock] = {}  # by the time when they changed first
        self._shown: set[Index] = set()

    @property
    def waiting(self) -> int:
        """How many blocks wait."""
        return len(self._waiting)

    @property
    def ratio(self) -> float:
        """Raw bytes per byte sent; 0 before the first message."""
        return self.raw_bytes / self.sent_bytes if self.sent_bytes else 0.0

    def put(self, update: MeshUpdate) -> None:
        """Take what has changed; a full update begins anew."""
        self._head = replace(update, blocks=())
        if update.full:
            self._full = True
            self._waiting.clear()
            self._shown.clear()
        for block in update.blocks:
            if len(block.triangles) or block.index in self._shown:
                self._waiting[block.index] = block
            else:  # nobody has seen it
                self._waiting.pop(block.index, None)

    def take(self, now: float) -> CompressedMesh | None:
        """Return the next message, `full` being the first part of a mesh; None when there is none or it must wait.

        Args:
            now: Seconds of any clock that does not go back.

        Raises:
            DracoError: DracoPy is missing.
        """
        self._allow(now)
        if not (self._waiting or self._full) or (self._rate and self._allowance <= 0):
            return None
        blocks = tuple(self._pick())
        self.sequence += 1
        mesh = compress(replace(self._head, sequence=self.sequence, full=self._full, blocks=blocks))
        self._full = False
        for block in blocks:
            del self._waiting[block.index]
            (self._shown.add if len(block.triangles) else self._shown.discard)(block.index)
        self._allowance -= mesh.nbytes
        self.sent_bytes += mesh.nbytes
        self.raw_bytes += sum(array.nbytes for block in blocks for array in block[1:])
        if triangles := int(mesh.triangle_counts.sum()):
            self._bytes_per_triangle = len(mesh.data) / triangles
        return mesh

    def _allow(self, now: float) -> None:
        """Allow the bytes of the time that has passed, up to those of one period."""
        passed = self._period if self._last is None else now - self._last
        self._allowance = min(self._allowance + self._rate * passed, self._rate * self._period)
        self._last = now

    def _pick(self) -> Iterator[MeshBlock]:
        """Yield the blocks to send now, one at least."""
        room = self._allowance  # bytes
        for index in sorted(self._waiting, key=self._shown.__contains__):
            if self._rate and room <= 0:
                return
            yield self._waiting[index]
            room -= TABLE_BYTES + self._bytes_per_triangle * len(self._waiting[index].triangles)
