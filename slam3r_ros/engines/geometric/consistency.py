# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Check one depth map against another: where two views agree on a surface, it is likely there.

Merrell et al. 2007, Real-time visibility-based fusion of depth maps.
"""

import numpy as np
from numba import njit

from slam3r_ros.values import Intrinsics


@njit(nogil=True, cache=True)
def count_agreement(depth, camera, T_other_this, other_depth, other_camera, tolerance, count, total):
    """Compare a depth map with that of another view.

    Each pixel of `depth` (H, W) is carried into the other view.  Where the other depth map (h, w) has depth there that
    differs by less than the relative `tolerance`, `count` (H, W) int32 grows by one and `total` (H, W) float32
    by the depth that the other view's point has in this one.

    Depth of 0 is no depth.  `camera` and `other_camera` are (fx, fy, cx, cy).
    """
    fx, fy, cx, cy = camera
    gx, gy, ox, oy = other_camera
    R, t = T_other_this[:3, :3], T_other_this[:3, 3]
    height, width = depth.shape
    other_height, other_width = other_depth.shape
    for y in range(height):
        for x in range(width):
            z = np.float64(depth[y, x])
            if z <= 0:
                continue
            px, py = (x - cx) / fx * z, (y - cy) / fy * z
            qx = R[0, 0] * px + R[0, 1] * py + R[0, 2] * z + t[0]
            qy = R[1, 0] * px + R[1, 1] * py + R[1, 2] * z + t[1]
            qz = R[2, 0] * px + R[2, 1] * py + R[2, 2] * z + t[2]
            if qz <= 0:
                continue
            column = int(np.floor(gx * qx / qz + ox + 0.5))
            row = int(np.floor(gy * qy / qz + oy + 0.5))
            if not (0 <= column < other_width and 0 <= row < other_height):
                continue
            other = np.float64(other_depth[row, column])
            if other > 0 and abs(other - qz) < tolerance * qz:
                # the same ray of the other view, at the other depth
                k = other / qz
                dx, dy, dz = qx * k - t[0], qy * k - t[1], qz * k - t[2]
                count[y, x] += 1
                total[y, x] += np.float32(R[0, 2] * dx + R[1, 2] * dy + R[2, 2] * dz)


def agreement(
    depth: np.ndarray,
    camera: Intrinsics,
    others: list[tuple[np.ndarray, Intrinsics, np.ndarray]],
    tolerance: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Count the views that agree with each pixel, and average what they say.

    Args:
        depth: (H, W) float32, 0 where there is none.
        camera: intrinsics of its grid.
        others: depth (h, w) float32, intrinsics and T_other_this (4, 4) of each other view.
        tolerance: greatest relative difference of depth.

    Returns:
        Number of agreeing views, (H, W) int32, and the mean over them and the view itself, (H, W) float32.
    """
    count = np.zeros(depth.shape, np.int32)
    total = depth.copy()
    camera = tuple(map(float, camera))  # of one type, lest the kernel be compiled again
    for other_depth, other_camera, T_other_this in others:
        other_camera = tuple(map(float, other_camera))
        count_agreement(depth, camera, T_other_this, other_depth, other_camera, tolerance, count, total)
    return count, total / (count + 1).astype(np.float32)
