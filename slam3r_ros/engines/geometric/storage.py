# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The maps of the geometric engine in a file: keyframes with what they see, their depth and their points.

What maps have forgotten is not written, nor are the frames between keyframes.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from slam3r_ros.engines.geometric.placements import Stamps
from slam3r_ros.engines.geometric.records import Depth, Record, Records, pose_in_map
from slam3r_ros.engines.geometric.sparse_map import Features, PointState, SparseKeyframe, SparseMap
from slam3r_ros.engines.geometric.stream import Stream
from slam3r_ros.mapping.frames import invert
from slam3r_ros.mapping.map_file import Layout, MapFileError, read_arrays, write_arrays
from slam3r_ros.values import MIN_SIDE, Intrinsics, Keyframe

VERSION = 1
_MAX_SIDE = 1 << 14  # pixels
_MIN_KEYFRAMES = 2  # of a map
_FAR = 1e9  # units
_LAYOUT: Layout = {
    'version': (np.int64, (1,)),
    'frame_size': (np.int64, (2,)),  # height, width
    'tracked_size': (np.int64, (2,)),
    'camera': (np.float64, (4,)),  # of the tracked images: fx fy cx cy; the focal length 0 where it is estimated
    'map_focal': (np.float64, ('maps',)),  # pixels
    'map_metres': (np.float64, ('maps',)),  # in a unit, 0 while unknown
    'map_keyframes': (np.int64, ('maps',)),
    'map_points': (np.int64, ('maps',)),
    'point_position': (np.float64, ('points', 3)),
    'point_state': (np.int8, ('points',)),
    'keyframe_stamp': (np.int64, ('keyframes',)),  # nanoseconds
    'keyframe_pose': (np.float64, ('keyframes', 4, 4)),  # T_camera_world
    'keyframe_observations': (np.int64, ('keyframes',)),
    'keyframe_features': (np.int64, ('keyframes',)),
    'keyframe_has_depth': (np.uint8, ('keyframes',)),
    'observation_point': (np.int64, ('observations',)),  # number in its map
    'observation_pixel': (np.float64, ('observations', 2)),
    'feature_point': (np.int64, ('features',)),
    'feature_pixel': (np.float64, ('features', 2)),
    'feature_descriptor': (np.uint8, ('features', 128)),
    'depth_camera': (np.float64, ('depths', 4)),
    'depth': (np.float16, ('depths', 'height', 'width')),  # map units, NaN where unknown
    'depth_confidence': (np.uint8, ('depths', 'height', 'width')),
    'depth_color': (np.uint8, ('depths', 'height', 'width', 3)),
}


class Stored(NamedTuple):
    """What a file holds."""

    stream: Stream
    maps: list[SparseMap]  # the present one first
    records: Records
    stamps: Stamps  # of the keyframes


def save(path: str | Path, stream: Stream, maps: Sequence[SparseMap], records: Records) -> None:
    """Write maps, the present one first; see `write_arrays`."""
    columns: dict[str, list] = {name: [] for name in _LAYOUT}
    for map in maps:
        keyframes = sorted(map.keyframes, key=lambda each: each.id)
        used = np.unique(np.concatenate([part.ids for each in keyframes for part in (each, each.features)]))
        columns['map_focal'].append(map.focal)
        columns['map_metres'].append(map.metres or 0.0)
        columns['map_keyframes'].append(len(keyframes))
        columns['map_points'].append(len(used))
        columns['point_position'].append(map.positions[used])
        columns['point_state'].append(map.states[used])
        for keyframe in keyframes:
            record, features = records[keyframe.id], keyframe.features
            columns['keyframe_stamp'].append(record.sent.pose.stamp)
            columns['keyframe_pose'].append(keyframe.T_camera_world)
            columns['keyframe_observations'].append(len(keyframe.ids))
            columns['keyframe_features'].append(len(features.ids))
            columns['keyframe_has_depth'].append(record.depth is not None)
            columns['observation_point'].append(np.searchsorted(used, keyframe.ids))
            columns['observation_pixel'].append(keyframe.pixels)
            columns['feature_point'].append(np.searchsorted(used, features.ids))
            columns['feature_pixel'].append(features.pixels)
            columns['feature_descriptor'].append(features.descriptors)
            if record.depth is not None:
                columns['depth_camera'].append(record.sent.intrinsics)
                columns['depth'].append(np.float16(record.growth() * np.float32(record.depth.depth)))
                columns['depth_confidence'].append(record.depth.confidence)
                columns['depth_color'].append(record.depth.colors)
    arrays = {'version': [VERSION], 'frame_size': stream.frame_size, 'tracked_size': stream.size}
    arrays['camera'] = stream.camera
    for name, parts in columns.items():
        if name.startswith(('point_', 'observation_', 'feature_')):
            arrays[name] = np.concatenate(parts)
        elif name not in arrays:
            lengths = (each if isinstance(each, int) else 1 for each in _LAYOUT[name][1][1:])
            arrays[name] = np.array(parts) if parts else np.zeros((0, *lengths))
    write_arrays(path, arrays, _LAYOUT)


