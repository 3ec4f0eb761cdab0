# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Two maps of one place: recognised by what a keyframe shows, and how the one lies in the other.

A keyframe of one map is placed in the other by its descriptors.  The points that it shows in both maps then give the
similarity between them, as in Mur-Artal et al., ORB-SLAM (2015), section VII.  It must put the camera where the
descriptors put it.
"""

from typing import NamedTuple

import numpy as np

from slam3r_ros.engines.geometric.relocalise import relocalise
from slam3r_ros.engines.geometric.sparse_map import SparseKeyframe, SparseMap
from slam3r_ros.mapping.registration import RegistrationError, Similarity, similarity_ransac

_MIN_POINTS = 25  # that agree
_MIN_SHARE = 0.5
_TOLERANCE = 0.06  # of the depth, error of a point
_OFF = 0.1  # of the depth, between both positions of the camera
_TURNED = 4.0  # degrees, between both directions


class Link(NamedTuple):
    """How a map lies in another, and which points are the same."""

    similarity: Similarity  # this world -> the other
    here: np.ndarray  # (N,) ids
    there: np.ndarray  # (N,) ids


def recognise(map: SparseMap, keyframe: SparseKeyframe, other: SparseMap, numbers: np.ndarray) -> Link | None:
    """Look for a keyframe of a map among those of another, given by their numbers; None where it is not found."""
    features = keyframe.features
    found = relocalise(other, numbers, features.descriptors, features.pixels, lenient=True)  # more is asked below
    if found is None:
        return None
    here, there = features.ids[found.rows], found.ids
    both = map.good(here) & other.good(there)
    here, there = here[both], there[both]
    if len(here) < _MIN_POINTS:
        return None
    source, target = map.positions[here], other.positions[there]
    T = found.pose.T_camera_world
    depth = float(np.median(target @ T[2, :3] + T[2, 3]))
    try:
        similarity, fits = similarity_ransac(source, target, _TOLERANCE * depth)
    except RegistrationError:
        return None
    off = np.linalg.norm(similarity.apply(keyframe.centre) + T[:3, :3].T @ T[:3, 3])
    turn = T[:3, :3] @ similarity.rotation @ keyframe.T_camera_world[:3, :3].T
    turned = np.degrees(np.arccos(np.clip((np.trace(turn) - 1) / 2, -1, 1)))
    if fits.sum() < max(_MIN_POINTS, _MIN_SHARE * len(fits)) or off > _OFF * depth or turned > _TURNED:
        return None
    return Link(similarity, here[fits], there[fits])
