# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What retrieval needs of the scene frames, side by side in memory that is taken once: no frame copies it together."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from slam3r_ros.engines.slam3r.decoder import Memory
from slam3r_ros.engines.slam3r.networks import Candidates

_FIRST = 16  # candidates to take memory for at first


class CandidateStore:
    """Keeps the prepared work of candidates in slots; a candidate that goes leaves its slot to one that comes."""

    def __init__(self) -> None:
        """Hold nothing."""
        self._slots: dict[int, int] = {}  # by the frame's number
        self._parts: list[Tensor] = []  # tokens, queries, keys, values; a slot in each row

    def hold(self, numbers: Sequence[int], prepare: Callable[[int], Candidates]) -> None:
        """Hold these candidates and no others.

        Args:
            numbers: of their frames.
            prepare: does the work for one that is new.
        """
        wanted = set(numbers)
        self._slots = {number: slot for number, slot in self._slots.items() if number in wanted}
        free = sorted(set(range(len(wanted))) - set(self._slots.values()), reverse=True)
        for number, slot in list(self._slots.items()):
            if slot >= len(wanted):  # there were more before
                self._slots[number] = free.pop()
                for part in self._parts:
                    part[self._slots[number]] = part[slot]
        for number in numbers:
            if number not in self._slots:
                self._put(free[-1], prepare(number))
                self._slots[number] = free.pop()

    def _put(self, slot: int, candidate: Candidates) -> None:
        """Write the work for one candidate, (1, B, ...) each."""
        new = [candidate.tokens, candidate.queries, *candidate.memory]
        rows = len(self._parts[0]) if self._parts else 0
        if slot >= rows:  # twice as much; it ends when the buffer is full
            old, self._parts = self._parts, [part.new_empty((max(2 * rows, _FIRST), *part.shape[1:])) for part in new]
            for part, before in zip(self._parts, old):
                part[:rows] = before
        for part, value in zip(self._parts, new):
            part[slot] = value[0]

    @property
    def all(self) -> Candidates:
        """The work for all candidates, slot by slot; nothing is copied."""
        tokens, queries, *memory = (part[: len(self._slots)] for part in self._parts)
        return Candidates(tokens, queries, Memory(*memory))

    def in_order(self, scores: Tensor, numbers: Sequence[int]) -> Tensor:
        """Bring what was found slot by slot, (K, ...), into the order of the frames' numbers."""
        return scores[torch.tensor([self._slots[number] for number in numbers], device=scores.device)]

    def __contains__(self, number: int) -> bool:
        """Say whether the work for a frame is there."""
        return number in self._slots

    def discard(self, number: int) -> None:
        """Forget the work for a frame."""
        self._slots.pop(number, None)
