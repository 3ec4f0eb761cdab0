# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""When a tracked frame becomes a keyframe: the view, or the points in sight, have changed enough.

How busy the engine is does not count.  One that lags behind its camera makes nearly every frame it gets a keyframe, but
it gets so few that these are fewer than ever.  PTAM and ORB-SLAM hold keyframes back while mapping is busy; here that
let more frames be tracked, by a poorer map.
"""

import numpy as np

from slam3r_ros.engines.geometric.sparse_map import SparseKeyframe

_FLOW = 0.06  # of the longer side since the last keyframe: time for one
_KEPT = 0.75  # of the last keyframe's points in sight: time for one
_FEW_POINTS = 80  # triangulated points: time for a keyframe
_FEW_TRACKS = 0.4  # of the wanted number: time for a keyframe
_STILL = 0.2  # of that motion, with most points kept: no keyframe, however few points there are
_STILL_KEPT = 0.9
_URGENT_KEPT = 0.5
_URGENT_POINTS = 50


def keyframe_due(last: SparseKeyframe, ids: np.ndarray, pixels: np.ndarray, longer: int, good: int, good_then: int,
                 tracks: float, candidate: bool) -> bool:
    """Tell whether it is time for a keyframe.

    Args:
        last: the newest keyframe.
        ids: (N,) of the tracks, each once.
        pixels: (N, 2) of the tracks.
        longer: side of the image, pixels.
        good: triangulated points among the tracks.
        good_then: the same when the newest keyframe was made.
        tracks: share of the wanted number of them.
        candidate: whether the frame is worth a keyframe; without, only an urgent one is made.
    """
    _, then, now = np.intersect1d(last.ids, ids, assume_unique=True, return_indices=True)
    flow = np.inf
    if len(then) > 10:
        flow = np.median(np.linalg.norm(last.pixels[then] - pixels[now], axis=1)) / longer
    kept = good / max(good_then, 1)
    if flow < _STILL * _FLOW and kept > _STILL_KEPT:
        return False
    due = flow > _FLOW or kept < _KEPT or good < _FEW_POINTS or tracks < _FEW_TRACKS
    urgent = flow > 2 * _FLOW or kept < _URGENT_KEPT or good < _URGENT_POINTS
    return urgent or (due and candidate)
