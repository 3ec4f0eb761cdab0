# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The node that hosts the reconstruction engine: frames in, poses, keyframes, clouds and status out."""

import os
import sys
import time
from pathlib import Path
from typing import Any

from std_srvs.srv import Trigger

from slam3r_ros.engines import create_engine
from slam3r_ros.engines.protocol import EngineError, EngineOutput
from slam3r_ros.mapping.trajectory import write_tum
from slam3r_ros.meshing.export import write_cloud
from slam3r_ros.nodes.base import PipelineNode, run
from slam3r_ros.nodes.outputs import CloudOutput, PoseOutput
from slam3r_ros.nodes.saving import SaveError, files_to_write
from slam3r_ros.srv import LoadMap, SaveMap, SetScale
from slam3r_ros.transport.bus import create_publisher, create_subscription
from slam3r_ros.values import Frame, Keyframe, SlamStatus, State

_MAP = 'map.npz'  # in the folder of save_map: what load_map reads
_PATIENCE = 30.0  # seconds that a frame may go on when a pause is asked for


class Slam3r(PipelineNode):
    """Runs the engine on `selected_frames`."""

    NAME = 'slam3r'

    def configure(self) -> None:
        """Make the engine, which may take some seconds.

        Raises:
            EngineError: The engine cannot be made.
        """
        p = self.parameters
        # Rising from one start of this node to the next, so that those who live on know the new map for another one.
        self._map_id = int(time.time())
        self._engine = create_engine(p.engine, p.checkpoints_dir, map_id=self._map_id, lossless=p.lossless)
        self.closing.callback(self._engine.close)
        self.get_logger().info(f'engine {self._engine.name} on {self._engine.device}')
        self._poses = PoseOutput(self, p)
        self._clouds = CloudOutput(self, p)
        self._keyframes = create_publisher(
            self, Keyframe, 'keyframes', depth=100, frame_id=p.camera_frame, lossless=True
        )
        self._status = create_publisher(self, SlamStatus, 'status', frame_id=p.map_frame)
        self._frames_in = self._received = self._next_id = 0
        self._keyframe_ids: set[int] = set()
        self._finished = self._paused = False
        self._told: tuple = ()
        self.serve(Trigger, '~/reset', self._reset)
        self.serve(SaveMap, '~/save_map', self._save)
        self.serve(Trigger, '~/pause', self._pause, at_once=True)
        self.serve(Trigger, '~/resume', self._resume, at_once=True)
        self.serve(LoadMap, '~/load_map', self._load)
        self.serve(SetScale, '~/set_scale', self._set_scale)
        self.worker.every(1.0, self._poses.publish_path)
        self.worker.every(2.0, self._clouds.publish_map)
        self.worker.every(1.0, self._publish_status, always=True)
        create_subscription(self, Frame, 'selected_frames', self._process, p.queue_depth, lossless=True)

    def activate(self) -> None:
        """Tell where the camera sits."""
        self._paused = False
        self._poses.tell_mount()

    def diagnostics(self) -> dict[str, Any]:
        """Return what the engine is and where it is."""
        engine = self._engine
        return {
            'engine': engine.name,
            'device': engine.device,
            'state': self._state.name,
            'frames': self._received,
            'keyframes': len(self._keyframe_ids),
            'depth_skipped': engine.depth_skipped,
        } | {f'{stage} [ms]': round(value, 2) for stage, value in engine.milliseconds.items()}

    @property
    def _state(self) -> State:
        return State.PAUSED if self._paused else self._engine.state

    def _process(self, frame: Frame) -> None:
        if frame.id < self._next_id:  # another stream
            self._begin_anew()
        if frame.id < self._frames_in:
            self._received = 0
        self._received += 1
        self._frames_in = self._next_id = frame.id + 1
        self._finished = False
        try:
            self._reconstruct(frame)
        except EngineError as error:
            self.worker.last_error = str(error)
            self.get_logger().error(str(error), throttle_duration_sec=5.0)
        finally:
            self._publish_change()

    def _reconstruct(self, frame: Frame) -> None:
        try:
            self._hand_on(self._engine.process(frame))
        finally:  # the end of the stream is told even when its last frame fails
            if frame.last:
                self._finish()

    def _hand_on(self, output: EngineOutput) -> None:
        if self._engine.map_id != self._map_id:  # another map is the present one, or two have become one
            self._begin_map(self._engine.map_id)
            self._publish_status()  # before the keyframes: from it the mesher takes the unit of the voxels
        if output.pose is not None:
            self._poses.tell(output.pose)
        for keyframe in output.keyframes:
            self._keyframes.publish(keyframe)
            if keyframe.map_id == self._map_id:  # else the last of the map before
                self._keyframe_ids.add(keyframe.id)
                self._poses.add(keyframe)
                self._clouds.add(keyframe)

    def _begin_map(self, map_id: int) -> None:
        self._map_id = map_id
        self._keyframe_ids.clear()
        self._poses.clear()
        self._clouds.clear()

    def _begin_anew(self) -> None:
        self._engine.reset()
        self._begin_map(self._engine.map_id)

    def _begin_whole(self) -> None:
        """Hand on all keyframes anew."""
        self._begin_map(self._engine.map_id)
        self._publish_status()
        while (output := self._engine.resend()).keyframes:
            self._hand_on(output)

    def _finish(self) -> None:
        try:
            self._hand_on(self._engine.finish())
        finally:
            self._finished = True
        self._poses.publish_path()
        self._clouds.publish_map()

    def _publish_change(self) -> None:
        """Publish the status at once when something in it has changed that others wait for."""
        if self._news() != self._told:
            self._publish_status()

    def _news(self) -> tuple:
        return self._state, self._finished, self._map_id, self._engine.scale_known, self.last_error

    def _publish_status(self) -> None:
        if not (self.active and self._status.readers()):
            return
        engine = self._engine
        self._told = self._news()
        self._status.publish(
            SlamStatus(
                stamp=self.get_clock().now().nanoseconds,
                state=self._state,
                engine=engine.name,
                device=engine.device,
                model_license=engine.model_license,
                scale_known=engine.scale_known,
                map_id=self._map_id,
                frames_in=self._frames_in,
                frames_decoded=self._received,
                frames_dropped=self._frames_in - self._received,
                keyframes=len(self._keyframe_ids),
                depth_skipped=engine.depth_skipped,
                finished=self._finished,
                milliseconds=dict(engine.milliseconds),
                memory_bytes=_resident_bytes(),
                last_error=self.last_error,
            )
        )

    def _reset(self, request: Trigger.Request) -> dict[str, Any]:
        self._begin_anew()
        self._publish_status()
        return {'message': f'map {self._map_id} begins'}

    def _pause(self, request: Trigger.Request) -> dict[str, Any]:
        """Take no frames until `resume`; one that waits for others stays where it is."""
        self._check_active()
        if not self.worker.pause(_PATIENCE):
            raise EngineError(f'a frame has taken more than {_PATIENCE:.0f} s; try again')
        self._paused = True
        self._publish_status()
        return {'message': 'paused'}

    def _resume(self, request: Trigger.Request) -> dict[str, Any]:
        self._check_active()
        self._paused = False
        self._publish_status()
        if self.active:  # still
            self.worker.resume()
        return {'message': 'going on'}

    def _check_active(self) -> None:
        if not self.active:
            raise EngineError('the node is inactive; activate it first')

    def _set_scale(self, request: SetScale.Request) -> dict[str, Any]:
        self._check_active()
        self._engine.set_scale(request.metres_per_unit)
        self._begin_whole()
        return {'message': f'map {self._map_id} is metric'}

    def _load(self, request: LoadMap.Request) -> dict[str, Any]:
        self._check_active()
        if not request.path:
            raise EngineError('path is empty; name a folder that save_map wrote')
        self._engine.load(Path(request.path).expanduser() / _MAP)
        self._next_id = 0  # the stream that comes may be another one
        self._begin_whole()
        return {'map_id': self._map_id, 'message': f'map {self._map_id}: {len(self._keyframe_ids)} keyframes'}

    def _save(self, request: SaveMap.Request) -> dict[str, Any]:
        engine, points = self._engine, self._clouds.map.points()
        if not (trajectory := engine.trajectory()):
            raise SaveError('there is no pose yet, nothing was written; map something first')
        files = {_MAP: engine.save} if engine.can_save else {}
        files['trajectory.tum'] = lambda path: write_tum(path, trajectory)
        for number, other in enumerate(engine.other_trajectories(), 1):  # each in a frame of its own
            files[f'trajectory_{number}.tum'] = lambda path, other=other: write_tum(path, other)
        if len(points[0]):
            files['cloud.ply'] = lambda path: write_cloud(path, *points)
        paths = files_to_write(request, tuple(files))
        for path in paths:
            files[path.name](path)
        return {'files': [str(path) for path in paths]}


def _resident_bytes() -> int:
    """Return the memory of this process; 0 where /proc does not tell."""
    try:
        return int(Path('/proc/self/statm').read_text().split()[1]) * os.sysconf('SC_PAGE_SIZE')
    except OSError:
        return 0


def main(arguments: list[str] | None = None) -> int:
    """Run the node alone."""
    return run(Slam3r, arguments)


if __name__ == '__main__':
    sys.exit(main())
