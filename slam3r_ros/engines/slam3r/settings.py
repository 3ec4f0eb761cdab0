# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The parameters of a reconstruction."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Settings:
    """The official parameters, under readable names (official name in brackets)."""

    stride: int = 3  # frames between keyframes (keyframe_stride); 0 finds it, offline only
    window: int = 5  # keyframes to begin with (initial_winsize)
    radius: int = 3  # keyframes to either side that help to reconstruct a frame (win_r)
    scene_frames: int = 10  # retrieved per registration (num_scene_frame)
    min_confidence: float = 1.5  # of a local point (conf_thres_i2p)
    normalise_input: bool = False  # before registration (norm_input)
    buffer_size: int = 100  # 0 for no bound
    buffer_strategy: Literal['reservoir', 'fifo'] = 'reservoir'
    buffer_interval: int = 1  # strides between updates (update_buffer_intv)
    retrieve_every: int = 1  # frames, online only (retrieve_freq)
    sources: int = 1  # most frames registered at once, offline only; never more than half a stride (max_num_register)
    min_stride: int = 1  # when it is searched (keyframe_adapt_min)
    max_stride: int = 20  # (keyframe_adapt_max)
    stride_step: int = 1  # (keyframe_adapt_stride)
    # 'as_is' repeats two slips of the official online code: retrieved positions in the buffer are taken for frame
    # numbers, and a retrieved list grows by the neighbours of every frame until the next retrieval.
    mode: Literal['fixed', 'as_is'] = 'fixed'
    seed: int = 42

    def __post_init__(self) -> None:
        """Refuse what makes no sense."""
        for name in ('window', 'radius', 'scene_frames', 'buffer_interval', 'retrieve_every', 'sources', 'min_stride'):
            if getattr(self, name) < 1 + (name == 'window'):
                raise ValueError(f'{name} must be at least {1 + (name == "window")}, not {getattr(self, name)}')
        if self.stride < 0:
            raise ValueError(f'stride must be at least 1, or 0 to find it, not {self.stride}')
        if self.mode not in ('fixed', 'as_is'):
            raise ValueError(f"mode is 'fixed' or 'as_is', not {self.mode!r}")
