# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""SLAM3R's networks before a known wall: with random weights they do all of their work, then they tell the truth.

Random weights see nothing, and no frame would have a pose.  So what the heads say is only the roughness of a wall that
the camera, standing still, sees in every frame.  What comes after the networks has its usual work: poses of points that
are not quite right, keyframes, clouds, the mesh.
"""

import argparse

import torch
from torch import Tensor, nn

from slam3r_ros.bench.workload import SIZES, chosen, wavy_wall
from slam3r_ros.engines.slam3r.config import SIDE, NetworkConfig
from slam3r_ros.engines.slam3r.networks import Image2Points, Local2World
from slam3r_ros.engines.slam3r.precision import choose, convert

ROUGHNESS = 0.005  # of the distance: about a pixel
CONFIDENCE = 10.0  # of every point, at least


class Wall:
    """A head's forward hook: puts the wall in the place of what the head says, which makes it rough."""

    def __init__(self, side: int, device: str) -> None:
        """Build the wall."""
        self._points = wavy_wall(side).to(device)

    def __call__(self, head: nn.Module, inputs: tuple, maps: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Take and return points (N, H, W, 3) and confidences (N, H, W)."""
        points, confidence = maps
        rough = (points - points.mean(dim=(1, 2), keepdim=True)) / points.std(dim=(1, 2), keepdim=True).clamp(min=1e-6)
        return self._points + ROUGHNESS * rough, CONFIDENCE + confidence


def before_a_wall(
    config: NetworkConfig, device: str = 'cpu', precision: str = 'auto', side: int = SIDE
) -> tuple[Image2Points, Local2World]:
    """Make both networks with random weights, ready to run, for squares of `side` pixels."""
    torch.manual_seed(0)
    place, wall = torch.device(device), Wall(side, device)
    networks = []
    for kind in (Image2Points, Local2World):
        network = convert(kind(config).eval().requires_grad_(False), choose(precision, place), place)
        for head in (network.downstream_head1, network.downstream_head2):
            head.register_forward_hook(wall)
        networks.append(network)
    return tuple(networks)


def random_networks(device: str, precision: str, size: str | None) -> tuple[str, tuple[Image2Points, Local2World]]:
    """Make such networks where and as large as the other benchmarks would, if not told; return their size, too."""
    device, _, size = chosen(argparse.Namespace(device=device, precisions=[precision], size=size))
    return size, before_a_wall(SIZES[size], device, precision)
