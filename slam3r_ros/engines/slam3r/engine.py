# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""SLAM3R behind the engine protocol: pointmaps become poses, a focal length and keyframes."""

import time
from collections import defaultdict, deque
from dataclasses import dataclass, replace

import numpy as np
import torch

from slam3r_ros.engines.protocol import EngineError, EngineOutput
from slam3r_ros.engines.slam3r.checkpoints import I2P, L2W, LICENSE, CheckpointError, find, load
from slam3r_ros.engines.slam3r.networks import Image2Points, Local2World
from slam3r_ros.engines.slam3r.online import OnlinePipeline
from slam3r_ros.engines.slam3r.pointmaps import relative
from slam3r_ros.engines.slam3r.preprocess import SIDE, square, to_rgb, to_tensor
from slam3r_ros.engines.slam3r.scene import Scene, View
from slam3r_ros.engines.slam3r.settings import Settings
from slam3r_ros.mapping.frames import T_MAP_OPTICAL, invert, rigid, transform
from slam3r_ros.mapping.pointmap_pose import CameraPose, PoseError, estimate_focal, estimate_pose
from slam3r_ros.values import Frame, Intrinsics, Keyframe, Pose, State

MAX_STRIDE = 15  # frames between keyframes
ADVICE = 10  # frames to wait for good advice on the stride
MIN_VALID = 0.1  # share of confident points in the first keyframes
MIN_INLIERS = 0.3  # share of points that the pose of a tracked frame must explain
SURE = 0.8  # relative confidence of a frame that needs no closer keyframes
FOCALS = 30  # estimates that make the focal length
TIMES = 500  # samples per stage
PRECISIONS = {'float32': None, 'bfloat16': torch.bfloat16, 'float16': torch.float16}


@dataclass(frozen=True)
class _Waiting:
    """A frame that has no pose yet."""

    id: int
    stamp: int
    image: np.ndarray  # (224, 224, 3) uint8
    camera: Intrinsics | None  # of that square, when known
    candidate: bool
    stride: int


