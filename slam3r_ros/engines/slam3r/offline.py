# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The whole sequence at once: every frame is reconstructed with its neighbours on both sides."""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from slam3r_ros.engines.slam3r.buffer import SceneBuffer
from slam3r_ros.engines.slam3r.scene import Scene, View
from slam3r_ros.engines.slam3r.settings import Settings

SAMPLES = 10  # windows to judge a stride by
ADAPT_RADIUS = 3  # keyframes to either side in them


def neighbours(number: int, stride: int, radius: int, count: int) -> list[int]:
    """Return the keyframes around a frame, nearest first, those before ahead of those after."""
    steps = [sign * step * stride for step in range(1, radius + 1) for sign in (-1, 1)]
    return [number + step for step in steps if 0 <= number + step < count]


def find_stride(scene: Scene, count: int, settings: Settings, rng: np.random.RandomState) -> int:
    """Return the stride at which windows of frames are reconstructed with most confidence; the smallest such."""
    best, best_confidence = 1, 0.0
    longest = min((count - 1) // (2 * ADAPT_RADIUS), settings.max_stride)
    for stride in range(settings.min_stride, longest + 1, settings.stride_step):
        margin = ADAPT_RADIUS * stride
        middles = rng.choice(range(margin, count - margin), min(count - 2 * margin, SAMPLES), replace=False)
        windows = [[int(i), *neighbours(int(i), stride, ADAPT_RADIUS, count)] for i in middles]
        own, others = scene.reconstruct(windows, wanted='both')
        confidence = torch.cat([own.confidence, others.confidence]).mean().item()
        if confidence > best_confidence:
            best, best_confidence = stride, confidence
    return best


class OfflinePipeline:
    """SLAM3R on a recorded sequence: looks ahead, keeps every frame."""

    def __init__(self, scene: Scene, settings: Settings) -> None:
        """Take an empty scene; each pipeline runs once."""
        self.scene = scene
        self.settings = settings
        self.rng = np.random.RandomState(settings.seed)
        self.stride = settings.stride

    @torch.inference_mode()
    def run(self, images: Iterable[Tensor]) -> list[View]:
        """Reconstruct frames (3, H, W) in [-1, 1] of one size.

        Raises:
            ValueError: for fewer than two frames.
        """
        settings, scene = self.settings, self.scene
        count = 0
        for image in images:
            scene.encode(image[None], count)
            count += 1
        if count < 2:
            raise ValueError(f'a reconstruction needs at least two frames, got {count}')
        stride = settings.stride or find_stride(scene, count, settings, self.rng)
        stride = self.stride = min(stride, count // 2)  # two keyframes at least
        window = range(0, min(settings.window, count // stride) * stride, stride)
        keyframes = list(window[: scene.begin(window, shrink=True)])
        for number in range(count):
            if number not in keyframes:
                scene.locate(number, neighbours(number, stride, settings.radius, count))
        start = keyframes[-1] + 1
        scene.begin_between(keyframes, [number for number in range(start) if number not in keyframes])
        buffer = SceneBuffer(
            keyframes, start, settings.buffer_size, settings.buffer_strategy, settings.buffer_interval, self.rng
        )
        at_once = max(1, min((stride + 1) // 2, settings.sources))
        for number in range(start, count, at_once):
            sources = range(number, min(number + at_once, count))
            chosen = scene.retrieve(sources[::2], buffer.frames, settings.scene_frames)
            scene.register(sources, [buffer.frames[position] for position in chosen])
            buffer.update(sources[-1] + 1, stride, lambda frame: scene.views[frame].quality)
        return [scene.views[number] for number in range(count)]


def sample_points(
    views: list[View], images: np.ndarray, min_confidence: float, count: int, rng: np.random.RandomState
) -> tuple[np.ndarray, np.ndarray]:
    """Draw a cloud from all registered maps.

    Args:
        views: registered frames.
        images: (N, H, W, 3) uint8, their images.
        min_confidence: a point must exceed it.
        count: of points, at most.
        rng: of the draw.

    Returns:
        Points (M, 3) in the world and colours (M, 3) uint8.
    """
    points = torch.stack([view.world for view in views]).cpu().numpy()
    good = (torch.stack([view.confidence for view in views]) > min_confidence).cpu().numpy()
    points, colors = points[good], images[good]
    drawn = rng.choice(len(points), min(count, len(points)), replace=False)
    return points[drawn], colors[drawn]
