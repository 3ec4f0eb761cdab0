# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks of SLAM3R's inference work on: the online step, plain and as the engine does it; large maps.

All weights and tokens are random.  The same frames are neighbours and scene frames, as right after the start.
"""

import argparse
import copy
import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from slam3r_ros.bench.savings import Step
from slam3r_ros.engines.slam3r.cameras import Cameras, Pointmaps
from slam3r_ros.engines.slam3r.config import OFFICIAL, SIDE, NetworkConfig
from slam3r_ros.engines.slam3r.cuda_graphs import OFTEN
from slam3r_ros.engines.slam3r.networks import Maps
from slam3r_ros.engines.slam3r.online import OnlinePipeline
from slam3r_ros.engines.slam3r.pointmaps import normalise
from slam3r_ros.engines.slam3r.precision import PackedLinear, available, convert
from slam3r_ros.engines.slam3r.scene import Scene, View
from slam3r_ros.engines.slam3r.settings import Settings

SIZES = {'full': OFFICIAL, 'small': NetworkConfig(256, 6, 4, 192, 4, 3)}  # heads as wide, a fortieth of the work
SCENE_FRAMES = Settings.scene_frames
MIN_CONFIDENCE = Settings.min_confidence
_POOL = 16  # random frames that stand for many


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare where and how the networks compute, and their size."""
    parser.add_argument('--device', default='auto', choices=('auto', 'cpu', 'cuda'), help='(default: auto)')
    parser.add_argument('--precisions', nargs='+', metavar='NAME', help='(default: those that the device computes in)')
    parser.add_argument('--size', choices=SIZES, help='of random networks (default: full on a GPU, small on a CPU)')


def chosen(arguments: argparse.Namespace) -> tuple[str, Sequence[str], str]:
    """Return device, precisions and size, as asked for or as the machine suggests."""
    device = arguments.device
    if device == 'auto':
        device = 'cuda' if torch.cuda.is_available() else 'cpu'
    precisions = arguments.precisions or available(torch.device(device))
    return device, precisions, arguments.size or ('full' if device == 'cuda' else 'small')


def converted(networks: Sequence[nn.Module], precision: str, as_on: str | None = None) -> list[nn.Module]:
    """Return copies of networks, on the same device, that compute in a precision; `as_on`: see `convert`."""
    device = networks[0].dec_norm.weight.device
    return [convert(copy.deepcopy(network).cpu(), precision, device, as_on) for network in networks]


def in_precision(step: Step, precision: str) -> Step:
    """Return a step with such copies."""
    image2points, local2world = converted([step.image2points, step.local2world], precision)
    return replace(step, image2points=image2points, local2world=local2world)


