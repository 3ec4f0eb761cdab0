# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`slam3r bench memory`: what SLAM3R takes of a GPU, counted without one.

The engine's pipeline runs on torch's device `meta`, where tensors have shapes and no values, with the scene buffer
full, while the bytes of all tensors that live there are counted, in the allocator's steps of 512; what it keeps in
reserve is not.  Attention counts as its fused kernels do it: the result and a number per query, never the scores.
What CUDA graphs keep is counted by recording them in name only.  CUDA itself and cuBLAS take some more.
"""

import argparse
import json
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from slam3r_ros.bench.inference import MAX_VRAM
from slam3r_ros.bench.mesher import Figure
from slam3r_ros.bench.savings import Step
from slam3r_ros.bench.workload import SIZES, Walk
from slam3r_ros.engines.slam3r import cuda_graphs
from slam3r_ros.engines.slam3r.config import SIDE, NetworkConfig
from slam3r_ros.engines.slam3r.precision import convert
from slam3r_ros.engines.slam3r.scene import Scene
from slam3r_ros.engines.slam3r.settings import Settings

PRECISIONS = ('float16', 'bfloat16', 'float32')  # of GPUs, the default first
KEYFRAMES = Settings.buffer_size + 20  # to walk: the scene buffer is full by then
_ROUND = 512  # bytes: torch's allocator takes multiples of it
_ANY = 1e-3  # the value that is read where there is none; what it leads to has the same shape
_aten = torch.ops.aten


class LiveBytes(TorchDispatchMode):
    """Counts the tensors on `meta` that are made while it is entered, for as long as they live.

    Attributes:
        held: bytes of those that live now.
        most: bytes of those that lived at once, since `begin`.
    """

    def __init__(self) -> None:
        """Count nothing yet."""
        super().__init__()
        self.held = self.most = 0
        self._storages: dict[int, weakref.ref] = {}

    def begin(self) -> int:
        """Forget the most that was held before; return what is held now."""
        self.most = self.held
        return self.held

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Do an operation and count what it makes; one that consists of others is taken apart."""
        kwargs = kwargs or {}
        first = args[0] if args and isinstance(args[0], Tensor) else None
        if first is not None and first.is_meta and (stand_in := _STAND_INS.get(function)):
            with self:
                found = stand_in(*args, **kwargs)
            if found is not NotImplemented:
                return found
        with self:
            result = function.decompose(*args, **kwargs)
        if result is NotImplemented:
            result = function(*args, **kwargs)
            tree_map_only(Tensor, self._note, result)
        return result

    def _note(self, tensor: Tensor) -> None:
        if not tensor.is_meta:
            return
        storage = tensor.untyped_storage()
        key, size = storage._cdata, -(-storage.nbytes() // _ROUND) * _ROUND
        if key in self._storages:
            return

        def forget(_: weakref.ref) -> None:
            del self._storages[key]
            self.held -= size

        self._storages[key] = weakref.ref(storage, forget)
        self.held += size
        self.most = max(self.most, self.held)


def _attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Take what FlashAttention takes for queries (..., Q, width): the result, and a float32 for each query."""
    result = queries.new_empty((*queries.shape[:-1], values.shape[-1]))
    queries.new_empty(queries.shape[:-1], dtype=torch.float32)
    return result


def _copy(tensor: Tensor, **kwargs: Any) -> Tensor:
    """Bring a tensor without values to the CPU as zeros."""
    if (kwargs.get('device') or tensor.device).type != 'cpu':
        return NotImplemented
    return torch.zeros(tensor.shape, dtype=kwargs.get('dtype') or tensor.dtype)


_STAND_INS: dict[Any, Callable] = {  # for what `meta` cannot do, or does in another way than a GPU
    _aten.scaled_dot_product_attention.default: _attend,
    _aten._local_scalar_dense.default: lambda tensor: _ANY,
    _aten._to_copy.default: _copy,
}


class Memory(NamedTuple):
    """Bytes on the GPU, with a full scene buffer."""

    precision: str
    weights: int
    map: int  # the frames' tokens and pointmaps, and what retrieval keeps of each candidate
    workspace: int  # the most that a frame takes beside that
    graphs: int  # CUDA graphs: their inputs, results and own workspace

    @property
    def whole(self) -> int:
        """All of it."""
        return sum(self[1:])

    def __str__(self) -> str:
        """Return a line of the table, in GB."""
        return f'{self.precision:<10}' + ''.join(f'{part / 1e9:>11.2f}' for part in (*self[1:], self.whole))


HEAD = f'{"GB":<10}{"weights":>11}{"map":>11}{"workspace":>11}{"graphs":>11}{"together":>11}'


def count(config: NetworkConfig, precision: str, side: int = SIDE) -> Memory:
    """Count what the engine takes in a precision; a frame retrieves its scene frames from a full buffer.

    Args:
        config: of the networks.
        precision: of the networks, not 'auto'.
        side: of the images, pixels.
    """
    with LiveBytes() as live, torch.inference_mode():
        step = Step.make(config, 1, 1, side, 'meta')
        networks = [convert(network, precision, step.image.device) for network in (step.image2points, step.local2world)]
        step = replace(step, image2points=networks[0], local2world=networks[1])
        weights = sum(each.untyped_storage().nbytes() for network in networks for each in network.parameters())
        before = live.begin()
        walk = Walk(step, KEYFRAMES)
        walk()  # prepares all candidates
        held = live.begin()
        walk()
        workspace = live.most - held
        return Memory(precision, weights, held - before, workspace, record(walk.pipeline.scene, live))


def record(scene: Scene, live: LiveBytes) -> int:
    """Count what CUDA graphs keep of a frame's work, by as many references as there may be."""
    held, pools = live.begin(), {}

    def stand_in(graphs: cuda_graphs.CudaGraphs, call: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
        live.begin()
        result = call()
        pools[graphs] = max(pools.get(graphs, 0), live.most - live.held)
        return result, lambda: None

    (*_, new), scene_frames = scene.views, Settings.scene_frames
    with patch.object(cuda_graphs, 'OFTEN', 1), patch.object(cuda_graphs.CudaGraphs, 'record', stand_in):
        scene._encoding.enabled = scene._decoding.enabled = True
        scene.encoded(torch.zeros(1, 3, *scene.size))
        for count in range(scene_frames, scene_frames + Settings.radius + 1):  # retrieved ones may be neighbours
            references = list(scene.views)[:count]
            scene.locate(new, references)
            scene.register([new], references)
    return live.begin() - held + sum(pools.values())


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument('--precisions', nargs='+', default=PRECISIONS, choices=PRECISIONS, metavar='NAME',
                        help=f'of the networks (default: {" ".join(PRECISIONS)})')  # fmt: skip
    parser.add_argument('--size', choices=SIZES, default='full', help='of the networks (default: full)')
    parser.add_argument('--json', type=Path, help='file to write the figures to')


def main(arguments: argparse.Namespace) -> int:
    """Count, print the table; return 1 where the default precision takes too much."""
    print(HEAD)
    rows = []
    for precision in arguments.precisions:
        rows.append(count(SIZES[arguments.size], precision))
        print(rows[-1], flush=True)
    figures = [Figure(f'{row.precision}, the default: memory on the GPU', row.whole / 1e9, 'GB', MAX_VRAM)
               for row in rows if row.precision == PRECISIONS[0]]  # fmt: skip
    print(*figures, sep='\n')
    if arguments.json:
        facts = {'size': arguments.size, 'rows': [row._asdict() | {'whole': row.whole} for row in rows]}
        facts['figures'] = [figure._asdict() | {'missed': figure.missed} for figure in figures]
        arguments.json.write_text(json.dumps(facts, indent=2) + '\n')
    return int(any(figure.missed for figure in figures))
