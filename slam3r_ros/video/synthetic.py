# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Make the demo clip: a walk through a ray-cast room with a hand-held camera, and its exact ground truth.

    python -m slam3r_ros.video.synthetic test/data/room

writes `video.mp4` (H.264), `groundtruth.tum` (camera to world), `intrinsics.json` and `depth/` (16 bit, millimetres,
every tenth frame at a quarter of the resolution).
"""

import argparse
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from functools import partial
from pathlib import Path

import av
import cv2
import numpy as np
from tqdm import tqdm

from slam3r_ros.mapping.frames import rigid
from slam3r_ros.mapping.trajectory import write_tum
from slam3r_ros.values import Intrinsics, Pose
from slam3r_ros.video import textures
from slam3r_ros.video.raycast import Light, Rectangle, Scene

WIDTH, HEIGHT, FPS = 640, 480, 30
CAMERA = Intrinsics(520.0, 520.0, 319.5, 239.5)
DEPTH_EVERY, DEPTH_SHRINK, DEPTH_SCALE = 10, 4, 1000.0
ROOM = (6.0, 5.0, 2.7)  # metres


def make_clip(folder: Path, frames: int = 300, seed: int = 0) -> None:
    """Render the clip and its ground truth into `folder`."""
    scene = room(seed)
    poses = [Pose(i, i * 1_000_000_000 // FPS, T) for i, T in enumerate(trajectory(frames, seed))]
    (folder / 'depth').mkdir(parents=True, exist_ok=True)
    write_tum(folder / 'groundtruth.tum', poses)
    write_intrinsics(folder / 'intrinsics.json', frames)
    for pose in poses[::DEPTH_EVERY]:
        depth = scene.depth(
            pose.T_map_camera,
            CAMERA.scaled(1 / DEPTH_SHRINK, 1 / DEPTH_SHRINK),
            WIDTH // DEPTH_SHRINK,
            HEIGHT // DEPTH_SHRINK,
        )
        millimetres = np.round(depth * DEPTH_SCALE).astype(np.uint16)
        cv2.imwrite(str(folder / 'depth' / f'{pose.id:06d}.png'), millimetres, [cv2.IMWRITE_PNG_COMPRESSION, 9])
    write_video(folder / 'video.mp4', tqdm(render(scene, poses, seed), total=frames, unit='frame'))


def render(scene: Scene, poses: list[Pose], seed: int) -> Iterator[np.ndarray]:
    """Yield what the camera sees at each pose, (H, W, 3) uint8 RGB, with the lens's and the sensor's faults."""
    x, y = np.meshgrid((np.arange(WIDTH) - CAMERA.cx) / CAMERA.fx, (np.arange(HEIGHT) - CAMERA.cy) / CAMERA.fy)
    vignette = (1 / np.sqrt(1 + x**2 + y**2)) ** 1.5  # milder than the cosine to the fourth of a simple lens

    def expose(pose: Pose) -> np.ndarray:
        light = scene.render(pose.T_map_camera, CAMERA, WIDTH, HEIGHT) * vignette[..., None]
        image = 255 * light.clip(0, 1) ** (1 / 2.2)
        noise = np.random.default_rng([seed, pose.id]).standard_normal(image.shape, np.float32)
        return (image + 1.5 * noise).round().clip(0, 255).astype(np.uint8)

    with ThreadPoolExecutor() as pool:
        yield from pool.map(expose, poses)


def trajectory(frames: int, seed: int) -> Iterator[np.ndarray]:
    """Yield T_world_camera (4, 4), metres, world z up: around the room, looking across it, never quite steady."""
    rng = np.random.default_rng([seed, 1])
    # Hand tremor: for each of six degrees of freedom four sines from slow sway to shake.
    rates = 2 * np.pi * rng.uniform((0.5, 1.0, 2.0, 4.0), (0.9, 1.8, 3.5, 6.0), (6, 4))  # rad/s
    phases = rng.uniform(0, 2 * np.pi, (6, 4))
    reach = np.array([0.008, 0.004, 0.0015, 0.0005])  # metres, and radians
    for i in range(frames):
        t = i / FPS
        tremor = (reach * np.sin(rates * t + phases)).sum(axis=1)
        angle = np.radians(-155 + 29 * (t - 0.35 * (1 - np.exp(-t / 0.35))))  # starts gently, then 29 degrees a second
        radius = 1.65 + 0.20 * np.sin(0.9 * t)
        position = np.array([3 + radius * np.cos(angle), 2.5 + radius * np.sin(angle), 1.45 + 0.18 * np.sin(1.1 * t)])
        target = np.array([3 + 0.35 * np.sin(0.8 * t), 2.5 + 0.30 * np.sin(0.6 * t + 1), 0.95 + 0.15 * np.sin(0.7 * t)])
        forward = (target - position) / np.linalg.norm(target - position)
        right = np.cross(forward, [0, 0, 1]) / np.linalg.norm(np.cross(forward, [0, 0, 1]))
        looking = np.column_stack([right, np.cross(forward, right), forward])
        yield rigid(looking @ cv2.Rodrigues(tremor[3:])[0], position + tremor[:3])


def write_video(path: Path, images: Iterator[np.ndarray], crf: int = 21, preset: str = 'slow') -> None:
    """Encode images (H, W, 3) uint8 RGB as H.264."""
    with av.open(str(path), 'w') as container:
        stream = container.add_stream('libx264', rate=FPS, options={'crf': str(crf), 'preset': preset})
        stream.pix_fmt = 'yuv420p'
        for i, image in enumerate(images):
            if i == 0:
                stream.height, stream.width = image.shape[:2]
            frame = av.VideoFrame.from_ndarray(image, format='rgb24')
            frame.pts, frame.time_base = i, Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def write_intrinsics(path: Path, frames: int) -> None:
    """Write what `slam3r evaluate --intrinsics` reads."""
    head = {'dataset': 'slam3r_ros synthetic room', 'license': 'Apache-2.0', 'width': WIDTH, 'height': HEIGHT}
    depth = {'depth_every': DEPTH_EVERY, 'depth_scale': DEPTH_SCALE, 'depth_unit': 'mm, 0 = invalid'}
    content = {**head, 'fps': FPS, 'n_frames': frames, **depth, 'rgb': CAMERA._asdict()}
    path.write_text(json.dumps(content, indent=1) + '\n', encoding='utf-8')


def room(seed: int) -> Scene:
    """Furnish the room."""
    rng = np.random.default_rng([seed, 2])
    brown, dark, white = (0.55, 0.36, 0.20), (0.33, 0.21, 0.14), (0.82, 0.80, 0.76)
    wood, light_wood = partial(textures.wood, rng, color=dark), partial(textures.wood, rng, color=brown)
    plain = partial(textures.plaster, rng, color=white)
    objects = [
        *_shell(rng),
        _box((1.9, 1.6, 0.0), (2.2, 1.8, 0.012), partial(textures.checker, rng)),
        *_table((2.3, 2.05), (1.4, 0.9, 0.74), light_wood),
        _box((2.45, 2.2, 0.74), (0.36, 0.28, 0.22), partial(textures.carton, rng), turn=0.4),
        _box((2.55, 2.3, 0.965), (0.22, 0.16, 0.12), partial(textures.poster, rng), turn=-0.2),
        _box((3.05, 2.15, 0.74), (0.30, 0.22, 0.05), partial(textures.spine, rng), turn=0.9),
        _box((3.07, 2.17, 0.79), (0.26, 0.19, 0.04), partial(textures.spine, rng), turn=0.6),
        _prism((3.42, 2.62, 0.74), 0.09, 0.30, partial(textures.wallpaper, rng)),
        _prism((2.75, 2.75, 0.74), 0.05, 0.11, partial(textures.fabric, rng, color=(0.2, 0.45, 0.6))),
        *_chair((2.55, 1.35), partial(textures.fabric, rng, color=(0.75, 0.3, 0.2)), wood, back=0),
        *_chair((3.10, 3.25), partial(textures.fabric, rng, color=(0.25, 0.5, 0.3)), wood, back=1),
        *_sofa(partial(textures.fabric, rng, color=(0.35, 0.42, 0.62))),
        *_shelf(rng, (0.9, 4.68), 1.7, light_wood),
        *_shelf(rng, (3.3, 4.68), 1.5, wood),
        _box((5.45, 0.5, 0.0), (0.53, 1.5, 0.85), partial(textures.panels, rng, color=brown, rows=3, columns=3)),
        _box((5.55, 0.7, 0.85), (0.28, 0.4, 0.33), partial(textures.carton, rng), turn=0.15),
        _prism((5.7, 1.6, 0.85), 0.12, 0.38, partial(textures.bricks, rng)),
        _box((0.05, 0.1, 0.0), (0.75, 0.6, 0.55), partial(textures.carton, rng), turn=0.05),
        _box((0.12, 0.15, 0.55), (0.55, 0.45, 0.42), partial(textures.carton, rng), turn=-0.12),
        _box((0.95, 0.12, 0.0), (0.5, 0.5, 0.45), partial(textures.carton, rng), turn=0.2),
        _prism((5.55, 4.5, 0.0), 0.17, 0.45, partial(textures.checker, rng)),
        _prism((5.55, 4.5, 0.45), 0.025, 1.0, plain),
        _prism((5.55, 4.5, 1.45), 0.24, 0.35, partial(textures.fabric, rng, color=(0.9, 0.8, 0.5))),
    ]
    lamps = [
        Light(np.array([x, y, 2.65]), np.array([0.9, 0, 0]), np.array([0, 0.5, 0]), np.array(power))
        for x, y, power in ((1.0, 1.1, (1.6, 1.45, 1.2)), (4.1, 3.2, (1.6, 1.45, 1.2)), (2.6, 0.3, (0.5, 0.6, 0.8)))
    ]
    return Scene(objects, lamps)


def _rectangle(corner, across, up, paint, glow=0.0) -> list[Rectangle]:
    """Return an object of one rectangle, painted at its size by `paint(shape)`."""
    corner, across, up = np.array(corner, float), np.array(across, float), np.array(up, float)
    shape = textures.size(np.linalg.norm(across), np.linalg.norm(up))
    return [Rectangle(corner, across, up, paint(shape=shape), glow)]


def _box(corner, edges, paint, turn=0.0) -> list[Rectangle]:
    """Return a box on its least corner, turned about the vertical through that corner by `turn` radians."""
    x = edges[0] * np.array([np.cos(turn), np.sin(turn), 0])
    y = edges[1] * np.array([-np.sin(turn), np.cos(turn), 0])
    z = np.array([0, 0, edges[2]])
    corner = np.array(corner, float)
    faces = ((corner, x, z), (corner + x, y, z), (corner + x + y, -x, z), (corner + y, -y, z),
             (corner + z, x, y), (corner + y, x, -y))
    return [part for face in faces for part in _rectangle(*face, paint)]


def _prism(centre, radius, height, paint, sides=14) -> list[Rectangle]:
    """Return a standing column with a square lid that hides in it."""
    angles = 2 * np.pi * np.arange(sides + 1) / sides
    rim = np.array(centre) + radius * np.column_stack([np.cos(angles), np.sin(angles), 0 * angles])
    whole = paint(shape=textures.size(2 * np.pi * radius, height))
    strips = np.array_split(whole, sides, axis=1)
    up = np.array([0, 0, height])
    parts = [Rectangle(a, b - a, up, strip) for a, b, strip in zip(rim, rim[1:], strips)]
    half = radius * 0.7
    lid = _rectangle(np.array(centre) + (-half, -half, height), (2 * half, 0, 0), (0, 2 * half, 0), paint)
    return parts + lid


def _shell(rng) -> list[list[Rectangle]]:
    """Return floor, ceiling and walls, with what hangs on them."""
    x, y, z = ROOM
    plaster, poster = partial(textures.plaster, rng), partial(textures.poster, rng)
    door = partial(textures.panels, rng, color=(0.50, 0.42, 0.30), rows=3, columns=2)
    walls = [
        _rectangle((0, 0, 0), (x, 0, 0), (0, y, 0), partial(textures.planks, rng)),
        _rectangle((0, y, z), (x, 0, 0), (0, -y, 0), partial(plaster, color=(0.86, 0.85, 0.82))),
        _rectangle((0, y, 0), (x, 0, 0), (0, 0, z), partial(textures.bricks, rng)),
        _rectangle((x, 0, 0), (-x, 0, 0), (0, 0, z), partial(textures.wallpaper, rng)),
        _rectangle((x, y, 0), (0, -y, 0), (0, 0, z), partial(plaster, color=(0.52, 0.63, 0.70))),
        _rectangle((0, 0, 0), (0, y, 0), (0, 0, z), partial(plaster, color=(0.74, 0.66, 0.50))),
    ]
    gap = 0.015  # metres from the wall
    hung = [
        _rectangle((3.8, gap, 0.95), (-1.8, 0, 0), (0, 0, 1.3), partial(textures.window, rng), glow=0.8),
        _rectangle((gap, 2.0, 0.0), (0, 0.95, 0), (0, 0, 2.05), door),
    ]
    for left, bottom, width, height in ((0.25, 0.35, 1.3, 0.9), (0.85, 1.2, 0.7, 1.0), (3.3, 1.05, 0.6, 0.85),
                                        (4.05, 1.25, 0.75, 0.55)):
        hung.append(_rectangle((gap, left, bottom), (0, width, 0), (0, 0, height), poster))
    for left, bottom, width, height in ((4.8, 0.95, 0.8, 1.1), (3.85, 1.3, 0.7, 0.5), (3.0, 0.9, 0.6, 0.9),
                                        (2.2, 1.15, 0.65, 0.9), (1.4, 1.25, 0.6, 0.8), (0.7, 1.35, 0.5, 0.7)):
        hung.append(_rectangle((x - gap, left, bottom), (0, -width, 0), (0, 0, height), poster))
    for left, bottom, width, height in ((5.2, 1.1, 0.8, 1.1), (1.7, 0.9, 0.6, 0.8), (0.9, 1.2, 0.7, 0.9)):
        hung.append(_rectangle((left, gap, bottom), (-width, 0, 0), (0, 0, height), poster))
    hung.append(_rectangle((2.72, y - gap, 1.0), (0.5, 0, 0), (0, 0, 1.2), poster))
    return walls + hung


def _table(corner, edges, paint) -> list[list[Rectangle]]:
    (x, y), (width, depth, height) = corner, edges
    top = _box((x, y, height - 0.04), (width, depth, 0.04), paint)
    feet = [(a, b) for a in (x + 0.05, x + width - 0.11) for b in (y + 0.05, y + depth - 0.11)]
    return [top] + [_box((a, b, 0), (0.06, 0.06, height - 0.04), paint) for a, b in feet]


def _chair(corner, cloth, paint, back) -> list[list[Rectangle]]:
    """Return a chair whose back stands at its near (0) or far (1) edge in y."""
    x, y = corner
    return [
        *_table(corner, (0.45, 0.45, 0.42), paint),
        _box((x, y, 0.42), (0.45, 0.45, 0.06), cloth),
        _box((x, y + 0.41 * back, 0.48), (0.45, 0.04, 0.45), cloth),
    ]


def _sofa(cloth) -> list[list[Rectangle]]:
    """Return a sofa along the wall x = 6."""
    parts = (((5.1, 2.3, 0.0), (0.88, 1.8, 0.42)), ((5.72, 2.3, 0.42), (0.26, 1.8, 0.45)),
             ((5.1, 2.1, 0.0), (0.88, 0.2, 0.62)), ((5.1, 4.1, 0.0), (0.88, 0.2, 0.62)))
    cushion = _box((5.55, 2.45, 0.44), (0.14, 0.42, 0.38), cloth, turn=-0.25)
    return [_box(corner, edges, cloth) for corner, edges in parts] + [cushion]


def _shelf(rng, corner, width, paint) -> list[list[Rectangle]]:
    """Return a bookcase along the wall y = 5, with its books."""
    x, y = corner
    depth, height, levels = 0.30, 2.0, 5
    case = [_box((x + i * (width - 0.03), y, 0), (0.03, depth, height), paint) for i in range(2)]
    case += [_box((x, y, i * (height - 0.03) / levels), (width, depth, 0.03), paint) for i in range(levels + 1)]
    for level in range(levels):
        left, bottom = x + 0.04, level * (height - 0.03) / levels + 0.03
        row = []
        while left < x + width - 0.12:
            thick, tall = rng.uniform(0.03, 0.075), rng.uniform(0.22, 0.35)
            row += _box((left, y + rng.uniform(0.02, 0.09), bottom), (thick, 0.2, tall), partial(textures.spine, rng))
            left += thick + (0.002 if rng.random() < 0.85 else rng.uniform(0.06, 0.2))
        case += [row[i : i + 36] for i in range(0, len(row), 36)]  # small bounding boxes
    return case


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('folder', type=Path, help='where to write the clip')
    parser.add_argument('--frames', type=int, default=300)
    parser.add_argument('--seed', type=int, default=0)
    arguments = parser.parse_args()
    make_clip(arguments.folder, arguments.frames, arguments.seed)


if __name__ == '__main__':
    main()
