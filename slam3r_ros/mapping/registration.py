# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Similarity and rigid registration of matched points."""

from typing import NamedTuple

import numpy as np

_AT_ONCE = 32  # samples of RANSAC that are judged together: 2 kB a point


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
    found = _fit(*_checked(source, target), with_scale)
    if np.isnan(found.scale):
        raise RegistrationError('the points all coincide: scale and rotation are open')
    return Similarity(float(found.scale), found.rotation, found.translation)


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
        RegistrationError: for fewer than three pairs, values that are not finite, or when no transform has three
            inliers.
    """
    source, target = _checked(source, target)
    generator = np.random.default_rng(seed)
    best = np.zeros(len(source), bool)
    needed, drawn = max_iterations, 0
    while drawn < needed:
        samples = _draw(generator, len(source), min(_AT_ONCE, needed - drawn))
        drawn += len(samples)
        fits = _residuals(_fit(source[samples], target[samples], with_scale), source, target) <= threshold
        inliers = fits[fits.sum(axis=1).argmax()]
        if inliers.sum() > best.sum():
            best = inliers
            clean = best.mean() ** 3  # chance that a sample holds inliers only
            enough = 0 if clean == 1 else int(np.ceil(np.log(1 - confidence) / np.log1p(-clean)))
            needed = min(enough, max_iterations)
    if best.sum() < 3:
        raise RegistrationError(f'no transform fits 3 of the {len(source)} matches within {threshold:g}')
    for _ in range(3):  # the fit to all inliers usually gathers some more
        model = similarity(source[best], target[best], with_scale)
        inliers = _residuals(model, source, target) <= threshold
        if inliers.sum() < 3 or (inliers == best).all():
            break
        best = inliers
    return model, best


def _checked(source: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return matched points (N, 3) as double precision; see `similarity` for what is refused."""
    source, target = np.asarray(source, float), np.asarray(target, float)
    if source.shape != target.shape or source.ndim != 2 or source.shape[1] != 3:
        raise RegistrationError(f'needs two (N, 3) arrays of matched points, got {source.shape} and {target.shape}')
    if len(source) < 3:
        raise RegistrationError(f'needs at least 3 matched points, got {len(source)}')
    if not (np.isfinite(source).all() and np.isfinite(target).all()):
        raise RegistrationError('the points must be finite')
    return source, target


def _draw(generator: np.random.Generator, count: int, samples: int) -> np.ndarray:
    """Draw three different numbers below `count`, so many times: (samples, 3)."""
    first, second, third = generator.integers(0, [[count], [count - 1], [count - 2]], (3, samples))
    second = second + (second >= first)
    low, high = np.minimum(first, second), np.maximum(first, second)
    third = third + (third >= low)
    return np.column_stack([first, second, third + (third >= high)])


def _fit(source: np.ndarray, target: np.ndarray, with_scale: bool) -> Similarity:
    """Fit each set of points (..., N, 3) by itself; the scale (...) is NaN where all points of a set coincide."""
    source_mean, target_mean = source.mean(axis=-2), target.mean(axis=-2)
    source_centred, target_centred = source - source_mean[..., None, :], target - target_mean[..., None, :]
    variance = np.square(source_centred).sum(axis=(-2, -1)) / source.shape[-2]
    coincide = np.sqrt(variance) <= 1e-12 * np.maximum(1.0, np.abs(source_mean).max(axis=-1))
    coincide |= ~target_centred.any(axis=(-2, -1))
    left, singular, right = np.linalg.svd(target_centred.swapaxes(-2, -1) @ source_centred / source.shape[-2])
    # A reflection may fit noisy or flat points better; only rotations are wanted.
    singular[..., 2] *= (sign := np.sign(np.linalg.det(left) * np.linalg.det(right)))
    left[..., 2] *= sign[..., None]
    rotation = left @ right
    scale = np.where(coincide, np.nan, singular.sum(axis=-1) / np.where(coincide, 1, variance) if with_scale else 1.0)
    turned = (rotation @ source_mean[..., None])[..., 0]
    return Similarity(scale, rotation, target_mean - scale[..., None] * turned)


def _residuals(model: Similarity, source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Return the distances that a similarity leaves, (N,); of several at once, (K, N)."""
    moved = np.asarray(model.scale)[..., None, None] * model.rotation @ source.T + model.translation[..., None]
    return np.sqrt(np.square(moved - target.T).sum(axis=-2))  # summed over x, y, z: far faster than over a last axis
