# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""rosbag2 recordings, read directly: no ROS is needed, and nothing waits for the clock."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from rosbags.highlevel import AnyReader
from rosbags.interfaces import Connection
from rosbags.typesys import Stores, get_typestore

from slam3r_ros.values import Frame
from slam3r_ros.video.pixels import PixelError, decompress, to_rgb
from slam3r_ros.video.source import Picture, VideoError, check_size, number
from slam3r_ros.video.undistort import DistortionError, Undistorter, is_rectified

NANOSECONDS = 1_000_000_000  # in a second
RAW, COMPRESSED, CAMERA_INFO = (f'sensor_msgs/msg/{name}' for name in ('Image', 'CompressedImage', 'CameraInfo'))


class Bag:
    """Reads the images of a rosbag2 recording; a `Source`."""

    def __init__(self, path: Path, topic: str = '') -> None:
        """Open the bag and choose its images.

        Args:
            path: A folder with metadata.yaml, or one .mcap or .db3 file.
            topic: The image topic; by default raw images go before compressed ones, then those with a CameraInfo
                beside them, then the topic with the most messages.

        Raises:
            VideoError: The bag is broken, or no topic has images that can be decoded.
        """
        self.skipped = 0
        try:
            self._reader = AnyReader([path], default_typestore=get_typestore(Stores.ROS2_JAZZY))
            self._open = ExitStack()
            self._open.enter_context(self._reader)
        except Exception as error:  # rosbags trusts its input: a broken file may raise anything
            raise VideoError(f'{path}: is not a rosbag2 that can be read ({_one_line(error)})') from error
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
        images = [c for c in self._reader.connections if c.msgtype in (RAW, COMPRESSED) and c.msgcount]
        wanted = [c for c in images if topic in ('', c.topic)]
        reasons = []
        for connection in sorted(wanted, key=self._preference):
            try:
                message, _ = next(self._messages(connection))
                height, width = _decode(connection, message).shape[:2]
            except PixelError as error:  # a depth image, say
                reasons.append(f'{connection.topic}: {error}')
                continue
            check_size(f'{path} {connection.topic}', width, height)
            return connection
        if wanted:
            raise VideoError(f'{path}: has no image that can be decoded ({"; ".join(reasons)})')
        topics = ', '.join(f'{c.topic} ({c.msgtype})' for c in self._reader.connections) or 'none'
        what = f'no images on topic {topic}' if topic else 'no Image or CompressedImage topic'
        raise VideoError(f'{path}: has {what}; its topics: {topics}')

    def _preference(self, connection: Connection) -> tuple:
        return connection.msgtype != RAW, self._info_beside(connection) is None, -connection.msgcount, connection.topic

    def _info_beside(self, images: Connection) -> Connection | None:
        """Return the CameraInfo topic of the same camera: <camera>/camera_info beside <camera>/image_raw[/...]."""
        base = images.topic.removesuffix('/compressed').rpartition('/')[0]
        for connection in self._reader.connections:
            if connection.msgtype == CAMERA_INFO and connection.topic == f'{base}/camera_info' and connection.msgcount:
                return connection
        return None

    def _calibrate(self) -> Undistorter | None:
        """Make the undistorter of the first CameraInfo."""
        connection = self._info_beside(self._images)
        if connection is None:
            return None
        info, _ = next(self._messages(connection))
        message, _ = next(self._messages(self._images))
        height, width = _decode(self._images, message).shape[:2]
        try:
            return Undistorter.from_calibration(info, width, height, is_rectified(self._images.topic))
        except DistortionError as error:
            raise VideoError(f'{self.name}: {error}') from None

    def _pictures(self) -> Iterator[Picture | None]:
        intrinsics = self._undistorter.intrinsics if self._undistorter else None
        for message, bag_time in self._messages(self._images):
            try:
                image = _decode(self._images, message)
            except PixelError:
                self.skipped += 1
                yield None
                continue
            stamp = message.header.stamp.sec * NANOSECONDS + message.header.stamp.nanosec
            yield Picture(stamp or bag_time, self._undistorter(image) if self._undistorter else image, intrinsics)

    def _messages(self, connection: Connection) -> Iterator[tuple[object, int]]:
        """Yield the messages of a topic and the bag's time in nanoseconds."""
        try:
            for _, time, data in self._reader.messages([connection]):
                yield self._reader.deserialize(data, connection.msgtype), time
        except Exception as error:  # as above
            raise VideoError(f'{self._reader.paths[0]}: is broken ({_one_line(error)}); record it again') from error


def _decode(connection: Connection, message: object) -> np.ndarray:
    """Return the pixels of an Image or CompressedImage, (H, W, 3) uint8 RGB."""
    if connection.msgtype == RAW:
        return to_rgb(message.data, message.encoding, message.width, message.height, message.step)
    return decompress(message.data)


def _one_line(error: BaseException) -> str:
    return ' '.join(str(error).split()) or type(error).__name__
