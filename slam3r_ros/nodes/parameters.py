# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Every ROS parameter, declared once: the nodes take it from here, and `parameter_files` for users to read."""

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from types import SimpleNamespace

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.exceptions import ParameterException
from rclpy.node import Node

Value = bool | int | float | str | tuple[float, ...]


class ParameterError(ValueError):
    """A parameter or an environment variable has a value that makes no sense; the message names it."""


@dataclass(frozen=True)
class Parameter:
    """One read-only ROS parameter; the type of `default` is its type."""

    name: str
    default: Value
    description: str
    range: tuple[float, float] | None = None
    choices: tuple[str, ...] = ()
    environment: str = ''  # this variable, when set and not empty, gives the default

    def check(self, value: Value, source: str) -> Value:
        """Return a value in the parameter's own type.

        Args:
            value: As it came.
            source: Who gave it, for the message.

        Raises:
            ParameterError: It is of another type or out of range.
        """
        if isinstance(self.default, tuple):
            numbers = list(value) if isinstance(value, Iterable) else [value]
            finite = all(isinstance(each, int | float) and math.isfinite(each) for each in numbers)
            if len(numbers) != len(self.default) or not finite:
                raise ParameterError(f'{source}: {numbers} must be {len(self.default)} finite numbers')
            return tuple(map(float, numbers))
        if isinstance(self.default, float) and type(value) is int:
            value = float(value)  # `-p stamp_offset:=0` is meant well
        if type(value) is not type(self.default):
            raise ParameterError(f'{source}: {value!r} must be of type {type(self.default).__name__}')
        if self.range and not self.range[0] <= value <= self.range[1]:
            raise ParameterError(f'{source}: {value} is outside of {self.range[0]} ... {self.range[1]}')
        if self.choices and value not in self.choices:
            raise ParameterError(f'{source}: {value!r} must be one of {", ".join(self.choices)}')
        return value

    def resolve_default(self) -> Value:
        """Return the default, which the environment may set.

        Raises:
            ParameterError: The environment variable cannot be read.
        """
        text = os.environ.get(self.environment, '') if self.environment else ''
        if not text:
            return self.default
        source = f'environment variable {self.environment} (parameter {self.name})'
        try:
            value = type(self.default)(text)
        except ValueError:
            raise ParameterError(f'{source}: {text!r} must be of type {type(self.default).__name__}') from None
        return self.check(value, source)


AUTOSTART = Parameter(
    'autostart', True, 'Configure and activate the node at once; false: a lifecycle manager does.'
)
MAP_FRAME = Parameter('map_frame', 'map', 'World frame: x forward, y left, z up (REP-105).')
ODOM_FRAME = Parameter('odom_frame', 'odom', 'Frame of the odometry; at the map while no loop is closed.')
BASE_FRAME = Parameter('base_frame', 'base_link', 'Frame of the body that carries the camera.')
CAMERA_FRAME = Parameter('camera_frame', 'camera_optical_frame', 'Optical frame: z forward, x right, y down.')

INPUT = Parameter(
    'input',
    '',
    'File, image folder, bag, `camera:0`, rtsp, http or ws URL, or topic (`topic:/name`, or a name that begins with '
    '`/`). Empty: the topic `image_raw`.',
    environment='VIDEO_STREAM_URL',
)
BAG_TOPIC = Parameter('bag_topic', '', 'Image topic of a bag; chosen by itself when empty.')
REALTIME = Parameter('realtime', False, 'Play a file at its own pace and drop what comes too late.')
STAMP_OFFSET = Parameter(
    'stamp_offset', -1.0, "Stamp of a file's first frame, seconds. -1: the clock at the start.", (-1.0, 2e9)
)
FPS = Parameter('fps', 30.0, 'Frames a second of an image folder whose names are no times.', (0.001, 1000.0))
HARDWARE = Parameter(
    'hardware',
    '',
    'Device type of FFmpeg that decodes video if it can: cuda, vaapi, qsv ... Empty, or where there is none: software.',
)
INPUT_QOS = Parameter(
    'input_qos', 'sensor_data', 'Reliability asked of the image topic.', choices=('sensor_data', 'reliable')
)
RECTIFIED = Parameter(
    'rectified', False, 'The images of the topic are undistorted already; `image_rect` is known to be.'
)

