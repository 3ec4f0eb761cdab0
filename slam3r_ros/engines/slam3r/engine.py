# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""SLAM3R behind the engine protocol: pointmaps become poses, a focal length and keyframes."""

import logging
import time
from collections import defaultdict, deque
from dataclasses import replace

import numpy as np
import torch

from slam3r_ros.engines.protocol import EngineError, EngineOutput, SingleMap
from slam3r_ros.engines.slam3r.cameras import Cameras, MapFrame, Pointmaps
from slam3r_ros.engines.slam3r.config import SIDE
from slam3r_ros.engines.slam3r.incoming import Lookahead, Waiting
from slam3r_ros.engines.slam3r.models import Models, Networks
from slam3r_ros.engines.slam3r.online import OnlinePipeline
from slam3r_ros.engines.slam3r.pointmaps import relative
from slam3r_ros.engines.slam3r.preprocess import to_tensor
from slam3r_ros.engines.slam3r.scene import Scene
from slam3r_ros.engines.slam3r.settings import Settings
from slam3r_ros.engines.slam3r.weights import LICENSE
from slam3r_ros.gpu_memory import give_back_gpu_memory
from slam3r_ros.mapping.frames import rigid
from slam3r_ros.mapping.pointmap_pose import PoseError
from slam3r_ros.mapping.rows import MAX_FRAMES, Rows
from slam3r_ros.mapping.selection import MAX_STRIDE
from slam3r_ros.values import Frame, Intrinsics, Keyframe, Pose, State

log = logging.getLogger(__name__)

HELD = 10  # frames to hold back until there is good advice on the stride
ADVICE = 5  # latest frames whose advice makes the stride
MIN_INLIERS = 0.3  # share of points that the pose of a tracked frame must explain
SURE = 0.8  # relative confidence of a frame that needs no closer keyframes
TIMES = 500  # samples per stage
_POSE = np.dtype([('id', np.int64), ('stamp', np.int64), ('state', np.int8), ('T', np.float64, (3, 4))])  # T_map_camera


