# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`slam3r demo`: maps a video with the real ROS graph and leaves the map, a bag and a picture."""

import argparse
import errno
import json
import os
import signal
import sys
import tempfile
import time
from contextlib import closing, suppress
from pathlib import Path

import numpy as np
import trimesh
from nav_msgs.msg import Odometry
from nav_msgs.msg import Path as PathMessage
from rclpy.qos import QoSProfile
from sensor_msgs.msg import PointCloud2
from tf2_msgs.msg import TFMessage
from tqdm import tqdm
from visualization_msgs.msg import MarkerArray

from slam3r_ros.container import GRAPH
from slam3r_ros.evaluation.groundtruth import GroundTruthError, load
from slam3r_ros.evaluation.score import NewestKeyframes, format_table, score
from slam3r_ros.graph import ContainerKilled, Graph, GraphError, bundled_clip, undisturbed
from slam3r_ros.mapping.trajectory import TrajectoryError, read_tum
from slam3r_ros.meshing.export import ExportError
from slam3r_ros.meshing.render import render_overview
from slam3r_ros.msg import Keyframe as KeyframeMessage
from slam3r_ros.msg import MeshUpdate, SlamStatus
from slam3r_ros.recorder import BagRecorder
from slam3r_ros.srv import SaveMap
from slam3r_ros.transport.messages import keyframe_from_message
from slam3r_ros.transport.poses import pose_from_odometry
from slam3r_ros.transport.shared_memory import remove_segments
from slam3r_ros.values import Pose, State
from slam3r_ros.video.source import VideoError, first_frame, is_live, open_source


class DemoError(RuntimeError):
    """The results cannot be written."""


FILES = ('trajectory.tum', 'cloud.ply', 'mesh.ply', 'mesh.glb', 'map.mcap', 'overview.png', 'summary.json')
# Errors that another folder mends.
_UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS}
SETTLE_SECONDS = 2.5  # the slowest publisher, the map cloud, has a period of 2 s


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument('--video', help='a video file or bag; without it, the bundled clip')
    parser.add_argument('--out', type=Path, default=Path('out'), help='folder for the results (default: out)')
    parser.add_argument('--engine', default='auto', choices=('auto', 'slam3r', 'geometric'))
    parser.add_argument('--groundtruth', type=Path, help='TUM trajectory of the video, to score against')
    parser.add_argument('--depth', type=Path, help='folder of ground-truth depth images')
    parser.add_argument('--intrinsics', type=Path, help='true intrinsics, only to score the focal length')


def main(arguments: argparse.Namespace) -> int:
    """Run the demo.

    Returns:
        0; 1 where it cannot run; 2 where the camera was never placed; 130 where Ctrl-C left nothing to save.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):  # else half-made files would be left behind
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup
            signal.signal(number, signal.default_int_handler)
    if arguments.video is None:
        clip = bundled_clip()
        arguments.video = str(clip / 'video.mp4')
        arguments.groundtruth = clip / 'groundtruth.tum'
        arguments.depth = clip / 'depth'
        arguments.intrinsics = clip / 'intrinsics.json'
    status, killed = 1, False
    try:
        load(arguments.groundtruth, arguments.intrinsics, arguments.depth)  # complain now, not when all is done
        with closing(open_source(arguments.video)) as source:
            frames, start = source.frames, first_frame(source).stamp
        make_folder(arguments.out)
        # Results appear in `out` only when they are whole.
        with tempfile.TemporaryDirectory(prefix='.demo-', dir=arguments.out) as staging:
            summary = run(arguments, Path(staging), frames, start)
            for name in FILES:  # those of an earlier run go, too
                (arguments.out / name).unlink(missing_ok=True)
                if (Path(staging) / name).exists():
                    os.replace(Path(staging) / name, arguments.out / name)
        print(format_table(summary))
        written = ' '.join(name for name in FILES if (arguments.out / name).exists())
        print(f'\n{arguments.out}: {written}', flush=True)
        if summary['init_frames'] is not None:
            return 0
        print('slam3r demo: the camera was never placed; it must move sideways past textured things', file=sys.stderr)
        return 2
    except (DemoError, VideoError, GroundTruthError, TrajectoryError, GraphError, ExportError) as error:
        print(f'slam3r demo: {error}', file=sys.stderr, flush=True)
        killed = isinstance(error, ContainerKilled)
    except BrokenPipeError:  # as `head` leaves it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains of what is left to write
    except OSError as error:
        reason = str(error)
        if error.errno in _UNWRITABLE:
            reason = f'{error.filename or arguments.out}: {error.strerror}; make room, or name another folder'
        print(f'slam3r demo: {reason}', file=sys.stderr)
    except KeyboardInterrupt:
        print('slam3r demo: interrupted before the map was saved; nothing was written', file=sys.stderr)
        status = 130
    with suppress(OSError):  # it holds something, was never made, or is not ours to remove
        arguments.out.rmdir()
    if killed:
        remove_segments(own=True)
        os._exit(status)
    return status


def make_folder(folder: Path) -> None:
    """Make the folder for the results.

    Raises:
        DemoError: It cannot be made, or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise DemoError(f'the output folder {folder} cannot be written to: {error.strerror}; name another') from None


