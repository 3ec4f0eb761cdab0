# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The scene frames: a bounded choice of good frames from the whole past."""

from collections.abc import Callable
from typing import Literal

import numpy as np


class SceneBuffer:
    """Holds frame numbers; of every stride of frames the best may enter.

    When it is full, `fifo` lets the oldest go, and `reservoir` keeps a fair sample of everything (Vitter 1985).
    """

    def __init__(
        self,
        frames: list[int],
        milestone: int,
        size: int,
        strategy: Literal['reservoir', 'fifo'],
        interval: int,
        rng: np.random.RandomState,
    ) -> None:
        """Begin with the first keyframes.

        Args:
            frames: their numbers.
            milestone: first frame that was not yet considered.
            size: bound, at least the number of `frames`; 0 or less for none.
            strategy: what leaves a full buffer.
            interval: strides between updates.
            rng: of the reservoir.
        """
        check_room(size, len(frames))
        if strategy not in ('reservoir', 'fifo'):
            raise ValueError(f"the scene buffer's strategy is 'reservoir' or 'fifo', not {strategy!r}")
        self.frames = list(frames)
        self.milestone = milestone
        self.candidates = len(frames)  # groups of frames that were considered
        self._size, self._strategy, self._interval, self._rng = size, strategy, interval, rng

    def update(self, next_frame: int, stride: int, quality: Callable[[int], float]) -> None:
        """Consider the frames before `next_frame`, when enough of them have come.

        Args:
            next_frame: number of the frame to come.
            stride: frames between keyframes.
            quality: says how good a frame is.
        """
        if next_frame - self.milestone < stride * self._interval:
            return
        while next_frame - self.milestone >= stride:
            self.candidates += 1
            full = 0 < self._size <= len(self.frames)
            if not full or self._strategy == 'fifo' or self._rng.rand() < self._size / self.candidates:
                # Keep a distance to the newest one.
                skipped = max(0, self.frames[-1] + stride * 3 // 4 - self.milestone)
                self.frames.append(max(range(self.milestone + skipped, self.milestone + stride), key=quality))
                if full:
                    self.frames.pop(0 if self._strategy == 'fifo' else self._rng.randint(self._size))
            self.milestone += stride


def check_room(size: int, keyframes: int) -> None:
    """Refuse a buffer that is too small for the first keyframes."""
    if 0 < size < keyframes:
        raise ValueError(f'the scene buffer of {size} cannot hold the first {keyframes} keyframes: raise its size')
