# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Similarity and rigid registration of matched points."""

from typing import NamedTuple

import numpy as np


class RegistrationError(ValueError):
    """The points do not determine the transform; the message says why."""


class Similarity(NamedTuple):
    """The map x -> scale * rotation @ x + translation."""

    scale: float
    rotation: np.ndarray  # (3, 3)
    translation: np.ndarray  # (3,)

    def apply(self, points: np.ndarray) -> np.ndarray:
        """Move points (..., 3)."""
        return self.scale * points @ self.rotation.T + self.translation

    def inverse(self) -> 'Similarity':
        """Return the map back."""
        rotation = self.rotation.T
        return Similarity(1 / self.scale, rotation, -rotation @ self.translation / self.scale)


def similarity(source: np.ndarray, target: np.ndarray, with_scale: bool = True) -> Similarity:
    """Fit the least-squares similarity that takes `source` to `target` (Umeyama, PAMI 1991).

    Points on one line leave the turn about that line open; any of the best solutions is returned then.

    Args:
        source: (N, 3) points, N >= 3.
        target: (N, 3) their counterparts.
        with_scale: False fits a rigid transform, scale 1.

    Raises:
        RegistrationError: for fewer than three pairs, values that are not finite, or points that all coincide.
    """
    source, target = np.asarray(source, float), np.asarray(target, float)
    if source.shape != target.shape or source.ndim != 2 or source.shape[1] != 3:
        raise RegistrationError(f'needs two (N, 3) arrays of matched points, got {source.shape} and {target.shape}')
    if len(source) < 3:
        raise RegistrationError(f'needs at least 3 matched points, got {len(source)}')
    if not (np.isfinite(source).all() and np.isfinite(target).all()):
        raise RegistrationError('the points must be finite')
    source_mean, target_mean = source.mean(axis=0), target.mean(axis=0)
    source_centred, target_centred = source - source_mean, target - target_mean
    variance = np.square(source_centred).sum() / len(source)
    if np.sqrt(variance) <= 1e-12 * max(1.0, np.abs(source_mean).max()) or not target_centred.any():
        raise RegistrationError('the points all coincide: scale and rotation are open')
    left, singular, right = np.linalg.svd(target_centred.T @ source_centred / len(source))
    # A reflection may fit noisy or flat points better; only rotations are wanted.
    signs = np.array([1.0, 1.0, np.sign(np.linalg.det(left) * np.linalg.det(right))])
    rotation = (left * signs) @ right
    scale = float(singular @ signs / variance) if with_scale else 1.0
    return Similarity(scale, rotation, target_mean - scale * rotation @ source_mean)


def similarity_ransac(
    source: np.ndarray,
    target: np.ndarray,
    threshold: float,
    with_scale: bool = True,
    confidence: float = 0.999,
    max_iterations: int = 1000,
    seed: int = 0,
) -> tuple[Similarity, np.ndarray]:
    """Fit a similarity to matches of which some are wrong (RANSAC, Fischler and Bolles 1981).

    Args:
        source: (N, 3) points, N >= 3.
        target: (N, 3) their supposed counterparts.
        threshold: largest distance of an inlier, in units of `target`.
        with_scale: False fits a rigid transform, scale 1.
        confidence: wanted chance of having drawn one sample without outliers.
        max_iterations: bound on the number of samples drawn.
        seed: of the sampling.

    Returns:
        The transform, fitted to all its inliers, and their mask (N,) bool.

    Raises:
        RegistrationError: when no transform has three inliers.
    """
    source, target = np.asarray(source, float), np.asarray(target, float)
    if len(source) < 3:
        raise RegistrationError(f'needs at least 3 matched points, got {len(source)}')
    generator = np.random.default_rng(seed)
    best = np.zeros(len(source), bool)
    needed, drawn = max_iterations, 0
    while drawn < min(needed, max_iterations):
        drawn += 1
        sample = generator.choice(len(source), 3, replace=False)
        try:
            model = similarity(source[sample], target[sample], with_scale)
        except RegistrationError:  # three times the same point
            continue
        inliers = _residuals(model, source, target) <= threshold
        if inliers.sum() > best.sum():
            best = inliers
            clean = best.mean() ** 3  # chance that a sample holds inliers only
            needed = 0 if clean == 1 else int(np.ceil(np.log(1 - confidence) / np.log1p(-clean)))
    if best.sum() < 3:
        raise RegistrationError(f'no transform fits 3 of the {len(source)} matches within {threshold:g}')
    for _ in range(3):  # the fit to all inliers usually gathers some more
        model = similarity(source[best], target[best], with_scale)
        inliers = _residuals(model, source, target) <= threshold
        if inliers.sum() < 3 or (inliers == best).all():
            break
        best = inliers
    return model, best


def _residuals(model: Similarity, source: np.ndarray, target: np.ndarray) -> np.ndarray:
    return np.linalg.norm(model.apply(source) - target, axis=1)
