# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`slam3r bench accuracy`: what reduced precision does to points and poses.

First at the official size, on the images and weights of the golden vectors; then over a video, with such weights too,
where each step sees what the steps before it have made.  The error of a point is relative to its distance, the mean
over a map.  The error of a pose is the motion that brings a map onto that of float32: its angle, and its shift relative
to the mean distance of the points.  The weights are random: those give no pose to compare.

A video is run twice in each precision.  *On its own*, a score or a confidence that comes out a little different makes
another choice: another scene frame, or a point more or less, as those below the least confidence are left out.  *With
the choices of float32*, confidences and retrieved frames are those of float32, and the rounding of the points remains.

Half precision on a GPU is measured without one, on the CPU, by `--as-on-gpu`: the same layers round the same numbers
and add up in float32.  Only the attention's scores are rounded too in bfloat16, which a GPU does not do.
"""

import argparse
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from slam3r_ros.bench import golden, workload
from slam3r_ros.bench.mesher import Figure
from slam3r_ros.bench.witness import Witness
from slam3r_ros.bench.workload import MIN_CONFIDENCE, SIZES, converted, point_error
from slam3r_ros.engines.slam3r.checkpoints import NETWORKS
from slam3r_ros.engines.slam3r.config import OFFICIAL, SIDE, NetworkConfig
from slam3r_ros.engines.slam3r.online import OnlinePipeline
from slam3r_ros.engines.slam3r.precision import CastLinear, PackedLinear, choose
from slam3r_ros.engines.slam3r.preprocess import square, to_tensor
from slam3r_ros.engines.slam3r.scene import Scene
from slam3r_ros.engines.slam3r.settings import Settings
from slam3r_ros.engines.slam3r.weights import I2P, L2W
from slam3r_ros.mapping.registration import RegistrationError, similarity

THIN = 4  # every so many rows and columns of a map of the video are compared
MAX_ERROR = 0.01  # of a point, mean over a map
AS_ON_GPU = ' (GPU)'  # after the name of a precision
HALF = {precision + AS_ON_GPU: getattr(torch, precision) for precision in ('float16', 'bfloat16')}


class Row(NamedTuple):
    """What a precision does to the maps of some views."""

    what: str
    precision: str
    point: float  # mean relative error, median of the views
    worst: float  # the same of the worst view
    angle: float  # degrees, median of the views
    shift: float  # of the mean distance, median of the views

    def __str__(self) -> str:
        """Return a line of the table."""
        return (
            f'{self.what:<36}{self.precision:<15}{self.point:>12.2e}{self.worst:>12.2e}'
            f'{self.angle:>13.2e}{self.shift:>12.2e}'
        )


HEAD = f'{"maps":<36}{"precision":<15}{"point error":>12}{"worst view":>12}{"angle [deg]":>13}{"shift":>12}'

_CHOICES = "float32's choices"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    workload.add_arguments(parser)
    parser.add_argument('--frames', type=int, default=200, help='of the bundled clip, or of a pan (default: 200)')
    parser.add_argument('--as-on-gpu', action='store_true', help='also, on a CPU, what a GPU rounds in half precision')
    parser.add_argument('--json', type=Path, help='file to write the figures to')


@torch.inference_mode()
def main(arguments: argparse.Namespace) -> int:
    """Measure, print the table as it comes; return 1 where a limit is missed."""
    device, chosen, size = workload.chosen(arguments)
    defaults = [choose('auto', torch.device(device))]
    if arguments.as_on_gpu and device == 'cpu':
        chosen = [*chosen, *HALF]
        defaults.append(choose('auto', torch.device('cuda')) + AS_ON_GPU)
    print(HEAD)
    rows, figures = [], []
    for part in (on_vectors(device, chosen), on_video(device, SIZES[size], chosen, video(arguments.frames))):
        for result in part:
            if isinstance(result, Row):
                print(result, flush=True)
            (rows if isinstance(result, Row) else figures).append(result)
    figures = judge(rows, defaults) + figures
    print()
    for figure in figures:
        print(figure)
    if arguments.json:
        content = {'rows': [row._asdict() for row in rows]}
        content['figures'] = [figure._asdict() | {'missed': figure.missed} for figure in figures]
        arguments.json.write_text(json.dumps(content, indent=2) + '\n')
    return int(not figures or any(figure.missed for figure in figures))


def judge(rows: list[Row], defaults: Sequence[str]) -> list[Figure]:
    """Return the limits: of the default precisions, and of int8 on the golden vectors; a run on its own has none."""
    judged = [
        row
        for row in rows
        if (row.what.startswith('golden') and row.precision in (*defaults, 'int8'))
        or (row.what.endswith(_CHOICES) and row.precision in defaults)
    ]
    return [Figure(f'{row.precision}: {row.what}', 100 * row.worst, '%', 100 * MAX_ERROR) for row in judged]


def make_networks(config: NetworkConfig, device: str, salts: tuple[str, str]) -> list[nn.Module]:
    """Make both networks with the weights of the recipe."""
    networks = []
    for kind, salt in zip((I2P, L2W), salts):
        with torch.device('meta'):
            network = NETWORKS[kind](config)
        for key, value in network.state_dict().items():  # one by one: they are large
            weight = torch.from_numpy(golden.generate({key: value.shape}, salt)[key]).to(device)
            network.load_state_dict({key: weight}, strict=False, assign=True)
        networks.append(network.eval().requires_grad_(False))
    return networks


def made(networks: Sequence[nn.Module], precision: str) -> list[nn.Module]:
    """Return copies of networks in a precision, or in one as on a GPU."""
    if precision not in HALF:
        return converted(networks, precision)
    copies = converted(networks, precision.removesuffix(AS_ON_GPU), 'cuda')
    for network in copies:
        for name, module in list(network.named_modules()):
            if isinstance(module, CastLinear):
                parent, _, own = name.rpartition('.')
                setattr(network.get_submodule(parent), own, RoundedLinear(module))
    return copies


class RoundedLinear(nn.Module):
    """A linear layer in half precision as a GPU has it; a CPU's own is up to ten times as slow.

    Products of such numbers are exact in float32, which is what they are added up in.

    Attributes:
        largest: of the numbers that it gave.
    """

    def __init__(self, layer: CastLinear) -> None:
        """Take the rounded weights."""
        super().__init__()
        self.dtype, self.largest = layer.weight.dtype, 0.0
        self.product = layer.float()
        if torch.backends.mkldnn.is_available():
            self.product = PackedLinear(self.product, torch.float32)

    def forward(self, tokens: Tensor) -> Tensor:
        """Turn tokens (..., in) into (..., out) of the weights' type."""
        found = self.product(tokens.to(self.dtype).float()).to(self.dtype)
        self.largest = max(self.largest, float(found.abs().max().nan_to_num(nan=torch.inf, posinf=torch.inf)))
        return found


