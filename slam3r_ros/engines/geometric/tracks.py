# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Feature tracks: corners spread evenly over the image, followed by pyramidal Lucas-Kanade."""

from collections.abc import Callable

import cv2
import numpy as np

_FLOW = {'winSize': (21, 21), 'criteria': (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 20, 0.03)}
_LEVELS = 4  # of the pyramid, forward
_LEVELS_BACK = 1  # the way back starts where the track began
_ROUND_TRIP = 0.7  # pixels a track may miss its start by, forward and backward
_BORDER = 5  # pixels at the image's edge that hold no track
_CELL = 128  # pixels, about the edge of a detection cell
_DISTANCE = 9  # pixels between corners at 640 pixels of image width
_QUALITY = 0.02  # of a corner, against the best of its cell


class Tracks:
    """The corners in sight, with the ids under which they are known."""

    def __init__(self, limit: int, allocate: Callable[[int], np.ndarray]) -> None:
        """Keep at most about `limit` tracks; `allocate(n)` gives the ids of n new ones."""
        self.limit = limit
        self._allocate = allocate
        self._image: np.ndarray | None = None
        self.clear()

    def __len__(self) -> int:
        """Return the number of tracks."""
        return len(self.ids)

    def clear(self) -> None:
        """Drop all tracks."""
        self.pixels = np.zeros((0, 2), np.float32)
        self.ids = np.zeros(0, np.int64)

    def keep(self, mask: np.ndarray) -> None:
        """Drop the tracks where `mask` (N,) is False."""
        self.pixels, self.ids = self.pixels[mask], self.ids[mask]

    def follow(self, image: np.ndarray) -> None:
        """Follow all tracks into the next image, (H, W) uint8; those that do not come back are dropped."""
        before, self._image = self._image, image
        if before is None or not len(self):
            return
        moved, found, _ = cv2.calcOpticalFlowPyrLK(before, image, self.pixels, None, maxLevel=_LEVELS, **_FLOW)
        back, found_back, _ = cv2.calcOpticalFlowPyrLK(
            image, before, moved, self.pixels.copy(), maxLevel=_LEVELS_BACK, flags=cv2.OPTFLOW_USE_INITIAL_FLOW,
            **_FLOW)
        returned = np.abs(back - self.pixels).max(1) < _ROUND_TRIP
        ok = (found[:, 0] > 0) & (found_back[:, 0] > 0) & returned & self._inside(moved)
        self.pixels = moved
        self.keep(ok)

    def detect(self) -> None:
        """Fill the empty parts of the newest image with new tracks."""
        image = self._image
        if image is None or len(self) > self.limit - 20:
            return
        height, width = image.shape
        distance = max(4, round(_DISTANCE * max(height, width) / 640))
        mask = np.full(image.shape, 255, np.uint8)
        for x, y in self.pixels:
            cv2.circle(mask, (int(x), int(y)), distance, 0, -1)
        rows, columns = max(2, round(height / _CELL)), max(2, round(width / _CELL))
        cell = np.array([width / columns, height / rows])
        taken = np.zeros((rows, columns), int)
        index = np.minimum((self.pixels / cell).astype(int), [columns - 1, rows - 1])
        np.add.at(taken, (index[:, 1], index[:, 0]), 1)
        corners = []
        for row, column in np.ndindex(rows, columns):
            wanted = self.limit // (rows * columns) + 5 - taken[row, column]
            if wanted <= 0:
                continue
            x, y = np.floor(cell * [column, row]).astype(int)
            x1, y1 = np.floor(cell * [column + 1, row + 1]).astype(int)
            found = cv2.goodFeaturesToTrack(image[y:y1, x:x1], int(wanted), _QUALITY, distance,
                                            mask=mask[y:y1, x:x1], blockSize=5)
            if found is not None:
                corners.append(found.reshape(-1, 2) + np.float32([x, y]))
        if not corners:
            return
        new = np.concatenate(corners).astype(np.float32)
        new = new[self._inside(new, 2 * _BORDER)]
        self.pixels = np.concatenate([self.pixels, new])
        self.ids = np.concatenate([self.ids, self._allocate(len(new))])

    def _inside(self, pixels: np.ndarray, border: int = _BORDER) -> np.ndarray:
        height, width = self._image.shape
        return ((pixels >= border) & (pixels < [width - border, height - border])).all(1)
