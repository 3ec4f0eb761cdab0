# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What a new keyframe sets going: new points, old points found again, adjustment of the window."""

import numpy as np

from slam3r_ros.engines.geometric.adjust import FocalPrior
from slam3r_ros.engines.geometric.relocalise import sight
from slam3r_ros.engines.geometric.sparse_map import PointState, SparseKeyframe, SparseMap

WIDE_AT = (6, 7, 8, 10, 12, 15, 18, 22, 26, 33, 40, 60, 80)  # keyframes: all are adjusted, with the focal length
_WIDE_ITERATIONS = 12
_FEW_ITERATIONS = 6  # of a wide adjustment from _MANY keyframes on, and of the window
_MANY = 30
MAX_WIDE = 200  # keyframes adjusted at once: older ones never move again
_SHARED = 10  # points that an older keyframe must share with the window to hold it
_HOLDERS = 15  # older keyframes that hold the window, at most
_RECENT = 4  # keyframes that need no loop: the tracks still join them
_FOUND_WINDOWS = 3  # windows adjusted together when the camera was found again
_LOOPS = 3  # older keyframes to match with
_LOOP_AXIS = 0.8  # cosine between the viewing directions
_LOOP_DISTANCE = 0.8  # median depths between the cameras
_LOOP_JUMP = 0.5  # median depths a match may move the camera by
_LOOP_INLIERS = 20


def extend(map: SparseMap, keyframe: SparseKeyframe, window: int, prior: FocalPrior | None,
           tracked: bool = True) -> np.ndarray:
    """Add a keyframe with its features to the map; return the table old point id -> new id.

    Its tracks join it to the keyframes just before, unless it was found again (not `tracked`).
    """
    map.keyframes.append(keyframe)
    map.triangulate(keyframe)
    table = match_older(map, keyframe, _RECENT if tracked else 0)
    count = len(map.keyframes) + map.forgotten
    if count in WIDE_AT:
        adjust_all(map, prior, _WIDE_ITERATIONS if count < _MANY else _FEW_ITERATIONS)
    else:
        adjust_window(map, window if tracked else _FOUND_WINDOWS * window)
    map.lend_depth(keyframe)
    return table


def thin(map: SparseMap) -> list[tuple[SparseKeyframe, SparseKeyframe]]:
    """Forget every other keyframe of the older half; return each with the one that stays before it."""
    numbers = list(range(1, len(map.keyframes) // 2, 2))
    pairs = [(map.keyframes[number], map.keyframes[number - 1]) for number in numbers]
    map.forget(numbers)
    return pairs


def adjust_all(map: SparseMap, prior: FocalPrior | None, iterations: int) -> None:
    """Adjust all keyframes but the first, which holds the gauge; the scale stays that of the camera path.

    Of a large map only the newest part is adjusted, and the focal length stays.
    """
    if len(map.keyframes) > MAX_WIDE:  # the equations grow with the square
        return adjust_window(map, MAX_WIDE)
    before = np.array([k.centre for k in map.keyframes])
    map.adjust(list(range(1, len(map.keyframes))), [0], iterations, prior)
    after = np.array([k.centre for k in map.keyframes])
    map.rescale(float((before * after).sum() / max((after * after).sum(), 1e-12)))


def adjust_window(map: SparseMap, window: int) -> None:
    """Adjust the newest keyframes; older ones that share points with them hold the gauge."""
    last = len(map.keyframes) - 1
    free = list(range(max(1, last - window + 1), last + 1))
    inside = np.zeros(map.count, bool)
    for number in free:
        inside[map.keyframes[number].ids] = True
    inside &= map.states[:map.count] == PointState.GOOD
    shared = {n: inside[map.keyframes[n].ids].sum() for n in range(free[0])}
    fixed = sorted((n for n in shared if shared[n] >= _SHARED), key=lambda n: -shared[n])[:_HOLDERS]
    if not fixed or free[0] == 1 and 0 not in fixed:
        fixed.append(0)
    if len(fixed) < 2 and len(free) > 3:  # one keyframe alone does not hold the scale
        fixed.append(free.pop(0))
    map.adjust(free, fixed, _FEW_ITERATIONS)


def match_older(map: SparseMap, keyframe: SparseKeyframe, recent: int = _RECENT) -> np.ndarray:
    """Join the points of a keyframe with those that older ones nearby saw, but `recent` ones; return old id -> new."""
    table = np.arange(map.count)
    depth = map.median_depth(keyframe)
    nearby = []
    for number, other in enumerate(map.keyframes[:len(map.keyframes) - 1 - recent]):
        cosine = keyframe.axis @ other.axis
        distance = np.linalg.norm(keyframe.centre - other.centre) / depth
        if cosine > _LOOP_AXIS and distance < _LOOP_DISTANCE:
            nearby.append((distance + 2 * (1 - cosine), number))
    for _, number in sorted(nearby)[:_LOOPS]:
        features = keyframe.features
        found = sight(map, map.keyframes[number], features.descriptors, features.pixels, map.states == PointState.GOOD,
                      keyframe.T_camera_world)
        if found is None or len(found.ids) < _LOOP_INLIERS:
            continue
        centre = -found.pose.T_camera_world[:3, :3].T @ found.pose.T_camera_world[:3, 3]
        if np.linalg.norm(centre - keyframe.centre) > _LOOP_JUMP * depth:
            continue
        here, there = features.ids[found.rows], found.ids
        new = ~np.isin(there, keyframe.ids) & np.isin(here, keyframe.ids)
        there, unique = np.unique(there[new], return_index=True)
        step = map.merge(here[new][unique], there)
        table = step[table]
    return table
