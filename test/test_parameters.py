# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
import math
from pathlib import Path

import pytest
import yaml
from rclpy.parameter import Parameter as RosParameter
from ros_helpers import ros_fixture  # noqa: F401

from slam3r_ros.nodes import parameter_files, parameters
from slam3r_ros.nodes.parameter_files import config_file, insert_table
from slam3r_ros.nodes.parameters import GROUPS, Parameter, ParameterError, declare

ROOT = Path(__file__).parent.parent
EVERY = {each.name: each for group in GROUPS.values() for each in group}


def test_the_files_of_the_repository_agree_with_the_declarations():
    hint = 'run: python -m slam3r_ros.nodes.parameter_files --write'
    assert (ROOT / 'config' / 'slam3r.yaml').read_text() == config_file(), hint
    readme = (ROOT / 'README.md').read_text()
    assert insert_table(readme) == readme, hint


def test_the_configuration_file_holds_the_defaults_of_what_the_environment_does_not_set():
    values = yaml.safe_load(config_file())['/**']['ros__parameters']
    expected = {name: each.default for name, each in EVERY.items() if not each.environment}
    assert values.keys() == expected.keys()
    for name, value in values.items():
        if isinstance(value, list):
            assert value == pytest.approx(expected[name], abs=1e-8)
        else:
            assert value == expected[name] and type(value) is type(expected[name])


def test_a_name_means_the_same_in_all_nodes():
    for group in GROUPS.values():
        for each in group:
            assert EVERY[each.name] is each


def test_writing_brings_the_files_up_to_date(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'config').mkdir()
    (tmp_path / 'README.md').write_text(f'before\n{parameter_files.BEGIN}\nstale\n{parameter_files.END}\nafter\n')
    assert parameter_files.main(['--write']) == 0
    assert (tmp_path / 'config' / 'slam3r.yaml').read_text() == config_file()
    text = (tmp_path / 'README.md').read_text()
    assert text.startswith('before\n') and text.endswith('\nafter\n') and 'stale' not in text and '`engine`' in text
    parameter_files.main([])
    assert '`engine`' in capsys.readouterr().out
    with pytest.raises(ParameterError, match='README.md must hold the lines'):
        insert_table('no markers')


def test_overrides_and_defaults_arrive_in_their_own_type(ros):
    overrides = [RosParameter('stamp_offset', value=0), RosParameter('realtime', value=True)]
    node = ros.node(node_name='decoder')
    values = declare(node, 'video_decoder')
    assert (values.input, values.realtime, values.stamp_offset) == ('', False, -1.0)
    other = ros.node(node_name='other', parameters={each.name: each.value for each in overrides})
    values = declare(other, 'video_decoder')
    assert values.realtime is True and values.stamp_offset == 0.0 and type(values.stamp_offset) is float
    mount = declare(ros.node(node_name='slam3r'), 'slam3r').base_to_camera
    assert mount == (0, 0, 0, -math.pi / 2, 0, -math.pi / 2)


def test_parameters_are_described_and_cannot_be_changed_later(ros):
    node = ros.node(node_name='mesher')
    declare(node, 'mesher')
    descriptor = node.describe_parameter('voxel_size')
    assert descriptor.description and descriptor.read_only
    assert (descriptor.floating_point_range[0].from_value, descriptor.floating_point_range[0].to_value) == (0.001, 1.0)
    (result,) = node.set_parameters([RosParameter('voxel_size', value=0.5)])
    assert not result.successful


@pytest.mark.parametrize(
    'group, name, value, message',
    [
        ('mesher', 'voxel_size', 7.0, 'parameter voxel_size of /one'),
        ('mesher', 'voxel_size', 'big', "parameter voxel_size of /one: 'big' must be of type float"),
        ('mesher', 'chunk_blocks', 0, 'parameter chunk_blocks of /one'),
        ('mesher', 'chunk_blocks', 2.0, 'parameter chunk_blocks of /one: 2.0 must be of type int'),
        ('slam3r', 'publish_map_odom', 1, 'parameter publish_map_odom of /one: 1 must be of type bool'),
        ('slam3r', 'engine', 'magic', "parameter engine of /one: 'magic' must be one of auto, geometric, slam3r"),
        ('slam3r', 'base_to_camera', [1.0], 'parameter base_to_camera of /one: .* must be 6 finite numbers'),
        ('slam3r', 'base_to_camera', 'ahead', 'parameter base_to_camera of /one: .* must be 6 finite numbers'),
        ('slam3r', 'base_to_camera', 3, 'parameter base_to_camera of /one: .3. must be 6 finite numbers'),
        ('slam3r', 'base_to_camera', 'abcdef', 'parameter base_to_camera of /one: .* must be 6 finite numbers'),
        ('slam3r', 'base_to_camera', [math.nan] * 6, 'parameter base_to_camera of /one: .* must be 6 finite numbers'),
        ('video_decoder', 'stamp_offset', math.nan, 'parameter stamp_offset of /one'),
    ],
)
def test_a_bad_value_is_named(ros, group, name, value, message):
    with pytest.raises(ParameterError, match=message):
        declare(ros.node(node_name='one', parameters={name: value}), group)


def test_the_environment_sets_defaults(ros, monkeypatch):
    monkeypatch.setenv('VIDEO_STREAM_URL', '/videos/a.mp4')
    monkeypatch.setenv('KEYFRAME_STRIDE', '7')
    monkeypatch.setenv('SLAM3R_MAX_POINTCLOUD_SIZE', '5000')
    monkeypatch.setenv('SLAM3R_CHECKPOINTS_DIR', '/models')
    assert declare(ros.node(node_name='a'), 'video_decoder').input == '/videos/a.mp4'
    assert declare(ros.node(node_name='b'), 'keyframe_selector').keyframe_stride == 7
    values = declare(ros.node(node_name='c'), 'slam3r')
    assert (values.max_pointcloud_size, values.checkpoints_dir) == (5000, '/models')
    given = ros.node(node_name='d', parameters={'input': 'b.mp4'})
    assert declare(given, 'video_decoder').input == 'b.mp4'


@pytest.mark.parametrize('text, reason', [('abc', "'abc' must be of type int"), ('-1', '-1 is outside of 0 ... 15')])
def test_a_bad_environment_variable_is_named(ros, monkeypatch, text, reason):
    monkeypatch.setenv('KEYFRAME_STRIDE', text)
    where = 'environment variable KEYFRAME_STRIDE .parameter keyframe_stride.'
    with pytest.raises(ParameterError, match=f'{where}: {reason}'):
        declare(ros.node(node_name='one'), 'keyframe_selector')


def test_an_empty_environment_variable_counts_as_unset(monkeypatch):
    monkeypatch.setenv('KEYFRAME_STRIDE', '')
    assert parameters.KEYFRAME_STRIDE.resolve_default() == 0
    assert Parameter('x', 1.0, '').resolve_default() == 1.0
