# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Turn a video, a bag or an image topic into a live map: `ros2 launch slam3r_ros slam.launch.py input:=video.mp4`."""

import os
from pathlib import Path

import yaml
from ament_index_python.packages import get_package_share_directory
from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity
from launch.actions import DeclareLaunchArgument, OpaqueFunction, SetEnvironmentVariable, Shutdown
from launch.events.process import ProcessExited
from launch.substitutions import EnvironmentVariable
from launch_ros.actions import ComposableNodeContainer, Node
from launch_ros.descriptions import ComposableNode

from slam3r_ros.container import GRAPH, MONITOR  # plugins by executable and node name, the last in the chain first
from slam3r_ros.nodes.video_decoder import topic_of
from slam3r_ros.transport.tuning import tuning
from slam3r_ros.video.source import is_live

PACKAGE = 'slam3r_ros'
SHARE = Path(get_package_share_directory(PACKAGE))
BOOLEAN = ['true', 'false']


def generate_launch_description() -> LaunchDescription:
    """Declare the arguments; what they lead to is built once their values are known."""
    config = EnvironmentVariable('SLAM3R_CONFIG_FILE', default_value=str(SHARE / 'config' / 'slam3r.yaml'))
    return LaunchDescription([
        DeclareLaunchArgument(
            'input',
            default_value='',
            description='file, image folder, bag, camera:0, rtsp, http or ws URL, or topic:/name; empty: '
            'VIDEO_STREAM_URL, else image_raw',
        ),
        DeclareLaunchArgument(
            'engine',
            default_value='',
            choices=['', 'auto', 'slam3r', 'geometric'],
            description='reconstruction engine; empty: as in params_file',
        ),
        DeclareLaunchArgument('params_file', default_value=config, description='ROS parameters of the nodes'),
        DeclareLaunchArgument('rviz', default_value='false', choices=BOOLEAN, description='open RViz too'),
        DeclareLaunchArgument(
            'use_composition', default_value='true', choices=BOOLEAN, description='all nodes in one process'
        ),
        DeclareLaunchArgument(
            'use_sim_time', default_value='false', choices=BOOLEAN, description='take the time from /clock'
        ),
        DeclareLaunchArgument(
            'metrics_port', default_value='', description='serve /metrics and /health there; empty: do not'
        ),
        DeclareLaunchArgument('namespace', default_value='', description='put before all relative names'),
        DeclareLaunchArgument(
            'autostart',
            default_value='true',
            choices=BOOLEAN,
            description='configure and activate the nodes; false: leave that to a lifecycle manager',
        ),
        OpaqueFunction(function=build),
    ])


def end(event: ProcessExited, context: LaunchContext) -> Shutdown | None:
    """End the launch when one of its processes has ended by itself, with status 1 when that one failed."""
    return None if context.is_shutdown else end_if_failed(event, context) or Shutdown()


def end_if_failed(event: ProcessExited, context: LaunchContext) -> None:
    """End the launch with status 1 when one of its processes has failed."""
    if event.returncode and not context.is_shutdown:
        raise RuntimeError(f'{event.process_name} ended with status {event.returncode}; its output says why')


def input_of(params_file: str) -> str:
    """Return the parameter `input` of a file of parameters; empty when it is not in there."""
    nodes = (yaml.safe_load(Path(params_file).read_text()) or {}).values()
    groups = [node.get('ros__parameters') or {} for node in nodes if node]
    return next((group['input'] for group in groups if 'input' in group), '')


def build(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """Return the nodes for the arguments given; each ends the launch when it ends."""
    value = context.launch_configurations
    namespace = value['namespace']
    if not Path(value['params_file']).is_file():
        raise RuntimeError(f'params_file {value["params_file"]}: there is no such file')
    common = {'use_sim_time': value['use_sim_time'] == 'true'}
    managed = common | {'autostart': False}  # brought up below, in order
    # Only what was given: else the parameters' file and the environment hold.
    given = {
        'video_decoder': {'input': value['input']} if value['input'] else {},
        'slam3r': {'engine': value['engine']} if value['engine'] else {},
    }
    nodes = GRAPH
    if port := value['metrics_port']:
        if not port.isdecimal():
            raise RuntimeError(f'metrics_port {port}: this is no number')
        nodes = MONITOR | GRAPH
        given['monitor'] = {'metrics_port': int(port)}
    source = value['input'] or input_of(value['params_file']) or os.environ.get('VIDEO_STREAM_URL', '')
    if topic_of(source) or is_live(source):
        given['slam3r']['lossless'] = False  # a camera does not wait
    parameters = {name: [value['params_file'], managed | given.get(name, {})] for name in nodes}
    actions: list[LaunchDescriptionEntity] = [
        SetEnvironmentVariable(name, text) for name, text in tuning(context.environment).items()
    ]
    if value['use_composition'] == 'true':
        actions.append(
            ComposableNodeContainer(
                package=PACKAGE,
                executable='slam3r_container',
                name='slam3r_container',
                namespace=namespace,
                arguments=['--exit-on-failure'],
                parameters=[common],
                composable_node_descriptions=[
                    ComposableNode(
                        package=PACKAGE, plugin=plugin, name=name, namespace=namespace, parameters=parameters[name]
                    )
                    for name, plugin in nodes.items()
                ],
                output='screen',
                on_exit=end,
            )
        )
    else:
        actions += [
            Node(
                package=PACKAGE,
                executable=name,
                name=name,
                namespace=namespace,
                parameters=parameters[name],
                output='screen',
                on_exit=end,
            )
            for name in nodes
        ]
    if value['autostart'] == 'true':
        actions.append(
            Node(
                package=PACKAGE,
                executable='bring_up',
                namespace=namespace,
                arguments=list(nodes),
                output='screen',
                on_exit=end_if_failed,
            )
        )
    if value['rviz'] == 'true':
        arguments = ['-d', str(SHARE / 'rviz' / 'slam.rviz')]
        actions.append(
            Node(package='rviz2', executable='rviz2', namespace=namespace, arguments=arguments, parameters=[common])
        )
    return actions