@contextmanager
def tensor_float32(device: str) -> Iterator[None]:
    """Let float32 matrix products run as TF32, as the official code does; a CPU has none."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision('high' if device != 'cpu' else before)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def synchronise(device: str) -> None:
    """Wait until the device has done what it was told."""
    if device != 'cpu':
        torch.cuda.synchronize()


def in_turn(
    device: str, functions: Sequence[Callable[[], object]], repeats: int, warm_up: int | None = None
) -> np.ndarray:
    """Return the milliseconds (repeats, F) of functions that take turns, so that a drifting machine slows all alike."""
    if warm_up is None:
        warm_up = 1 if device == 'cpu' else OFTEN + 2  # until it is recorded
    seconds = np.empty((repeats + warm_up, len(functions)))
    for row in seconds:
        for i, function in enumerate(functions):
            synchronise(device)
            start = time.perf_counter()
            function()
            synchronise(device)
            row[i] = time.perf_counter() - start
    return 1e3 * seconds[warm_up:]


def peak(device: str, precision: str, seconds: float = 1.0) -> float:
    """Return the GFLOP/s of a large matrix product, the fastest within some seconds of each way there is to do it."""
    size = 2048 if device == 'cpu' else 8192
    if precision == 'int8':
        a, b = (torch.randint(-99, 99, (size, size), dtype=torch.int8, device=device) for _ in range(2))
        ways = [lambda: torch._int_mm(a, b)]
    else:
        dtype = getattr(torch, precision)
        a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        ways = [lambda: torch.mm(a, b)]
        if device == 'cpu' and torch.backends.mkldnn.is_available():  # oneDNN beside the BLAS that torch takes
            packed = PackedLinear(nn.Linear(size, size), dtype)
            ways.append(lambda: packed(a))
    fastest, end = np.inf, time.monotonic() + seconds * len(ways)
    while time.monotonic() < end:
        fastest = min(fastest, in_turn(device, ways, 1).min())
    return 2e-6 * size**3 / fastest


def operations(config: NetworkConfig, windows: Sequence[int], side: int = SIDE) -> dict[str, float]:
    """Count what the stages of a step ask for, in GFLOP, without what nobody reads; nothing is computed."""
    step = Step.make(config, max(*windows, SCENE_FRAMES + 1) - 1, Settings.buffer_size, side, 'meta')
    first, second, size = step.image2points, step.local2world, step.image.shape[-2:]
    frame, known = step.candidates[:1], step.points[:SCENE_FRAMES]
    tokens = step.references[:SCENE_FRAMES]
    candidates = first.prepare(step.candidates, *size)
    parts: dict[str, Callable] = {
        'encode': lambda: first.encode(step.image),
        'retrieve': lambda: (first.prepare(frame, *size), first.correlation(frame, candidates, *size)),
        'register': lambda: second(tokens, frame, known, step.points[:1], wanted='sources'),
    }
    for window in windows:
        parts[f'window {window}'] = lambda n=window - 1: first(frame, step.references[:n], *size, wanted='references')
    counts = {}
    for name, part in parts.items():
        with FlopCounterMode(display=False) as counter, torch.inference_mode():
            part()
        counts[name] = counter.get_total_flops() / 1e9
    return counts


def plain_step(step: Step) -> tuple[Maps, Maps]:
    """Encode, reconstruct and register a frame the straightforward way: every block and head, call by call.

    Returns:
        Maps (1, 1, ...) of the frame in its own frame and in the world.
    """
    frame = step.image2points.encode(step.image)[None]
    tokens, known = step.references[:SCENE_FRAMES], step.points[:SCENE_FRAMES]
    local, _ = step.image2points(frame, tokens, *step.image.shape[-2:])
    (points,) = normalise([local.points[0]], [local.confidence[0] > MIN_CONFIDENCE])
    _, world = step.local2world(tokens, frame, known, points[None])
    return local, world


class FastStep:
    """The same step and its stages as the engine does them; frame 0 is the new one."""

    def __init__(self, step: Step, cuda_graphs: bool = True, ahead: bool = False) -> None:
        """Take the networks and the random frames of a step.

        Args:
            step: the networks and the frames.
            cuda_graphs: on a GPU, record the calls of the networks.
            ahead: encode each frame beside the work on the one before.
        """
        self.scene = Scene(step.image2points, step.local2world, MIN_CONFIDENCE, cuda_graphs=cuda_graphs)
        self._ahead, self._coming = ahead, None
        self.scene.size = tuple(step.image.shape[-2:])
        self._image = step.image.cpu()
        tokens = torch.cat([step.references, step.candidates])[:, 0]
        self.scene.add(tokens, 1)
        for number, points in enumerate(step.points, 1):
            view = self.scene.views[number]
            view.world, view.confidence = points[0], torch.full_like(points[0, ..., 0], 2.0)
        self._candidates = list(range(len(step.references) + 1, len(tokens) + 1))
        self.encode()
        self.locate()

    def encode(self) -> None:
        """Encode the new frame."""
        self.scene.encode(self._image, 0)

    def retrieve(self) -> None:
        """Choose scene frames for it; one candidate is new."""
        self.scene.prepared.discard(self._candidates[0])
        self.scene.retrieve([0], self._candidates, SCENE_FRAMES)

    def locate(self, window: int = SCENE_FRAMES + 1) -> None:
        """Reconstruct it in a window."""
        self.scene.locate(0, range(1, window))

    def register(self) -> None:
        """Bring it into the world."""
        self.scene.register([0], range(1, SCENE_FRAMES + 1))

    def __call__(self) -> View:
        """Do the step: all but the retrieval."""
        self.scene.encode(self._image, 0, self._coming)
        self.locate()
        self.register()
        self._coming = self.scene.encoded(self._image) if self._ahead else None  # as the engine does with what waits
        return self.scene.views[0]


class RandomScene:
    """Stands in for a scene while a pipeline walks: invents tokens and maps of every frame, and computes nothing."""

    def __init__(self, config: NetworkConfig, side: int, device: str) -> None:
        """Make what it draws from."""
        self.views: dict[int, View] = {}
        tokens = (side // config.patch) ** 2
        with torch.device(device):
            self._pool = [
                (torch.randn(tokens, config.encoder_width), torch.randn(side, side, 3), 1.5 + torch.rand(side, side))
                for _ in range(_POOL)
            ]

    def encode(self, images: Tensor, first: int, encoded: object = None) -> None:
        """Invent a frame, maps and all."""
        tokens, points, confidence = (each.clone() for each in self._pool[first % _POOL])
        self.views[first] = View(tokens, points, confidence, 2.0, points.clone(), confidence.clone(), 2.0)

    def begin(self, keyframes: Sequence[int], shrink: bool) -> int:
        """Take them all."""
        return len(keyframes)

    def retrieve(self, queries: Sequence[int], candidates: Sequence[int], count: int) -> list[int]:
        """Choose the oldest."""
        return list(range(min(count, len(candidates))))

    def locate(self, *_: object) -> None:
        """Know it already."""

    register = begin_between = locate

    def forget(self, keep: Callable[[int], bool]) -> None:
        """Drop the frames that are not to be kept."""
        self.views = {number: view for number, view in self.views.items() if keep(number)}


class Walk:
    """An online pipeline that has seen so many keyframes, every frame being one, and takes the next ones for real."""

    def __init__(self, step: Step, keyframes: int) -> None:
        """Walk with the networks of a step."""
        side = step.image.shape[-1]
        device = step.image.device
        random = RandomScene(step.image2points.config, side, device)
        self.pipeline = OnlinePipeline(random, Settings(stride=1))
        self._image = step.image[0].cpu()
        for _ in range(keyframes):
            self.pipeline.process(self._image)
        self.pipeline.scene = Scene(step.image2points, step.local2world, MIN_CONFIDENCE)
        self.pipeline.scene.size = tuple(step.image.shape[-2:])
        self.pipeline.scene.views = random.views

    def __call__(self) -> None:
        """Take a frame."""
        self.pipeline.process(self._image)


def point_error(found: Tensor, expected: Tensor) -> float:
    """Return the mean distance of points (..., 3) from where they should be, relative to that from the origin.

    It is infinite where a point is not finite, as float16 may make it.
    """
    found, expected = found.double(), expected.double()
    errors = (found - expected).norm(dim=-1) / (expected.norm(dim=-1) + 1e-2)
    return float(errors.mean().nan_to_num(nan=torch.inf, posinf=torch.inf))


def wavy_wall(side: int = SIDE) -> Tensor:
    """Return what a camera sees of a wavy wall, (side, side, 3), about 1 away."""
    v, u = np.mgrid[:side, :side]
    depth = 1 + 0.3 * np.sin(u / 40) + 0.2 * np.cos(v / 31)
    wall = np.stack([(u - side / 2) / 200, (v - side / 2) / 200, np.ones_like(depth)], -1) * depth[..., None]
    return torch.from_numpy(wall).float()


def pose_of_a_wall(side: int = SIDE) -> Callable[[], object]:
    """Return what finds the camera of a registered view, out of the device and all: of a wavy wall."""
    local = wavy_wall(side)
    confidence = 2 + torch.rand(side, side)
    view = View(torch.empty(0), local, confidence, 2.0, 0.7 * local + torch.tensor([1.0, 2.0, 3.0]), confidence, 2.0)
    cameras = Cameras(side)
    cameras.learn(Pointmaps.of(view))
    return lambda: cameras.locate(Pointmaps.of(view), None)


def held_bytes(device: str) -> int:
    """Return the memory of all tensors; on a GPU, of whatever torch has allocated there."""
    gc.collect()
    if device != 'cpu':
        return torch.cuda.memory_allocated()
    tensors = (each for each in gc.get_objects() if issubclass(type(each), Tensor))
    storages = (each.untyped_storage() for each in tensors if not each.is_mkldnn and each.device.type == 'cpu')
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
