# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`slam3r evaluate`: run an engine over a video, in a plain loop, and score it against the truth."""

import argparse
import json
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from slam3r_ros.engines import NAMES, create_engine
from slam3r_ros.engines.protocol import Engine, EngineError
from slam3r_ros.evaluation.groundtruth import Camera, GroundTruthError, load
from slam3r_ros.evaluation.score import NewestKeyframes, format_table, score
from slam3r_ros.mapping.selection import FrameSelector
from slam3r_ros.mapping.trajectory import TrajectoryError
from slam3r_ros.meshing.mesher import BlockMesher
from slam3r_ros.values import Frame, Keyframe, Pose
from slam3r_ros.video.source import VideoError, open_source
from slam3r_ros.video.undistort import DistortionError

VOXEL_SIZE = 0.02  # of the map's unit, as the mesher's `voxel_size_relative` by default


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument('--video', type=Path, required=True, help='a video file or bag')
    parser.add_argument('--groundtruth', type=Path, required=True, help='TUM trajectory, camera to world')
    parser.add_argument('--depth', type=Path, help='folder of depth images, <frame number>.png; needs --intrinsics')
    parser.add_argument('--intrinsics', type=Path, help='true intrinsics.json, to score the focal length')
    parser.add_argument('--use-intrinsics', action='store_true', help='also give them to the engine, undistorted')
    parser.add_argument('--engine', default='auto', choices=NAMES)
    parser.add_argument('--checkpoints', default='', help='folder of network weights')
    parser.add_argument('--mesh', action='store_true', help='also make the mesh, to time it')
    parser.add_argument('--json', type=Path, help='file to write the figures to')


