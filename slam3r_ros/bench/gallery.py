# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A long gallery, and a video of a walk along it, there and back, again and again: fast to make, however long.

Every four metres of wall, floor and things that stand before them look like no others.  The camera looks at the wall
and sways.  Each walk follows the same path, but no picture is like another: exposure drifts, and the sensor is noisy.
"""

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import av
import cv2
import numpy as np
from tqdm import tqdm

from slam3r_ros.mapping.frames import invert, rigid, transform
from slam3r_ros.values import Intrinsics
from slam3r_ros.video import textures

WIDTH, HEIGHT, FPS = 320, 240, 10
CAMERA = Intrinsics(280.0, 280.0, (WIDTH - 1) / 2, (HEIGHT - 1) / 2)
STEP = 0.03  # metres a frame, on average
PANEL = 4.0  # metres
_SHARE = 0.5  # of the textures' resolution
_NOISE = 1.5  # grey levels
# Corner, edge along the pattern's width, edge downward: x along the gallery from the panel's begin, y down, z forward.
_PLANES = (  # far ones first
    ((0, -3, 4), (PANEL, 0, 0), (0, 4.2, 0)),  # wall
    ((0, 1.2, 4), (PANEL, 0, 0), (0, 0, -2.5)),  # floor
    ((0.6, -1.0, 3.5), (1.1, 0, 0.3), (0, 0.9, 0)),
    ((2.3, -0.4, 2.9), (0.9, 0, -0.2), (0, 1.3, 0)),
    ((3.3, 0.4, 2.4), (0.6, 0, 0.1), (0, 0.8, 0)),
)
_WALLS = (textures.bricks, textures.wallpaper, textures.checker)
_THINGS = (textures.poster, textures.carton, textures.checker, textures.wallpaper)


def make_video(path: Path, frames: int, walks: int) -> None:
    """Write the video of so many walks, of as many frames each, as H.264."""
    steps = frames // walks
    drawn = [cv2.imencode('.jpg', draw(pose(step, steps)), [cv2.IMWRITE_JPEG_QUALITY, 95])[1]
             for step in tqdm(range(steps), 'drawing', unit='frame', disable=None)]
    rng = np.random.default_rng(0)
    noise = rng.normal(0, _NOISE, (2 * HEIGHT, 2 * WIDTH, 3)).astype(np.float32)

    def exposed() -> Iterator[np.ndarray]:
        for i in tqdm(range(frames), 'encoding', unit='frame', disable=None):
            image = cv2.imdecode(drawn[i % steps], cv2.IMREAD_COLOR)
            gain = np.float32(1 + 0.05 * np.sin(0.0113 * i))  # no whole number of swings to a walk
            y, x = rng.integers(0, (HEIGHT, WIDTH))
            yield cv2.add(gain * image, noise[y:y + HEIGHT, x:x + WIDTH], dtype=cv2.CV_8U)

    unfinished = path.with_name(f'.{path.name}')
    with av.open(str(unfinished), 'w') as container:
        stream = container.add_stream('libx264', rate=FPS, options={'preset': 'ultrafast', 'crf': '26'})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, 'yuv420p'
        for image in exposed():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format='bgr24')))
        container.mux(stream.encode())
    unfinished.replace(path)


def pose(step: int, steps: int) -> np.ndarray:
    """Return T_world_camera (4, 4) at a step of a walk of so many: x along the gallery, y down, z to the wall."""
    x = STEP * steps / 4 * (1 - np.cos(2 * np.pi * step / steps))
    turn = np.array([0.04 * np.sin(step / 9), 0.12 * np.sin(step / 31), 0.02 * np.sin(step / 7)])
    return rigid(cv2.Rodrigues(turn)[0], np.array([x, 0.1 * np.sin(step / 8), 0.3 * np.sin(step / 23)]))


def draw(T_world_camera: np.ndarray) -> np.ndarray:
    """Return what the camera sees, (H, W, 3) uint8 BGR."""
    image, T, K = np.zeros((HEIGHT, WIDTH, 3), np.uint8), invert(T_world_camera), CAMERA.matrix()
    here = int(np.floor(T_world_camera[0, 3] / PANEL))
    for plane, (corner, across, down) in enumerate(np.array(_PLANES)):
        for panel in range(here - 1, here + 2):
            start = corner + (PANEL * panel, 0, 0)
            seen = transform(T, np.array([start, start + across, start + across + down, start + down]))
            pixels = np.float32((seen @ K.T)[:, :2] / seen[:, 2:])
            if (pixels.max(0) < 0).any() or (pixels.min(0) > (WIDTH, HEIGHT)).any():
                continue
            texture = _texture(panel, plane)
            rows, columns = texture.shape[:2]
            corners = np.float32([(0, 0), (columns, 0), (columns, rows), (0, rows)]) - 0.5
            H = cv2.getPerspectiveTransform(corners, pixels)
            cv2.warpPerspective(texture, H, (WIDTH, HEIGHT), image, cv2.INTER_LINEAR, cv2.BORDER_TRANSPARENT)
    return image


@lru_cache(64)
def _texture(panel: int, plane: int) -> np.ndarray:
    """Return the pattern of a plane, (h, w, 3) uint8 BGR."""
    rng = np.random.default_rng([panel + 1, plane])
    _, across, down = np.array(_PLANES[plane])
    paint = textures.planks if plane == 1 else rng.choice(_THINGS if plane > 1 else _WALLS)
    whole = paint(rng, textures.size(np.linalg.norm(across), np.linalg.norm(down)))
    small = cv2.resize(whole, None, fx=_SHARE, fy=_SHARE, interpolation=cv2.INTER_AREA)
    return np.uint8(np.rint(255 * small[..., ::-1]))
