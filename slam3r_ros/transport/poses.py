# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Rigid transforms, (4, 4) matrices, to the many ROS messages for them, and back."""

from collections.abc import Iterable, Sequence

import numpy as np
from geometry_msgs.msg import Pose as PoseMessage
from geometry_msgs.msg import Transform, TransformStamped
from nav_msgs.msg import Odometry
from tf2_msgs.msg import TFMessage

from slam3r_ros.mapping.frames import T_MAP_OPTICAL, from_quaternion, rigid, to_quaternion
from slam3r_ros.transport.cdr import CdrWriter
from slam3r_ros.transport.stamps import from_stamp, split, to_stamp
from slam3r_ros.values import Pose


def to_pose(T: np.ndarray) -> PoseMessage:
    """Return a transform (4, 4) as geometry_msgs/Pose."""
    message = PoseMessage()
    message.position.x, message.position.y, message.position.z = map(float, T[:3, 3])
    q = message.orientation
    q.x, q.y, q.z, q.w = map(float, to_quaternion(T[:3, :3]))
    return message


def from_pose(message: PoseMessage) -> np.ndarray:
    """Return a geometry_msgs/Pose as a transform (4, 4)."""
    p, q = message.position, message.orientation
    return rigid(from_quaternion(np.array([q.x, q.y, q.z, q.w])), np.array([p.x, p.y, p.z]))


def to_odometry(T: np.ndarray, stamp: int, frame_id: str, child_frame_id: str) -> Odometry:
    """Return a transform T_frame_child (4, 4) as nav_msgs/Odometry; the velocity is not told."""
    message = Odometry(child_frame_id=child_frame_id)
    message.header.stamp = to_stamp(stamp)
    message.header.frame_id = frame_id
    message.pose.pose = to_pose(T)
    return message


def pose_from_odometry(message: Odometry, T_base_camera: np.ndarray = T_MAP_OPTICAL) -> Pose:
    """Return the camera's pose in a nav_msgs/Odometry of the body that carries it; its id is unknown, -1.

    Args:
        message: Pose of the body.
        T_base_camera: How the camera is mounted; without it, the `base_to_camera` by default.
    """
    return Pose(-1, from_stamp(message.header.stamp), from_pose(message.pose.pose) @ T_base_camera)


def position_and_quaternion(T: np.ndarray) -> np.ndarray:
    """Return a transform (4, 4) as x y z and the unit quaternion x y z w, (7,)."""
    return np.concatenate([T[:3, 3], to_quaternion(T[:3, :3])])


def path_to_cdr(stamps: Sequence[int], poses: np.ndarray, frame_id: str) -> bytes:
    """Serialise a nav_msgs/Path, stamped as its last pose: 5 000 poses in 6 ms, against 360 from message objects.

    Args:
        stamps: Nanoseconds of each pose.
        poses: (N, 7), as `position_and_quaternion` returns them.
        frame_id: Of the path, and of each pose.
    """
    writer = CdrWriter()
    writer.header(stamps[-1] if len(stamps) else 0, frame_id)
    writer.numbers('u4', len(stamps))
    if len(stamps):  # what follows the first one begins at a multiple of 8
        writer.header(stamps[0], frame_id)
        writer.numbers('f8', *poses[0])
        name = frame_id.encode() + b'\0'
        padded = f'S{len(name) + -(12 + len(name)) % 8}'
        rest = np.empty(len(stamps) - 1, [('stamp', '<i4', 2), ('length', '<u4'), ('name', padded), ('pose', '<f8', 7)])
        rest['stamp'] = np.array([split(stamp) for stamp in stamps[1:]], np.int64).reshape(-1, 2)
        rest['length'], rest['name'], rest['pose'] = len(name), name, poses[1:]
        writer.array(rest.view('u1'))
    return writer.bytes()


def to_tf(edges: Iterable[tuple[str, str, np.ndarray]], stamp: int) -> TFMessage:
    """Return edges (parent, child, T_parent_child (4, 4)) as tf2_msgs/TFMessage."""
    message = TFMessage()
    for parent, child, T in edges:
        edge = TransformStamped(child_frame_id=child, transform=_to_transform(T))
        edge.header.stamp = to_stamp(stamp)
        edge.header.frame_id = parent
        message.transforms.append(edge)
    return message


def _to_transform(T: np.ndarray) -> Transform:
    pose, message = to_pose(T), Transform()
    t, p = message.translation, pose.position
    t.x, t.y, t.z = p.x, p.y, p.z
    message.rotation = pose.orientation
    return message
