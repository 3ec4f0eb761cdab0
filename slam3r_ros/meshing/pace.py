# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""How often to mesh, by the camera's motion: a fast camera changes nearly every block, soon to change them again.

Keyframes are always fused, so the mesh lacks nothing in the end; only its updates come less often.  A camera at rest
makes no keyframes: what was put off comes after `SLOWDOWN` turns, whatever the speed was last.
"""

from collections import deque

import numpy as np

from slam3r_ros.values import Keyframe

SLOWDOWN = 4  # turns of which a fast camera gets one
_SPAN = 500_000_000  # nanoseconds over which speed is measured: neighbouring keyframes jitter


class Pace:
    """Says at each turn, of which there are as many a second as there may be updates, whether to mesh.

    Attributes:
        speed: Of the camera, map units a second of the keyframes' stamps, whatever the pace of a playback.
    """

    def __init__(self, fast_motion: float) -> None:
        """Begin with a camera at rest.

        Args:
            fast_motion: Speed above which the camera is fast; 0: never.
        """
        self._fast_motion = fast_motion
        self._turns = 0  # that were left out
        self._map_id: int | None = None
        self._path: deque[tuple[int, np.ndarray]] = deque()  # stamps and positions
        self.speed = 0.0

    @property
    def fast(self) -> bool:
        """Whether the camera is fast."""
        return 0 < self._fast_motion < self.speed

    def see(self, keyframe: Keyframe) -> None:
        """Take the next keyframe; revisions of earlier ones are left out, and jumps are no motion."""
        stamp = keyframe.pose.stamp
        if keyframe.map_id != self._map_id or keyframe.relocalised:
            self._map_id = keyframe.map_id
            self._path.clear()
            self.speed = 0.0
        elif self._path and stamp <= self._path[-1][0]:
            return
        self._path.append((stamp, keyframe.pose.T_map_camera[:3, 3]))
        while len(self._path) > 2 and self._path[1][0] <= stamp - _SPAN:
            self._path.popleft()
        if len(self._path) > 1:
            (start, a), (_, b) = self._path[0], self._path[-1]
            self.speed = float(np.linalg.norm(b - a)) / (stamp - start) * 1e9

    def due(self) -> bool:
        """Return whether to mesh at this turn."""
        self._turns += 1
        if self.fast and self._turns < SLOWDOWN:
            return False
        self._turns = 0
        return True
