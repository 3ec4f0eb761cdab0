# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Depth of the keyframes where it is wanted, for as long as it works: tracking goes on without it."""

import logging
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from slam3r_ros.engines.geometric.depth import DenseMapper, DepthError, DepthMap, View
from slam3r_ros.engines.geometric.sparse_map import SparseKeyframe, SparseMap
from slam3r_ros.mapping.frames import invert
from slam3r_ros.values import Intrinsics

_DEPTH_RANGE = (2, 98)  # percentiles of the sparse depths
_log = logging.getLogger(__package__)


class OptionalDepth:
    """A dense mapper, or none."""

    def __init__(self, wanted: bool, lossless: bool) -> None:
        """Begin without one; see `DenseMapper` for `lossless`."""
        self._wanted, self._lossless = wanted, lossless
        self._mapper: DenseMapper | None = None
        self._skipped = 0  # of mappers before, and while one was missing

    @property
    def skipped(self) -> int:
        """Keyframes that got no depth because the queue was full, or because depth has failed."""
        mapper = self._mapper  # another thread may ask, while this one closes it
        return self._skipped + (mapper.skipped if mapper else 0)

    @property
    def milliseconds(self) -> dict[str, float]:
        """Median time per keyframe of each stage."""
        mapper = self._mapper
        return mapper.milliseconds if mapper else {}

    def reset(self) -> None:
        """Begin anew, with nothing skipped so far."""
        self.close()
        self._skipped = 0
        self.renew()

    def renew(self) -> None:
        """Begin a map without any view."""
        self.close()
        if self._wanted:
            self._mapper = DenseMapper(lossless=self._lossless)

    def close(self) -> None:
        """Stop the thread."""
        if self._mapper:
            self._mapper.close()
            self._skipped += self._mapper.skipped
            self._mapper = None

    def add(self, keyframe: SparseKeyframe, image: np.ndarray, map: SparseMap, intrinsics: Intrinsics) -> float:
        """Ask for the depth of a keyframe.

        Args:
            keyframe: of the map.
            image: (H, W, 3) uint8 RGB.
            map: whose points tell the range of depth.
            intrinsics: of the image, and from now on of all.

        Returns:
            Seconds it waited for room in the queue.
        """
        waited = 0.0
        _, depths = map.depths(keyframe)
        depths = depths[depths > 0]
        if self._mapper and len(depths):
            near, far = np.percentile(depths, _DEPTH_RANGE)
            view = View(keyframe.id, image, invert(keyframe.T_camera_world), float(near), float(far))
            waited = self._call(self._mapper.add, view, intrinsics) or 0.0
        if self._wanted and not self._mapper:
            self._skipped += 1
        return waited

    def move(self, poses: Mapping[int, np.ndarray], intrinsics: Intrinsics) -> None:
        """Tell which keyframes have moved; see `DenseMapper.move`."""
        if self._mapper and poses:
            self._call(self._mapper.move, poses, intrinsics)

    def collect(self, wait: bool = False) -> list[DepthMap]:
        """Return the depth maps that are finished, or after a `wait` all that can be."""
        if not self._mapper:
            return []
        return self._call(self._mapper.finish if wait else self._mapper.collect) or []

    def _call(self, function: Callable, *arguments: object) -> Any:
        """Call the mapper; once it has failed, say so, and do without it from then on."""
        try:
            return function(*arguments)
        except DepthError as error:
            _log.error('%s; tracking goes on without depth until the engine is reset', error)
            self.close()
            return None