KEYFRAME_STRIDE = Parameter(
    'keyframe_stride',
    0,
    "Advised frames between keyframes. 0: as the image's motion and the engine's confidence ask.",
    (0, 15),
    environment='KEYFRAME_STRIDE',
)

ENGINE = Parameter(
    'engine', 'auto', 'Reconstruction engine. `auto`: `slam3r` when its checkpoints are there.',
    choices=('auto', 'geometric', 'slam3r'),
)  # fmt: skip
CHECKPOINTS_DIR = Parameter(
    'checkpoints_dir', '', 'Folder of the SLAM3R checkpoints.', environment='SLAM3R_CHECKPOINTS_DIR'
)
PRECISION = Parameter(
    'precision',
    'auto',
    'Numbers of the SLAM3R networks. `auto`: float16 on a GPU, float32 on a CPU.',
    choices=('auto', 'float32', 'bfloat16', 'float16', 'int8'),
)
CUDA_GRAPHS = Parameter(
    'cuda_graphs',
    True,
    'On a GPU, record what the SLAM3R networks do for every frame, and replay it: faster, more memory.',
)
GPU_MEMORY = Parameter(
    'gpu_memory_mb',
    0,
    'What SLAM3R may take of a GPU, beside CUDA itself; with too little it looks at fewer frames at once. 0: any.',
    (0, 1_000_000),
)
LOSSLESS = Parameter(
    'lossless',
    True,
    'Frames wait for the engine, and keyframes for their depth. False, as the launch file sets it for what is live: '
    'the newest frames are taken, and keyframes that come too fast get no depth.',
)
PUBLISH_MAP_ODOM = Parameter('publish_map_odom', True, 'Send the edge map -> odom on TF.')
PUBLISH_ODOM_BASE = Parameter('publish_odom_base', True, 'Send the edge odom -> base_link on TF.')
PUBLISH_BASE_CAMERA = Parameter('publish_base_camera', True, 'Send the edge base_link -> optical frame on TF.')
BASE_TO_CAMERA = Parameter(
    'base_to_camera',
    (0.0, 0.0, 0.0, -math.pi / 2, 0.0, -math.pi / 2),
    'Optical frame in base_link: x y z (map units), roll pitch yaw (radians).',
)
MAX_POINTCLOUD_SIZE = Parameter(
    'max_pointcloud_size',
    2_000_000,
    'Points of the map cloud; the oldest are dropped first.',
    (1000, 100_000_000),
    environment='SLAM3R_MAX_POINTCLOUD_SIZE',
)
CLOUD_STRIDE = Parameter('cloud_stride', 2, 'The clouds take every so many rows and columns of a keyframe.', (1, 16))
MAX_KEYFRAMES = Parameter(
    'max_keyframes',
    400,
    'Keyframes in memory, 0.3 MB each; beyond that, every other of the older half is forgotten (engine `geometric`).',
    (50, 100_000),
)
QUEUE_DEPTH = Parameter('queue_depth', 2, 'Frames that may wait for this node.', (1, 1000))

VOXEL_SIZE_RELATIVE = Parameter(
    'voxel_size_relative', 0.02, 'Voxel edge in map units, while the scale is unknown.', (0.001, 1.0)
)
VOXEL_SIZE = Parameter('voxel_size', 0.02, 'Voxel edge in metres, once the scale is known.', (0.001, 1.0))
MESH_MIN_WEIGHT = Parameter(
    'mesh_min_weight', 0.25, 'Summed confidence that a voxel must reach to be shown; 0 shows all.', (0.0, 100.0)
)
MESH_MEMORY = Parameter(
    'mesh_memory_mb', 1024, 'Memory of mesh and voxels; when full, what is longest untouched goes.', (16, 1_000_000)
)
MESH_DEVICE = Parameter(
    'mesh_device', 'auto', 'Where to mesh. `auto`: the GPU where CuPy finds one.', choices=('auto', 'cpu', 'cuda')
)
CHUNK_BLOCKS = Parameter('chunk_blocks', 8, 'Edge of a display chunk, one RViz marker each, in blocks.', (1, 64))
MESH_RATE = Parameter('mesh_rate', 2.0, 'Mesh updates a second at most.', (0.1, 5.0))
MESH_FAST_MOTION = Parameter(
    'mesh_fast_motion',
    1.0,
    'Camera speed, map units a second (metres once the scale is known), above which the mesh is updated at a quarter '
    'of the rate; 0: never.',
    (0.0, 1000.0),
)
MESH_BANDWIDTH = Parameter(
    'mesh_bandwidth_mbps', 1.0, 'Of `mesh/draco` at most; what does not fit comes later. 0: any.', (0.0, 10_000.0)
)
SAVE_MAX_TRIANGLES = Parameter(
    'save_max_triangles',
    0,
    'Triangles of a saved mesh, about; flat places lose theirs first. 0: all.',
    (0, 100_000_000),
)

