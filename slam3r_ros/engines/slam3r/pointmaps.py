# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Pointmaps and their confidences: scale, masks, and which frames fit a query."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def relative(confidence):
    """Squeeze confidences from [1, inf) into [0, 1)."""
    return (confidence - 1) / confidence


def mean_distance(points: Sequence[Tensor], masks: Sequence[Tensor] | None = None) -> Tensor:
    """Return the mean distance of the valid points of all views from the origin, (B, 1, 1, 1).

    Args:
        points: one (B, H, W, 3) per view.
        masks: one (B, H, W) bool per view; None takes every pixel.
    """
    distances = torch.cat([view.norm(dim=-1).flatten(1) for view in points], dim=1)  # (B, views * pixels)
    if masks is None:
        mean = distances.mean(dim=1)
    else:
        valid = torch.cat([mask.flatten(1) for mask in masks], dim=1)
        mean = (distances * valid).sum(dim=1) / (valid.sum(dim=1) + 1e-8)
    return mean.clamp(min=1e-8).reshape(-1, 1, 1, 1)


def normalise(points: Sequence[Tensor], masks: Sequence[Tensor]) -> list[Tensor]:
    """Scale the views together to a mean distance of 1, and move what is not valid to the origin."""
    factor = mean_distance(points, masks)
    return [torch.where(mask[..., None], view / factor, 0) for view, mask in zip(points, masks)]


def best_candidates(
    scores: Tensor, count: int, confidence: Tensor | None = None, used: Tensor | None = None
) -> tuple[list[int], np.ndarray]:
    """Choose the views that correlate best with the queries.

    Args:
        scores: (K, Q, S) of K candidates with Q queries.
        count: how many to choose.
        confidence: (K, ...) registered confidences; weighs by their mean.
        used: (K,) how often each was chosen before; holds back up to a twentieth.

    Returns:
        Positions of the chosen, best first, and the value (K,) of each candidate in [0, 1).
    """
    values = relative(scores.mean(dim=(1, 2)))
    if confidence is not None:
        values = values * relative(confidence.flatten(1).mean(dim=1))
    if used is not None:
        values = values * (1 - 0.05 * used / used.max())
    order = torch.argsort(values, descending=True, stable=True)
    return order[:count].tolist(), values.cpu().numpy()
