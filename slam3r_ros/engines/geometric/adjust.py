# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Bundle adjustment: Levenberg-Marquardt on the Schur complement, with Huber's loss.

The camera is a pinhole with one focal length and pixels counted from the principal point.  Cameras
are world -> camera; a step turns a camera by R <- exp(w) R and moves it by t <- t + v.  The unknowns of
the reduced system are six numbers per free camera and, at the end, the focal length.  After Triggs et
al., Bundle Adjustment - A Modern Synthesis (2000).
"""

from typing import NamedTuple

import cv2
import numpy as np
from numba import njit

HUBER = 1.5  # pixels
MIN_DEPTH = 0.01  # points nearer or behind pull at nothing, at a constant cost
_BEHIND = 100.0  # pixels, the error of such a point
_TRIALS = 6  # damping values tried per iteration
_CONVERGED = 1e-4  # relative gain of one iteration


class Adjusted(NamedTuple):
    """The result of an adjustment."""

    rotations: np.ndarray  # (C, 3, 3)
    translations: np.ndarray  # (C, 3)
    points: np.ndarray  # (P, 3)
    focal: float  # pixels
    errors: np.ndarray  # (M,) pixels, per observation
    depths: np.ndarray  # (M,) along the optical axis


class FocalPrior(NamedTuple):
    """What is believed of the focal length before any image is seen."""

    mean: float  # pixels
    sigma: float  # pixels


@njit(nogil=True, cache=True)
def reproject(R, t, X, focal, camera, point, pixels):
    """Return errors (M,) pixels and depths (M,) of every observation."""
    errors = np.empty(len(camera))
    depths = np.empty(len(camera))
    for m in range(len(camera)):
        r, p, x = R[camera[m]], t[camera[m]], X[point[m]]
        z = r[2, 0] * x[0] + r[2, 1] * x[1] + r[2, 2] * x[2] + p[2]
        depths[m] = z
        if z < MIN_DEPTH:
            errors[m] = _BEHIND
            continue
        s = focal / z
        u = s * (r[0, 0] * x[0] + r[0, 1] * x[1] + r[0, 2] * x[2] + p[0]) - pixels[m, 0]
        v = s * (r[1, 0] * x[0] + r[1, 1] * x[1] + r[1, 2] * x[2] + p[1]) - pixels[m, 1]
        errors[m] = np.sqrt(u * u + v * v)
    return errors, depths


def robust_cost(errors: np.ndarray) -> float:
    """Return the sum of Huber's loss over errors (M,) pixels."""
    return float(np.where(errors < HUBER, errors * errors, 2 * HUBER * errors - HUBER * HUBER).sum())


@njit(nogil=True, cache=True)
def accumulate(R, t, X, focal, camera, point, pixels, slot, free):
    """Sum the normal equations; `slot` (C,) numbers the free cameras from 0, -1 is a fixed one."""
    n = 6 * free + 1
    H, g = np.zeros((n, n)), np.zeros(n)
    V, b = np.zeros((len(X), 3, 3)), np.zeros((len(X), 3))
    E, F = np.zeros((len(camera), 6, 3)), np.zeros((len(X), 3))
    Jc, Jp, res, ray = np.zeros((2, 6)), np.zeros((2, 3)), np.zeros(2), np.zeros(2)
    for m in range(len(camera)):
        c, p = camera[m], point[m]
        r, x = R[c], X[p]
        a0 = r[0, 0] * x[0] + r[0, 1] * x[1] + r[0, 2] * x[2]
        a1 = r[1, 0] * x[0] + r[1, 1] * x[1] + r[1, 2] * x[2]
        a2 = r[2, 0] * x[0] + r[2, 1] * x[1] + r[2, 2] * x[2]
        z = a2 + t[c, 2]
        if z < MIN_DEPTH:
            continue
        ray[0], ray[1] = (a0 + t[c, 0]) / z, (a1 + t[c, 1]) / z
        res[0], res[1] = focal * ray[0] - pixels[m, 0], focal * ray[1] - pixels[m, 1]
        error = np.sqrt(res[0] * res[0] + res[1] * res[1])
        w = 1.0 if error < HUBER else HUBER / error
        for q in range(2):
            d0 = focal / z if q == 0 else 0.0
            d1 = focal / z if q == 1 else 0.0
            d2 = -ray[q] * focal / z
            Jc[q, 0], Jc[q, 1], Jc[q, 2] = d2 * a1 - d1 * a2, d0 * a2 - d2 * a0, d1 * a0 - d0 * a1
            Jc[q, 3], Jc[q, 4], Jc[q, 5] = d0, d1, d2
            for j in range(3):
                Jp[q, j] = d0 * r[0, j] + d1 * r[1, j] + d2 * r[2, j]
        for i in range(3):
            b[p, i] += w * (Jp[0, i] * res[0] + Jp[1, i] * res[1])
            F[p, i] += w * (Jp[0, i] * ray[0] + Jp[1, i] * ray[1])
            for j in range(3):
                V[p, i, j] += w * (Jp[0, i] * Jp[0, j] + Jp[1, i] * Jp[1, j])
        H[n - 1, n - 1] += w * (ray[0] * ray[0] + ray[1] * ray[1])
        g[n - 1] += w * (ray[0] * res[0] + ray[1] * res[1])
        if slot[c] < 0:
            continue
        o = 6 * slot[c]
        for i in range(6):
            g[o + i] += w * (Jc[0, i] * res[0] + Jc[1, i] * res[1])
            f = w * (Jc[0, i] * ray[0] + Jc[1, i] * ray[1])
            H[o + i, n - 1] += f
            H[n - 1, o + i] += f
            for j in range(6):
                H[o + i, o + j] += w * (Jc[0, i] * Jc[0, j] + Jc[1, i] * Jc[1, j])
            for j in range(3):
                E[m, i, j] = w * (Jc[0, i] * Jp[0, j] + Jc[1, i] * Jp[1, j])
    return H, g, V, b, E, F


