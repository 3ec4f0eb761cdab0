# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Bundle adjustment: the kernels against plain NumPy, and perturbed scenes recovered."""

import numpy as np
import pytest

from slam3r_ros.engines.geometric.adjust import (
    HUBER,
    MIN_DEPTH,
    FocalPrior,
    accumulate,
    adjust,
    eliminate,
    reproject,
    rotate,
    substitute,
)

FOCAL = 500.0


class Scene:
    """Cameras around a cloud of points, most points seen by most cameras."""

    def __init__(self, cameras: int = 6, points: int = 80, noise: float = 0.0, seed: int = 0) -> None:
        random = np.random.default_rng(seed)
        self.points = random.uniform(-1, 1, (points, 3)) + [0, 0, 3]
        self.rotations = np.stack([rotate(np.eye(3), v) for v in random.normal(0, 0.1, (cameras, 3))])
        self.translations = random.normal(0, 0.3, (cameras, 3))
        self.camera, self.point = np.nonzero(random.random((cameras, points)) < 0.7)
        seen = np.einsum('mij,mj->mi', self.rotations[self.camera], self.points[self.point])
        seen += self.translations[self.camera]
        self.pixels = FOCAL * seen[:, :2] / seen[:, 2:] + random.normal(0, noise, (len(seen), 2))
        self.fixed = np.arange(cameras) < 2
        self.random = random

    def perturbed(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return rotations, translations and points moved a little, the fixed cameras excepted."""
        turns = self.random.normal(0, 0.02, self.translations.shape) * ~self.fixed[:, None]
        moves = self.random.normal(0, 0.03, self.translations.shape) * ~self.fixed[:, None]
        return (np.stack([rotate(R, w) for R, w in zip(self.rotations, turns)]), self.translations + moves,
                self.points + self.random.normal(0, 0.05, self.points.shape))


def dense_system(R, t, X, focal, camera, point, pixels, slot, free):
    """Build all of J^T W J and J^T W r in plain NumPy; unknowns: free cameras, focal length, points."""
    seen = np.einsum('mij,mj->mi', R[camera], X[point])
    z = seen[:, 2] + t[camera, 2]
    ray = (seen + t[camera])[:, :2] / z[:, None]
    residual = focal * ray - pixels
    error = np.linalg.norm(residual, axis=1)
    weight = np.where(z < MIN_DEPTH, 0, np.where(error < HUBER, 1, HUBER / error))
    J = np.zeros((len(camera), 2, 6 * free + 1 + 3 * len(X)))
    for m, (c, p) in enumerate(zip(camera, point)):
        d = focal / z[m] * np.array([[1, 0, -ray[m, 0]], [0, 1, -ray[m, 1]]])  # of the pixel by the point in the camera
        a, b, g = seen[m]
        if slot[c] >= 0:
            o = 6 * slot[c]
            J[m, :, o:o + 3] = d @ np.array([[0, g, -b], [-g, 0, a], [b, -a, 0]])
            J[m, :, o + 3:o + 6] = d
        J[m, :, 6 * free] = ray[m]
        J[m, :, 6 * free + 1 + 3 * p:6 * free + 4 + 3 * p] = d @ R[c]
    return np.einsum('mri,m,mrj->ij', J, weight, J), np.einsum('mri,m,mr->i', J, weight, residual)


@pytest.fixture
def system():
    """Return the arguments of `accumulate` in a scene with residuals, one point behind a camera."""
    scene = Scene(cameras=4, points=15, noise=1.0)
    R, t, X = scene.perturbed()
    X[3, 2] = -1.0
    order = np.argsort(scene.point, kind='stable')
    slot = np.array([-1, -1, 0, 1])
    return R, t, X, FOCAL, scene.camera[order], scene.point[order], scene.pixels[order], slot, 2


def test_accumulate_is_the_plain_sum(system):
    H, g, V, b, E, F = accumulate(*system)
    full, gradient = dense_system(*system)
    camera, point, slot, free = system[4], system[5], system[7], system[8]
    n = 6 * free + 1
    np.testing.assert_allclose(H, full[:n, :n], rtol=1e-9, atol=1e-6)
    np.testing.assert_allclose(g, gradient[:n], rtol=1e-9, atol=1e-6)
    np.testing.assert_allclose(b.ravel(), gradient[n:], rtol=1e-9, atol=1e-6)
    for p in range(len(V)):
        np.testing.assert_allclose(V[p], full[n + 3 * p:n + 3 * p + 3, n + 3 * p:n + 3 * p + 3], atol=1e-6)
        np.testing.assert_allclose(F[p], full[n - 1, n + 3 * p:n + 3 * p + 3], atol=1e-6)
    for m, (c, p) in enumerate(zip(camera, point)):
        if slot[c] >= 0:
            expected = full[6 * slot[c]:6 * slot[c] + 6, n + 3 * p:n + 3 * p + 3]
            np.testing.assert_allclose(E[m], expected, rtol=1e-9, atol=1e-6)


def test_eliminated_step_is_the_full_step(system):
    H, g, V, b, E, F = accumulate(*system)
    full, gradient = dense_system(*system)
    point, slots = system[5], system[7][system[4]]
    start = np.searchsorted(point, np.arange(len(V) + 1))
    damping, n = 0.01, len(g)
    S, s, inverses = eliminate(H, g, V, b, E, F, start, slots, damping)
    step = -np.linalg.solve(S, s)
    moves = substitute(step, inverses, b, E, F, start, slots)
    extra = np.r_[np.full(n, 1e-9), np.full(len(gradient) - n, 1e-6)]
    expected = -np.linalg.solve(full + np.diag(damping * np.diag(full) + extra), gradient)
    np.testing.assert_allclose(step, expected[:n], rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(moves.ravel(), expected[n:], rtol=1e-6, atol=1e-9)


def test_reproject_is_the_pinhole():
    scene = Scene(noise=2.0)
    errors, depths = reproject(scene.rotations, scene.translations, scene.points, FOCAL, scene.camera, scene.point,
                               scene.pixels)
    seen = np.einsum('mij,mj->mi', scene.rotations[scene.camera], scene.points[scene.point])
    seen += scene.translations[scene.camera]
    np.testing.assert_allclose(depths, seen[:, 2])
    expected = np.linalg.norm(FOCAL * seen[:, :2] / seen[:, 2:] - scene.pixels, axis=1)
    np.testing.assert_allclose(errors, expected, atol=1e-9)


def test_perturbed_poses_are_recovered():
    scene = Scene()
    done = adjust(*scene.perturbed(), FOCAL, scene.camera, scene.point, scene.pixels, scene.fixed, 20)
    np.testing.assert_allclose(done.translations, scene.translations, atol=1e-6)
    np.testing.assert_allclose(done.rotations, scene.rotations, atol=1e-6)
    assert done.focal == FOCAL
    assert done.errors.max() < 1e-3


def test_focal_length_is_recovered():
    scene = Scene()
    done = adjust(*scene.perturbed(), 430.0, scene.camera, scene.point, scene.pixels, scene.fixed, 40,
                  FocalPrior(430.0, 150.0))
    assert done.focal == pytest.approx(FOCAL, rel=1e-3)
    np.testing.assert_allclose(done.translations, scene.translations, atol=1e-3)


def test_wrong_observations_are_outvoted():
    scene = Scene(noise=0.2, seed=1)
    wrong = scene.random.random(len(scene.pixels)) < 0.05
    scene.pixels[wrong] += scene.random.normal(0, 40, (wrong.sum(), 2))
    done = adjust(*scene.perturbed(), FOCAL, scene.camera, scene.point, scene.pixels, scene.fixed, 30)
    assert np.abs(done.translations - scene.translations).max() < 0.01
    assert np.median(done.errors[wrong]) > 10 > np.median(done.errors[~wrong])


def test_fixed_cameras_stay():
    scene = Scene(noise=0.5)
    R, t, X = scene.perturbed()
    done = adjust(R, t, X, FOCAL, scene.camera, scene.point, scene.pixels, scene.fixed, 5)
    np.testing.assert_array_equal(done.rotations[:2], R[:2])
    np.testing.assert_array_equal(done.translations[:2], t[:2])


def test_many_turns_stay_a_rotation():
    R = np.eye(3)
    for _ in range(5000):
        R = rotate(R @ R.T @ R, [0.01, -0.02, 0.03])  # R R^T R triples what is wrong with R
    np.testing.assert_allclose(R @ R.T, np.eye(3), atol=1e-12)
