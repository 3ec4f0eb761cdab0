# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
import os
import runpy
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
import yaml
from ros_helpers import next_domain

from slam3r_ros.container import GRAPH, MONITOR

ROOT = Path(__file__).parent.parent
REASON = 'launch is not installed: it is not among the ROS wheels of PyPI'


@pytest.fixture
def slam(tmp_path, monkeypatch):
    """Return what the launch file defines; the package's share folder is the repository."""
    pytest.importorskip('launch', reason=REASON)
    pytest.importorskip('launch_ros', reason=REASON)
    share = tmp_path / 'share'
    (share / 'ament_index/resource_index/packages').mkdir(parents=True)
    (share / 'ament_index/resource_index/packages/slam3r_ros').touch()
    (share / 'slam3r_ros').symlink_to(ROOT)
    scripts = tmp_path / 'lib' / 'slam3r_ros'
    scripts.mkdir(parents=True)
    modules = {name: f'nodes.{name}' for name in MONITOR | GRAPH}
    modules |= {'slam3r_container': 'container', 'bring_up': 'bringup'}
    for name, module in modules.items():
        text = f'#!{sys.executable}\nimport sys\n\nfrom slam3r_ros.{module} import main\n\nsys.exit(main())\n'
        (scripts / name).write_text(text)
        (scripts / name).chmod(0o755)
    paths = [str(tmp_path), os.environ['AMENT_PREFIX_PATH']]
    monkeypatch.setenv('AMENT_PREFIX_PATH', os.pathsep.join(paths))
    monkeypatch.setenv('ROS_DOMAIN_ID', str(next_domain()))
    monkeypatch.setenv('ROS_LOG_DIR', str(tmp_path / 'log'))
    monkeypatch.delenv('VIDEO_STREAM_URL', raising=False)
    monkeypatch.delenv('SLAM3R_CONFIG_FILE', raising=False)
    return runpy.run_path(str(ROOT / 'launch' / 'slam.launch.py'))


def arguments(slam, monkeypatch):
    """Return the launch arguments and their defaults."""
    from launch import LaunchContext
    from launch.utilities import perform_substitutions

    declared = slam['generate_launch_description']().get_launch_arguments()
    return {each.name: perform_substitutions(LaunchContext(), each.default_value) for each in declared}


def test_the_arguments_and_their_defaults(slam, monkeypatch):
    defaults = arguments(slam, monkeypatch)
    assert defaults.pop('params_file').endswith('share/slam3r_ros/config/slam3r.yaml')
    assert defaults == {
        'input': '',
        'engine': '',
        'rviz': 'false',
        'use_composition': 'true',
        'use_sim_time': 'false',
        'metrics_port': '',
        'namespace': '',
        'autostart': 'true',
    }
    monkeypatch.setenv('SLAM3R_CONFIG_FILE', '/my.yaml')
    assert arguments(slam, monkeypatch)['params_file'] == '/my.yaml'


LAUNCH = """
import runpy, sys
from launch import LaunchDescription, LaunchService
from launch.actions import SetLaunchConfiguration

path, *given = sys.argv[1:]
actions = [SetLaunchConfiguration(*each.split(':=')) for each in given]
service = LaunchService()
service.include_launch_description(LaunchDescription([*actions, runpy.run_path(path)['generate_launch_description']()]))
sys.exit(service.run())
"""


@pytest.mark.parametrize('composition', ['true', 'false'])
def test_it_really_launches_and_ends_with_status_1_on_bad_input(slam, composition):
    given = ['input:=/nowhere.mp4', f'use_composition:={composition}', 'namespace:=robot']
    command = [sys.executable, '-c', LAUNCH, str(ROOT / 'launch' / 'slam.launch.py'), *given]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    text = done.stdout + done.stderr
    assert done.returncode == 1, text
    assert '[robot.video_decoder]: /nowhere.mp4: does not exist' in text
    assert ('slam3r_container-1' in text) == (composition == 'true')


def test_a_metrics_port_that_is_no_number_is_named(slam):
    command = [sys.executable, '-c', LAUNCH, str(ROOT / 'launch' / 'slam.launch.py'), 'metrics_port:=http']
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1 and 'metrics_port http: this is no number' in done.stdout + done.stderr


@pytest.mark.parametrize(
    'text, found',
    [
        ('', ''),
        ('/**:\n  ros__parameters:\n    mesh_rate: 1.0\n', ''),
        ('/**:\n  ros__parameters:\n    input: clip.mp4\n', 'clip.mp4'),
        ('/other:\n  ros__parameters:\nvideo_decoder:\n  ros__parameters:\n    input: clip.mp4\n', 'clip.mp4'),
        ('/robot:\n  video_decoder:\n    ros__parameters:\n      mesh_rate: 1.0\n', ''),
    ],
)
def test_the_input_of_a_params_file_is_found(slam, tmp_path, text, found):
    (tmp_path / 'params.yaml').write_text(text)
    assert slam['input_of'](str(tmp_path / 'params.yaml')) == found


@pytest.mark.parametrize('composition', ['true', 'false'])
def test_it_brings_the_nodes_up_in_order_and_ends_with_a_signal(slam, composition):
    with socket.create_server(('127.0.0.1', 0)) as probe:
        port = probe.getsockname()[1]
    given = ['input:=topic:nowhere', f'use_composition:={composition}', 'namespace:=robot', f'metrics_port:={port}']
    command = [sys.executable, '-c', LAUNCH, str(ROOT / 'launch' / 'slam.launch.py'), *given]
    launch = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        lines = []
        for line in launch.stdout:
            lines.append(line)
            if 'active: monitor, mesher, slam3r, keyframe_selector, video_decoder' in line:
                break
        metrics = urllib.request.urlopen(f'http://127.0.0.1:{port}/metrics', timeout=30).read()
        os.killpg(launch.pid, signal.SIGINT)  # as the terminal does
        text = ''.join(lines) + launch.communicate(timeout=60)[0]
    finally:
        launch.kill()
    assert launch.returncode == 0, text
    assert 'active: monitor' in text and 'Traceback' not in text
    assert b'mesh_generation_fps' in metrics


def test_rviz_shows_what_is_published():
    config = yaml.safe_load((ROOT / 'rviz' / 'slam.rviz').read_text())['Visualization Manager']
    displays = {each['Class'].rpartition('/')[2]: each for each in config['Displays']}
    topics = {kind: each['Topic'] for kind, each in displays.items() if 'Topic' in each}
    assert {kind: each['Value'] for kind, each in topics.items()} == {
        'Path': 'path',
        'PointCloud2': 'map_cloud',
        'MarkerArray': 'mesh_markers',
        'Image': 'image',
    }
    latched = {kind for kind, each in topics.items() if each['Durability Policy'] == 'Transient Local'}
    assert latched == {'Path', 'PointCloud2'}
    assert topics['Image']['Reliability Policy'] == 'Best Effort'
    assert 'TF' in displays and config['Global Options']['Fixed Frame'] == 'map'
