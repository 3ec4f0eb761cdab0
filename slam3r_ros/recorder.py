# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Records what was published into one MCAP bag, byte for byte.

The file carries each topic's type, definition and offered QoS, so that `ros2 bag play map.mcap`,
Foxglove and plain MCAP readers open it.  Messages lie on the time line of the camera: each is filed
at the newest exposure that was known when it came, not at the wall clock.
"""

import os
import shutil
import struct
import tempfile
import threading
from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rosbags.interfaces import Qos, QosDurability, QosHistory, QosLiveliness, QosReliability, QosTime
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

FOREVER = QosTime(9223372036, 854775807)  # what rmw writes for no limit
DEPTH = 100


class BagRecorder:
    """A bag that is being written; it becomes the file `path` when it is closed, not before."""

    def __init__(self, node: Node, path: Path, start: int = 0, clock_topic: str = 'odometry') -> None:
        """Open a bag.

        Args:
            node: Subscribes to what is recorded.
            path: The `.mcap` file to make; replaced when it exists.
            start: Where the bag's clock begins, nanoseconds.
            clock_topic: A topic whose messages begin with a header: its stamps are the bag's clock.
        """
        self._node = node
        self._path = path
        self._clock_topic = node.resolve_topic_name(clock_topic)
        self._now = start
        self._lock = threading.Lock()
        self._folder = Path(tempfile.mkdtemp(prefix='.recording-', dir=path.parent))
        self._writer = Writer(self._folder / path.stem, version=9, storage_plugin=StoragePlugin.MCAP)
        self._writer.set_compression(CompressionMode.STORAGE, CompressionFormat.ZSTD)
        self._writer.open()
        self._types = get_typestore(Stores.ROS2_JAZZY)
        self._types.register(own_types())
        self.counts: dict[str, int] = {}

    def record(self, message_type: type, topic: str, transient_local: bool = False) -> None:
        """Record a topic from now on.

        Args:
            message_type: Its ROS message class.
            topic: Its name, relative to the node.
            transient_local: Ask for the last message that was sent before, and offer it at playback.
        """
        durability = DurabilityPolicy.TRANSIENT_LOCAL if transient_local else DurabilityPolicy.VOLATILE
        profile = QoSProfile(depth=DEPTH, reliability=ReliabilityPolicy.RELIABLE, durability=durability)
        name = self._node.resolve_topic_name(topic)
        package, kind, _ = message_type.__module__.split('.', 2)
        offered = Qos(
            QosHistory.KEEP_LAST,
            1 if transient_local else DEPTH,
            QosReliability.RELIABLE,
            QosDurability.TRANSIENT_LOCAL if transient_local else QosDurability.VOLATILE,
            FOREVER,
            FOREVER,
            QosLiveliness.AUTOMATIC,
            FOREVER,
            False,
        )
        connection = self._writer.add_connection(
            name,
            f'{package}/{kind}/{message_type.__name__}',
            typestore=self._types,
            offered_qos_profiles=[offered],
        )
        self.counts[name] = 0

        def write(data: bytes) -> None:
            with self._lock:
                if self._writer is None:
                    return
                if name == self._clock_topic:
                    seconds, nanoseconds = struct.unpack_from('<iI', data, 4)  # behind the CDR header
                    self._now = max(self._now, seconds * 10**9 + nanoseconds)
                self._writer.write(connection, self._now, data)
                self.counts[name] += 1

        self._node.create_subscription(message_type, name, write, profile, raw=True)

    def close(self) -> None:
        """Finish the file and put it in its place."""
        with self._lock:
            writer, self._writer = self._writer, None
        if writer is None:
            return
        writer.close()
        os.replace(next(writer.path.glob('*.mcap')), self._path)
        shutil.rmtree(self._folder)

    def discard(self) -> None:
        """Drop what was recorded, unless it was closed before."""
        with self._lock:
            self._writer = None
        shutil.rmtree(self._folder, ignore_errors=True)


def own_types() -> dict:
    """Return the definitions of this package's messages, for rosbags' type stores."""
    types = {}
    for path in sorted(Path(get_package_share_directory('slam3r_ros'), 'msg').glob('*.msg')):
        types.update(get_types_from_msg(path.read_text(), f'slam3r_ros/msg/{path.stem}'))
    return types
