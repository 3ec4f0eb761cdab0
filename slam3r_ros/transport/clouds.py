# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Coloured points to sensor_msgs/PointCloud2, and back."""

import numpy as np
from sensor_msgs.msg import PointCloud2, PointField

from slam3r_ros.transport import interop
from slam3r_ros.transport.cdr import CdrWriter
from slam3r_ros.transport.interop import as_array
from slam3r_ros.transport.stamps import to_stamp

_FLOAT = PointField.FLOAT32
_NAMES = ('x', 'y', 'z', 'rgb', 'confidence')


def to_cloud(
    points: np.ndarray, colors: np.ndarray, stamp: int, frame_id: str, confidence: np.ndarray | None = None
) -> PointCloud2:
    """Pack points into a cloud of x y z rgb and, when given, confidence, float32 each.

    `rgb` holds 0x00RRGGBB in the bits of a float, as PCL and RViz read it.

    Args:
        points: (N, 3), or organised (H, W, 3), float32; arrays, or tensors on any device.
        colors: The same shape, uint8 RGB.
        stamp: Nanoseconds.
        frame_id: Frame of the points.
        confidence: (N,) or (H, W) float32.
    """
    packed, is_dense = _pack(points, colors, confidence)
    (height, width), step = _shape(points), 4 * packed.shape[1]
    cloud = PointCloud2(height=height, width=width, point_step=step, row_step=step * width, is_dense=is_dense)
    cloud.header.stamp = to_stamp(stamp)
    cloud.header.frame_id = frame_id
    cloud.fields = [PointField(name=name, offset=offset, datatype=_FLOAT, count=1) for name, offset in _fields(step)]
    if packed.size:
        cloud.data.frombytes(memoryview(packed).cast('B'))
    return cloud


def cloud_to_cdr(
    points: np.ndarray, colors: np.ndarray, stamp: int, frame_id: str, confidence: np.ndarray | None = None
) -> bytes:
    """Return the same cloud serialised, for Publisher.publish(bytes).

    Filling the message takes 28 ms for 2 000 000 points, this 4 ms.
    """
    packed, is_dense = _pack(points, colors, confidence)
    (height, width), step = _shape(points), 4 * packed.shape[1]
    writer = CdrWriter()
    writer.header(stamp, frame_id)
    writer.numbers('u4', height, width)
    fields = _fields(step)
    writer.numbers('u4', len(fields))
    for name, offset in fields:
        writer.string(name)
        writer.numbers('u4', offset)
        writer.numbers('u1', _FLOAT)
        writer.numbers('u4', 1)
    writer.numbers('u1', False)  # is_bigendian
    writer.numbers('u4', step, step * width)
    writer.sequence(packed.view(np.uint8).reshape(-1))
    writer.numbers('u1', is_dense)
    return writer.bytes()


def from_cloud(cloud: PointCloud2) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Unpack a cloud with the fields x y z rgb and perhaps confidence.

    Returns:
        points (..., 3) float32, colors (..., 3) uint8 RGB, confidence (...) float32 or None; (N,) or (H, W) in front.

    Raises:
        ValueError: A field is missing, or the layout does not fit the data.
    """
    names = [each.name for each in cloud.fields]
    if not set(names) >= set(_NAMES[:4]):
        raise ValueError(f'the cloud has the fields {names}; x, y, z and rgb are needed')
    try:
        packed = interop.read_points(cloud)
    except (ArithmeticError, AssertionError, LookupError, TypeError) as error:
        raise ValueError(f'the layout of the cloud makes no sense: {error!r}') from error
    points = np.stack([packed[axis] for axis in 'xyz'], axis=-1).astype(np.float32, copy=False)
    bits = np.ascontiguousarray(packed['rgb']).view('<u4')
    colors = np.stack([bits >> shift & 0xFF for shift in (16, 8, 0)], axis=-1).astype(np.uint8)
    confidence = np.ascontiguousarray(packed['confidence']) if 'confidence' in names else None
    return points, colors, confidence


def _pack(points: np.ndarray, colors: np.ndarray, confidence: np.ndarray | None) -> tuple[np.ndarray, bool]:
    """Return the rows (N, 4 or 5) float32, and whether all coordinates are finite."""
    from slam3r_ros.transport.packing import pack_points  # numba takes a while to load

    points, colors, confidence = as_array(points), as_array(colors), as_array(confidence)
    packed = np.empty((points.size // 3, 4 if confidence is None else 5), '<f4')
    is_dense = pack_points(np.asarray(points, np.float32).reshape(-1, 3), colors.reshape(-1, 3), packed)
    if confidence is not None:
        packed[:, 4] = confidence.ravel()
    return packed, bool(is_dense)


def _shape(points: np.ndarray) -> tuple[int, int]:
    return tuple(points.shape[:2]) if points.ndim == 3 else (1, len(points))


def _fields(step: int) -> list[tuple[str, int]]:
    return [(name, 4 * i) for i, name in enumerate(_NAMES[: step // 4])]
