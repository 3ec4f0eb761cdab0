# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Coloured points to sensor_msgs/PointCloud2, and back."""

import numpy as np
from sensor_msgs.msg import PointCloud2, PointField

from slam3r_ros.transport import interop
from slam3r_ros.transport.stamps import to_stamp

_NAMES = ('x', 'y', 'z', 'rgb', 'confidence')


def to_cloud(
    points: np.ndarray, colors: np.ndarray, stamp: int, frame_id: str, confidence: np.ndarray | None = None
) -> PointCloud2:
    """Pack points into a cloud of x y z rgb and, when given, confidence, float32 each.

    `rgb` holds 0x00RRGGBB in the bits of a float, as PCL and RViz read it.

    Args:
        points: (N, 3), or organised (H, W, 3), float32.
        colors: The same shape, uint8 RGB.
        stamp: Nanoseconds.
        frame_id: Frame of the points.
        confidence: (N,) or (H, W) float32.
    """
    height, width = points.shape[:2] if points.ndim == 3 else (1, len(points))
    columns = 4 if confidence is None else 5
    packed = np.zeros((height * width, columns), '<f4')
    packed[:, :3] = points.reshape(-1, 3)
    packed.view(np.uint8)[:, 12:15] = colors.reshape(-1, 3)[:, ::-1]
    if confidence is not None:
        packed[:, 4] = confidence.ravel()
    cloud = PointCloud2(height=height, width=width, point_step=4 * columns, row_step=4 * columns * width)
    cloud.header.stamp = to_stamp(stamp)
    cloud.header.frame_id = frame_id
    cloud.fields = [
        PointField(name=name, offset=4 * i, datatype=PointField.FLOAT32, count=1)
        for i, name in enumerate(_NAMES[:columns])
    ]
    cloud.is_dense = bool(np.isfinite(packed[:, :3]).all())
    if packed.size:
        cloud.data.frombytes(memoryview(packed).cast('B'))
    return cloud


def from_cloud(cloud: PointCloud2) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Unpack a cloud with the fields x y z rgb and perhaps confidence.

    Returns:
        points (..., 3) float32, colors (..., 3) uint8 RGB, confidence (...) float32 or None; (N,) or (H, W) in front.

    Raises:
        ValueError: A field is missing.
    """
    names = [each.name for each in cloud.fields]
    if not set(names) >= set(_NAMES[:4]):
        raise ValueError(f'the cloud has the fields {names}; x, y, z and rgb are needed')
    packed = interop.read_points(cloud)
    points = np.stack([packed[axis] for axis in 'xyz'], axis=-1).astype(np.float32, copy=False)
    bits = np.ascontiguousarray(packed['rgb']).view('<u4')
    colors = np.stack([bits >> shift & 0xFF for shift in (16, 8, 0)], axis=-1).astype(np.uint8)
    confidence = np.ascontiguousarray(packed['confidence']) if 'confidence' in names else None
    return points, colors, confidence