def on_vectors(device: str, chosen: Sequence[str], config: NetworkConfig = OFFICIAL) -> Iterator[Row | Figure]:
    """Yield the errors on the golden vectors: of a window by the official one, of a registration by float32.

    And the largest number in half precision on the way, beside the largest that there is.
    """
    if not (golden.folder() / 'full_size.npz').exists():
        print(f'no golden vectors in {golden.folder()}: left out; set {golden.VARIABLE} to their folder')
        return
    facts = json.loads((golden.folder() / 'full_size.json').read_text())
    vectors = np.load(golden.folder() / 'full_size.npz')
    images = to_tensor(vectors['img_u8'])
    networks = make_networks(config, device, (facts['salt_i2p'], facts['salt_l2w']))
    reference, known = facts['ref_id'], facts['l2w_ref_ids']
    others = [i for i in range(len(images)) if i != reference]
    new = [i for i in range(len(images)) if i not in known]
    official, exact = torch.from_numpy(vectors[f'i2p_pts3d_s{facts["stride"]}']), None
    for precision in dict.fromkeys(['float32', *chosen]):
        scene = Scene(*made(networks, precision), MIN_CONFIDENCE)
        scene.encode(images, 0)
        sides = scene.reconstruct([[reference, *others]], wanted='both')
        found = torch.cat([maps.points[:, 0] for maps in sides]).cpu()[np.argsort([reference, *others])]
        thinned = found[:, :: facts['stride'], :: facts['stride']]
        for number, view in scene.views.items():
            points = torch.from_numpy(golden.pointmap(number, *images.shape[-2:])).to(device)
            view.world = view.local = points
            view.confidence = view.local_confidence = torch.full_like(points[..., 0], 2 * MIN_CONFIDENCE)
        scene.register(new, known)
        world = torch.stack([scene.views[number].world for number in new]).cpu()
        exact = world if exact is None else exact
        if precision in chosen:
            yield compare('golden window, to the official one', precision, zip(thinned, official))
            yield compare('golden registration, to float32', precision, zip(world, exact))
        if precision in HALF:
            layers = (module for network in scene.networks for module in network.modules())
            largest = max(layer.largest for layer in layers if isinstance(layer, RoundedLinear))
            most = torch.finfo(HALF[precision]).max
            yield Figure(f'{precision}: golden, largest number of a layer', largest, '', most)
        del scene  # a copy of the networks takes 3 GB


