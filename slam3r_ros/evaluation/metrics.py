# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""How far a reconstruction is from the truth: trajectory, tracking, depth, cloud."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.spatial import cKDTree

from slam3r_ros.mapping.registration import RegistrationError, Similarity, similarity
from slam3r_ros.mapping.trajectory import associate
from slam3r_ros.values import Pose

STAMP_TOLERANCE = 20_000_000  # nanoseconds, as the tools of the TUM RGB-D benchmark have it
CLOUD_VOXEL = 0.02  # metres; clouds are thinned to one point a voxel, that close views do not outweigh far ones
CLOUD_THRESHOLD = 0.05  # metres; a point nearer than this counts as right


class TrajectoryScore(NamedTuple):
    """Absolute trajectory error (Sturm et al., IROS 2012) after one Sim(3) over all poses."""

    rmse: float  # metres
    path_length: float  # metres of ground truth between the first and the last pose compared
    poses: int  # compared
    alignment: Similarity  # map -> ground truth


class DepthScore(NamedTuple):
    """Errors of confident depth after one scale for all (Eigen et al., NIPS 2014)."""

    abs_rel: float  # mean of |estimate - truth| / truth
    delta1: float  # share with max(estimate / truth, truth / estimate) < 1.25
    coverage: float  # confident pixels that have a truth, of all pixels that have one
    scale: float  # metres in a map unit: median of truth / estimate
    keyframes: int


class CloudScore(NamedTuple):
    """Distances between two clouds, each to the nearest point of the other (DTU, Jensen et al., CVPR 2014)."""

    accuracy: float  # metres, mean from estimate to truth
    accuracy_median: float
    accuracy_share: float  # of the estimate within CLOUD_THRESHOLD of the truth
    completeness: float  # metres, mean from truth to estimate
    completeness_median: float
    completeness_share: float  # of the truth within CLOUD_THRESHOLD of the estimate


class TrackingScore(NamedTuple):
    """How much of a video has poses."""

    init_frames: int  # frames before the first live pose
    tracked_share: float  # of the frames from the first live pose on: those with a live pose
    backfilled_share: float  # of all frames: those with a final pose


def score_trajectory(poses: Sequence[Pose], groundtruth: Sequence[Pose]) -> TrajectoryScore | None:
    """Compare positions after the best similarity; None where that is not determined (too few poses, no motion)."""
    pairs = associate([p.stamp for p in poses], [p.stamp for p in groundtruth], STAMP_TOLERANCE)
    if len(pairs) < 3:
        return None
    estimate = np.array([poses[i].T_map_camera[:3, 3] for i, _ in pairs])
    truth = np.array([groundtruth[j].T_map_camera[:3, 3] for _, j in pairs])
    try:
        alignment = similarity(estimate, truth)
    except RegistrationError:
        return None
    squares = np.square(alignment.apply(estimate) - truth).sum(axis=1)
    travelled = np.array([p.T_map_camera[:3, 3] for p in groundtruth[pairs[0, 1] : pairs[-1, 1] + 1]])
    length = float(np.linalg.norm(np.diff(travelled, axis=0), axis=1).sum())
    return TrajectoryScore(float(np.sqrt(squares.mean())), length, len(pairs), alignment)


def score_tracking(
    live: Sequence[Pose], final: Sequence[Pose], frames: int, start: int = 0
) -> TrackingScore | None:
    """Count the poses of a video of `frames` frames whose stamps start at `start`; None without any live pose."""
    stamps = np.unique([pose.stamp for pose in live])
    if not len(stamps) or not frames:
        return None
    first = min(live, key=lambda pose: pose.stamp)
    # Poses that came as messages do not know their frame: then the stamps tell.
    period = np.median(np.diff(stamps)) if len(stamps) > 1 else 0
    before = first.id if first.id >= 0 else round((first.stamp - start) / period) if period else 0
    share = len(stamps) / max(frames - before, len(stamps))
    return TrackingScore(before, share, min(len({pose.stamp for pose in final}) / frames, 1.0))


def score_depth(views: Sequence[tuple[np.ndarray, np.ndarray]]) -> DepthScore | None:
    """Compare depth maps.

    Args:
        views: For each keyframe the estimate (H, W) in map units, 0 where not confident, and the truth (H, W) in
            metres, 0 where unknown.
    """
    pairs = [(estimate[(estimate > 0) & (truth > 0)], truth[(estimate > 0) & (truth > 0)]) for estimate, truth in views]
    if not sum(len(estimate) for estimate, _ in pairs):
        return None
    estimate, truth = (np.concatenate(parts).astype(float) for parts in zip(*pairs))
    scale = float(np.median(truth / estimate))
    ratio = scale * estimate / truth
    known = sum(int((true > 0).sum()) for _, true in views)
    return DepthScore(
        abs_rel=float(np.abs(ratio - 1).mean()),
        delta1=float((np.maximum(ratio, 1 / ratio) < 1.25).mean()),
        coverage=len(truth) / known,
        scale=scale,
        keyframes=len(views),
    )


def score_cloud(estimate: np.ndarray, truth: np.ndarray) -> CloudScore | None:
    """Compare clouds (N, 3) and (M, 3) in one frame, metres; both are thinned to CLOUD_VOXEL first."""
    if not len(estimate) or not len(truth):
        return None
    estimate, truth = thin(estimate, CLOUD_VOXEL), thin(truth, CLOUD_VOXEL)
    there = cKDTree(truth).query(estimate, workers=-1)[0]
    back = cKDTree(estimate).query(truth, workers=-1)[0]
    measures = ((d.mean(), np.median(d), (d < CLOUD_THRESHOLD).mean()) for d in (there, back))
    return CloudScore(*(float(value) for triple in measures for value in triple))


def thin(points: np.ndarray, voxel: float) -> np.ndarray:
    """Keep one point (the first) of each voxel, (N, 3)."""
    if not len(points):
        return points
    cells = np.floor((points - points.min(axis=0)) / voxel).astype(np.int64)
    keys = np.ravel_multi_index(cells.T, cells.max(axis=0) + 1)
    return points[np.unique(keys, return_index=True)[1]]
