# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The figures of a run: what came out of it against the truth."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from slam3r_ros.evaluation import metrics
from slam3r_ros.evaluation.groundtruth import Camera, DepthImages, load
from slam3r_ros.mapping.frames import transform
from slam3r_ros.mapping.registration import Similarity
from slam3r_ros.values import Keyframe, Pose

_LONG = 0.1  # seconds; less is not worth a word


class NewestKeyframes:
    """The highest revision of each keyframe that was published.

    Attributes:
        with_depth: Ids of those that have depth.
    """

    def __init__(self, geometry: bool = True) -> None:
        """Begin with none.

        Args:
            geometry: Keep the pointmaps, 0.7 MB each; without, an hour of video needs little memory.
        """
        self._geometry = geometry
        self._keyframes: dict[int, Keyframe] = {}
        self.with_depth: set[int] = set()

    def add(self, keyframe: Keyframe) -> None:
        """Take a keyframe, unless a later revision of it was here before."""
        known = self._keyframes.get(keyframe.id)
        if known is not None and known.revision >= keyframe.revision:
            return
        if keyframe.pointmap is not None:
            self.with_depth.add(keyframe.id)
        if not self._geometry:
            keyframe = replace(keyframe, pointmap=None, confidence=None, colors=None)
        self._keyframes[keyframe.id] = keyframe

    def __iter__(self) -> Iterator[Keyframe]:
        """Go through them by id."""
        return (self._keyframes[i] for i in sorted(self._keyframes))

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._keyframes)


def score(
    live: Sequence[Pose],
    final: Sequence[Pose],
    keyframes: NewestKeyframes,
    groundtruth: Path | None,
    depth: Path | None = None,
    intrinsics: Path | None = None,
    frames: int = 0,
    undistorted: bool = False,
    start: int = 0,
) -> dict:
    """Score what came out of a run.

    Args:
        live: Poses as they were published.
        final: The best known poses in the end.
        keyframes: Those that were published, with their geometry where there is depth to score them by.
        groundtruth: TUM trajectory.
        depth: Folder of depth images.
        intrinsics: The true intrinsics.json.
        frames: How many the video has.
        undistorted: The engine was given undistorted images.
        start: Stamp of the first frame, nanoseconds; only for poses that do not know their frame.

    Returns:
        A dictionary for JSON: errors in metres, shares between 0 and 1; None for what cannot be told.

    Raises:
        TrajectoryError, GroundTruthError: A file is unusable.
    """
    truth, camera, images = load(groundtruth, intrinsics, depth, undistorted)
    dense = [keyframe for keyframe in keyframes if keyframe.pointmap is not None]
    tracked = metrics.score_tracking(live, final, frames, start)
    errors = {name: metrics.score_trajectory(poses, truth) for name, poses in (('live', live), ('final', final))}
    best = errors['final'] or errors['live']
    result = {
        'frames': frames,
        'init_frames': tracked and tracked.init_frames,
        'tracked_share': tracked and tracked.tracked_share,
        'backfilled_share': tracked and tracked.backfilled_share,
        'keyframes': len(keyframes),
        'keyframes_with_depth': len(keyframes.with_depth),
        'path_length': best and best.path_length,
        'scale': best and best.alignment.scale,
    }
    for name, error in errors.items():
        result[f'ate_{name}'] = error and error.rmse
        result[f'ate_{name}_percent'] = 100 * error.rmse / error.path_length if error and error.path_length else None
    result |= _score_depth(dense, images) | {'cloud': _score_cloud(dense, images, best and best.alignment)}
    return result | _score_focal(dense, camera, undistorted)


