# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What both pipelines work on: frames by their number, and the calls of the networks on them."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from slam3r_ros.engines.slam3r.candidates import CandidateStore
from slam3r_ros.engines.slam3r.cuda_graphs import CudaGraphs, streams_of
from slam3r_ros.engines.slam3r.networks import Image2Points, Local2World, Maps
from slam3r_ros.engines.slam3r.pointmaps import best_candidates, mean_distance, normalise, relative

_IN_CACHE = 10  # candidates that a CPU scores at once: what lies between the layers then stays in its cache


class Encoded(NamedTuple):
    """Frames on their way through the encoder."""

    tokens: Tensor  # (N, S, E)
    done: Any  # event of the GPU


@dataclass
class View:
    """What is known of a frame.

    The world is the optical frame of one of the first keyframes; the first keyframes' mean distance is its unit.
    A local map has its own unit; it is zero for first keyframes that are not the world's.
    """

    tokens: Tensor  # (S, E)
    local: Tensor | None = None  # (H, W, 3) in its own optical frame
    local_confidence: Tensor | None = None  # (H, W)
    local_mean: Tensor | float = 0.0  # of the confidence; still on the device, as reading it waits for that
    world: Tensor | None = None  # (H, W, 3)
    confidence: Tensor | None = None  # (H, W)
    mean: Tensor | float = 0.0  # of the confidence

    @property
    def quality(self) -> float:
        """How good the frame is as a scene frame, in [0, 1)."""
        return relative(float(self.mean)) * relative(float(self.local_mean))


