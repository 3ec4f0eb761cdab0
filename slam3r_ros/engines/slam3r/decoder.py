# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The multi-view decoder block: a view attends to many others and keeps, per channel, the strongest answer."""

from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor, nn

from slam3r_ros.engines.slam3r.layers import (
    LayerNorm,
    Mlp,
    Rotation,
    SelfAttention,
    attend,
    join_heads,
    rotate,
    split_heads,
)


class Memory(NamedTuple):
    """What a block's targets look at: keys and values of M views, (M, B, heads, S, head width)."""

    keys: Tensor
    values: Tensor


class CrossAttention(nn.Module):
    """Let the tokens of one view look at those of another."""

    def __init__(self, width: int, heads: int) -> None:
        """Make an attention of `heads` heads."""
        super().__init__()
        self.heads = heads
        self.projq = nn.Linear(width, width)
        self.projk = nn.Linear(width, width)
        self.projv = nn.Linear(width, width)
        self.proj = nn.Linear(width, width)

    def queries(self, tokens: Tensor, rotation: Rotation | Tensor) -> Tensor:
        """Project targets (A, B, S, width) to queries (A, B, heads, S, head width)."""
        return rotate(split_heads(self.projq(tokens), self.heads), rotation)

    def memory(self, tokens: Tensor, rotation: Rotation | Tensor) -> Memory:
        """Project memory views (M, B, S, width) to keys and values."""
        keys = rotate(split_heads(self.projk(tokens), self.heads), rotation)
        return Memory(keys, split_heads(self.projv(tokens), self.heads))

    def forward(self, queries: Tensor, memory: Memory) -> Tensor:
        """Attend to each memory view apart and keep the largest of the *projected* answers, (A, B, S, width).

        The queries of all targets stand in one row, so that the memory is nowhere copied per target.
        """
        targets, batch, _, size, _ = queries.shape
        views = len(memory.keys)
        row = queries.permute(1, 2, 0, 3, 4).flatten(2, 3)  # (B, heads, A S, head width)
        row = row.expand(views, *row.shape).flatten(0, 1)  # (M B, heads, A S, head width)
        seen = attend(row, memory.keys.flatten(0, 1), memory.values.flatten(0, 1))
        answers = self.proj(join_heads(seen)).unflatten(0, (views, batch))  # (M, B, A S, width)
        return answers.amax(dim=0).unflatten(1, (targets, size)).transpose(0, 1)


class MultiviewDecoderBlock(nn.Module):
    """Self-attention, cross-attention to every memory view, MLP.

    The steps are methods of their own, as retrieval prepares the first ones once per frame.
    """

    def __init__(self, width: int, heads: int, mlp_ratio: int) -> None:
        """Make the layers."""
        super().__init__()
        self.norm1 = LayerNorm(width)
        self.attn = SelfAttention(width, heads)
        self.norm2 = LayerNorm(width)
        self.norm_y = LayerNorm(width)
        self.cross_attn = CrossAttention(width, heads)
        self.norm3 = LayerNorm(width)
        self.mlp = Mlp(width, mlp_ratio * width, width)

    def attend_self(self, targets: Tensor, rotation: Rotation | Tensor) -> Tensor:
        """Let each target (A, B, S, width) look at itself."""
        flat = targets.flatten(0, 1)
        return targets + self.attn(self.norm1(flat), rotation).unflatten(0, targets.shape[:2])

    def queries(self, targets: Tensor, rotation: Rotation | Tensor) -> Tensor:
        """Return what the targets (A, B, S, width), after `attend_self`, ask the memory."""
        return self.cross_attn.queries(self.norm2(targets), rotation)

    def memory(self, views: Tensor, rotation: Rotation | Tensor) -> Memory:
        """Return what views (M, B, S, width), at the block's input, answer."""
        return self.cross_attn.memory(self.norm_y(views), rotation)

    def attend_memory(self, targets: Tensor, queries: Tensor, *memories: Memory) -> Tensor:
        """Let the targets (A, B, S, width) look at the memory, in one or more parts, and end the block."""
        targets = targets + reduce(torch.maximum, (self.cross_attn(queries, memory) for memory in memories))
        return targets + self.mlp(self.norm3(targets))

    def forward(self, targets: Tensor, views: Tensor, rotation: Rotation | Tensor) -> Tensor:
        """Refine targets (A, B, S, width) by the memory views (M, B, S, width)."""
        memory = self.memory(views, rotation)
        targets = self.attend_self(targets, rotation)
        return self.attend_memory(targets, self.queries(targets, rotation), memory)
