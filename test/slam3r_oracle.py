# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Networks that know the truth: they ray-cast a room where SLAM3R's look at images."""

from types import SimpleNamespace

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from slam3r_ros.engines.slam3r.networks import Maps
from slam3r_ros.mapping.frames import invert, rigid, transform
from slam3r_ros.mapping.registration import similarity

SIDE, FOCAL = 64, 60.0  # pixels
ROOM = np.array([[-3.0, -1.5, -2.0], [3.0, 1.5, 4.0]])


def camera(number: int) -> np.ndarray:
    """Return T_room_camera of a frame, (4, 4): a walk with turns."""
    turn = Rotation.from_euler('yx', [0.3 * np.sin(number / 9), 0.1 * np.sin(number / 5)]).as_matrix()
    return rigid(turn, [0.8 * np.sin(number / 12), 0.2 * np.cos(number / 7), 0.02 * number])


def points_seen(number: int) -> np.ndarray:
    """Return what a frame sees, (H, W, 3) in its optical frame."""
    T = camera(number)
    v, u = np.mgrid[:SIDE, :SIDE]
    middle = (SIDE - 1) / 2
    rays = np.stack([(u - middle) / FOCAL, (v - middle) / FOCAL, np.ones_like(u, float)], -1)
    turned = rays @ T[:3, :3].T
    with np.errstate(divide='ignore'):
        walls = (ROOM[:, None, None] - T[:3, 3]) / turned  # (2, H, W, 3)
    return rays * np.where(walls > 0, walls, np.inf).min(axis=(0, 3))[..., None]


def image(number: int) -> np.ndarray:
    """Return an image whose first pixels tell the frame's number."""
    pixels = np.full((SIDE, SIDE, 3), 128, np.uint8)
    pixels[0, 0] = number // 256, number % 256, 0
    return pixels


class Oracle:
    """What both networks share; `confidence` is that of every point, `noise` relative to the distance."""

    def __init__(self, noise: float = 0.0, confidence: float = 20.0, device: str = 'cpu') -> None:
        self.noise, self.confidence, self.device = noise, confidence, device
        self.dec_norm = SimpleNamespace(weight=torch.zeros(1, device=device))
        self.random = np.random.default_rng(0)

    def maps(self, all_points: list[np.ndarray]) -> Maps:
        noisy = [points * (1 + self.noise * self.random.normal(size=(*points.shape[:2], 1))) for points in all_points]
        stack = torch.from_numpy(np.stack(noisy)).float()[:, None].to(self.device)
        return Maps(stack, torch.full(stack.shape[:-1], self.confidence, device=self.device))


class OracleImage2Points(Oracle):
    favourite = -1  # the reference of most confidence
    stretch = 1.0  # of depth: a wrong one gives a wrong focal length

    def encode(self, images):
        values = ((images[:, :, 0, 0] / 2 + 0.5) * 255).round().int()
        return (values[:, 0] * 256 + values[:, 1])[:, None, None].float()  # (N, 1, 1): the number

    def __call__(self, reference, sources, height, width, wanted='both'):
        T = camera(int(reference))
        scale = self.random.uniform(0.3, 3)  # the unit of a window is arbitrary
        own = self.maps([scale * points_seen(int(reference)) * (1, 1, self.stretch)])
        if int(reference) == self.favourite:
            own.confidence.mul_(2)
        if wanted == 'references':
            return own, None
        to_reference = [invert(T) @ camera(int(token)) for token in sources]
        return own, self.maps([
            scale * transform(change, points_seen(int(token))) for change, token in zip(to_reference, sources)
        ])

    def prepare(self, tokens, height, width):
        from slam3r_ros.engines.slam3r.decoder import Memory
        from slam3r_ros.engines.slam3r.networks import Candidates

        return Candidates(tokens, tokens, Memory(tokens, tokens))

    def correlation(self, query, candidates, height, width, depth=2, at_once=None):
        return 1 + torch.exp(-(candidates.tokens - query).abs() / 30)[..., 0]


class OracleLocal2World(Oracle):
    blind = False

    def __call__(self, references, sources, reference_points, source_points, wanted='both'):
        truth, given = [], []
        for token, points in zip(references, reference_points):
            valid = points[0].any(-1).cpu().numpy()
            truth.append(transform(camera(int(token)), points_seen(int(token)))[valid][::37])
            given.append(points[0].cpu().numpy()[valid][::37])
        truth, given = np.concatenate(truth), np.concatenate(given)
        if self.blind or len(given) < 3:
            return None, self.maps([self.random.normal(size=(SIDE, SIDE, 3)) for _ in sources])
        to_world = similarity(truth, given)
        return None, self.maps([
            to_world.apply(transform(camera(int(token)), points_seen(int(token)))) for token in sources
        ])
