# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Frame by frame: what is said of a frame has seen no later one."""

import logging
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from slam3r_ros.engines.slam3r.buffer import SceneBuffer, check_room
from slam3r_ros.engines.slam3r.scene import Encoded, Scene, View
from slam3r_ros.engines.slam3r.settings import Settings
from slam3r_ros.gpu_memory import give_back_gpu_memory

log = logging.getLogger(__name__)


class OnlinePipeline:
    """SLAM3R on a stream.

    In mode `fixed` it holds the frames of the scene buffer and the latest ones, however long the stream.
    When the memory of the device is full it looks at half as many frames at once from then on, and forgets nothing.

    Attributes:
        count: frames taken so far; the next one gets this number.
        stride: frames between keyframes, from the settings.  It may be changed between two frames once the first
            keyframes are there; of a wider one the farther neighbours come to be held in time.
    """

    def __init__(self, scene: Scene, settings: Settings) -> None:
        """Take an empty scene.

        Raises:
            ValueError: the stride is to be found, which takes the whole sequence, or the buffer cannot hold the window.
        """
        if settings.stride < 1:
            raise ValueError('a stream cannot be searched for its stride: set a stride of at least 1')
        check_room(settings.buffer_size, settings.window)
        self.scene = scene
        self.settings = settings
        self.rng = np.random.RandomState(settings.seed)
        self.count = 0
        self.stride = settings.stride
        self.buffer: SceneBuffer | None = None  # from the end of the initialisation
        self._spared = False  # the CUDA graphs were given up
        self._share = 1  # a call of the networks takes a share of the frames that the settings allow: one in so many
        # 'as_is' repeats the slips of the official code, see `Settings`.
        self.retrieves_positions = self.grows_references = settings.mode == 'as_is'
        self._retrieved: list[int] = []

    @torch.inference_mode()
    def process(
        self, image: Tensor, encoded: Encoded | None = None, meanwhile: Callable[[], None] = lambda: None
    ) -> list[tuple[int, View]]:
        """Take the next frame; return the frames that got their world map by it, by number.

        Args:
            image: (3, H, W) in [-1, 1].
            encoded: what `Scene.encoded` gave for it alone, when that was begun before.
            meanwhile: called, once the first keyframes are there, when the device has been told what to do and nobody
                waits for it yet.

        Raises:
            ValueError: it is not of the size of those before; it is then as if it had not come.
            torch.OutOfMemoryError: the device has no room for the fewest frames; likewise.
        """
        number = self.count
        while True:
            try:
                return self._process(image, number, encoded, meanwhile)
            except torch.OutOfMemoryError as error:
                full = error.with_traceback(None)  # which would hold the tensors of what was tried
            self.count = number
            self.scene.forget(lambda other: other != number)
            spared = self.scene.spare_memory()
            give_back_gpu_memory()
            if not spared and not self._halve():
                try:
                    raise full
                finally:
                    del full  # and its traceback holds this frame
            self._spared = self._spared or spared
            log.warning('%s', self.degraded)

    def _process(
        self, image: Tensor, number: int, encoded: Encoded | None, meanwhile: Callable[[], None]
    ) -> list[tuple[int, View]]:
        """Do all of `process` but mending; what it did can be done again."""
        self.scene.encode(image[None], number, encoded)
        self.count = number + 1
        last_of_window = (self.settings.window - 1) * self.settings.stride
        if number < last_of_window:
            return []
        if number == last_of_window:
            self._begin(number)
            done = range(number + 1)
        else:
            self._continue(number, meanwhile)
            done = [number]
        registered = [(i, self.scene.views[i]) for i in done]
        if self.settings.mode == 'fixed':
            self._forget()
        return registered

    @property
    def reach(self) -> tuple[int, int]:
        """How many scene frames are retrieved, and how many of the keyframes just before help."""
        return tuple(max(count // self._share, 1) for count in (self.settings.scene_frames, self.settings.radius))

    @property
    def degraded(self) -> str:
        """What it does without, the memory being full; empty where nothing is missing."""
        settings, (scene_frames, radius) = self.settings, self.reach
        without = ['no CUDA graphs'] if self._spared else []
        if self._share > 1:
            instead = f'instead of {settings.scene_frames} and {settings.radius}'
            without.append(f'{scene_frames} scene frames and {radius} neighbours {instead}')
        return f'the memory of {self.scene.device} was full: {", ".join(without)}' if without else ''

    def _halve(self) -> bool:
        """Take half as many frames at once; return whether there was anything to halve."""
        if self._share >= max(self.settings.window // 2, self.settings.scene_frames, self.settings.radius):
            return False
        self._share *= 2
        self.scene.parts = self._share
        self._retrieved = []
        return True

    def _begin(self, last: int) -> None:
        settings, scene = self.settings, self.scene
        widest = settings.stride * (settings.window - 1)  # which takes in the first and the last
        keyframes = list(range(0, last + 1, min(settings.stride * self._share, widest)))
        scene.begin(keyframes, shrink=False)
        others = [i for i in range(last + 1) if i not in keyframes]
        for number in others:
            scene.locate(number, keyframes)
        scene.begin_between(keyframes, others)
        self.buffer = SceneBuffer(
            keyframes,
            settings.window * settings.stride + 1,
            settings.buffer_size,
            settings.buffer_strategy,
            settings.buffer_interval,
            self.rng,
        )

    def _continue(self, number: int, meanwhile: Callable[[], None]) -> None:
        references = self._references(number)
        self.scene.locate(number, references)
        self.scene.register([number], references)
        meanwhile()
        self.buffer.update(number + 1, self.stride, lambda frame: self.scene.views[frame].quality)

    def _references(self, number: int) -> list[int]:
        """Return retrieved scene frames, then the keyframes just before."""
        settings, (scene_frames, radius) = self.settings, self.reach
        if number % settings.retrieve_every == 0 or not self._retrieved:
            chosen = self.scene.retrieve([number], self.buffer.frames, scene_frames)
            self._retrieved = chosen if self.retrieves_positions else [self.buffer.frames[i] for i in chosen]
        references = self._retrieved if self.grows_references else list(self._retrieved)
        for step in range(1, radius + 1):
            before = number - step * self.stride
            if before in self.scene.views and before not in references:
                references.append(before)
        return references

    def _forget(self) -> None:
        """Drop the frames that no later step can ask for."""
        settings = self.settings
        # Neighbours reach back by the radius, and the buffer chooses from what came since its last update.
        recent = self.count - max(settings.radius, settings.buffer_interval) * self.stride
        wanted = {*self.buffer.frames, *self._retrieved}
        self.scene.forget(lambda number: number in wanted or number >= recent)