@njit(nogil=True, cache=True)
def _inverse(A, out):
    """Invert a symmetric 3 x 3 matrix."""
    c0 = A[1, 1] * A[2, 2] - A[1, 2] * A[1, 2]
    c1 = A[0, 2] * A[1, 2] - A[0, 1] * A[2, 2]
    c2 = A[0, 1] * A[1, 2] - A[0, 2] * A[1, 1]
    d = A[0, 0] * c0 + A[0, 1] * c1 + A[0, 2] * c2
    out[0, 0], out[0, 1], out[0, 2] = c0 / d, c1 / d, c2 / d
    out[1, 0], out[1, 1] = c1 / d, (A[0, 0] * A[2, 2] - A[0, 2] * A[0, 2]) / d
    out[1, 2] = (A[0, 1] * A[0, 2] - A[0, 0] * A[1, 2]) / d
    out[2, 0], out[2, 1], out[2, 2] = c2 / d, out[1, 2], (A[0, 0] * A[1, 1] - A[0, 1] * A[0, 1]) / d


@njit(nogil=True, cache=True)
def eliminate(H, g, V, b, E, F, start, slots, damping):
    """Take the points out of the normal equations; observations of point p are start[p]:start[p + 1]."""
    n = len(g)
    S, s, inverses = H.copy(), g.copy(), np.empty_like(V)
    for i in range(n):
        S[i, i] += damping * H[i, i] + 1e-9
    D, EV = np.empty((3, 3)), np.empty((6, 3))
    for p in range(len(V)):
        for i in range(3):
            for j in range(3):
                D[i, j] = V[p, i, j]
            D[i, i] += damping * V[p, i, i] + 1e-6
        Vi = inverses[p]
        _inverse(D, Vi)
        for i in range(3):
            fv = F[p, 0] * Vi[0, i] + F[p, 1] * Vi[1, i] + F[p, 2] * Vi[2, i]
            S[n - 1, n - 1] -= fv * F[p, i]
            s[n - 1] -= fv * b[p, i]
        for m in range(start[p], start[p + 1]):
            if slots[m] < 0:
                continue
            o = 6 * slots[m]
            for i in range(6):
                for j in range(3):
                    EV[i, j] = E[m, i, 0] * Vi[0, j] + E[m, i, 1] * Vi[1, j] + E[m, i, 2] * Vi[2, j]
                s[o + i] -= EV[i, 0] * b[p, 0] + EV[i, 1] * b[p, 1] + EV[i, 2] * b[p, 2]
                f = EV[i, 0] * F[p, 0] + EV[i, 1] * F[p, 1] + EV[i, 2] * F[p, 2]
                S[o + i, n - 1] -= f
                S[n - 1, o + i] -= f
            for k in range(start[p], start[p + 1]):
                if slots[k] < 0:
                    continue
                q = 6 * slots[k]
                for i in range(6):
                    for j in range(6):
                        S[o + i, q + j] -= EV[i, 0] * E[k, j, 0] + EV[i, 1] * E[k, j, 1] + EV[i, 2] * E[k, j, 2]
    return S, s, inverses