def format_table(result: dict) -> str:
    """Return the figures as a short table."""
    ate = [f'{name} {result["ate_" + name]:.3f} m ({_number(result["ate_" + name + "_percent"], 2, "%")})'
           for name in ('live', 'final') if result['ate_' + name] is not None]
    rows = {
        'engine': f'{result.get("engine", "")}{", given the true intrinsics" if result.get("intrinsics_used") else ""}',
        'frames': f'{result["frames"]}',
        'keyframes': f'{result["keyframes"]}, {result["keyframes_with_depth"]} with depth',
    }
    if result['init_frames'] is not None:
        rows['frames'] += f', the first {result["init_frames"]} of them to initialise'
        rows['tracked'] = (
            f'live {_percent(result["tracked_share"])} of the frames from then on; '
            f'in the end {_percent(result["backfilled_share"])} of all'
        )
    if ate:
        rows['ATE'] = f'{"; ".join(ate)}; path {_number(result["path_length"], 2, "m")}'
    for key, title in (('depth', 'depth'), ('depth_exact', '  exact only')):
        if depth := result[key]:
            rows[title] = (
                f'AbsRel {depth["abs_rel"]:.3f}, delta<1.25 {depth["delta1"]:.3f} '
                f'on {_percent(depth["coverage"])} of the pixels of {depth["keyframes"]} keyframes'
            )
    if cloud := result['cloud']:
        rows['cloud'] = (
            f'accuracy {cloud["accuracy"]:.3f} m, completeness {cloud["completeness"]:.3f} m; within '
            f'{cloud["threshold"]} m {_percent(cloud["accuracy_share"])} and {_percent(cloud["completeness_share"])}'
        )
    if result['focal'] is not None:
        rows['focal length'] = f'{result["focal"]:.1f} px ({result["focal_error_percent"]:+.1f} %)'
    if result.get('fps'):
        stages = ', '.join(f'{stage} {fps:.0f}' for stage, fps in result.get('stage_fps', {}).items())
        rows['FPS'] = f'{result["fps"]:.1f} ({result["seconds"]:.1f} s){"; " + stages if stages else ""}'
        if (prepared := result.get('prepare_seconds', 0)) >= _LONG:
            rows['FPS'] += f'; before that {prepared:.1f} s to prepare'
    if result.get('milliseconds'):
        rows['milliseconds'] = ', '.join(f'{stage} {value:.1f}' for stage, value in result['milliseconds'].items())
    return '\n'.join(f'{title:<14}{text}' for title, text in rows.items())


def _score_depth(keyframes: list[Keyframe], depth: DepthImages | None) -> dict:
    """Score all keyframes that see a depth image, and those alone that were taken with one."""
    views, exact = [], []
    for keyframe in keyframes if depth else ():
        seen = depth.seen_by(keyframe)
        if seen is not None:
            confident = (keyframe.confidence > 0) & np.isfinite(keyframe.pointmap[..., 2])
            views.append((np.where(confident, keyframe.pointmap[..., 2], 0), seen[0]))
            if seen[1]:
                exact.append(views[-1])
    errors = {'depth': metrics.score_depth(views), 'depth_exact': metrics.score_depth(exact)}
    return {name: error and error._asdict() for name, error in errors.items()}


def _score_cloud(keyframes: list[Keyframe], depth: DepthImages | None, alignment: Similarity | None) -> dict | None:
    """Score the confident points of all keyframes, moved by the trajectory's alignment."""
    if depth is None or alignment is None or not keyframes:
        return None
    clouds = []
    for keyframe in keyframes:
        points = keyframe.pointmap[(keyframe.confidence > 0) & np.isfinite(keyframe.pointmap).all(axis=2)]
        clouds.append(alignment.apply(transform(keyframe.pose.T_map_camera, points.astype(float))))
    error = metrics.score_cloud(np.concatenate(clouds), depth.cloud())
    return error and error._asdict() | {'voxel': metrics.CLOUD_VOXEL, 'threshold': metrics.CLOUD_THRESHOLD}


def _score_focal(keyframes: list[Keyframe], camera: Camera | None, undistorted: bool) -> dict:
    """Score the focal length that the engine ended with."""
    if camera is None or not keyframes:
        return {'focal': None, 'focal_error_percent': None}
    height, width = keyframes[-1].pointmap.shape[:2]
    found, true = camera.on_image(keyframes[-1].intrinsics, width, height), camera.pinhole(undistorted)
    return {
        'focal': (found.fx + found.fy) / 2,  # pixels of the video
        'focal_error_percent': 100 * ((found.fx + found.fy) / (true.fx + true.fy) - 1),
    }


def _number(value: float | None, digits: int, unit: str = '') -> str:
    return 'unknown' if value is None else f'{value:.{digits}f} {unit}'.rstrip()


def _percent(value: float | None) -> str:
    return 'unknown' if value is None else f'{100 * value:.1f} %'
