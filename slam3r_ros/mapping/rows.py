# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What is kept of every frame of a stream, in little memory and with an end to it."""

import numpy as np

MAX_FRAMES = 500_000  # kept of a stream; of more, every other of the older half is forgotten


class Rows:
    """Rows of a structured array, in room that grows as they come."""

    def __init__(self, dtype: np.dtype) -> None:
        """Begin with none."""
        self._table, self._count = np.empty(0, dtype), 0

    def __len__(self) -> int:
        """Return the number of rows."""
        return self._count

    @property
    def all(self) -> np.ndarray:
        """The rows, (N,), in the order in which they came; what is written to them stays."""
        return self._table[:self._count]

    def append(self, rows: np.ndarray) -> None:
        """Append rows (N,)."""
        count = self._count + len(rows)
        if count > len(self._table):
            larger = np.empty(2 * count, self._table.dtype)
            larger[:self._count] = self.all
            self._table = larger
        self._table[self._count:count] = rows
        self._count = count

    def keep(self, which: np.ndarray | slice) -> None:
        """Forget all rows but those that an index of NumPy's tells, in its order."""
        kept = self.all[which].copy()
        self._table[:len(kept)], self._count = kept, len(kept)

    def thin(self) -> None:
        """Forget every other row of the older half."""
        half = self._count // 2
        self.keep(np.r_[0:half:2, half:self._count])
