# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`slam3r bench savings`: what SLAM3R's exact savings spare.

One online step is done in two ways with the same result.  The straightforward way computes every block and head and
scores all candidates anew.  The sparing way skips the blocks and heads whose output nobody reads, and keeps what
retrieval's first layer does with a candidate alone.
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from slam3r_ros.engines.slam3r.config import OFFICIAL, SIDE, NetworkConfig
from slam3r_ros.engines.slam3r.networks import Candidates, Image2Points, Local2World

MAX_OPERATIONS, MAX_TIME = 0.87, 0.93  # of the straightforward way
MAX_ERROR = 1e-5


def concatenate(candidates: Sequence[Candidates]) -> Candidates:
    """Join candidates that were prepared apart."""
    tokens, queries, memories = zip(*candidates)
    return Candidates(
        torch.cat(tokens), torch.cat(queries), type(memories[0])(*(torch.cat(part) for part in zip(*memories)))
    )


@dataclass
class Step:
    """The networks and the input of one online step: a frame, its references, and the candidates for them."""

    image2points: Image2Points
    local2world: Local2World
    image: Tensor  # (1, 3, H, W)
    references: Tensor  # (R, 1, S, E)
    points: Tensor  # (R, 1, H, W, 3)
    candidates: Tensor  # (K, 1, S, E)
    kept: list[Candidates] | None = None  # one for each candidate, from earlier steps

    @classmethod
    def make(
        cls, config: NetworkConfig, references: int, candidates: int, side: int = SIDE, device: str = 'cpu'
    ) -> 'Step':
        """Make networks with random weights, and random input; on the device `meta` nothing takes memory."""
        torch.manual_seed(0)
        with torch.device(device):
            networks = [kind(config).eval().requires_grad_(False) for kind in (Image2Points, Local2World)]
            tokens, width = (side // config.patch) ** 2, config.encoder_width
            return cls(
                *networks,
                torch.randn(1, 3, side, side),
                torch.randn(references, 1, tokens, width),
                torch.randn(references, 1, side, side, 3),
                torch.randn(candidates, 1, tokens, width),
            )

    def prepare(self) -> None:
        """Do what earlier steps did."""
        self.kept = [self._prepare(candidate[None]) for candidate in self.candidates]

    def _prepare(self, candidates: Tensor) -> Candidates:
        return self.image2points.prepare(candidates, *self.image.shape[-2:])

    def run(self, sparing: bool) -> tuple[Tensor, ...]:
        """Encode, retrieve, reconstruct and register the frame.

        Returns:
            The candidates' scores, and points and confidences in the frame's own frame and in the world.
        """
        size = self.image.shape[-2:]
        frame = self.image2points.encode(self.image)[None]  # (1, 1, S, E)
        if sparing:  # one candidate is new in the buffer
            prepared = concatenate([self._prepare(self.candidates[:1]), *self.kept[1:]])
        else:
            prepared = self._prepare(self.candidates)
        scores = self.image2points.correlation(frame, prepared, *size)
        local, _ = self.image2points(frame, self.references, *size, wanted='references' if sparing else 'both')
        _, world = self.local2world(
            self.references, frame, self.points, local.points, wanted='sources' if sparing else 'both'
        )
        return scores, *local, *world


def count_operations(config: NetworkConfig, references: int = 10, candidates: int = 100) -> tuple[float, float]:
    """Return the floating-point operations of a step, straightforward and sparing; nothing is computed."""
    step = Step.make(config, references, candidates, device='meta')
    step.prepare()
    counts = []
    for sparing in (False, True):
        with FlopCounterMode(display=False) as counter, torch.inference_mode():
            step.run(sparing)
        counts.append(float(counter.get_total_flops()))
    return counts[0], counts[1]


@torch.inference_mode()
def time_pairs(step: Step, pairs: int) -> list[tuple[float, float]]:
    """Return the seconds of `pairs` paired runs, straightforward and sparing, after one to warm up."""
    step.prepare()
    seconds = []
    for _ in range(pairs + 1):
        both = []
        for sparing in (False, True):
            start = time.perf_counter()
            step.run(sparing)
            if step.image.is_cuda:
                torch.cuda.synchronize()
            both.append(time.perf_counter() - start)
        seconds.append((both[0], both[1]))
    return seconds[1:]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument('--references', type=int, default=10, help='scene frames of a registration (default: 10)')
    parser.add_argument('--candidates', type=int, default=100, help='frames in the scene buffer (default: 100)')
    parser.add_argument('--pairs', type=int, default=5, help='paired runs (default: 5)')
    parser.add_argument('--device', default='cpu', help="'cpu' or 'cuda' (default: cpu)")


def main(arguments: argparse.Namespace) -> int:
    """Count, time and compare a step of the official size; fail where too little is spared or something differs."""
    plain, sparing = count_operations(OFFICIAL, arguments.references, arguments.candidates)
    print(
        f'{plain / 1e9:.0f} GFLOP straightforward, {sparing / 1e9:.0f} sparing: '
        f'{sparing / plain:.3f} (limit {MAX_OPERATIONS})',
        flush=True,
    )
    step = Step.make(OFFICIAL, arguments.references, arguments.candidates, device=arguments.device)
    seconds = time_pairs(step, arguments.pairs)
    ratio = statistics.median(b / a for a, b in seconds)
    a, b = (statistics.median(times) for times in zip(*seconds))
    print(f'{a:.2f} s straightforward, {b:.2f} s sparing: {ratio:.3f} '
          f'(limit {MAX_TIME}, median of {len(seconds)} pairs)')  # fmt: skip
    with torch.inference_mode():
        error = max(float((x - y).abs().max() / y.abs().max()) for x, y in zip(step.run(True), step.run(False)))
    print(f'largest difference of an output, of its largest value: {error:.1e} (limit {MAX_ERROR:.0e})')
    return int(sparing > MAX_OPERATIONS * plain or ratio > MAX_TIME or error > MAX_ERROR)
