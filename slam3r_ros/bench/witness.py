# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A scene whose choices another one may follow, so that two precisions can be compared frame by frame."""

from collections.abc import Callable, Sequence

from torch import nn

from slam3r_ros.bench.workload import MIN_CONFIDENCE
from slam3r_ros.engines.slam3r.networks import Maps
from slam3r_ros.engines.slam3r.scene import Scene


class Witness(Scene):
    """A scene that notes what all choices rest on, confidences and retrieved frames; or takes them from such notes."""

    def __init__(self, networks: Sequence[nn.Module], followed: Sequence[object] | None = None) -> None:
        """Take networks, and the notes of another scene for the same frames."""
        super().__init__(*networks, MIN_CONFIDENCE)
        self.notes: list[object] = []
        self._followed = None if followed is None else iter(followed)

    def _agreed(self, find: Callable[[], object]) -> object:
        if self._followed is not None:
            return next(self._followed)
        self.notes.append(find())
        return self.notes[-1]

    def reconstruct(self, *arguments: object, **named: object) -> tuple[Maps, Maps | None]:
        """Reconstruct windows, see `Scene`."""
        sides = super().reconstruct(*arguments, **named)
        confidences = self._agreed(lambda: [side and side.confidence.clone() for side in sides])
        return tuple(side and Maps(side.points, confidence) for side, confidence in zip(sides, confidences))

    def register(self, sources: Sequence[int], references: Sequence[int]) -> None:
        """Find world maps, see `Scene`."""
        super().register(sources, references)
        views = [self.views[number] for number in sources]
        confidences = self._agreed(lambda: [view.confidence.clone() for view in views])
        for view, confidence in zip(views, confidences):
            view.confidence, view.mean = confidence, confidence.mean()

    def retrieve(self, *arguments: object) -> list[int]:
        """Choose scene frames, see `Scene`."""
        choose = super().retrieve
        return self._agreed(lambda: choose(*arguments))
