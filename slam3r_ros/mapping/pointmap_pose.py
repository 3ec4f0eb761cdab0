# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Focal length and camera pose from pointmaps, which networks give without either."""

from typing import NamedTuple

import cv2
import numpy as np

from slam3r_ros.mapping.frames import invert, rigid, transform
from slam3r_ros.mapping.registration import RegistrationError, similarity, similarity_ransac
from slam3r_ros.values import Intrinsics

MAX_POINTS = 4000  # of a map that enter a pose
MIN_POINTS = 30
REPROJECTION = 3.0  # pixels, largest error of an inlier
REGISTRATION = 0.05  # of the median distance, largest error of an inlier of the cross-check
CLEAR = 0.6  # share of inliers that leaves no doubt about a pose
_FEW, _SOME = 300, 1000  # points that are enough for a quick guess, and to come near from there
_JUDGES, _DRAWS = 500, 200  # points that judge samples, of which so many are drawn
_STEPS = 20  # of a refinement at most
_STILL, _NEAR = 1e-8, 1e-4  # what its last one gains, of the cost: in the end, and to come near


class PoseError(ValueError):
    """A pointmap does not determine the camera; the message says why."""


class CameraPose(NamedTuple):
    """A camera in the world of a pointmap."""

    T_world_camera: np.ndarray  # (4, 4)
    inliers: float  # share of the points that reproject well
    error: float  # pixels, median reprojection error


def pixel_grid(height: int, width: int) -> np.ndarray:
    """Return u and v of every pixel, (H, W, 2)."""
    return np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1).astype(float)


def estimate_focal(
    points: np.ndarray, principal: tuple[float, float], weights: np.ndarray | None = None, iterations: int = 10
) -> float:
    """Fit the focal length to a pointmap in its own camera frame, robustly (Weiszfeld 1937).

    Args:
        points: (H, W, 3) in the optical frame, any unit.
        principal: point, pixels.
        weights: (H, W) of the points, such as their confidence.
        iterations: of reweighting by the residual.

    Raises:
        PoseError: no point lies before the camera.
    """
    pixels, rays = _pixels_and_rays(points, principal)
    rays[~np.isfinite(rays)] = 0
    weights = np.ones(points.shape[:2]) if weights is None else weights
    along, square = (pixels * rays).sum(-1), np.square(rays).sum(-1)
    scale = weights
    focal = 0.0
    for _ in range(iterations + 1):
        if (total := (scale * square).sum()) <= 0:
            raise PoseError('no point of the map lies before the camera')
        focal = float((scale * along).sum() / total)
        scale = weights / np.maximum(np.linalg.norm(pixels - focal * rays, axis=-1), 1e-8)
    return focal


def median_focal(points: np.ndarray, principal: tuple[float, float]) -> float:
    """Take the median of the focal lengths that every pixel's row and column ask for, the official tool's other way.

    Robust without weights, but coarse on maps whose depth is poor near the axes; the arguments are `estimate_focal`'s.

    Raises:
        PoseError: no point lies before the camera.
    """
    pixels, rays = _pixels_and_rays(points, principal)
    with np.errstate(divide='ignore', invalid='ignore'):
        asked = pixels / rays
    if np.isnan(asked).all():
        raise PoseError('no point of the map lies before the camera')
    return float(np.nanquantile(asked, 0.5, method='lower'))  # as torch.nanmedian


