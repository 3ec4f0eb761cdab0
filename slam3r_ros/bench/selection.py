# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`slam3r bench selection`: the advised strides in corridors, rooms and fast motion, and the blurred frames caught.

Strides must be wider down a corridor than in a room, and there wider than when the camera moves three times as fast.
Beside each median stride stands what it means where true depth is known: the share of a frame's points that the frame
so many before it had in its image too, and the median angle between both cameras' rays to the same point.  `others` are
frames that nobody smeared, but that were rejected too: quick turns of the camera.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np

from slam3r_ros.evaluation.groundtruth import load
from slam3r_ros.mapping.frames import invert, rigid, transform
from slam3r_ros.mapping.selection import FrameSelector
from slam3r_ros.values import Frame, Intrinsics
from slam3r_ros.video import textures
from slam3r_ros.video.raycast import Rectangle, Scene
from slam3r_ros.video.source import open_source

BLUR_EVERY = 25  # frames
BLUR = 0.03  # of the image's width
FOUND = 0.95  # share of the blurred frames that must be caught
FAST = 3  # times the clip's own speed
PACE, FPS = 1.4, 30  # metres a second, down the corridor; frames a second


@dataclass(frozen=True)
class Clip:
    """A video of a known kind, and what is known of it."""

    name: str
    kind: str  # corridor, room or fast
    frames: Callable[[], Iterator[Frame]]
    poses: list[np.ndarray]  # T_world_camera (4, 4) of each frame
    camera: Intrinsics
    depth: Callable[[int], np.ndarray | None]  # (H, W) metres of a frame, 0 where unknown; None where there is none

    def faster(self, times: int) -> 'Clip':
        """Return the clip with so many times fewer frames."""

        def frames() -> Iterator[Frame]:
            return (replace(each, id=each.id // times) for each in self.frames() if each.id % times == 0)

        def depth(number: int) -> np.ndarray | None:
            return self.depth(number * times)

        return Clip(f'{self.name} x{times}', 'fast', frames, self.poses[::times], self.camera, depth)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument('--data', type=Path, help='folder with kitti_vo_1 and 7scenes_redkitchen_a, to see them too')


def main(arguments: argparse.Namespace) -> int:
    """Print the table; return 1 where a figure misses its limit."""
    from slam3r_ros.graph import bundled_clip

    rooms = [recorded('room', 'room', bundled_clip(), 'groundtruth.tum', 'depth')]
    corridors = [corridor()]
    if arguments.data:
        kitchen = arguments.data / '7scenes_redkitchen_a'
        rooms.append(recorded('kitchen', 'room', kitchen, 'groundtruth_rgb.txt', 'depth_rgb'))
        corridors.append(recorded('street', 'corridor', arguments.data / 'kitti_vo_1', 'groundtruth.txt'))
    medians: dict[str, list[float]] = {'corridor': [], 'room': [], 'fast': []}
    found = given = 0
    print('clip        kind      frames  m/frame  deg/frame  stride  overlap  parallax  dropped  blur caught  others')
    for clip in corridors + rooms + [each.faster(FAST) for each in rooms]:
        metres, degrees = speed(clip.poses)
        stride, dropped = median_stride(clip)
        overlap, parallax = views_apart(clip, round(stride))
        caught, blurred, others = blur_found(clip)
        medians[clip.kind].append(stride)
        found, given = found + caught, given + blurred
        print(
            f'{clip.name:<11} {clip.kind:<9} {len(clip.poses):6d}  {metres:7.3f}  {degrees:9.2f}  {stride:6.1f}'
            f'  {overlap:7.2f}  {parallax:7.1f}°  {dropped:7d}  {caught:7d} of {blurred:<3}  {others:6d}'
        )
    ordered = min(medians['corridor']) > max(medians['room']) and min(medians['room']) > max(medians['fast'])
    print(f'corridors wider than rooms, rooms wider than fast motion: {"yes" if ordered else "NO"}')
    print(f'blurred frames caught: {found} of {given}, of which {FOUND:.0%} must be')
    return int(not ordered or found < FOUND * given)


def median_stride(clip: Clip) -> tuple[float, int]:
    """Return the median of the advised strides, motion alone counting, and how many frames were dropped."""
    selector = FrameSelector()
    passed = [selected for frame in clip.frames() if (selected := selector.select(frame))]
    return float(np.median([each.stride for each in passed])), selector.blurred


def blur_found(clip: Clip) -> tuple[int, int, int]:
    """Smear a frame now and then along its rows, as a quick turn does, and ask for a keyframe at every frame.

    Returns:
        How many smeared frames were dropped or no candidates, how many there were, and how many others shared that
        fate.
    """
    selector, caught, smeared, others = FrameSelector(stride=1), 0, 0, 0
    for frame in clip.frames():
        smear = frame.id % BLUR_EVERY == 0 and frame.id > 0
        if smear:
            frame = replace(frame, image=cv2.blur(frame.image, (round(BLUR * frame.image.shape[1]), 1)))
        selected = selector.select(frame)
        rejected = selected is None or not selected.candidate
        smeared, caught, others = smeared + smear, caught + (smear and rejected), others + (rejected and not smear)
    return caught, smeared, others


def speed(poses: list[np.ndarray]) -> tuple[float, float]:
    """Return the median metres and degrees a frame."""
    steps = [invert(a) @ b for a, b in pairwise(poses)]
    angles = [np.linalg.norm(cv2.Rodrigues(step[:3, :3])[0]) for step in steps]
    return float(np.median([np.linalg.norm(step[:3, 3]) for step in steps])), float(np.degrees(np.median(angles)))


def views_apart(clip: Clip, stride: int) -> tuple[float, float]:
    """Return the overlap and the parallax (degrees) of frames `stride` apart, medians; NaN without true depth."""
    overlaps, parallaxes = [], []
    for number in range(stride, len(clip.poses)):
        depth = clip.depth(number)
        if depth is None:
            continue
        height, width = depth.shape
        shrunk = clip.camera.scaled(width / (2 * clip.camera.cx + 1), height / (2 * clip.camera.cy + 1))
        v, u = np.nonzero(depth)
        rays = np.column_stack([(u - shrunk.cx) / shrunk.fx, (v - shrunk.cy) / shrunk.fy, np.ones(len(u))])
        T_before_now = invert(clip.poses[number - stride]) @ clip.poses[number]
        points = transform(T_before_now, rays * depth[v, u, None])
        x, y = (points @ shrunk.matrix().T)[:, :2].T / np.maximum(points[:, 2], 1e-6)
        seen = (points[:, 2] > 0) & (np.abs(x - shrunk.cx) <= width / 2) & (np.abs(y - shrunk.cy) <= height / 2)
        turned = rays @ T_before_now[:3, :3].T
        cosine = (turned * points).sum(1) / (np.linalg.norm(turned, axis=1) * np.linalg.norm(points, axis=1))
        overlaps.append(seen.mean())
        if seen.any():
            parallaxes.append(np.degrees(np.median(np.arccos(np.clip(cosine[seen], -1, 1)))))
    return tuple(float(np.median(each)) if each else np.nan for each in (overlaps, parallaxes))


def recorded(name: str, kind: str, folder: Path, trajectory: str, depth: str = '') -> Clip:
    """Return a clip from a folder with video.mp4, intrinsics.json, its trajectory and, if named, depth images."""
    poses, camera, images = load(folder / trajectory, folder / 'intrinsics.json', folder / depth if depth else None)

    def frames() -> Iterator[Frame]:
        source = open_source(str(folder / 'video.mp4'))
        yield from source
        source.close()

    def depth_of(number: int) -> np.ndarray | None:
        return images.load(number) if images and number % camera.depth_every == 0 else None

    return Clip(name, kind, frames, [pose.T_map_camera for pose in poses], camera.intrinsics, depth_of)


def corridor(frames: int = 150) -> Clip:
    """Walk down a corridor 2 m wide and 20 m long, the camera swaying with the steps."""
    rng, length, width, height = np.random.default_rng(0), 20.0, 2.0, 2.5
    camera = Intrinsics(260.0, 260.0, 159.5, 119.5)
    wood, plaster = partial(textures.planks, rng), partial(textures.plaster, rng, color=(0.74, 0.66, 0.50))
    sides = (
        ((0, 0, 0), (length, 0, 0), (0, width, 0), wood),
        ((0, width, height), (length, 0, 0), (0, -width, 0), plaster),
        ((length, 0, 0), (-length, 0, 0), (0, 0, height), partial(textures.wallpaper, rng)),
        ((0, width, 0), (length, 0, 0), (0, 0, height), partial(textures.bricks, rng)),
        ((length, width, 0), (0, -width, 0), (0, 0, height), partial(textures.poster, rng)),
    )
    scene = Scene([[_painted(*side) for side in sides]], [], ambient=1.0)
    forward = np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])  # looks along x
    poses = []
    for t in np.arange(frames) / FPS:
        sway = np.array([0.003 * np.sin(12 * t), 0.008 * np.sin(6 * t), 0.0])  # radians
        position = np.array([1 + PACE * t, 1 + 0.02 * np.sin(6 * t), 1.5 + 0.02 * np.sin(12 * t)])
        poses.append(rigid(forward @ cv2.Rodrigues(sway)[0], position))

    def look() -> Iterator[Frame]:
        for number, T in enumerate(poses):
            light = scene.render(T, camera, 320, 240).clip(0, 1)
            yield Frame(number, 0, (255 * light ** (1 / 2.2)).astype(np.uint8), camera)

    small = camera.scaled(0.25, 0.25)
    return Clip('corridor', 'corridor', look, poses, camera, lambda number: scene.depth(poses[number], small, 80, 60))


def _painted(corner: tuple, across: tuple, up: tuple, paint: Callable[..., np.ndarray]) -> Rectangle:
    edges = np.array(across, float), np.array(up, float)
    return Rectangle(np.array(corner, float), *edges, paint(shape=textures.size(*np.linalg.norm(edges, axis=1))))
