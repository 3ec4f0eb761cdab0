# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The other end of the mesh stream: a copy of the mesh, kept from its updates."""

import numpy as np

from slam3r_ros.meshing.mesher import join
from slam3r_ros.values import MeshBlock, MeshUpdate


class MeshCopy:
    """Follows the updates of one topic, for those of `mesh/draco` after `slam3r_ros.meshing.draco.decompress`.

    Attributes:
        blocks: Those that have a surface, by their index.
        missed: An update is missing.  A new subscriber is sent everything; later on, give `apply` what `~/get_mesh`
            returns, or, of `mesh/draco`, subscribe anew.
    """

    def __init__(self) -> None:
        """Know nothing yet."""
        self.blocks: dict[tuple[int, int, int], MeshBlock] = {}
        self.missed = True
        self._last: tuple[int, int] | None = None  # map and number of the newest update

    def apply(self, update: MeshUpdate) -> bool:
        """Take an update; return whether the copy is whole."""
        present = (update.map_id, update.sequence)
        if update.full:
            self.blocks.clear()
            self.missed = False
        elif self._last is None or update.map_id != self._last[0] or update.sequence > self._last[1] + 1:
            self.missed = True
        elif update.sequence <= self._last[1]:  # on its way while a full one overtook it
            return not self.missed
        self._last = present
        for block in update.blocks:
            if len(block.triangles):
                self.blocks[block.index] = block
            else:
                self.blocks.pop(block.index, None)
        return not self.missed

    def mesh(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return vertices (N, 3) float32 in map units, colours (N, 3) uint8 and triangles (M, 3) uint32."""
        return join(self.blocks.values())
