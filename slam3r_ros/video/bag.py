# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""rosbag2 recordings, read directly: no ROS is needed, and nothing waits for the clock."""

from collections.abc import Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path

import numpy as np
from rosbags.highlevel import AnyReader
from rosbags.interfaces import Connection
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

from slam3r_ros.values import Frame
from slam3r_ros.video.picture import NANOSECONDS, Picture, VideoError, check_size, number, one_line
from slam3r_ros.video.pixels import PixelError, decompress, to_rgb
from slam3r_ros.video.topics import (
    CAMERA_INFO,
    COMPRESSED,
    FFMPEG,
    FOXGLOVE,
    IMAGES,
    RAW,
    VIDEO,
    camera_info_topic,
    is_rectified,
    packet_of,
)
from slam3r_ros.video.undistort import DistortionError, Undistorter

_PATIENCE = {RAW: 1, COMPRESSED: 1, FFMPEG: 600, FOXGLOVE: 600}  # messages in which the first whole picture must be

# For bags that bring no definitions.
_DEFINITIONS = {
    FFMPEG: 'std_msgs/Header header\nint32 width\nint32 height\nstring encoding\nuint64 pts\nuint8 flags\n'
    'bool is_bigendian\nuint8[] data\n',
    FOXGLOVE: 'builtin_interfaces/Time timestamp\nstring frame_id\nuint8[] data\nstring format\n',
}


class Bag:
    """Reads the images of a rosbag2 recording; a `Source`."""

    def __init__(self, path: Path, topic: str = '', hardware: str = '') -> None:
        """Open the bag and choose its images.

        Args:
            path: A folder with metadata.yaml, or one .mcap or .db3 file.
            topic: The image topic; by default raw images go before compressed ones and these before video, then
                those with a CameraInfo beside them, then the topic with the most messages.
            hardware: As in `Decoder.of`.

        Raises:
            VideoError: The bag is broken, or no topic has images that can be decoded.
        """
        self.skipped, self._reason, self._hardware = 0, '', hardware
        try:
            self._reader = AnyReader([path], default_typestore=_types())
            self._open = ExitStack()
            self._open.enter_context(self._reader)
        except Exception as error:  # rosbags trusts its input: a broken file may raise anything
            raise VideoError(f'{path}: is not a rosbag2 that can be read ({one_line(error)})') from error
        try:
            self._images = self._choose(path, topic)
            self.name = f'{path} {self._images.topic}'
            self.frames = self._images.msgcount
            seconds = self._reader.duration / NANOSECONDS
            self.fps = (self.frames - 1) / seconds if self.frames > 1 and seconds else 30.0
            self._undistorter = self._calibrate()
        except BaseException:
            self.close()
            raise

    def __iter__(self) -> Iterator[Frame]:
        """Yield the frames, once, with the stamps of their headers; where those are zero, with the bag's time."""
        return number(self.name, self._pictures())

    def close(self) -> None:
        """Close the bag."""
        self._open.close()

    def _choose(self, path: Path, topic: str) -> Connection:
        """Return the image topic to read."""
        images = [c for c in self._reader.connections if c.msgtype in IMAGES and c.msgcount]
        wanted = [c for c in images if topic in ('', c.topic)]
        reasons = []
        for connection in sorted(wanted, key=self._preference):
            try:
                pictures = islice(self._decoded(connection), _PATIENCE[connection.msgtype])
                first = next((each for each in pictures if each is not None), None)
            except VideoError as error:
                reasons.append(str(error))
                continue
            if first is None:  # a depth image, say
                reasons.append(f'{connection.topic}: {self._reason or "no key picture"}')
                continue
            self._height, self._width = first.image.shape[:2]
            check_size(f'{path} {connection.topic}', self._width, self._height)
            return connection
        if wanted:
            raise VideoError(f'{path}: has no image that can be decoded ({"; ".join(reasons)})')
        topics = ', '.join(f'{c.topic} ({c.msgtype})' for c in self._reader.connections) or 'none'
        what = f'no images on topic {topic}' if topic else 'no Image, CompressedImage or video topic'
        raise VideoError(f'{path}: has {what}; its topics: {topics}')

    def _preference(self, connection: Connection) -> tuple:
        return (
            IMAGES.index(connection.msgtype),
            self._info_beside(connection) is None,
            -connection.msgcount,
            connection.topic,
        )

    def _info_beside(self, images: Connection) -> Connection | None:
        """Return the CameraInfo topic of the same camera."""
        wanted = camera_info_topic(images.topic)
        for connection in self._reader.connections:
            if connection.msgtype == CAMERA_INFO and connection.topic == wanted and connection.msgcount:
                return connection
        return None

    def _calibrate(self) -> Undistorter | None:
        """Make the undistorter of the first CameraInfo."""
        connection = self._info_beside(self._images)
        if connection is None:
            return None
        info, _ = next(self._messages(connection))
        try:
            return Undistorter.from_calibration(info, self._width, self._height, is_rectified(self._images.topic))
        except DistortionError as error:
            raise VideoError(f'{self.name}: {error}') from None

    def _pictures(self) -> Iterator[Picture | None]:
        intrinsics = self._undistorter.intrinsics if self._undistorter else None
        for picture in self._decoded(self._images):
            if picture is None:
                self.skipped += 1
                yield None
            else:
                image = self._undistorter(picture.image) if self._undistorter else picture.image
                yield Picture(picture.stamp, image, intrinsics)

    def _decoded(self, connection: Connection) -> Iterator[Picture | None]:
        """Yield the pictures of a topic as they are; None for each that is lost."""
        if connection.msgtype in VIDEO:
            yield from self._decoded_video(connection)
            return
        for message, bag_time in self._messages(connection):
            try:
                image = _decode(connection, message)
            except PixelError as error:
                self._reason = str(error)
                yield None
            else:
                yield Picture(_nanoseconds(message.header.stamp) or bag_time, image)

    def _decoded_video(self, connection: Connection) -> Iterator[Picture | None]:
        from slam3r_ros.video.streams import PacketStream  # one needs no PyAV for images

        stream = PacketStream(connection.topic, self._hardware)
        for message, bag_time in self._messages(connection):
            data, encoding, stamp = packet_of(message)
            yield from stream.feed(data, encoding, _nanoseconds(stamp) or bag_time)
        yield from stream.flush()

    def _messages(self, connection: Connection) -> Iterator[tuple[object, int]]:
        """Yield the messages of a topic and the bag's time in nanoseconds."""
        try:
            for _, time, data in self._reader.messages([connection]):
                yield self._reader.deserialize(data, connection.msgtype), time
        except Exception as error:  # as above
            raise VideoError(f'{self._reader.paths[0]}: is broken ({one_line(error)}); record it again') from error


def _decode(connection: Connection, message: object) -> np.ndarray:
    """Return the pixels of an Image or CompressedImage, (H, W, 3) uint8 RGB."""
    if connection.msgtype == RAW:
        big_endian = bool(message.is_bigendian)
        return to_rgb(message.data, message.encoding, message.width, message.height, message.step, big_endian)
    return decompress(message.data)


def _nanoseconds(stamp: object) -> int:
    return stamp.sec * NANOSECONDS + stamp.nanosec


def _types() -> Typestore:
    """Return the types of Jazzy and of video."""
    store = get_typestore(Stores.ROS2_JAZZY)
    for name, definition in _DEFINITIONS.items():
        store.register(get_types_from_msg(definition, name))
    return store