def load(path: str | Path) -> Stored:
    """Read maps that `save` wrote; keyframes are numbered from 0, in the order of their stamps.

    Raises:
        MapFileError: the file cannot be read, or is no map of this engine.
    """
    arrays = read_arrays(path, _LAYOUT)
    if arrays['version'][0] != VERSION:
        raise MapFileError(f'{path} is of version {arrays["version"][0]}, this program reads {VERSION}')
    if not _makes_sense(arrays):
        raise MapFileError(f'{path} holds a map that contradicts itself: it is damaged, or was not written by this '
                           'program')
    stream = Stream(*(tuple(arrays[name].tolist()) for name in ('frame_size', 'tracked_size')),
                    Intrinsics(*arrays['camera'].tolist()))
    keyframes, depths = _keyframes(arrays), iter(range(len(arrays['depth'])))
    maps, records = [], Records()
    of_keyframe = np.repeat(np.arange(len(arrays['map_focal'])), arrays['map_keyframes'])
    points = _parts(arrays, 'map_points', 'point_position', 'point_state')
    for number, (positions, states) in enumerate(points):
        map = SparseMap(float(arrays['map_focal'][number]))
        map.metres = float(arrays['map_metres'][number]) or None
        ids = map.allocate(len(positions))
        map.positions[ids], map.states[ids] = positions, states
        map.keyframes = [keyframes[i] for i in np.flatnonzero(of_keyframe == number)]
        maps.append(map)
    for i, keyframe in enumerate(keyframes):
        map = maps[of_keyframe[i]]
        pose = pose_in_map(keyframe.id, int(arrays['keyframe_stamp'][i]), invert(keyframe.T_camera_world), map)
        whole = stream.with_focal(map.focal).scaled(*(1 / scale for scale in stream.scale))
        T = keyframe.T_camera_world
        record = Record(keyframe, map, Keyframe(pose, whole), T, T)
        if arrays['keyframe_has_depth'][i]:
            n = next(depths)
            record.sent = Keyframe(pose, Intrinsics(*arrays['depth_camera'][n].tolist()))
            images = (arrays[name][n] for name in ('depth', 'depth_confidence', 'depth_color'))
            record.depth = Depth(*images, record.seen())
        records[keyframe.id] = record
    return Stored(stream, maps, records, Stamps(np.sort(arrays['keyframe_stamp']).tolist()))


def _keyframes(arrays: dict[str, np.ndarray]) -> list[SparseKeyframe]:
    ids = np.argsort(np.argsort(arrays['keyframe_stamp'], kind='stable'), kind='stable')
    seen = _parts(arrays, 'keyframe_observations', 'observation_point', 'observation_pixel')
    shown = _parts(arrays, 'keyframe_features', 'feature_point', 'feature_pixel', 'feature_descriptor')
    return [SparseKeyframe(int(id), T, *observations, Features(*features))
            for id, T, observations, features in zip(ids, arrays['keyframe_pose'], seen, shown, strict=True)]


def _parts(arrays: dict[str, np.ndarray], counts: str, *names: str) -> list[tuple[np.ndarray, ...]]:
    """Cut columns into the parts whose lengths another column tells."""
    ends = np.cumsum(arrays[counts])[:-1]
    return list(zip(*(np.split(arrays[name], ends) for name in names), strict=True))


def _makes_sense(arrays: dict[str, np.ndarray]) -> bool:
    """Tell whether counts add up, numbers point at something, and cameras are cameras."""
    counts = {'map_keyframes': 'keyframe_pose', 'map_points': 'point_state',
              'keyframe_observations': 'observation_point', 'keyframe_features': 'feature_point',
              'keyframe_has_depth': 'depth'}
    for count, counted in counts.items():
        if (arrays[count] < 0).any() or (arrays[count] > len(arrays[counted])).any() \
                or arrays[count].sum() != len(arrays[counted]):
            return False
    sizes = np.concatenate([arrays['frame_size'], arrays['tracked_size']])
    R = arrays['keyframe_pose'][:, :3, :3]
    points = np.repeat(arrays['map_points'], arrays['map_keyframes'])  # that each keyframe's map has
    return bool(
        len(arrays['map_focal']) and (arrays['map_keyframes'] >= _MIN_KEYFRAMES).all()
        and (sizes >= MIN_SIDE).all() and (sizes <= _MAX_SIDE).all()
        and (arrays['map_focal'] > 0).all() and (arrays['map_metres'] >= 0).all() and (arrays['camera'] >= 0).all()
        and (arrays['depth_camera'][:, :2] > 0).all() and arrays['keyframe_has_depth'].max() <= 1
        and np.isin(arrays['point_state'], list(PointState)).all()
        and max(np.abs(arrays[name]).max() for name in ('keyframe_pose', 'point_position')) < _FAR
        and np.abs(R @ R.transpose(0, 2, 1) - np.eye(3)).max() < 1e-6 and (np.linalg.det(R) > 0).all()
        and (arrays['keyframe_pose'][:, 3] == [0, 0, 0, 1]).all()
        and all(_are_numbers(ids, count) for counts, ids in (('keyframe_observations', 'observation_point'),
                                                             ('keyframe_features', 'feature_point'))
                for (ids,), count in zip(_parts(arrays, counts, ids), points, strict=True)))


def _are_numbers(ids: np.ndarray, count: int) -> bool:
    return len(ids) == 0 or ids.min() >= 0 and ids.max() < count and len(np.unique(ids)) == len(ids)