MAP_FOLDER = Parameter(
    'map_folder',
    '~/slam3r_maps',
    'Folder below which `save_map` writes, and nowhere else; relative paths begin there.',
    environment='SLAM3R_MAP_FOLDER',
)

METRICS_PORT = Parameter('metrics_port', 9100, 'Of `/metrics` and `/health`. 0: any that is free.', (0, 65535))
METRICS_ADDRESS = Parameter(
    'metrics_address', '127.0.0.1', 'To listen at; `0.0.0.0` lets everybody in, and nothing is encrypted.'
)

GROUPS: dict[str, tuple[Parameter, ...]] = {
    'video_decoder': (
        AUTOSTART,
        INPUT,
        BAG_TOPIC,
        REALTIME,
        STAMP_OFFSET,
        FPS,
        HARDWARE,
        INPUT_QOS,
        RECTIFIED,
        CAMERA_FRAME,
    ),
    'keyframe_selector': (AUTOSTART, KEYFRAME_STRIDE, QUEUE_DEPTH, CAMERA_FRAME),
    'slam3r': (
        AUTOSTART,
        ENGINE,
        CHECKPOINTS_DIR,
        PRECISION,
        CUDA_GRAPHS,
        GPU_MEMORY,
        LOSSLESS,
        MAX_KEYFRAMES,
        MAX_POINTCLOUD_SIZE,
        CLOUD_STRIDE,
        QUEUE_DEPTH,
        MAP_FOLDER,
        MAP_FRAME,
        ODOM_FRAME,
        BASE_FRAME,
        CAMERA_FRAME,
        PUBLISH_MAP_ODOM,
        PUBLISH_ODOM_BASE,
        PUBLISH_BASE_CAMERA,
        BASE_TO_CAMERA,
    ),
    'mesher': (
        AUTOSTART,
        VOXEL_SIZE_RELATIVE,
        VOXEL_SIZE,
        MESH_MIN_WEIGHT,
        MESH_MEMORY,
        MESH_DEVICE,
        CHUNK_BLOCKS,
        MESH_RATE,
        MESH_FAST_MOTION,
        MESH_BANDWIDTH,
        SAVE_MAX_TRIANGLES,
        MAP_FOLDER,
        MAP_FRAME,
    ),
    'monitor': (AUTOSTART, METRICS_PORT, METRICS_ADDRESS),
}  # by node


def declare(node: Node, group: str) -> SimpleNamespace:
    """Declare the parameters of one group on a node and return their values by name.

    Raises:
        ParameterError: A value or an environment variable makes no sense.
    """
    return SimpleNamespace(**{each.name: _declare(node, each) for each in GROUPS[group]})


def _declare(node: Node, parameter: Parameter) -> Value:
    descriptor = ParameterDescriptor(
        description=parameter.description,
        additional_constraints=', '.join(parameter.choices),
        read_only=True,
        dynamic_typing=True,  # an integer for a float is accepted; check() does the rest
    )
    default = parameter.resolve_default()
    if parameter.range and isinstance(default, float):
        descriptor.floating_point_range = [
            FloatingPointRange(from_value=parameter.range[0], to_value=parameter.range[1])
        ]
    elif parameter.range:
        descriptor.integer_range = [IntegerRange(from_value=parameter.range[0], to_value=parameter.range[1])]
    source = f'parameter {parameter.name} of {node.get_fully_qualified_name()}'
    try:
        value = node.declare_parameter(parameter.name, default, descriptor).value
    except ParameterException as error:
        raise ParameterError(f'{source}: {error}') from None
    return parameter.check(value, source)
