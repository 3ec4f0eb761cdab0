# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The node that hosts the reconstruction engine: frames in, poses, keyframes, clouds and status out."""

import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from std_srvs.srv import Trigger

from slam3r_ros.engines import create_engine
from slam3r_ros.engines.protocol import EngineError, EngineOutput
from slam3r_ros.gpu_memory import limit_gpu_memory, torch_gpu_memory
from slam3r_ros.nodes.base import PipelineNode
from slam3r_ros.nodes.outputs import CloudOutput, PoseOutput
from slam3r_ros.nodes.process import run
from slam3r_ros.nodes.saving import MAP, in_map_folder, save
from slam3r_ros.nodes.status import StatusOutput, resident_bytes
from slam3r_ros.srv import LoadMap, SaveMap, SetScale
from slam3r_ros.transport.bus import create_publisher, create_subscription
from slam3r_ros.values import Frame, Keyframe, SlamStatus, State

_PATIENCE = 30.0  # seconds that a frame may go on when a pause is asked for
_ON_THEIR_WAY = 64  # frames at most, when the clock goes back
_HANDING_ON = 10.0  # seconds until load_map and set_scale answer though readers have not taken all keyframes


class Slam3r(PipelineNode):
    """Runs the engine on `selected_frames`."""

    NAME = 'slam3r'

    def offer_services(self) -> None:
        """Offer what can be asked of the engine and its map."""
        self.serve(Trigger, '~/reset', self._reset)
        self.serve(Trigger, '~/pause', self._pause, at_once=True)
        self.serve(Trigger, '~/resume', self._resume, at_once=True)
        self.serve(SaveMap, '~/save_map', self._save, long=True)
        self.serve(LoadMap, '~/load_map', self._load, long=True)
        self.serve(SetScale, '~/set_scale', self._set_scale, long=True)

    def configure(self) -> None:
        """Make the engine, which may take some seconds.

        Raises:
            EngineError: The engine cannot be made.
        """
        p = self.parameters
        # Rising from one start of this node to the next, so that those who live on know the new map for another one.
        self._map_id = int(time.time())
        self._engine = create_engine(
            p.engine, p.checkpoints_dir, map_id=self._map_id, lossless=p.lossless, max_keyframes=p.max_keyframes,
            precision=p.precision, cuda_graphs=p.cuda_graphs,
        )  # fmt: skip
        self.closing.callback(self._engine.close)
        limit_gpu_memory(p.gpu_memory_mb)
        self.get_logger().info(f'engine {self._engine.name} on {self._engine.device}')
        self._poses = PoseOutput(self, p)
        self._clouds = CloudOutput(self, p)
        self._keyframes = create_publisher(
            self, Keyframe, 'keyframes', depth=100, frame_id=p.camera_frame, lossless=True
        )
        self._frames_in = self._received = self._next_id = 0
        self._stamp, self._latest, self._on_their_way = 0, 0, 0  # of the last frame; see `_is_stale`
        self._keyframe_count, self._newest_keyframe = 0, -1  # of the present map
        self._finished = self._paused = False
        self._keyframes_made = 0  # in all maps
        self._status = StatusOutput(self, self._make_status)
        self._rest = self.worker.inbox(self._hand_on_rest, depth=1, always=True)
        self._all_told = threading.Event()  # all keyframes that were to come anew were handed on
        self.worker.every(1.0, self._poses.publish_path)
        self.worker.every(2.0, self._clouds.publish_map)
        self.follow_time(self._go_back)
        self._frames = create_subscription(
            self, Frame, 'selected_frames', self._process, p.queue_depth, lossless=p.lossless
        )

    def activate(self) -> None:
        """Tell where the camera sits."""
        self._paused = False
        self._poses.tell_mount()
        self._rest.put(None)

    def deactivate(self) -> None:
        """Let others have the GPU."""
        self.worker.peek(self._engine.release)

    def diagnostics(self) -> dict[str, Any]:
        """Return what the engine is and where it is."""
        engine = self._engine
        return {
            'engine': engine.name,
            'device': engine.device,
            'state': self._state.name,
            'frames': self._received,
            'dropped': self._frames_in - self._received,
            'keyframes': self._keyframe_count,
            'keyframes_processed': self._keyframes_made,
            'depth_skipped': engine.depth_skipped,
            'degraded': engine.degraded,
            'gpu_memory [bytes]': torch_gpu_memory(),
        } | {f'{stage} [ms]': round(value, 2) for stage, value in engine.milliseconds.items()}

    @property
    def concern(self) -> str:
        """What the engine does without."""
        return self._engine.degraded

    def beat(self) -> None:
        """Tell the status, too."""
        self._status.publish()

    @property
    def _state(self) -> State:
        return State.PAUSED if self._paused else self._engine.state

    def _process(self, frame: Frame) -> None:
        if self._is_stale(frame):
            return
        self._finished = False
        if frame.id < self._next_id:  # another stream
            self._begin_anew()
        if frame.id < self._frames_in:
            self._received = 0
        self._received += 1
        self._frames_in = self._next_id = frame.id + 1
        self._stamp = frame.stamp
        try:
            self._reconstruct(frame)
        except EngineError as error:
            self.worker.last_error = str(error)
            self.get_logger().error(str(error), throttle_duration_sec=5.0)
        finally:
            self._tell_change()

    def _reconstruct(self, frame: Frame) -> None:
        try:
            if (following := self._frames.first) is not None:
                self._engine.foresee(following)
            self._hand_on(self._engine.process(frame))
        finally:  # the end of the stream is told even when its last frame fails
            if frame.last:
                self._finish()

    def _hand_on(self, output: EngineOutput) -> None:
        if self._engine.map_id != self._map_id:  # another map is the present one, or two have become one
            self._begin_map()
        if output.pose is not None:
            self._poses.tell(output.pose)
        for keyframe in output.keyframes:
            self._keyframes.publish(keyframe)
            self._keyframes_made += not keyframe.revision
            if keyframe.map_id == self._map_id:  # else the last of the map before
                if keyframe.id > self._newest_keyframe:  # else it comes again
                    self._keyframe_count, self._newest_keyframe = self._keyframe_count + 1, keyframe.id
                self._poses.add(keyframe)
                self._clouds.add(keyframe)

    def _begin_map(self) -> None:
        """Forget what was told of the map before, and tell the status: the mesher needs it before the keyframes."""
        self._map_id = self._engine.map_id
        self._keyframe_count, self._newest_keyframe = 0, -1
        self._poses.clear()
        self._clouds.clear()
        self._status.publish()

    def _begin_anew(self) -> None:
        self._engine.reset()
        self._next_id = 0  # the stream that comes may be another one
        self._begin_map()

    def _go_back(self, before: int, after: int) -> None:
        """The clock went back, as when a bag is played again: begin anew, unless the frames have told it already."""
        middle = (before + after) // 2
        if self._next_id and self._stamp > middle:
            self._begin_anew()
            self._poses.tell_mount()
            self._latest, self._on_their_way = middle, _ON_THEIR_WAY

    def _is_stale(self, frame: Frame) -> bool:
        """Whether a frame was on its way when the clock went back."""
        stale = self._on_their_way > 0 and frame.stamp > self._latest and frame.id >= self._frames_in and not frame.last
        self._on_their_way = self._on_their_way - 1 if stale else 0
        return stale

    def _begin_whole(self) -> Callable[[], str]:
        """Hand on all keyframes anew; return what waits for that and, when it takes long, says so."""
        self._begin_map()
        worker, told = self.worker, threading.Event()
        self._all_told = told
        self._rest.put(None)

        def wait() -> str:
            end = time.monotonic() + _HANDING_ON
            while not told.wait(0.1):
                if worker.closed or time.monotonic() > end:
                    return '; some keyframes are still on their way'
            return ''

        return wait

    def _hand_on_rest(self, _: None) -> None:
        """Hand on some of the keyframes that are to come anew; frames and services come between."""
        if not self.active:
            return  # `activate` goes on with it
        if (output := self._engine.resend()).keyframes:
            self._hand_on(output)
            self._rest.put(None)
        else:
            self._all_told.set()

    def _finish(self) -> None:
        try:
            self._hand_on(self._engine.finish())
        finally:
            self._finished = True
        self._poses.publish_path()
        self._clouds.publish_map()

    def _make_status(self) -> SlamStatus:
        engine = self._engine
        return SlamStatus(
            stamp=0,
            state=self._state,
            engine=engine.name,
            device=engine.device,
            model_license=engine.model_license,
            scale_known=engine.scale_known,
            map_id=self._map_id,
            frames_in=self._frames_in,
            frames_decoded=self._received,
            frames_dropped=self._frames_in - self._received,
            keyframes=self._keyframe_count,
            depth_skipped=engine.depth_skipped,
            finished=self._finished,
            milliseconds=dict(engine.milliseconds),
            memory_bytes=resident_bytes(),
            last_error=self.last_error,
        )

    def _tell_change(self) -> None:
        engine = self._engine
        self._status.publish_change(self._state, self._finished, self._map_id, engine.scale_known, self.last_error)

    def _reset(self, request: Trigger.Request) -> dict[str, Any]:
        self._begin_anew()
        return {'message': f'map {self._map_id} begins'}

    def _pause(self, request: Trigger.Request) -> dict[str, Any]:
        """Take no frames until `resume`; one that waits for others goes to its end."""
        self._check_active()
        if not self.worker.pause(_PATIENCE, hold=False):
            raise EngineError(f'a frame has taken more than {_PATIENCE:.0f} s; try again')
        self._paused = True
        self._status.publish()
        return {'message': 'paused'}

    def _resume(self, request: Trigger.Request) -> dict[str, Any]:
        self._check_active()
        self._paused = False
        self._status.publish()
        self.worker.resume()
        if not self.active:  # deactivated meanwhile
            self.worker.pause(_PATIENCE)
        return {'message': 'going on'}

    def _check_active(self) -> None:
        if not self.active:
            raise EngineError('the node is inactive; activate it first')

    def _set_scale(self, request: SetScale.Request) -> Callable[[], dict[str, Any]]:
        self._check_active()
        self._engine.set_scale(request.metres_per_unit)
        rest, map_id = self._begin_whole(), self._map_id
        return lambda: {'message': f'map {map_id} is metric{rest()}'}

    def _load(self, request: LoadMap.Request) -> Callable[[], dict[str, Any]]:
        self._check_active()
        if not request.path:
            raise EngineError('path is empty; name a folder that save_map wrote')
        self._engine.load(in_map_folder(request.path, self.parameters.map_folder) / MAP)
        self._next_id = 0  # the stream that comes may be another one
        rest, map_id, count = self._begin_whole(), self._map_id, len(self._engine.trajectory())
        return lambda: {'map_id': map_id, 'message': f'map {map_id}: {count} keyframes{rest()}'}

    def _save(self, request: SaveMap.Request) -> Callable[[], dict[str, Any]]:
        return save(self._engine, self._clouds.map.points(), request, self.parameters.map_folder)


def main(arguments: list[str] | None = None) -> int:
    """Run the node alone."""
    return run(Slam3r, arguments)


if __name__ == '__main__':
    sys.exit(main())
