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
from slam3r_ros.values import Frame, Keyframe, SlamStatus


class Slam3r(PipelineNode):
    """Runs the engine on `selected_frames`."""

    def __init__(self, **kwargs: Any):
        """Make the engine, which may take some seconds.

        Raises:
            ParameterError: A parameter makes no sense.
            EngineError: The engine cannot be made.
        """
        super().__init__('slam3r', **kwargs)
        p = self.parameters
        # Rising from one start of this node to the next, so that those who live on know the new map for another one.
        self._map_id = int(time.time())
        try:
            self._engine = create_engine(p.engine, p.checkpoints_dir, map_id=self._map_id, lossless=p.lossless)
        except EngineError:
            self.destroy_node()  # else a half-made node stays in the graph
            raise
        self.closing.callback(self._engine.close)
        self.get_logger().info(f'engine {self._engine.name} on {self._engine.device}')
        self._poses = PoseOutput(self, p)
        self._clouds = CloudOutput(self, p)
        self._keyframes = create_publisher(
            self, Keyframe, 'keyframes', depth=100, frame_id=p.camera_frame, lossless=True
        )
        self._status = create_publisher(self, SlamStatus, 'status', frame_id=p.map_frame)
        self._frames_in = self._received = 0
        self._keyframe_ids: set[int] = set()
        self._finished = False
        self._told: tuple = ()
        self.serve(Trigger, '~/reset', self._reset)
        self.serve(SaveMap, '~/save_map', self._save)
        self.serve_not_yet(Trigger, '~/pause')
        self.serve_not_yet(Trigger, '~/resume')
        self.serve_not_yet(LoadMap, '~/load_map')
        self.serve_not_yet(SetScale, '~/set_scale')
        self.worker.every(1.0, self._poses.publish_path)
        self.worker.every(2.0, self._clouds.publish_map)
        self.worker.every(1.0, self._publish_status)
        self.start_diagnostics()
        create_subscription(self, Frame, 'selected_frames', self._process, p.queue_depth, lossless=True)

    def diagnostics(self) -> dict[str, Any]:
        """Return what the engine is and where it is."""
        engine = self._engine
        return {
            'engine': engine.name,
            'device': engine.device,
            'state': engine.state.name,
            'frames': self._received,
            'keyframes': len(self._keyframe_ids),
            'depth_skipped': engine.depth_skipped,
        } | {f'{stage} [ms]': round(value, 2) for stage, value in engine.milliseconds.items()}

    def _process(self, frame: Frame) -> None:
        if frame.id < self._frames_in:  # another stream
            self._begin_anew()
            self._received = 0
        self._received += 1
        self._frames_in = frame.id + 1
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
        if output.pose is not None:
            self._poses.tell(output.pose)
        for keyframe in output.keyframes:
            if keyframe.map_id != self._map_id:
                self._begin_map(keyframe.map_id)
            self._keyframe_ids.add(keyframe.id)
            self._keyframes.publish(keyframe)
            self._poses.add(keyframe)
            self._clouds.add(keyframe)

    def _begin_map(self, map_id: int) -> None:
        self._map_id = map_id
        self._keyframe_ids.clear()
        self._poses.clear()
        self._clouds.clear()

    def _begin_anew(self) -> None:
        self._engine.reset()
        self._begin_map(self._map_id + 1)

    def _finish(self) -> None:
        try:
            self._hand_on(self._engine.finish())
        finally:
            self._finished = True
        self._poses.publish_path()
        self._clouds.publish_map()

    def _publish_change(self) -> None:
        """Publish the status at once when something in it has changed that others wait for."""
        if (self._engine.state, self._finished, self._map_id, self.last_error) != self._told:
            self._publish_status()

    def _publish_status(self) -> None:
        if not self._status.readers():
            return
        engine = self._engine
        self._told = (engine.state, self._finished, self._map_id, self.last_error)
        self._status.publish(
            SlamStatus(
                stamp=self.get_clock().now().nanoseconds,
                state=engine.state,
                engine=engine.name,
                device=engine.device,
                model_license=engine.model_license,
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

    def _save(self, request: SaveMap.Request) -> dict[str, Any]:
        trajectory, points = self._engine.trajectory(), self._clouds.map.points()
        if not trajectory:
            raise SaveError('there is no pose yet, nothing was written; map something first')
        names = ('trajectory.tum', 'cloud.ply') if len(points[0]) else ('trajectory.tum',)
        paths = files_to_write(request, names)
        for path in paths:
            if path.name == 'cloud.ply':
                write_cloud(path, *points)
            else:
                write_tum(path, trajectory)
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