def run(arguments: argparse.Namespace, staging: Path, frames: int | None, start: int) -> dict:
    """Map the video into the staging folder.

    Args:
        arguments: The command line's.
        staging: An empty folder.
        frames: How many frames the video has, when that is known.
        start: Stamp of the first one, nanoseconds.

    Returns:
        What `summary.json` holds.
    """
    with Graph('slam3r_demo') as graph:
        stamp_now = time.time_ns if is_live(arguments.video) else lambda: start  # the nodes stamp what is live anew
        recorder = BagRecorder(graph.node, staging / 'map.mcap', stamp_now())
        try:
            with undisturbed():
                observer = Observer(graph, recorder, geometry=arguments.intrinsics is not None)
            parameters = {
                'video_decoder': {'input': arguments.video, 'stamp_offset': 0.0},
                'slam3r': {'engine': arguments.engine, 'map_folder': str(staging.resolve())},
                'mesher': {'mesh_rate': 1.0, 'map_folder': str(staging.resolve())},  # the rate keeps the bag small
            }
            for name in GRAPH:
                graph.load(name, parameters.get(name, {}))
            start = stamp_now()
            seconds, interrupted = follow(graph, observer, frames)
            if interrupted:
                graph.unload('video_decoder')
                print('slam3r demo: interrupted; saving what there is', file=sys.stderr)
            save(graph, staging)
            time.sleep(SETTLE_SECONDS)
        except BaseException:
            recorder.discard()
            raise
        recorder.close()

    final = read_tum(staging / 'trajectory.tum') if (staging / 'trajectory.tum').exists() else []
    draw(staging, final)
    summary = score(
        live=observer.live,
        final=final,
        keyframes=observer.keyframes,
        groundtruth=arguments.groundtruth,
        depth=arguments.depth,
        intrinsics=arguments.intrinsics,
        frames=observer.status.frames_in,
        start=start,
    )
    summary |= {
        'video': arguments.video,
        'engine': observer.status.engine,
        'interrupted': interrupted,
        'seconds': seconds,
        'fps': observer.status.frames_in / seconds if seconds else None,
        'milliseconds': dict(zip(observer.status.stages, map(float, observer.status.milliseconds), strict=True)),
        'recorded': recorder.counts,
    }
    (staging / 'summary.json').write_text(json.dumps(summary, indent=2) + '\n')
    return summary


class Observer:
    """Listens to the graph from outside, as RViz or a recorder would."""

    def __init__(self, graph: Graph, recorder: BagRecorder, geometry: bool) -> None:
        """Subscribe; everything but keyframes also goes into the bag.

        Args:
            graph: To listen to.
            recorder: Of the bag.
            geometry: Keep what the keyframes look like, too.
        """
        self.status = SlamStatus()
        self.live: list[Pose] = []
        self.keyframes = NewestKeyframes(geometry)
        for message_type, topic, transient_local in (
            (TFMessage, '/tf', False),
            (TFMessage, '/tf_static', True),
            (Odometry, 'odometry', False),
            (PathMessage, 'path', True),
            (PointCloud2, 'map_cloud', True),
            (MeshUpdate, 'mesh', False),
            (MarkerArray, 'mesh_markers', False),
            (SlamStatus, 'status', False),
        ):
            recorder.record(message_type, topic, transient_local)
        reliable = QoSProfile(depth=1000)
        graph.node.create_subscription(SlamStatus, 'status', self._on_status, reliable)
        graph.node.create_subscription(Odometry, 'odometry', self._on_odometry, reliable)
        graph.node.create_subscription(KeyframeMessage, 'keyframes', self._on_keyframe, reliable)

    def _on_status(self, message: SlamStatus) -> None:
        self.status = message

    def _on_odometry(self, message: Odometry) -> None:
        self.live.append(pose_from_odometry(message))

    def _on_keyframe(self, message: KeyframeMessage) -> None:
        self.keyframes.add(keyframe_from_message(message))


def follow(graph: Graph, observer: Observer, frames: int | None) -> tuple[float, bool]:
    """Show the progress until the video has gone through.

    Returns:
        The seconds it took, and whether Ctrl-C ended it early.
    """
    start = time.monotonic()
    # Into a log file, a line now and then is enough.
    patience = 0.1 if sys.stderr.isatty() else 10.0
    bar = tqdm(total=frames, unit='frame', desc='mapping', file=sys.stderr, mininterval=patience)
    try:
        while not observer.status.finished:
            graph.check()
            if observer.status.state == State.ERROR:
                raise GraphError(observer.status.last_error)
            bar.update(observer.status.frames_in - bar.n)
            state = State(observer.status.state).name.lower()
            bar.set_postfix(state=state, keyframes=observer.status.keyframes, refresh=False)
            time.sleep(0.1)
        bar.update(observer.status.frames_in - bar.n)
        bar.set_postfix(keyframes=observer.status.keyframes)
    except KeyboardInterrupt:
        return time.monotonic() - start, True
    finally:
        bar.close()
    return time.monotonic() - start, False


def save(graph: Graph, folder: Path) -> None:
    """Have the nodes write their maps; say what is missing, since a video may not have given any."""
    for node in ('slam3r', 'mesher'):
        answer = graph.call(SaveMap, f'/{node}/save_map', SaveMap.Request(path=str(folder.resolve()), overwrite=True))
        if not answer.success:
            print(f'slam3r demo: {node}: {answer.message}', file=sys.stderr)


def draw(folder: Path, trajectory: list[Pose]) -> None:
    """Draw the mesh, as far as there is one, with the camera's path in it."""
    vertices, colors, triangles = np.zeros((0, 3), np.float32), np.zeros((0, 3), np.uint8), np.zeros((0, 3), np.int64)
    if (folder / 'mesh.ply').exists():
        mesh = trimesh.load(folder / 'mesh.ply', process=False)
        vertices, colors, triangles = mesh.vertices, mesh.visual.vertex_colors[:, :3], mesh.faces
    poses = np.array([pose.T_map_camera for pose in trajectory]).reshape(-1, 4, 4)
    render_overview(folder / 'overview.png', vertices, colors, triangles, poses)