class Scene:
    """Frames and the networks that reconstruct them."""

    def __init__(
        self,
        image2points: Image2Points,
        local2world: Local2World,
        min_confidence: float,
        normalise_input: bool = False,
        cuda_graphs: bool = True,
    ) -> None:
        """Begin with no frames.

        Args:
            image2points: the first network, on the device to be used.
            local2world: the second, on the same device.
            min_confidence: a local point must exceed it.
            normalise_input: brings all maps to a unit mean distance before they are registered.
            cuda_graphs: on a GPU, record what is done for every frame, and replay it.
        """
        self.views: dict[int, View] = {}
        self.size = 0, 0  # height and width of the images
        self.prepared = CandidateStore()
        self.parts = 1  # in which candidates are scored, so that the memory bears it
        self.device = image2points.dec_norm.weight.device
        self._cuda_graphs = cuda_graphs and self.device.type == 'cuda'
        self._beside, self._recorder = streams_of(self.device)
        self._at = torch.cuda if self.device.type == 'cuda' else torch.cpu
        self.can_do_two = self.device.type != 'cpu'  # things at once
        self.networks = image2points, local2world
        self._min_confidence = min_confidence
        self._normalise_input = normalise_input

    @property
    def networks(self) -> tuple[Image2Points, Local2World] | None:
        """Both networks; None lets go of them, until they are given again."""
        return self._networks

    @networks.setter
    def networks(self, networks: tuple[Image2Points, Local2World] | None) -> None:
        self._networks = networks
        self._ready = self._at.current_stream(self.device).record_event()  # until then the weights are on their way
        self._image2points, self._local2world = networks or (None, None)
        self._encoding = CudaGraphs(self._cuda_graphs, self._recorder)
        self._decoding = CudaGraphs(self._cuda_graphs, self._recorder)

    def release(self) -> None:
        """Let go of what can be had again: the networks, once they are given, and what is prepared for retrieval."""
        self.networks = None
        self.prepared = CandidateStore()

    def spare_memory(self) -> bool:
        """Do without recorded work from now on, the memory being full; return whether that frees any."""
        self._cuda_graphs = False
        encoding, decoding = self._encoding.give_up(), self._decoding.give_up()
        return encoding or decoding

    def beside(self) -> AbstractContextManager:
        """Let the GPU do what follows beside its work on the present frame."""
        return self._at.stream(self._beside)

    @torch.inference_mode()
    def encoded(self, images: Tensor) -> Encoded:
        """Begin to encode frames (N, 3, H, W), given on the CPU, beside what else the GPU does."""
        if self.device.type == 'cuda':  # else the copy would wait for the GPU
            images = images.pin_memory()
        self._beside.wait_event(self._ready)
        with self.beside():
            tokens = self._encoding(self._image2points.encode, images.to(self.device, non_blocking=True))
        return Encoded(tokens, self._beside.record_event())

    def encode(self, images: Tensor, first: int, encoded: Encoded | None = None) -> None:
        """Add frames (N, 3, H, W), numbered from `first`.

        Args:
            images: the frames, on the CPU.
            first: number of the first.
            encoded: what the method of that name gave for them, when that was begun before.

        Raises:
            ValueError: they are not of the size of those before.
        """
        size = tuple(images.shape[-2:])
        if self.views and size != self.size:
            raise ValueError(f'frame {first} has {size} pixels, those before {self.size}: crop all to one size')
        self.size = size
        tokens, done = encoded or self.encoded(images)
        present = self._at.current_stream(self.device)
        present.wait_event(done)  # and not for the frame after it, which may be under way
        if tokens.is_cuda:  # its memory is the other stream's
            tokens.record_stream(present)
        self.add(tokens, first)

    def add(self, tokens: Tensor, first: int) -> None:
        """Add frames by what the encoder said of them (N, S, E), numbered from `first`."""
        for number, view in enumerate(tokens.unbind(), first):
            self.views[number] = View(view)

    def _tokens(self, numbers: Sequence[int]) -> Tensor:
        return torch.stack([self.views[number].tokens for number in numbers])[:, None]  # (N, 1, S, E)

    def reconstruct(
        self, windows: Sequence[Sequence[int]], reference: int = 0, wanted: str = 'references'
    ) -> tuple[Maps, Maps | None]:
        """Reconstruct windows of equal length.

        Args:
            windows: B lists of V frame numbers, V >= 2.
            reference: position of the reference in each.
            wanted: 'references' or 'both'.

        Returns:
            Maps of the references (1, B, ...) and of the other frames (V - 1, B, ...), in the references' frames.

        Raises:
            ValueError: the windows have one view only.
        """
        if len(windows[0]) < 2:
            raise ValueError(f'a window needs two views at least, got {windows[0]}')
        tokens = torch.cat([self._tokens(window) for window in windows], dim=1)  # (V, B, S, E)
        own, others = tokens[reference : reference + 1], torch.cat([tokens[:reference], tokens[reference + 1 :]])
        return self._decoding(self._image2points, own, others, *self.size, wanted=wanted)

    def locate(self, number: int, neighbours: Sequence[int]) -> None:
        """Find the local map of a frame with the help of its neighbours."""
        view = self.views[number]
        own, _ = self.reconstruct([[number, *neighbours]])
        view.local, view.local_confidence = own.points[0, 0], own.confidence[0, 0]
        view.local_mean = view.local_confidence.mean()

    def _normalised(self, view: View) -> Tensor:
        """Return the local map (1, H, W, 3) at unit mean distance, without its uncertain points."""
        (points,) = normalise([view.local[None]], [view.local_confidence[None] > self._min_confidence])
        return points

    def register(self, sources: Sequence[int], references: Sequence[int]) -> None:
        """Find the world maps of frames whose local maps are known, from references whose world maps are."""
        known = torch.stack([self.views[number].world for number in references])[:, None]  # (R, 1, H, W, 3)
        local = torch.stack([self._normalised(self.views[number]) for number in sources])
        factor = 1.0
        if self._normalise_input:
            factor = mean_distance(list(known))
            known, local = known / factor, torch.stack([points / mean_distance([points]) for points in local])
        tokens = self._tokens(references), self._tokens(sources)
        _, maps = self._decoding(self._local2world, *tokens, known, local, wanted='sources')
        for number, points, confidence in zip(sources, *maps):
            view = self.views[number]
            view.world, view.confidence = (points * factor)[0], confidence[0]
            view.mean = view.confidence.mean()

    def retrieve(self, queries: Sequence[int], candidates: Sequence[int], count: int) -> list[int]:
        """Return the *positions* of the candidates that correlate best with the queries, best first."""
        if count >= len(candidates):
            return list(range(len(candidates)))
        return best_candidates(self.correlate(queries, candidates), count)[0]

    def correlate(self, queries: Sequence[int], candidates: Sequence[int]) -> Tensor:
        """Return the correlation scores (K, Q, S) of K candidates with Q queries."""
        network = self._image2points
        self.prepared.hold(candidates, lambda number: network.prepare(self._tokens([number]), *self.size))
        at_once = min(len(candidates), _IN_CACHE) if self.device.type == 'cpu' else len(candidates)
        at_once = -(-at_once // self.parts)
        prepared = self.prepared.all
        scores = [
            network.correlation(self._tokens([query]), prepared, *self.size, at_once=at_once) for query in queries
        ]
        return self.prepared.in_order(torch.cat(scores, dim=1), candidates)

    def begin(self, keyframes: Sequence[int], shrink: bool, min_score: float = 5.0, min_window: int = 3) -> int:
        """Reconstruct the first keyframes together, in the frame of the one that sees most.

        Args:
            keyframes: their numbers.
            shrink: leaves out the last ones while the confidence stays low.
            min_score: mean confidence that is good enough.
            min_window: the fewest views to shrink to.

        Returns:
            How many of the keyframes were taken.
        """
        while True:
            windows = [self.reconstruct([keyframes], i, 'both') for i in range(len(keyframes))]
            scores = [torch.cat([own.confidence, others.confidence]).mean().item() for own, others in windows]
            best = max(range(len(keyframes)), key=scores.__getitem__)
            if not shrink or len(keyframes) <= min_window or scores[best] >= min_score:
                break
            keyframes = keyframes[:-1]
        # Once more, as the official code does: the traces of both are compared call by call.
        points, confidence = join(self.reconstruct([keyframes], best, 'both'), best)
        world = normalise(list(points), list(confidence > self._min_confidence))
        for position, number in enumerate(keyframes):
            view = self.views[number]
            view.world, view.confidence = world[position][0], confidence[position][0]
            view.mean = view.local_mean = view.confidence.mean()
            # Only the reference's own frame is the world; of the others no local map is known.
            view.local = view.world if position == best else torch.zeros_like(view.world)
            view.local_confidence = view.confidence
        return len(keyframes)

    def begin_between(self, keyframes: Sequence[int], others: Sequence[int]) -> None:
        """Register the frames between the first keyframes, and bring the keyframes' confidences to their level."""
        for number in others:
            self.register([number], keyframes)
        if not others:
            return
        highest = [max(float(self.views[i].mean) for i in numbers) for numbers in (others, keyframes)]
        factor = highest[0] / highest[1]
        for number in keyframes:
            view = self.views[number]
            view.confidence = view.local_confidence = view.confidence * factor
            view.mean = view.confidence.mean()

    def forget(self, keep: Callable[[int], bool]) -> None:
        """Drop the frames that are not to be kept."""
        self.views = {number: view for number, view in self.views.items() if keep(number)}


def join(maps: tuple[Maps, Maps], reference: int) -> Maps:
    """Put the maps of a reference (1, ...) and of its sources (V - 1, ...) in the order of the window, (V, ...)."""
    return Maps(*(torch.cat([other[:reference], own, other[reference:]]) for own, other in zip(*maps)))
