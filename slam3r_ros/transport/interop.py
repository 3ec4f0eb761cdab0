# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The one seam to ROS' own Python helpers: used where they are installed, else own code does the same.

They are not among the ROS wheels of PyPI, and Jazzy's cv_bridge and tf_transformations are made for NumPy 1.
"""

from importlib.util import find_spec
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation
from sensor_msgs.msg import Image, PointCloud2, PointField

from slam3r_ros.video.pixels import PixelError

_DTYPES = {
    PointField.INT8: 'i1',
    PointField.UINT8: 'u1',
    PointField.INT16: 'i2',
    PointField.UINT16: 'u2',
    PointField.INT32: 'i4',
    PointField.UINT32: 'u4',
    PointField.FLOAT32: 'f4',
    PointField.FLOAT64: 'f8',
}


def has_cv_bridge() -> bool:
    """Whether cv_bridge is installed and can be imported under this NumPy."""
    return _has_for_numpy_1('cv_bridge')


def convert_image(message: Image, encoding: str) -> np.ndarray:
    """Convert an image of any encoding that cv_bridge knows; call only when `has_cv_bridge`.

    Raises:
        PixelError: It does not know the encoding either, or the data is broken.
    """
    from cv_bridge import CvBridge, CvBridgeError

    try:
        return CvBridge().imgmsg_to_cv2(message, encoding)
    except (CvBridgeError, TypeError, ValueError) as error:
        reason = ' '.join(str(error).split())
        raise PixelError(f'cv_bridge cannot turn {message.encoding!r} into {encoding}: {reason}') from error


def read_points(cloud: PointCloud2) -> np.ndarray:
    """Return a cloud as a structured array, (N,) or organised (H, W), with the cloud's own field names."""
    if find_spec('sensor_msgs_py') is not None:
        from sensor_msgs_py import point_cloud2

        points = point_cloud2.read_points(cloud, reshape_organized_cloud=True)
    else:
        order = '>' if cloud.is_bigendian else '<'
        dtype = np.dtype({
            'names': [each.name for each in cloud.fields],
            'formats': [_point_format(each, order) for each in cloud.fields],
            'offsets': [each.offset for each in cloud.fields],
            'itemsize': cloud.point_step,
        })
        rows = np.frombuffer(cloud.data, np.uint8)[: cloud.height * cloud.row_step].reshape(cloud.height, -1)
        points = rows[:, : cloud.width * cloud.point_step].view(dtype)
    return points.reshape(-1) if cloud.height == 1 else points.reshape(cloud.height, cloud.width)


def as_array(values: Any) -> Any:
    """Return an array as it is, and a tensor as an array of this machine's memory."""
    return values.detach().cpu().numpy() if hasattr(values, 'detach') else values


def euler_matrix(roll: float, pitch: float, yaw: float) -> np.ndarray:
    """Return the rotation (3, 3) of angles in radians about the fixed axes x, y, z (REP-103)."""
    if _has_for_numpy_1('tf_transformations'):
        from tf_transformations import euler_matrix as ros_euler_matrix

        return ros_euler_matrix(roll, pitch, yaw)[:3, :3]
    return Rotation.from_euler('xyz', (roll, pitch, yaw)).as_matrix()


def _has_for_numpy_1(module: str) -> bool:
    return np.lib.NumpyVersion(np.__version__) < '2.0.0' and find_spec(module) is not None


def _point_format(field: PointField, order: str) -> str | tuple[str, int]:
    kind = order + _DTYPES[field.datatype]
    return (kind, field.count) if field.count > 1 else kind
