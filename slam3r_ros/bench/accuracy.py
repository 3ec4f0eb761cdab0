# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`slam3r bench accuracy`: what reduced precision does to points and poses.

First at the official size, on the images and weights of the golden vectors; then over a video, with such weights too,
where each step sees what the steps before it have made.  The error of a point is relative to its distance, the mean
over a map.  The error of a pose is the motion that brings a map onto that of float32: its angle, and its shift relative
to the mean distance of the points.  The weights are random: those give no pose to compare.
"""

import argparse
import json
from collections.abc import Iterable, Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from slam3r_ros.bench import golden, workload
from slam3r_ros.bench.mesher import Figure
from slam3r_ros.bench.workload import MIN_CONFIDENCE, SIZES, converted, point_error
from slam3r_ros.engines.slam3r.checkpoints import NETWORKS
from slam3r_ros.engines.slam3r.config import OFFICIAL, SIDE, NetworkConfig
from slam3r_ros.engines.slam3r.online import OnlinePipeline
from slam3r_ros.engines.slam3r.precision import choose
from slam3r_ros.engines.slam3r.preprocess import square, to_tensor
from slam3r_ros.engines.slam3r.scene import Scene
from slam3r_ros.engines.slam3r.settings import Settings
from slam3r_ros.engines.slam3r.weights import I2P, L2W
from slam3r_ros.mapping.registration import RegistrationError, similarity

THIN = 4  # every so many rows and columns of a map of the video are compared
MAX_ERROR = 0.01  # of a point, mean over a map


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
            f'{self.what:<36}{self.precision:<10}{self.point:>12.2e}{self.worst:>12.2e}'
            f'{self.angle:>13.2e}{self.shift:>12.2e}'
        )


HEAD = f'{"maps":<36}{"precision":<10}{"point error":>12}{"worst view":>12}{"angle [deg]":>13}{"shift":>12}'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    workload.add_arguments(parser)
    parser.add_argument('--frames', type=int, default=200, help='of the bundled clip, or of a pan (default: 200)')
    parser.add_argument('--json', type=Path, help='file to write the figures to')


@torch.inference_mode()
def main(arguments: argparse.Namespace) -> int:
    """Measure, print the table as it comes; return 1 where a limit is missed."""
    device, chosen, size = workload.chosen(arguments)
    print(HEAD)
    rows = []
    for part in (on_vectors(device, chosen), on_video(device, SIZES[size], chosen, video(arguments.frames))):
        for row in part:
            print(row, flush=True)
            rows.append(row)
    figures = judge(rows, choose('auto', torch.device(device)))
    print()
    for figure in figures:
        print(figure)
    if arguments.json:
        content = {'rows': [row._asdict() for row in rows]}
        content['figures'] = [figure._asdict() | {'missed': figure.missed} for figure in figures]
        arguments.json.write_text(json.dumps(content, indent=2) + '\n')
    return int(any(figure.missed for figure in figures))


def judge(rows: list[Row], default: str) -> list[Figure]:
    """Return the limits: of the default precision, and of int8, on the golden vectors."""
    judged = [row for row in rows if row.what.startswith('golden') and row.precision in (default, 'int8')]
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


def on_vectors(device: str, chosen: list[str], config: NetworkConfig = OFFICIAL) -> Iterator[Row]:
    """Yield the errors on the golden vectors: of a window by the official one, of a registration by float32."""
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
        scene = Scene(*converted(networks, precision), MIN_CONFIDENCE)
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


def on_video(
    device: str,
    config: NetworkConfig,
    chosen: list[str],
    images: list[np.ndarray],
    settings: Settings = Settings(),  # noqa: B008 - frozen
) -> Iterator[Row]:
    """Yield the errors over a video, of the maps in the world: each precision goes its own way from the start."""
    networks = make_networks(config, device, ('video-i2p', 'video-l2w'))
    exact: list[Tensor] = []
    for precision in dict.fromkeys(['float32', *chosen]):
        pipeline = OnlinePipeline(Scene(*converted(networks, precision), MIN_CONFIDENCE), settings)
        worlds = {}
        for image in images:
            for number, view in pipeline.process(to_tensor(image)):
                worlds[number] = view.world[::THIN, ::THIN].cpu()
        found = [worlds[number] for number in sorted(worlds)]
        if not found:
            raise SystemExit(f'{len(images)} frames do not make a beginning: give more --frames')
        exact = exact or found
        if precision in chosen:
            yield compare(f'{len(found)} frames, to float32', precision, zip(found, exact))


def compare(what: str, precision: str, pairs: Iterable[tuple[Tensor, Tensor]]) -> Row:
    """Compare maps (H, W, 3) with what they should be."""
    errors = np.array([(point_error(*pair), *pose_error(*pair)) for pair in pairs])
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