def main(arguments: argparse.Namespace) -> int:
    """Run the command.

    Returns:
        0; 1 for bad input; 2 when nothing was reconstructed; 130 when interrupted.
    """
    try:
        if arguments.json and not arguments.json.parent.is_dir():
            raise GroundTruthError(f'{arguments.json}: there is no folder {arguments.json.parent}; make it first')
        result = evaluate(
            arguments.video,
            arguments.groundtruth,
            arguments.depth,
            arguments.intrinsics,
            arguments.use_intrinsics,
            arguments.engine,
            checkpoints=arguments.checkpoints,
            mesh=arguments.mesh,
        )
    except (VideoError, TrajectoryError, GroundTruthError, DistortionError, EngineError) as error:
        print(f'slam3r evaluate: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # before the first frame, or while scoring
        print('slam3r evaluate: interrupted; there are no figures', file=sys.stderr)
        return 130
    print(format_table(result))
    if arguments.json:
        try:
            arguments.json.write_text(json.dumps(result, indent=2) + '\n', encoding='utf-8')
        except OSError as error:
            print(f'slam3r evaluate: {arguments.json} cannot be written: {error.strerror}', file=sys.stderr)
            return 1
    if result['interrupted']:
        return 130
    if result['init_frames'] is None:
        print(f'slam3r evaluate: {arguments.video}: the engine never found a pose; '
              'the camera must move sideways past textured things', file=sys.stderr)
        return 2
    return 0


def evaluate(
    video: str | Path,
    groundtruth: Path,
    depth: Path | None = None,
    intrinsics: Path | None = None,
    use_intrinsics: bool = False,
    engine: str | Engine = 'auto',
    checkpoints: str = '',
    mesh: bool = False,
) -> dict:
    """Run an engine over a video and score it.

    Args:
        video: File or bag; the stamps of a file start at 0, as those of the ground truth must.
        groundtruth: TUM trajectory.
        depth: Folder of depth images; needs `intrinsics`.
        intrinsics: The true intrinsics.json.
        use_intrinsics: Give them to the engine too, with undistorted images.
        engine: Its name, or an engine; that is closed too.
        checkpoints: Folder of network weights.
        mesh: Also run the mesher.

    Returns:
        What `score` returns, with the engine's name and the speed, which does not count what the engine reads
        beforehand (`prepare_seconds`); None for what could not be had.

    Raises:
        VideoError, TrajectoryError, GroundTruthError, DistortionError, EngineError: Something given is unusable.
    """
    if use_intrinsics and intrinsics is None:
        raise GroundTruthError('--use-intrinsics needs a file of them; give --intrinsics')
    _, camera, _ = load(groundtruth, intrinsics, depth)  # see that all can be read before minutes of work
    with closing(open_source(str(video))) as source:
        if isinstance(engine, str):
            engine = create_engine(engine, checkpoints)
        with closing(engine):
            start = time.perf_counter()
            engine.prepare()
            prepared = time.perf_counter() - start
            frames = tqdm(source, total=source.frames, unit='frame', file=sys.stderr, disable=None)
            run = Run(engine, BlockMesher(VOXEL_SIZE) if mesh else None, geometry=intrinsics is not None)
            run.over(undistorted(frames, camera) if use_intrinsics else frames)
            final = engine.trajectory()
            facts = {
                'video': str(video),
                'engine': engine.name,
                'device': engine.device,
                'intrinsics_used': use_intrinsics,
                'interrupted': run.interrupted,
                'depth_skipped': engine.depth_skipped,
                'prepare_seconds': prepared,
            }
            facts |= run.timing(engine)
    return facts | score(run.live, final, run.keyframes, groundtruth, depth, intrinsics, run.frames, use_intrinsics)


class Run:
    """The stages in a plain loop: selector, engine and, where wanted, mesher."""

    def __init__(self, engine: Engine, mesher: BlockMesher | None = None, geometry: bool = True) -> None:
        """Begin with nothing; without `geometry`, what keyframes look like is forgotten."""
        self.live: list[Pose] = []
        self.keyframes = NewestKeyframes(geometry)
        self.frames = 0
        self.interrupted = False
        self._engine, self._mesher, self._selector = engine, mesher, FrameSelector()
        self._seconds: dict[str, float] = defaultdict(float)

    def over(self, frames: Iterable[Frame]) -> None:
        """Take every frame, then wait for the engine; Ctrl-C ends the frames early."""
        start = time.perf_counter()
        try:
            for frame in self._timed(frames):
                self.frames = frame.id + 1
                with self._stage('select'):
                    selected = self._selector.select(frame)
                if selected is not None:
                    with self._stage('engine'):
                        output = self._engine.process(selected)
                    if output.pose is not None:
                        self.live.append(output.pose)
                    self._take(output.keyframes)
        except KeyboardInterrupt:
            self.interrupted = True
        with self._stage('engine'):
            output = self._engine.finish()
        self._take(output.keyframes)
        self._total = time.perf_counter() - start

    def timing(self, engine: Engine) -> dict:
        """Return frames a second, of all and of each stage; and milliseconds of the engine's own stages (median)."""
        return {
            'seconds': self._total,
            'fps': self.frames / self._total,
            'stage_fps': {stage: self.frames / seconds for stage, seconds in self._seconds.items()},
            'milliseconds': engine.milliseconds,
        }

    def _take(self, keyframes: Iterable[Keyframe]) -> None:
        for keyframe in keyframes:
            self.keyframes.add(keyframe)
            self._selector.hear(keyframe)
            if self._mesher is not None and keyframe.pointmap is not None:
                with self._stage('mesh'):
                    self._mesher.integrate(keyframe)
                    self._mesher.update()

    def _timed(self, frames: Iterable[Frame]) -> Iterator[Frame]:
        iterator = iter(frames)
        while True:
            with self._stage('decode'):
                frame = next(iterator, None)
            if frame is None:
                return
            yield frame

    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._seconds[name] += time.perf_counter() - start


def undistorted(frames: Iterable[Frame], camera: Camera) -> Iterator[Frame]:
    """Yield frames as the true camera would see them without distortion, with its intrinsics.

    Raises:
        GroundTruthError: The frames are of another size than the camera's.
    """
    undistorter = camera.undistorter()
    for frame in frames:
        height, width = frame.image.shape[:2]
        if (width, height) != (camera.width, camera.height):
            raise GroundTruthError(
                f'the intrinsics are for {camera.width}x{camera.height}, the video is {width}x{height}; give its own'
            )
        yield replace(frame, image=undistorter(frame.image), intrinsics=undistorter.intrinsics)
