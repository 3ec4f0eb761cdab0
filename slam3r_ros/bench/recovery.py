# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`slam3r bench recovery`: how soon the camera is found again after black frames, and how well it is tracked then.

A clip is run as it is, then with some seconds of it black, at several places.  The camera moves on meanwhile; with
`--still` it does not, the black frames being put in between.  So it is for the bundled clip, whose camera looks where
it never was before after three seconds.  The error is that of the poses as they were published, after one similarity
for each run, over the same frames of both.
"""

import argparse
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from slam3r_ros.engines.geometric.engine import GeometricEngine
from slam3r_ros.evaluation.metrics import STAMP_TOLERANCE, score_trajectory
from slam3r_ros.mapping.selection import FrameSelector
from slam3r_ros.mapping.trajectory import associate, read_tum
from slam3r_ros.values import Frame, Pose
from slam3r_ros.video.source import Source, open_source

LATEST = 2.0  # seconds of video until the camera is found again
WORSE = 1.3  # times the error of the run without black frames
SECOND = 1_000_000_000  # nanoseconds


class Outcome(NamedTuple):
    """What became of a run with black frames."""

    seconds: float  # of video until the camera was found again in its map, inf if it was not
    ratio: float  # of the error from then on to that of the uncut run, inf if it cannot be told
    error: float  # metres, of that run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument('--video', type=Path, help='video file; the bundled clip if left out')
    parser.add_argument('--groundtruth', type=Path, help='its TUM trajectory')
    parser.add_argument('--seconds', type=float, default=3.0, help='that are black, 3')
    parser.add_argument('--still', action='store_true', help='put the black frames in between')
    parser.add_argument('--at', type=float, nargs='+', default=[0.3, 0.5, 0.7], help='where in the clip, 0 to 1')


def main(arguments: argparse.Namespace) -> int:
    """Print the figures; return 1 where one misses its limit."""
    from slam3r_ros.graph import bundled_clip

    video, groundtruth = arguments.video, arguments.groundtruth
    if video is None:
        video, groundtruth = bundled_clip() / 'video.mp4', bundled_clip() / 'groundtruth.tum'
    if groundtruth is None:
        raise SystemExit('a video of your own needs its trajectory: give --groundtruth')
    truth = read_tum(groundtruth)
    still = arguments.still or arguments.video is None
    uncut, stamps = follow(video, still)
    good = True
    print('black from [s]   found after [s]   ATE after [m]   to that uncut')
    for share in arguments.at:
        start = stamps[int(share * len(stamps))]
        end = start + round(arguments.seconds * SECOND)
        outcome = compare(uncut, follow(video, still, start, end)[0], start, end, still, truth)
        print(f'{start / SECOND:14.2f}   {outcome.seconds:15.2f}   {outcome.error:13.4f}   {outcome.ratio:13.2f}')
        good &= outcome.seconds <= LATEST and outcome.ratio <= WORSE
    print(f'limits: found after {LATEST} s, {WORSE} times the error: {"kept" if good else "MISSED"}')
    return int(not good)


def follow(video: Path, still: bool, start: int = 0, end: int = 0) -> tuple[list[Pose], list[int]]:
    """Run the engine over a clip that is black from one stamp to another.

    Returns:
        The poses as they came, of the first map only, and the stamps of all frames; if the camera stood still
        meanwhile, the stamps from then on are those of the clip and so much more.
    """
    poses, stamps, selector = [], [], FrameSelector()
    with closing(open_source(str(video))) as source, closing(GeometricEngine(dense=False)) as engine:
        for frame in blackened(source, still, start, end):
            stamps.append(frame.stamp)
            selected = selector.select(frame)
            if selected is None:
                continue
            output = engine.process(selected)
            for keyframe in output.keyframes:
                selector.hear(keyframe)
            if output.pose is not None and engine.map_id == 0:
                poses.append(output.pose)
    return poses, stamps


def blackened(source: Source, still: bool, start: int, end: int) -> Iterator[Frame]:
    """Yield frames, black ones from one stamp until before another, in place of the true ones or between them."""
    late = 0
    for frame in source:
        black = np.zeros_like(frame.image)
        if still and not late and end > start and frame.stamp >= start:
            late = round((end - start) / SECOND * source.fps)
            for number in range(late):
                yield Frame(frame.id + number, frame.stamp + round(number * SECOND / source.fps), black)
        if late:
            yield replace(frame, id=frame.id + late, stamp=frame.stamp + end - start)
        else:
            yield replace(frame, image=black) if start <= frame.stamp < end else frame


def compare(uncut: list[Pose], cut: list[Pose], start: int, end: int, still: bool, truth: list[Pose]) -> Outcome:
    """Compare a run that was black from one stamp until another with one that was not."""
    after = [pose for pose in cut if pose.stamp >= end]
    if not after:
        return Outcome(np.inf, np.inf, np.inf)
    if still:  # put the stamps of the clip back
        cut = [replace(pose, stamp=pose.stamp - (end - start) * (pose.stamp >= end)) for pose in cut]
    begin = start if still else end
    common = {pose.stamp for pose in cut if pose.stamp >= begin} & {pose.stamp for pose in uncut}
    error, usual = (error_at(poses, common, truth) for poses in (cut, uncut))
    return Outcome((after[0].stamp - end) / SECOND, error / usual, error)


def error_at(poses: list[Pose], stamps: set[int], truth: list[Pose]) -> float:
    """Return the root mean square error at some stamps, after the best similarity over all; NaN where there is none."""
    score = score_trajectory(poses, truth)
    chosen = [pose for pose in poses if pose.stamp in stamps]
    pairs = associate([pose.stamp for pose in chosen], [pose.stamp for pose in truth], STAMP_TOLERANCE)
    if score is None or not len(pairs):
        return np.nan
    found = np.array([chosen[i].T_map_camera[:3, 3] for i, _ in pairs])
    true = np.array([truth[j].T_map_camera[:3, 3] for _, j in pairs])
    return float(np.sqrt(np.square(score.alignment.apply(found) - true).sum(axis=1).mean()))