@njit(nogil=True, cache=True)
def substitute(step, inverses, b, E, F, start, slots):
    """Return the step of every point, (P, 3), that belongs to the cameras' `step` (N,)."""
    moves = np.empty_like(b)
    for p in range(len(b)):
        e = b[p] + F[p] * step[-1]
        for m in range(start[p], start[p + 1]):
            if slots[m] >= 0:
                for i in range(6):
                    for j in range(3):
                        e[j] += E[m, i, j] * step[6 * slots[m] + i]
        for i in range(3):
            moves[p, i] = -(inverses[p, i, 0] * e[0] + inverses[p, i, 1] * e[1] + inverses[p, i, 2] * e[2])
    return moves


def rotate(rotation: np.ndarray, vector: np.ndarray) -> np.ndarray:
    """Return exp(vector) @ rotation, (3, 3)."""
    turned = cv2.Rodrigues(np.asarray(vector, float))[0] @ rotation
    return 1.5 * turned - 0.5 * turned @ turned.T @ turned  # a Newton step: rounding must not add up over the frames


def adjust(rotations: np.ndarray, translations: np.ndarray, points: np.ndarray, focal: float, camera: np.ndarray,
           point: np.ndarray, pixels: np.ndarray, fixed: np.ndarray, iterations: int = 10,
           prior: FocalPrior | None = None) -> Adjusted:
    """Adjust cameras and points to their observations.

    Args:
        rotations: (C, 3, 3), world -> camera.
        translations: (C, 3).
        points: (P, 3), world.
        focal: pixels.
        camera: (M,) camera number of each observation.
        point: (M,) point number of each observation; every point must be seen.
        pixels: (M, 2), from the principal point.
        fixed: (C,) bool, cameras that stay.
        iterations: at most so many.
        prior: with one the focal length is adjusted too; without it stays.
    """
    order = np.argsort(point, kind='stable')
    camera, point, pixels = camera[order], point[order], np.ascontiguousarray(pixels[order], float)
    start = np.searchsorted(point, np.arange(len(points) + 1))
    free = np.flatnonzero(~fixed)
    slot = np.full(len(rotations), -1)
    slot[free] = np.arange(len(free))
    slots = slot[camera]
    R, t, X = (np.array(a, float, order='C') for a in (rotations, translations, points))

    def cost(errors: np.ndarray, focal: float) -> float:
        return robust_cost(errors) + (((focal - prior.mean) / prior.sigma) ** 2 if prior else 0)

    errors, depths = reproject(R, t, X, focal, camera, point, pixels)
    best, damping = cost(errors, focal), 1e-4
    for _ in range(iterations):
        H, g, V, b, E, F = accumulate(R, t, X, focal, camera, point, pixels, slot, len(free))
        if prior:
            H[-1, -1] += 1 / prior.sigma ** 2
            g[-1] += (focal - prior.mean) / prior.sigma ** 2
        else:
            H[-1], H[:, -1], g[-1], F[:] = 0, 0, 0, 0
            H[-1, -1] = 1
        gain = 0.0
        for _ in range(_TRIALS):
            S, s, inverses = eliminate(H, g, V, b, E, F, start, slots, damping)
            step = -np.linalg.solve(S, s)
            trial_X = X + substitute(step, inverses, b, E, F, start, slots)
            trial_R, trial_t = R.copy(), t.copy()
            for i, c in enumerate(free):
                trial_R[c] = rotate(R[c], step[6 * i:6 * i + 3])
                trial_t[c] += step[6 * i + 3:6 * i + 6]
            trial_focal = focal + step[-1]
            trial_errors, trial_depths = reproject(trial_R, trial_t, trial_X, trial_focal, camera, point, pixels)
            trial = cost(trial_errors, trial_focal)
            if trial < best and trial_focal > 0:
                gain, best, damping = 1 - trial / best, trial, max(damping / 5, 1e-8)
                R, t, X, focal, errors, depths = trial_R, trial_t, trial_X, trial_focal, trial_errors, trial_depths
                break
            damping *= 8
        if gain < _CONVERGED:
            break
    back = np.argsort(order)
    return Adjusted(R, t, X, float(focal), errors[back], depths[back])


def warm_up() -> None:
    """Compile all kernels, so that no frame has to wait for it."""
    points = np.random.default_rng(0).uniform(1, 2, (20, 3))
    camera, point = np.repeat(np.arange(2), 20), np.tile(np.arange(20), 2)
    pixels = np.tile(100 * points[:, :2] / points[:, 2:], (2, 1)) + 0.1
    adjust(np.stack([np.eye(3)] * 2), np.zeros((2, 3)), points, 100.0, camera, point, pixels,
           np.array([True, False]), iterations=2)
