# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Our values to ROS messages and back: the type adapters of the bus (REP-2007).

Messages may come from anywhere: what is made of one is a value that holds together, or a `ValueError`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from slam3r_ros import msg
from slam3r_ros.meshing.draco import CompressedMesh
from slam3r_ros.transport.clouds import from_cloud, to_cloud
from slam3r_ros.transport.images import from_image, to_image
from slam3r_ros.transport.meshes import (
    compressed_from_message,
    compressed_to_message,
    mesh_from_message,
    mesh_to_message,
)
from slam3r_ros.transport.poses import from_pose, to_pose
from slam3r_ros.transport.stamps import from_stamp, to_stamp
from slam3r_ros.values import Frame, Intrinsics, Keyframe, MeshUpdate, Pose, SlamStatus, State

_LARGEST_ID = 1 << 53  # of a frame: what comes of it still fits any integer
_FARTHEST = 1e9  # map units
_LARGEST_GRID = 1 << 22  # pixels of a keyframe


class Adapter(NamedTuple):
    """How a value becomes a message and comes back."""

    message_type: type
    to_message: Callable[[Any, str], Any]  # value, frame_id of the header
    from_message: Callable[[Any], Any]  # raises ValueError where the message makes no sense
    key: Callable[[Any], str] | None = None  # what tells it from the values sent shortly before and after


def register_adapter(value_type: type, adapter: Adapter) -> None:
    """Let the bus carry values of another type, such as another package's.

    Args:
        value_type: Best a frozen dataclass.
        adapter: How it becomes a message; `to_message` may return the message serialised, as bytes.
    """
    _ADAPTERS[value_type] = adapter


def adapter_of(value_type: type) -> Adapter:
    """Return the adapter of a type of values.

    Raises:
        TypeError: There is none for this type.
    """
    if value_type not in _ADAPTERS:
        names = ', '.join(each.__name__ for each in _ADAPTERS)
        raise TypeError(f'{value_type.__name__} has no ROS message; the bus carries {names}; see register_adapter')
    return _ADAPTERS[value_type]


def frame_to_message(frame: Frame, frame_id: str) -> msg.Frame:
    """Return a frame as slam3r_ros/Frame."""
    message = msg.Frame(id=frame.id, candidate=frame.candidate, stride=frame.stride, last=frame.last)
    message.image = to_image(frame.image, frame.stamp, frame_id)
    message.header = message.image.header
    message.intrinsics = np.array(frame.intrinsics or (0, 0, 0, 0), float)
    return message


def frame_from_message(message: msg.Frame) -> Frame:
    """Return the frame in a slam3r_ros/Frame.

    Raises:
        ValueError: The image is broken or too large, or a number makes no sense.
    """
    _check_id(message.id)
    intrinsics = _camera(*message.intrinsics) if any(message.intrinsics) else None
    stamp = from_stamp(message.header.stamp)
    return Frame(
        message.id, stamp, from_image(message.image), intrinsics, message.candidate, message.stride, message.last
    )


def keyframe_to_message(keyframe: Keyframe, frame_id: str) -> msg.Keyframe:
    """Return a keyframe as slam3r_ros/Keyframe; without depth its cloud is empty."""
    camera = keyframe.intrinsics
    message = msg.Keyframe(
        id=keyframe.id,
        map_id=keyframe.map_id,
        revision=keyframe.revision,
        pose=to_pose(keyframe.pose.T_map_camera),
        fx=float(camera.fx),
        fy=float(camera.fy),
        cx=float(camera.cx),
        cy=float(camera.cy),
        stride=keyframe.stride,
        relocalised=keyframe.relocalised,
    )
    message.header.stamp = to_stamp(keyframe.pose.stamp)
    message.header.frame_id = frame_id
    if keyframe.pointmap is not None:
        message.height, message.width = keyframe.confidence.shape
        known = keyframe.confidence > 0
        message.mean_confidence = float(keyframe.confidence[known].mean()) if known.any() else 0.0
        message.cloud = to_cloud(
            keyframe.pointmap, keyframe.colors, keyframe.pose.stamp, frame_id, keyframe.confidence
        )
    return message