def _pixels_and_rays(points: np.ndarray, principal: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Return the pixels from the principal point, and x/z and y/z of their points, (H, W, 2) each."""
    with np.errstate(divide='ignore', invalid='ignore'):
        return pixel_grid(*points.shape[:2]) - principal, points[..., :2].astype(float) / points[..., 2:]


def estimate_pose(
    world: np.ndarray, confidence: np.ndarray, camera: Intrinsics, local: np.ndarray | None = None
) -> CameraPose:
    """Find the camera that saw a pointmap: PnP with RANSAC, then a refinement weighted by confidence.

    With a local map, the 7-dof registration of local to world is the cross-check: whichever camera explains the
    pixels better is refined.  Mostly a quick registration leads to a pose that leaves no doubt, and nothing is drawn.
    Else few of the points judge what is drawn, and guesses come near before they are compared, as in LO-RANSAC (Chum et
    al. 2003).

    Args:
        world: (H, W, 3) in the world.
        confidence: (H, W), 0 or less where there is no point.
        camera: of the map's pixels.
        local: (H, W, 3), the same points in the optical frame, in any unit.

    Raises:
        PoseError: too few points, or no camera explains them.
    """
    usable = (confidence > 0) & _finite(world)
    if local is not None:
        usable &= _finite(local)
    places = np.flatnonzero(usable)
    if len(places) < MIN_POINTS:
        raise PoseError(f'a pose takes {MIN_POINTS} points, the map has {len(places)}')
    # The more confident half, evenly thinned.
    values = confidence.ravel()[places]
    places = places[values >= np.partition(values, len(values) // 2)[len(values) // 2]]
    places = places[_thin(places, MAX_POINTS)]
    points = world.reshape(-1, 3)[places].astype(float)
    pixels = np.stack(np.divmod(places, confidence.shape[1])[::-1], axis=-1).astype(float)
    weights = confidence.ravel()[places].astype(float)
    some, judges = _thin(points, _SOME), _thin(points, _JUDGES)

    def near(T_camera_world: np.ndarray) -> np.ndarray:
        return _refine(T_camera_world, points[some], pixels[some], weights[some], camera, _NEAR)

    def cost(T_camera_world: np.ndarray) -> float:
        """Return the cost as MSAC counts it (Torr and Zisserman 2000): outliers weigh alike."""
        errors = np.minimum(_errors(T_camera_world, points, pixels, camera), 2 * REPROJECTION)
        return np.average(np.square(errors), weights=weights)

    def judged(T_camera_world: np.ndarray) -> CameraPose:
        errors = _errors(T_camera_world, points, pixels, camera)
        return CameraPose(invert(T_camera_world), float((errors <= REPROJECTION).mean()), float(np.median(errors)))

    guesses, drawn = [], []
    if local is not None:
        seen = local.reshape(-1, 3)[places].astype(float)
        if (quick := _register_most(seen, points)) is not None:
            quick = near(quick)
            if (_errors(quick, points[some], pixels[some], camera) <= REPROJECTION).mean() >= CLEAR:
                return judged(_refine(quick, points, pixels, weights, camera))
            guesses.append(quick)
        drawn.append(_register(seen[judges], points[judges]))
    drawn.append(_solve_pnp(points[judges], pixels[judges], camera))
    guesses += [near(guess) for guess in drawn if guess is not None]
    if not guesses:
        raise PoseError('no camera explains the pointmap')
    best = min(guesses, key=cost)
    return judged(min(best, _refine(best, points, pixels, weights, camera), key=cost))


def _thin(values: np.ndarray, most: int) -> slice:
    """Return what takes at most so many of the values, evenly."""
    return slice(None, None, -(-len(values) // most))


def _finite(points: np.ndarray) -> np.ndarray:
    """Return which points (..., 3) are finite, (...) bool."""
    return np.isfinite(points[..., 0] + points[..., 1] + points[..., 2])


def _solve_pnp(points: np.ndarray, pixels: np.ndarray, camera: Intrinsics) -> np.ndarray | None:
    """Return T_camera_world, (4, 4)."""
    cv2.setRNGSeed(0)  # the same map gives the same pose
    try:
        found, _, _, inliers = cv2.solvePnPRansac(
            points, pixels, camera.matrix(), None, iterationsCount=_DRAWS, reprojectionError=REPROJECTION,
            flags=cv2.SOLVEPNP_AP3P,
        )
        if not found:
            return None
        # The camera it gives is EPnP's, which is wrong for points on a plane.
        inliers = inliers[:, 0]
        _, turn, shift = cv2.solvePnP(
            points[inliers], pixels[inliers], camera.matrix(), None, flags=cv2.SOLVEPNP_SQPNP
        )
    except cv2.error:  # degenerate points
        return None
    return rigid(cv2.Rodrigues(turn)[0], shift[:, 0]) if np.isfinite(shift).all() else None


def _register(local: np.ndarray, world: np.ndarray) -> np.ndarray | None:
    """Return T_camera_world, (4, 4), by the similarity from local to world points."""
    spread = np.median(np.linalg.norm(world - np.median(world, axis=0), axis=1))
    try:
        found, _ = similarity_ransac(local, world, REGISTRATION * float(spread), max_iterations=_DRAWS)
    except RegistrationError:
        return None
    return invert(rigid(found.rotation, found.translation))


def _register_most(local: np.ndarray, world: np.ndarray) -> np.ndarray | None:
    """Return T_camera_world, (4, 4), by the better half of the points: trimmed squares (Rousseeuw and Leroy 1987)."""
    local, world = (points[_thin(points, _FEW)] for points in (local, world))
    kept = np.ones(len(local), bool)
    try:
        for _ in range(4):
            found = similarity(local[kept], world[kept])
            distances = np.square(found.apply(local) - world).sum(axis=1)
            kept = distances <= np.median(distances)
    except RegistrationError:
        return None
    return invert(rigid(found.rotation, found.translation))


def _project(T_camera_world: np.ndarray, points: np.ndarray, camera: Intrinsics) -> np.ndarray:
    seen = transform(T_camera_world, points)
    depth = np.where(seen[:, 2] > 1e-9, seen[:, 2], 1e-9)  # behind the camera: far off the image
    return seen[:, :2] / depth[:, None] * (camera.fx, camera.fy) + (camera.cx, camera.cy)


def _errors(T_camera_world: np.ndarray, points: np.ndarray, pixels: np.ndarray, camera: Intrinsics) -> np.ndarray:
    return np.linalg.norm(_project(T_camera_world, points, camera) - pixels, axis=1)


def _refine(
    T_camera_world: np.ndarray, points: np.ndarray, pixels: np.ndarray, weights: np.ndarray, camera: Intrinsics,
    still: float = _STILL,
) -> np.ndarray:
    """Lower the weighted reprojection error of the inliers, as Huber (1964) counts it: Gauss-Newton, reweighted."""
    near = _errors(T_camera_world, points, pixels, camera) <= 2 * REPROJECTION
    if near.sum() < MIN_POINTS:
        return T_camera_world
    points, pixels = np.ascontiguousarray(points[near].T), pixels[near].T  # (3, N), (2, N)
    roots = np.sqrt(weights[near] / weights[near].mean())
    (fx, fy), middle = (camera.fx, camera.fy), np.array([[camera.cx], [camera.cy]])

    def look(T: np.ndarray) -> tuple[float, np.ndarray, np.ndarray, np.ndarray]:
        """Return the cost, residuals (2, N), their sizes (2, N), 1 at least, and the points in the camera (3, N)."""
        seen = T[:3, :3] @ points + T[:3, 3:]
        seen[2] = np.maximum(seen[2], 1e-9)  # behind the camera: far off the image
        errors = roots * (((fx,), (fy,)) * seen[:2] / seen[2] + middle - pixels)
        sizes = np.maximum(np.abs(errors), 1)
        return float((np.square(errors) / sizes + sizes).sum()), errors, sizes, seen

    T, (cost, errors, sizes, seen) = T_camera_world, look(T_camera_world)
    slopes = np.zeros((6, 2, len(roots)))  # of the residuals, with a turn and a shift of the camera
    for _ in range(_STEPS):
        z = 1 / seen[2]
        x, y, sure = seen[0] * z, seen[1] * z, 1 / np.sqrt(sizes)
        along, down = fx * roots * sure[0], fy * roots * sure[1]
        slopes[1, 0], slopes[2, 0], slopes[3, 0] = along * (1 + x * x), -along * y, along * z
        slopes[0, 1], slopes[2, 1], slopes[4, 1] = -down * (1 + y * y), down * x, down * z
        slopes[0, 0], slopes[5, 0] = slopes[2, 0] * x, -slopes[3, 0] * x
        slopes[1, 1], slopes[5, 1] = slopes[2, 1] * y, -slopes[4, 1] * y
        rows = slopes.reshape(6, -1)
        try:
            step = np.linalg.solve(rows @ rows.T, -rows @ (errors * sure).ravel())
        except np.linalg.LinAlgError:  # the points leave the camera open
            break
        moved = rigid(cv2.Rodrigues(step[:3])[0], step[3:]) @ T
        before, (cost, errors, sizes, seen) = cost, look(moved)
        if not cost < before:
            break
        T = moved
        if before - cost < still * cost:
            break
    return T
