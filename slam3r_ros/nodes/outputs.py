# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What the slam3r node tells in ROS' own messages: the camera's way, and the coloured points."""

from types import SimpleNamespace

import numpy as np
from nav_msgs.msg import Odometry, Path
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile
from sensor_msgs.msg import PointCloud2
from tf2_msgs.msg import TFMessage

from slam3r_ros.mapping.cloud import MapCloud, keyframe_points
from slam3r_ros.mapping.frames import invert, rigid
from slam3r_ros.nodes.base import OnDemand
from slam3r_ros.transport.clouds import cloud_to_cdr
from slam3r_ros.transport.interop import euler_matrix
from slam3r_ros.transport.poses import path_to_cdr, position_and_quaternion, to_odometry, to_tf
from slam3r_ros.values import Keyframe, Pose

_PATH_POSES = 5000
_LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)


class PoseOutput:
    """TF, `odometry` of every pose, and `path` of the keyframes; after REP-105."""

    def __init__(self, node: Node, parameters: SimpleNamespace):
        """Begin with an empty path."""
        self._node, self._parameters = node, parameters
        self._tf = OnDemand(node.create_publisher(TFMessage, '/tf', 100))
        self._static_tf = node.create_publisher(TFMessage, '/tf_static', _LATCHED)
        self._odometry = OnDemand(node.create_publisher(Odometry, 'odometry', 100))
        self._path = OnDemand(node.create_publisher(Path, 'path', _LATCHED))
        self._stations: dict[int, tuple[int, np.ndarray]] = {}  # keyframe id: nanoseconds, (7,) T_map_base
        T_base_camera = rigid(euler_matrix(*parameters.base_to_camera[3:]), np.array(parameters.base_to_camera[:3]))
        self._T_camera_base = invert(T_base_camera)

    def tell_mount(self) -> None:
        """Publish where the camera sits on the body, which does not change."""
        p = self._parameters
        if p.publish_base_camera:
            edge = (p.base_frame, p.camera_frame, invert(self._T_camera_base))
            self._static_tf.publish(to_tf([edge], self._node.get_clock().now().nanoseconds))

    def tell(self, pose: Pose) -> None:
        """Publish where the camera is now."""
        p = self._parameters
        T_odom_base = pose.T_map_camera @ self._T_camera_base  # until a loop closes, odom lies at the map
        edges = []
        if p.publish_map_odom:
            edges.append((p.map_frame, p.odom_frame, np.eye(4)))
        if p.publish_odom_base:
            edges.append((p.odom_frame, p.base_frame, T_odom_base))
        if edges:
            self._tf.publish(lambda: to_tf(edges, pose.stamp))
        self._odometry.publish(lambda: to_odometry(T_odom_base, pose.stamp, p.odom_frame, p.base_frame))

    def add(self, keyframe: Keyframe) -> None:
        """Put a keyframe on the path, or move it there."""
        newest = next(reversed(self._stations), -1)
        if keyframe.id in self._stations or keyframe.id > newest:  # else it was thinned out
            T_map_base = keyframe.pose.T_map_camera @ self._T_camera_base
            self._stations[keyframe.id] = keyframe.pose.stamp, position_and_quaternion(T_map_base)
            self._path.changed = True
        if len(self._stations) > _PATH_POSES:
            for each in list(self._stations)[1::2]:
                del self._stations[each]

    def publish_path(self) -> None:
        """Publish the path if that is called for; to be called at 1 Hz at most."""
        self._path.publish_latched(self._serialise_path)

    def _serialise_path(self) -> bytes:
        stamps, poses = zip(*self._stations.values(), strict=True) if self._stations else ((), ())
        return path_to_cdr(stamps, np.array(poses), self._parameters.map_frame)

    def clear(self) -> None:
        """Begin a new path."""
        self._stations.clear()
        self._path.changed = True


class CloudOutput:
    """`keyframe_cloud` of each keyframe and `map_cloud` of all, in the map frame."""

    def __init__(self, node: Node, parameters: SimpleNamespace):
        """Begin with an empty map."""
        self._frame_id, self._stride = parameters.map_frame, parameters.cloud_stride
        self._newest = 0  # nanoseconds
        self._keyframe_cloud = OnDemand(node.create_publisher(PointCloud2, 'keyframe_cloud', 10))
        self._map_cloud = OnDemand(node.create_publisher(PointCloud2, 'map_cloud', _LATCHED))
        self.map = MapCloud(parameters.max_pointcloud_size, self._stride)

    def add(self, keyframe: Keyframe) -> None:
        """Publish a keyframe's points and add them to the map."""
        if keyframe.pointmap is None:
            return
        stamp = keyframe.pose.stamp
        self._keyframe_cloud.publish(
            lambda: cloud_to_cdr(*keyframe_points(keyframe, self._stride), stamp, self._frame_id)
        )
        if self.map.insert(keyframe):
            self._newest = max(self._newest, stamp)
            self._map_cloud.changed = True

    def publish_map(self) -> None:
        """Publish the map cloud if that is called for; to be called at 0.5 Hz at most."""
        self._map_cloud.publish_latched(lambda: cloud_to_cdr(*self.map.points(), self._newest, self._frame_id))

    def clear(self) -> None:
        """Begin a new map."""
        self.map.clear()
        self._newest = 0
        self._map_cloud.changed = True