def keyframe_from_message(message: msg.Keyframe) -> Keyframe:
    """Return the keyframe in a slam3r_ros/Keyframe.

    Raises:
        ValueError: The cloud does not fit its sizes or is too large, or a number makes no sense.
    """
    _check_id(message.id)
    T_map_camera = from_pose(message.pose)
    if not (np.abs(T_map_camera).max() < _FARTHEST and np.linalg.det(T_map_camera[:3, :3]) > 0.9):
        raise ValueError('the pose is no rigid transform, or too far away')
    pointmap = confidence = colors = None
    if message.width:
        pointmap, colors, confidence = _grid_of(message)
    return Keyframe(
        pose=Pose(message.id, from_stamp(message.header.stamp), T_map_camera),
        intrinsics=_camera(message.fx, message.fy, message.cx, message.cy),
        pointmap=pointmap,
        confidence=confidence,
        colors=colors,
        revision=message.revision,
        map_id=message.map_id,
        stride=message.stride,
        relocalised=message.relocalised,
    )


def status_to_message(status: SlamStatus, frame_id: str) -> msg.SlamStatus:
    """Return a status as slam3r_ros/SlamStatus."""
    message = msg.SlamStatus(
        state=int(status.state),
        stages=list(status.milliseconds),
        milliseconds=[float(each) for each in status.milliseconds.values()],
        **{name: getattr(status, name) for name in _STATUS_FIELDS},
    )
    message.header.stamp = to_stamp(status.stamp)
    message.header.frame_id = frame_id
    return message


def status_from_message(message: msg.SlamStatus) -> SlamStatus:
    """Return the status in a slam3r_ros/SlamStatus.

    Raises:
        ValueError: The state is unknown, or the stages are not as many as their times.
    """
    return SlamStatus(
        stamp=from_stamp(message.header.stamp),
        state=State(message.state),
        milliseconds=dict(zip(message.stages, map(float, message.milliseconds), strict=True)),
        **{name: getattr(message, name) for name in _STATUS_FIELDS},
    )


def _grid_of(message: msg.Keyframe) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return pointmap, colours and confidence of a keyframe with depth."""
    shape, cloud = (message.height, message.width), message.cloud
    if (cloud.height, cloud.width) != shape or not 0 < shape[0] * shape[1] <= _LARGEST_GRID:
        raise ValueError(f'the cloud of {cloud.width}x{cloud.height} is no grid of {message.width}x{message.height}')
    pointmap, colors, confidence = from_cloud(cloud)
    if confidence is None or not ((confidence >= 0) & (confidence <= 1)).all():
        raise ValueError('the confidence is missing, or not between 0 and 1')
    return pointmap.reshape(*shape, 3), colors.reshape(*shape, 3), confidence.astype(np.float32).reshape(shape)


def _camera(fx: float, fy: float, cx: float, cy: float) -> Intrinsics:
    camera = Intrinsics(float(fx), float(fy), float(cx), float(cy))
    if not (np.isfinite(camera).all() and min(camera.fx, camera.fy) > 0):
        raise ValueError(f'a camera of {tuple(camera)} makes no sense')
    return camera


def _check_id(id: int) -> None:
    if id > _LARGEST_ID:
        raise ValueError(f'the id {id} is too large')


_STATUS_FIELDS = (
    'engine',
    'device',
    'model_license',
    'scale_known',
    'map_id',
    'frames_in',
    'frames_decoded',
    'frames_dropped',
    'keyframes',
    'depth_skipped',
    'finished',
    'memory_bytes',
    'last_error',
)

_ADAPTERS = {
    Frame: Adapter(msg.Frame, frame_to_message, frame_from_message, lambda frame: str(frame.id)),
    Keyframe: Adapter(
        msg.Keyframe,
        keyframe_to_message,
        keyframe_from_message,
        lambda each: f'{each.map_id}/{each.id}/{each.revision}',
    ),
    MeshUpdate: Adapter(msg.MeshUpdate, mesh_to_message, mesh_from_message),
    CompressedMesh: Adapter(msg.CompressedMesh, compressed_to_message, compressed_from_message),
    SlamStatus: Adapter(msg.SlamStatus, status_to_message, status_from_message),
}