class Slam3rEngine:
    """Streaming reconstruction by the SLAM3R networks; implements `protocol.Engine`.

    It sees the middle square of each frame, so frames may change their size.
    """

    name = 'slam3r'
    model_license = LICENSE
    depth_skipped = 0  # every keyframe has depth at once

    def __init__(
        self,
        checkpoints: str = '',
        device: str = 'auto',
        precision: str = 'float32',
        stride: int = 0,
        focal: float = 0.0,
        min_confidence: float = 3.0,
        settings: Settings = Settings(),  # noqa: B008 - frozen
        networks: tuple[Image2Points, Local2World] | None = None,
        side: int = SIDE,
        map_id: int = 0,
    ) -> None:
        """Load the networks.

        Args:
            checkpoints: folder of the weights; empty for the default one.
            device: 'cpu', 'cuda' or 'auto'.
            precision: 'float32', 'bfloat16' or 'float16'.
            stride: frames between the keyframes of the reconstruction; 0 takes the advice of the first frames.
            focal: pixels of the frames, for frames without intrinsics; 0 = estimate it.
            min_confidence: of a registered point; what has less is left out of keyframes.
            settings: of the reconstruction; its stride does not count.
            networks: instead of the official ones.
            side: pixels of the square that the networks see.
            map_id: of the first map.

        Raises:
            EngineError: the weights or the device cannot be had.
        """
        if device == 'auto':
            device = 'cuda' if torch.cuda.is_available() else 'cpu'
        if precision not in PRECISIONS:
            raise EngineError(f'there is no precision {precision!r}: use one of {", ".join(PRECISIONS)}')
        try:
            if networks is None:
                networks = tuple(load(kind, find(kind, checkpoints), device=device)[0] for kind in (I2P, L2W))
        except CheckpointError as error:
            raise EngineError(str(error)) from error
        except RuntimeError as error:
            raise EngineError(f'the networks cannot be brought to {device!r}: {error}') from error
        self.device = device
        self._networks, self._autocast = networks, PRECISIONS[precision]
        self._stride, self._focal, self._min_confidence = stride, focal, min_confidence
        self._settings, self._side, self._map_id = settings, side, map_id
        self._times: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=TIMES))
        self._begin()

    def _begin(self) -> None:
        """Start with nothing known."""
        self._pipeline: OnlinePipeline | None = None
        self._held: list[_Waiting] = []  # until the stride is chosen
        self._waiting: dict[int, _Waiting] = {}  # by their number in the pipeline, until they are registered
        self._count = 0  # frames in the pipeline
        self._T_map_world: np.ndarray | None = None  # (4, 4), from the networks' world, already in map units
        self._scale = 1.0  # map units per unit of the networks' world
        self._focals: deque[float] = deque(maxlen=FOCALS)  # pixels of the square
        self._poses: dict[int, Pose] = {}
        self._last_keyframe: int | None = None  # id of the frame
        self._state = State.INITIALIZING

    @property
    def state(self) -> State:
        """What the engine was doing when the last frame was through."""
        return self._state

    @property
    def milliseconds(self) -> dict[str, float]:
        """Median time of the networks and of the pose, per frame."""
        return {stage: float(np.median(times)) for stage, times in self._times.items()}

    def process(self, frame: Frame) -> EngineOutput:
        """Take the next frame of the stream.

        Raises:
            EngineError: the frame holds no image.
        """
        try:
            image, crop = square(to_rgb(frame.image), self._side)
        except ValueError as error:
            raise EngineError(f'frame {frame.id}: {error}') from error
        camera = frame.intrinsics
        if camera is None and self._focal:
            height, width = frame.image.shape[:2]
            camera = Intrinsics(self._focal, self._focal, (width - 1) / 2, (height - 1) / 2)
        waiting = _Waiting(
            frame.id, frame.stamp, image, crop.intrinsics(camera) if camera else None, frame.candidate, frame.stride
        )
        if self._pipeline is not None:
            return self._advance(waiting)
        self._held.append(waiting)
        if not self._stride and len(self._held) < ADVICE:
            return EngineOutput(None)
        advice = int(np.median([held.stride for held in self._held[-ADVICE // 2 :]]))
        return self._open(self._stride or advice)

    def _open(self, stride: int, window: int = 0) -> EngineOutput:
        """Begin a reconstruction with the frames that were held back."""
        settings = replace(
            self._settings, stride=min(max(stride, 1), MAX_STRIDE), window=window or self._settings.window
        )
        scene = Scene(*self._networks, settings.min_confidence, settings.normalise_input, self._autocast)
        self._pipeline, self._count = OnlinePipeline(scene, settings), 0
        held, self._held = self._held, []
        outputs = [self._advance(waiting) for waiting in held]
        return EngineOutput(outputs[-1].pose, tuple(keyframe for output in outputs for keyframe in output.keyframes))

    def _advance(self, waiting: _Waiting) -> EngineOutput:
        """Hand a frame to the networks, and make poses and keyframes of what they give."""
        self._waiting[self._count] = waiting
        self._count += 1
        start = time.perf_counter()
        registered = self._pipeline.process(to_tensor(waiting.image))
        self._times['networks'].append(1000 * (time.perf_counter() - start))
        if not registered:
            return EngineOutput(None)
        start = time.perf_counter()
        views = [(self._waiting.pop(number), view) for number, view in registered]
        if self._T_map_world is None and not self._place(views):
            self._pipeline = None  # too little was seen: begin anew with the next frames
            self._waiting.clear()
            return EngineOutput(None)
        stride, first, keyframes = self._pipeline.settings.stride, len(views) > 1, []
        for number, (frame, view) in enumerate(views):
            pose = self._track(frame, view)
            if pose and (number % stride == 0 if first else self._is_keyframe(frame, view)):
                keyframes.append(self._keyframe(frame, view, pose))
        self._times['pose'].append(1000 * (time.perf_counter() - start))
        return EngineOutput(self._poses.get(waiting.id), tuple(keyframes))

    def _place(self, views: list[tuple[_Waiting, View]]) -> bool:
        """Put the map frame at the first keyframe, and set the unit; say whether that could be done."""
        keyframes = views[:: self._pipeline.settings.stride]
        confident = [(view.world.norm(dim=-1) > 0).float().mean().item() for _, view in keyframes]
        if min(confident) < MIN_VALID:
            return False
        try:
            cameras = [self._locate(frame, view) for frame, view in keyframes]
        except PoseError:
            return False
        depths = []
        for (_, view), camera in zip(keyframes, cameras):
            points, valid = self._points(view)
            depths.append(transform(invert(camera.T_world_camera), points[valid])[:, 2])
        self._scale = 1 / float(np.median(np.concatenate(depths)))
        if not np.isfinite(self._scale) or self._scale <= 0:
            return False
        self._T_map_world = T_MAP_OPTICAL @ _scaled(invert(cameras[0].T_world_camera), self._scale)
        return True

    def _points(self, view: View) -> tuple[np.ndarray, np.ndarray]:
        """Return the world map (H, W, 3) float64 and which of its points are known (H, W)."""
        points = view.world.double().cpu().numpy()
        return points, np.isfinite(points).all(-1) & points.any(-1)

    def _camera(self, frame: _Waiting, view: View) -> Intrinsics:
        """Return the camera of the square, as given or as the local maps tell so far."""
        if frame.camera:
            return frame.camera
        principal = (self._side - 1) / 2
        local = view.local.double().cpu().numpy()
        if len(self._focals) < FOCALS and local.any():
            weights = relative(view.local_confidence).double().cpu().numpy() * local.any(-1)
            try:
                focal = estimate_focal(local, (principal, principal), weights)
            except PoseError:
                focal = 0.0
            if self._side / 10 < focal < self._side * 10:
                self._focals.append(focal)
        focal = float(np.median(self._focals)) if self._focals else float(self._side)
        return Intrinsics(focal, focal, principal, principal)

    def _locate(self, frame: _Waiting, view: View) -> CameraPose:
        world, valid = self._points(view)
        confidence = np.where(valid, view.confidence.double().cpu().numpy(), 0)
        local = view.local.double().cpu().numpy()
        return estimate_pose(world, confidence, self._camera(frame, view), local if local.any() else None)

    def _track(self, frame: _Waiting, view: View) -> Pose | None:
        """Find where a frame was taken, and say so by the state."""
        try:
            camera = self._locate(frame, view)
        except PoseError:
            camera = None
        if camera is None or camera.inliers < MIN_INLIERS:
            self._state = State.LOST
            return None
        self._state = State.RELOCALIZING if self._state == State.LOST else State.TRACKING
        T_map_camera = self._T_map_world @ _scaled(camera.T_world_camera, self._scale)
        pose = self._poses[frame.id] = Pose(frame.id, frame.stamp, T_map_camera, self._state)
        return pose

    def _is_keyframe(self, frame: _Waiting, view: View) -> bool:
        """Follow the advice, but space keyframes closer where the reconstruction is unsure."""
        if self._last_keyframe is None:
            return True
        stride = round(min(frame.stride, MAX_STRIDE) * min(1, relative(view.mean) / SURE))
        return frame.candidate and frame.id - self._last_keyframe >= max(stride, 1)

    def _keyframe(self, frame: _Waiting, view: View, pose: Pose) -> Keyframe:
        points, valid = self._points(view)
        T_camera_world = invert(pose.T_map_camera) @ self._T_map_world  # takes map units
        points = transform(T_camera_world, points * self._scale)
        confidence = view.confidence.cpu().numpy()
        valid &= (points[..., 2] > 0) & (confidence > self._min_confidence)
        stride = frame.id - self._last_keyframe if self._last_keyframe is not None else 1
        self._last_keyframe = frame.id
        return Keyframe(
            pose,
            self._camera(frame, view),
            np.where(valid[..., None], points, np.nan).astype(np.float32),
            np.where(valid, relative(confidence), 0).astype(np.float32),
            frame.image,
            map_id=self._map_id,
            stride=stride,
            relocalised=pose.state == State.RELOCALIZING,
        )

    def finish(self) -> EngineOutput:
        """Reconstruct a stream that ended before its first keyframes were complete, with those that there are."""
        frames = [*self._held, *self._waiting.values()]
        if self._T_map_world is not None or len(frames) < 2:
            return EngineOutput(None)
        self._held, self._waiting = frames, {}
        window = min(self._settings.window, len(frames))
        output = self._open((len(frames) - 1) // (window - 1), window)
        return EngineOutput(None, output.keyframes)

    def trajectory(self) -> list[Pose]:
        """Return the pose of every frame that has one, in order."""
        return [self._poses[number] for number in sorted(self._poses)]

    def reset(self) -> None:
        """Forget everything; the next keyframes carry the next `map_id`."""
        self._map_id += 1
        self._begin()

    def close(self) -> None:
        """Free the frames that are held; the networks go with the engine."""
        self._begin()


def _scaled(T: np.ndarray, scale: float) -> np.ndarray:
    """Return the transform in units that are `scale` times as many."""
    return rigid(T[:3, :3], T[:3, 3] * scale)
