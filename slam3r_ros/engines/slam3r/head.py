# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""From tokens to a pointmap with confidence."""

import torch
from torch import Tensor, nn


class LinearHead(nn.Module):
    """One linear layer per token gives x, y, z and confidence of every pixel of its square."""

    def __init__(self, width: int, patch: int, confidence_floor: float) -> None:
        """Make the layer."""
        super().__init__()
        self.patch = patch
        self.confidence_floor = confidence_floor
        self.proj = nn.Linear(width, 4 * patch**2)

    def forward(self, tokens: Tensor, rows: int, columns: int) -> tuple[Tensor, Tensor]:
        """Turn tokens (N, S, width) into points (N, H, W, 3) and confidences (N, H, W).

        A window of portrait images gives landscape maps: rows and columns change places, as in the official networks.
        """
        raw = self.proj(tokens).unflatten(1, (rows, columns)).unflatten(-1, (4, self.patch, self.patch))
        raw = raw.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)  # (N, 4, H, W): pixel shuffle
        points, confidence = unfold(raw, self.confidence_floor)
        if rows > columns:
            points, confidence = points.transpose(1, 2), confidence.transpose(1, 2)
        return points, confidence


def unfold(raw: Tensor, confidence_floor: float = 1.0) -> tuple[Tensor, Tensor]:
    """Turn raw outputs (N, 4, H, W) into points (N, H, W, 3), exponential in length, and confidences (N, H, W)."""
    direction = raw[:, :3].permute(0, 2, 3, 1)
    length = direction.norm(dim=-1, keepdim=True)
    points = direction / length.clamp(min=1e-8) * torch.expm1(length)
    return points, confidence_floor + raw[:, 3].exp()