class Slam3rEngine(SingleMap):
    """Streaming reconstruction by the SLAM3R networks; implements `protocol.Engine`.

    It sees the middle square of each frame, so frames may change their size.

    The stride of the reconstruction, which tells how far a frame's neighbours are, follows the latest advice by at most
    a step a frame; keyframes are handed out at the advised stride, and closer where the reconstruction is unsure.
    """

    name = 'slam3r'
    model_license = LICENSE
    depth_skipped = 0  # every keyframe has depth at once

    def __init__(
        self,
        checkpoints: str = '',
        device: str = 'auto',
        precision: str = 'auto',
        cuda_graphs: bool = True,
        stride: int = 0,
        focal: float = 0.0,
        min_confidence: float = 3.0,
        settings: Settings = Settings(),  # noqa: B008 - frozen
        networks: Networks | None = None,
        side: int = SIDE,
        map_id: int = 0,
    ) -> None:
        """Begin without a map; the networks are read when they are wanted.

        Args:
            checkpoints: folder of the weights; empty for the default one.
            device: 'cpu', 'cuda' or 'auto'.
            precision: of the networks, one of `precision.PRECISIONS`.
            cuda_graphs: on a GPU, record what the networks do for every frame, and replay it.
            stride: frames between the keyframes of the reconstruction; 0 follows the frames' advice.
            focal: pixels of the frames, for frames without intrinsics; 0 = estimate it.
            min_confidence: of a registered point; what has less is left out of keyframes.
            settings: of the reconstruction; its stride does not count.
            networks: instead of the official ones, on the device and in their precision; they are kept.
            side: pixels of the square that the networks see.
            map_id: of the first map.

        Raises:
            EngineError: the weights, the device or the precision cannot be had.
        """
        self._models = Models(checkpoints, device, precision, networks)
        self.device, self.precision = self._models.device, self._models.precision
        self._cuda_graphs, self._stride, self._focal, self._min_confidence = cuda_graphs, stride, focal, min_confidence
        self._settings, self._side, self._map_id = settings, side, map_id
        self._times: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=TIMES))
        self._begin()

    def _begin(self) -> None:
        """Start with nothing known."""
        self._pipeline: OnlinePipeline | None = None
        self._held: list[Waiting] = []  # until the stride is chosen
        self._waiting: dict[int, Waiting] = {}  # by their number in the pipeline, until they are registered
        self._advice: deque[int] = deque(maxlen=ADVICE)  # strides
        self._cameras = Cameras(self._side)
        self._map: MapFrame | None = None  # once the first keyframes are reconstructed
        self._poses = Rows(_POSE)  # of all frames that have one
        self._last_keyframe: int | None = None  # id of the frame
        self._state = State.INITIALIZING
        self._ahead = Lookahead(self._side, self.device)

    @property
    def map_id(self) -> int:
        """The id of the present map."""
        return self._map_id

    @property
    def state(self) -> State:
        """What the engine was doing when the last frame was through."""
        return self._state

    @property
    def degraded(self) -> str:
        """What the reconstruction does without, the device's memory being full; empty where nothing is missing."""
        pipeline = self._pipeline  # other threads ask, too
        return pipeline.degraded if pipeline else ''

    @property
    def milliseconds(self) -> dict[str, float]:
        """Median time of the networks, with the beginning of the next frame, and of the pose, per frame."""
        return {stage: float(np.median(times)) for stage, times in self._times.items()}

    def prepare(self) -> None:
        """Read the networks, for which the first frame would wait.

        Raises:
            EngineError: they cannot be read, or the device has no room for them.
        """
        self._models.get()

    def foresee(self, frame: Frame) -> None:
        """Have a frame encoded, where the device can do that beside the work on the one before."""
        self._ahead.tell(frame)

    def process(self, frame: Frame) -> EngineOutput:
        """Take the next frame of the stream.

        Raises:
            EngineError: the frame holds no image, or the device has no room for it; the next one may be taken.
        """
        foreseen = self._ahead.take(frame)
        try:
            image, crop = foreseen[1:3] if foreseen else self._ahead.cut(frame)
        except ValueError as error:
            raise EngineError(f'frame {frame.id}: {error}') from error
        camera = frame.intrinsics
        if camera is None and self._focal:
            height, width = frame.image.shape[:2]
            camera = Intrinsics(self._focal, self._focal, (width - 1) / 2, (height - 1) / 2)
        given = crop.intrinsics(camera) if camera else None
        self._advice.append(frame.stride)
        encoded = foreseen and foreseen.encoded
        return self._take(Waiting(frame.id, frame.stamp, image, given, frame.candidate, frame.stride, encoded))

    def _take(self, frame: Waiting) -> EngineOutput:
        """Hold a frame back until the stride is known, then hand it on."""
        if self._pipeline is None:
            self._held.append(frame)
            if not self._stride and len(self._held) < HELD:
                return EngineOutput(None)
            return self._open(self._wanted_stride())
        if self._map:
            self._pipeline.stride += int(np.sign(self._wanted_stride() - self._pipeline.stride))
        return self._advance(frame)

    def _wanted_stride(self) -> int:
        return int(np.clip(self._stride or np.median(self._advice), 1, MAX_STRIDE))

    def _open(self, stride: int, window: int = 0) -> EngineOutput:
        """Begin a reconstruction with the frames that were held back."""
        settings = replace(self._settings, stride=stride, window=window or self._settings.window)
        held, self._held = self._held, []
        scene = Scene(*self._models.get(), settings.min_confidence, settings.normalise_input, self._cuda_graphs)
        self._pipeline, self._cameras = OnlinePipeline(scene, settings), Cameras(self._side)
        outputs, failure = [EngineOutput(None)], ''
        for frame in held:
            try:
                outputs.append(self._take(frame))
            except EngineError as error:
                failure = str(error)
                log.error('frame %d: %s', frame.id, error)
        keyframes = tuple(keyframe for output in outputs for keyframe in output.keyframes)
        if failure and not keyframes:  # else what the other frames brought would go with this one
            raise EngineError(failure)
        return EngineOutput(outputs[-1].pose, keyframes)

    def _advance(self, frame: Waiting) -> EngineOutput:
        """Hand a frame to the networks, and make poses and keyframes of what they give."""
        if self._pipeline.scene.networks is None:
            self._pipeline.scene.networks = self._models.get()
        self._waiting[self._pipeline.count] = frame
        start, full = time.perf_counter(), None
        try:
            scene = self._pipeline.scene
            registered = self._pipeline.process(
                to_tensor(frame.image), frame.encoded, meanwhile=lambda: self._ahead.begin(scene)
            )
            seen = [(self._waiting.pop(number), Pointmaps.of(view)) for number, view in registered]
        except torch.OutOfMemoryError as error:
            full = self._models.full('even for the fewest frames at once', error)
        if full:  # raised here, it does not hold torch's error, and the tensors of what was tried
            raise full
        self._times['networks'].append(1000 * (time.perf_counter() - start))
        if not registered:
            return EngineOutput(None)
        if not all(np.isfinite(maps.confidence).all() for _, maps in seen):
            raise self._models.overflown()
        start = time.perf_counter()
        for waiting, maps in seen:
            if not waiting.camera:
                self._cameras.learn(maps)
        if first := self._map is None:
            chosen = [(maps, waiting.camera) for waiting, maps in seen[:: self._pipeline.stride]]
            try:
                self._map = self._cameras.begin(chosen)
            except PoseError:  # too little was seen: begin anew with the next frames
                self._pipeline = None
                self._waiting.clear()
                return EngineOutput(None)
        keyframes = []
        for number, (waiting, maps) in enumerate(seen):
            pose = self._track(waiting, maps)
            due = number % self._pipeline.stride == 0 if first else self._is_due(waiting, maps)
            if pose and due:
                keyframes.append(self._keyframe(waiting, maps, pose))
        self._times['pose'].append(1000 * (time.perf_counter() - start))
        return EngineOutput(pose, tuple(keyframes))

    def _track(self, frame: Waiting, maps: Pointmaps) -> Pose | None:
        """Find where a frame was taken, and say so by the state."""
        try:
            camera = self._cameras.locate(maps, frame.camera)
        except PoseError:
            camera = None
        if camera is None or camera.inliers < MIN_INLIERS:
            self._state = State.LOST
            return None
        self._state = State.RELOCALIZING if self._state == State.LOST else State.TRACKING
        T_map_camera = self._map.place(camera.T_world_camera)
        self._poses.append(np.array([(frame.id, frame.stamp, self._state, T_map_camera[:3])], _POSE))
        if len(self._poses) > MAX_FRAMES:
            self._poses.thin()
        return Pose(frame.id, frame.stamp, T_map_camera, self._state)

    def _is_due(self, frame: Waiting, maps: Pointmaps) -> bool:
        """Say whether a frame should be a keyframe: follow the advice, sooner where the reconstruction is unsure."""
        if self._last_keyframe is None:
            return True
        stride = round(min(frame.stride, MAX_STRIDE) * min(1, relative(maps.confidence.mean()) / SURE))
        return frame.candidate and frame.id - self._last_keyframe >= max(stride, 1)

    def _keyframe(self, frame: Waiting, maps: Pointmaps, pose: Pose) -> Keyframe:
        points = self._map.seen(maps.world, pose.T_map_camera)
        valid = maps.valid & (points[..., 2] > 0) & (maps.confidence > self._min_confidence)
        stride = frame.id - self._last_keyframe if self._last_keyframe is not None else 1
        self._last_keyframe = frame.id
        return Keyframe(
            pose,
            self._cameras.intrinsics(frame.camera),
            np.where(valid[..., None], points, np.nan).astype(np.float32),
            np.where(valid, relative(maps.confidence), 0).astype(np.float32),
            frame.image,
            map_id=self._map_id,
            stride=stride,
            relocalised=pose.state == State.RELOCALIZING,
        )

    def finish(self) -> EngineOutput:
        """Reconstruct a stream that ended before its first keyframes were complete, with those that there are."""
        frames = [*self._held, *self._waiting.values()]
        if self._map or len(frames) < 2:
            return EngineOutput(None)
        self._held, self._waiting = frames, {}
        window = min(self._settings.window, len(frames))
        output = self._open(min((len(frames) - 1) // (window - 1), MAX_STRIDE), window)
        return EngineOutput(None, output.keyframes)

    def trajectory(self) -> list[Pose]:
        """Return the pose of every frame that has one, in order; of a very long stream, see `MAX_FRAMES`."""
        rows = self._poses.all
        return [Pose(int(id), int(stamp), rigid(T[:, :3], T[:, 3]), State(state)) for id, stamp, state, T in rows]

    def reset(self) -> None:
        """Forget everything; the next keyframes carry the next `map_id`."""
        self._map_id += 1
        self._begin()

    def release(self) -> None:
        """Free the networks; the map stays, and the next frame has them read again."""
        self._models.release()
        self._ahead = Lookahead(self._side, self.device)
        if self._pipeline:
            self._pipeline.scene.release()
        give_back_gpu_memory()

    def close(self) -> None:
        """Free all."""
        self._begin()
        self._models.release()
