# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from slam3r_ros.evaluation.metrics import score_trajectory
from slam3r_ros.mapping.frames import rigid
from slam3r_ros.mapping.trajectory import TrajectoryError, associate, read_tum, write_tum
from slam3r_ros.values import Pose


def poses(count=40, seed=0, start=1_700_000_000_123_456_789):
    generator = np.random.default_rng(seed)
    positions = np.cumsum(generator.normal(size=(count, 3)), axis=0)
    rotations = Rotation.from_rotvec(generator.normal(size=(count, 3))).as_matrix()
    return [Pose(i, start + i * 33_333_333, rigid(R, t)) for i, (R, t) in enumerate(zip(rotations, positions))]


def test_what_is_written_is_read_again(tmp_path):
    written = poses()
    write_tum(tmp_path / 'a.tum', written)
    read = read_tum(tmp_path / 'a.tum')
    assert [p.stamp for p in read] == [p.stamp for p in written]  # to the nanosecond
    np.testing.assert_allclose([p.T_map_camera for p in read], [p.T_map_camera for p in written], atol=1e-8)
    assert [path.name for path in tmp_path.iterdir()] == ['a.tum']  # nothing half-written stays


def test_evo_reads_our_files_and_agrees_on_the_error(tmp_path):
    from evo.core import metrics, sync
    from evo.tools import file_interface

    truth = poses(start=0)
    generator = np.random.default_rng(5)
    estimate = [
        Pose(p.id, p.stamp + 1_000_000, rigid(p.T_map_camera[:3, :3], 0.4 * p.T_map_camera[:3, 3] + noise))
        for p, noise in zip(truth, 0.1 * generator.normal(size=(40, 3)))
        if p.id % 5
    ]
    write_tum(tmp_path / 'truth.tum', truth)
    write_tum(tmp_path / 'estimate.tum', estimate)
    ours = score_trajectory(read_tum(tmp_path / 'estimate.tum'), read_tum(tmp_path / 'truth.tum'))

    theirs = [file_interface.read_tum_trajectory_file(str(tmp_path / name)) for name in ('truth.tum', 'estimate.tum')]
    theirs = sync.associate_trajectories(*theirs)
    theirs[1].align(theirs[0], correct_scale=True)
    ape = metrics.APE(metrics.PoseRelation.translation_part)
    ape.process_data(tuple(theirs))
    assert ours.poses == theirs[0].num_poses == 32
    assert ours.rmse == pytest.approx(ape.get_statistic(metrics.StatisticsType.rmse), abs=1e-6)
    assert ours.rmse > 0.01


def test_comments_blank_lines_commas_and_any_order(tmp_path):
    (tmp_path / 'a.tum').write_text('# head\n\n2.5 1 2 3 0 0 0 2  # tail\n1.5,0,0,0,0,0,0,1\n')
    first, second = read_tum(tmp_path / 'a.tum')
    assert (first.stamp, second.stamp) == (1_500_000_000, 2_500_000_000)
    np.testing.assert_allclose(second.T_map_camera, rigid(np.eye(3), np.array([1, 2, 3])))


@pytest.mark.parametrize('text, reason', [
    ('0 1 2 3 0 0 0\n', 'a.tum:1: has 7 numbers'),
    ('0 0 0 0 0 0 0 1\n1 x 2 3 0 0 0 1\n', 'a.tum:2: .* not a number'),
    ('0 nan 2 3 0 0 0 1\n', 'a.tum:1: .* not finite'),
    ('nan 1 2 3 0 0 0 1\n', 'a.tum:1: .* not a number'),
    ('0 1 2 3 0 0 0 0\n', 'a.tum:1: the quaternion is zero'),
    ('# nothing\n', 'a.tum: holds no pose'),
    (b'\xff\xfe\x00', 'a.tum: .* not a text file'),
])
def test_bad_files_are_named_with_the_line(tmp_path, text, reason):
    (tmp_path / 'a.tum').write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(TrajectoryError, match=reason):
        read_tum(tmp_path / 'a.tum')


def test_missing_file_is_named(tmp_path):
    with pytest.raises(TrajectoryError, match='gone.tum: .*No such file'):
        read_tum(tmp_path / 'gone.tum')


def test_association_pairs_mutual_neighbours_within_the_tolerance():
    assert associate([0, 100, 200, 300], [290, 101, 98, 1000], 10).tolist() == [[1, 1], [3, 0]]
    assert associate([0, 4], [3], 10).tolist() == [[1, 0]]  # a stamp is used once
    assert associate([], [3], 10).shape == (0, 2)
    assert associate([5], [], 10).shape == (0, 2)
