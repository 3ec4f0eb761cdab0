# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The pose of one camera from points of known position (perspective-n-point)."""

from typing import NamedTuple

import cv2
import numpy as np

from slam3r_ros.engines.geometric.adjust import accumulate, reproject, robust_cost, rotate
from slam3r_ros.mapping.frames import rigid

MIN_INLIERS = 12
_GATE = 3.0  # median errors of the predicted pose: points beyond are left out at first
_ITERATIONS = 10
_SAMPLES = 500  # of RANSAC, at most
_TRIALS = 6  # damping values tried per iteration
_CONVERGED = 1e-4  # relative gain of one iteration
_GOOD_START = 0.6  # of the points fit from the predicted pose: no RANSAC


class CameraPose(NamedTuple):
    """A world -> camera pose and how the points fit it."""

    T_camera_world: np.ndarray  # (4, 4)
    errors: np.ndarray  # (N,) pixels
    inliers: np.ndarray  # (N,) bool

    @property
    def share(self) -> float:
        """The share of inliers."""
        return float(self.inliers.mean())


def pinhole(focal: float) -> np.ndarray:
    """Return K (3, 3) for pixels counted from the principal point."""
    return np.diag([focal, focal, 1.0])


def reproject_one(T: np.ndarray, points: np.ndarray, pixels: np.ndarray, focal: float
                  ) -> tuple[np.ndarray, np.ndarray]:
    """Return errors (N,) pixels and depths (N,) of points (N, 3) in one camera T_camera_world."""
    return reproject(T[None, :3, :3].copy(), T[None, :3, 3].copy(), points, focal, np.zeros(len(points), int),
                     np.arange(len(points)), pixels)


def refine_pose(T: np.ndarray, points: np.ndarray, pixels: np.ndarray, focal: float) -> np.ndarray:
    """Move a pose T_camera_world to the robust optimum; it is the camera's own block of a bundle adjustment."""
    R, t = T[None, :3, :3].copy(), T[None, :3, 3].copy()
    camera, point, slot = np.zeros(len(points), int), np.arange(len(points)), np.zeros(1, int)
    best, damping = robust_cost(reproject(R, t, points, focal, camera, point, pixels)[0]), 1e-4
    for _ in range(_ITERATIONS):
        H, g = accumulate(R, t, points, focal, camera, point, pixels, slot, 1)[:2]
        H, g = H[:6, :6], g[:6]
        gain = 0.0
        for _ in range(_TRIALS):
            step = -np.linalg.solve(H + np.diag(damping * np.diag(H) + 1e-9), g)
            trial_R, trial_t = rotate(R[0], step[:3])[None], t + step[3:]
            cost = robust_cost(reproject(trial_R, trial_t, points, focal, camera, point, pixels)[0])
            if cost < best:
                gain, best, damping, R, t = 1 - cost / best, cost, damping / 10, trial_R, trial_t
                break
            damping *= 10
        if gain < _CONVERGED:
            break
    return rigid(R[0], t[0])


def estimate_pose(points: np.ndarray, pixels: np.ndarray, focal: float,
                  guess: np.ndarray | None = None, threshold: float = 3.0) -> CameraPose | None:
    """Find the camera that sees points (N, 3) at pixels (N, 2); None when too few agree.

    The guess, T_camera_world (4, 4), is tried first; RANSAC (AP3P) follows when too few points fit it.
    """
    if len(points) < MIN_INLIERS:
        return None
    points, pixels = np.ascontiguousarray(points, float), np.ascontiguousarray(pixels, float)
    if guess is not None:
        errors, _ = reproject_one(guess, points, pixels, focal)
        near = errors <= max(threshold, _GATE * np.median(errors))  # a wild point would outweigh all others
        found = _settle(guess, points, pixels, near, focal, threshold)
        if found is not None and found.share >= _GOOD_START:
            return found
    else:
        found = None
    try:
        ok, vector, translation, inliers = cv2.solvePnPRansac(
            points, pixels, pinhole(focal), None, iterationsCount=_SAMPLES, reprojectionError=threshold,
            confidence=0.999, flags=cv2.SOLVEPNP_AP3P)
    except cv2.error:  # OpenCV raises where the points are degenerate: no pose either way
        return found
    if not ok or inliers is None or len(inliers) < MIN_INLIERS:
        return found
    chosen = np.zeros(len(points), bool)
    chosen[inliers[:, 0]] = True
    sampled = _settle(rigid(rotate(np.eye(3), vector[:, 0]), translation[:, 0]), points, pixels, chosen, focal,
                      threshold)
    if sampled is None or (found is not None and found.inliers.sum() >= sampled.inliers.sum()):
        return found
    return sampled


def _settle(T: np.ndarray, points: np.ndarray, pixels: np.ndarray, inliers: np.ndarray, focal: float,
            threshold: float) -> CameraPose | None:
    """Refine on the inliers, count them anew, and once more."""
    for _ in range(2):
        T = refine_pose(T, points[inliers], pixels[inliers], focal)
        errors, _ = reproject_one(T, points, pixels, focal)
        inliers = errors < threshold
        if inliers.sum() < MIN_INLIERS:
            return None
    return CameraPose(T, errors, inliers)