def on_video(
    device: str,
    config: NetworkConfig,
    chosen: Sequence[str],
    images: list[np.ndarray],
    settings: Settings = Settings(),  # noqa: B008 - frozen
) -> Iterator[Row]:
    """Yield the errors over a video, of the maps in the world: on its own, and with the choices of float32."""
    networks = make_networks(config, device, ('video-i2p', 'video-l2w'))
    first = Witness(made(networks, 'float32'))
    exact = worlds(first, images, settings)
    if not exact:
        raise SystemExit(f'{len(images)} frames do not make a beginning: give more --frames')
    for precision in (each for each in chosen if each != 'float32'):
        fast = made(networks, precision)
        for way, scene in ('on its own', Witness(fast)), (_CHOICES, Witness(fast, first.notes)):
            found = worlds(scene, images, settings)
            yield compare(f'{len(found)} frames, {way}', precision, zip(found, exact, strict=True))


def worlds(scene: Scene, images: Iterable[np.ndarray], settings: Settings) -> list[Tensor]:
    """Return thinned maps in the world, of every frame of a video."""
    pipeline = OnlinePipeline(scene, settings)
    registered = (each for image in images for each in pipeline.process(to_tensor(image)))
    found = {number: view.world[::THIN, ::THIN].cpu() for number, view in registered}
    return [found[number] for number in sorted(found)]


def compare(what: str, precision: str, pairs: Iterable[tuple[Tensor, Tensor]]) -> Row:
    """Compare maps (H, W, 3) with what they should be, where both have a point; zero is none."""
    errors = []
    for found, expected in pairs:
        both = found.any(dim=-1) & expected.any(dim=-1)
        pair = found[both], expected[both]
        errors.append((point_error(*pair), *pose_error(*pair)))
    errors = np.array(errors)
    point, angle, shift = np.median(errors, axis=0).tolist()
    return Row(what, precision, point, float(errors[:, 0].max()), angle, shift)


def pose_error(found: Tensor, expected: Tensor) -> tuple[float, float]:
    """Return the motion that brings a map onto another: degrees, and the shift relative to the mean distance."""
    found, expected = (points.reshape(-1, 3).double().numpy() for points in (found, expected))
    try:
        motion = similarity(found, expected)
    except RegistrationError:  # not all points are finite
        return np.inf, np.inf
    sine = np.linalg.norm(motion.rotation - motion.rotation.T) / np.sqrt(8)  # exact for small angles too
    angle = np.degrees(np.arctan2(sine, (np.trace(motion.rotation) - 1) / 2))
    return float(angle), float(np.linalg.norm(motion.translation) / np.linalg.norm(expected, axis=1).mean())


def video(frames: int) -> list[np.ndarray]:
    """Return squares (H, W, 3) uint8 of the bundled clip; where it cannot be read, of a pan over a picture."""
    try:
        from slam3r_ros.graph import bundled_clip
        from slam3r_ros.video.source import open_source
    except ImportError:
        random = torch.rand(1, 3, 16, 64, generator=torch.Generator().manual_seed(0))
        picture = nn.functional.interpolate(random, (SIDE, 4 * SIDE), mode='bicubic').clamp(0, 1)[0].movedim(0, -1)
        wide = (255 * picture).byte().numpy()
        return [wide[:, i : i + SIDE] for i in np.linspace(0, 3 * SIDE, frames).astype(int)]
    with closing(open_source(str(bundled_clip() / 'video.mp4'))) as source:
        return [square(frame.image)[0] for frame in islice(source, frames)]
