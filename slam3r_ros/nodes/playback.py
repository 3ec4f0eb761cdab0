# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Files and bags as input of the decoder."""

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from slam3r_ros.values import Frame
from slam3r_ros.video.source import Source, VideoError, open_source

if TYPE_CHECKING:
    from slam3r_ros.nodes.video_decoder import VideoDecoder


class Playback:
    """Reads a file or a bag to its end: as fast as the others take it, or at its own pace.

    Attributes:
        received: Frames read so far.
        dropped: Those of them that came too late for their own pace.
    """

    def __init__(self, node: 'VideoDecoder'):
        """Prepare; nothing is opened yet."""
        self.received = self.dropped = 0
        self._node = node
        self._source: Source | None = None
        self._frames: Iterator[Frame] = iter(())
        self._start: float | None = None  # time.monotonic() at stamp 0
        self._steps = node.worker.inbox(self._step, depth=1)

    def start(self) -> None:
        """Begin to read, on the node's worker."""
        self._steps.put(None)

    def close(self) -> None:
        """Close the file."""
        if self._source is not None:
            self._source.close()

    def _step(self, _: None) -> None:
        """Hand on one frame, then wait for the next turn: services and timers come between."""
        try:
            self._read_on()
        except VideoError as error:
            self._node.fail(str(error))
        except Exception as error:  # noqa: BLE001 - else the stream would stop without a word
            if self._node.context.ok():
                self._node.fail(f'{self._node.parameters.input}: {type(error).__name__}: {error}')

    def _read_on(self) -> None:
        node = self._node
        if self._source is None and not self._open():
            return
        frame = next(self._frames, None)
        if frame is None:
            return
        self.received += 1
        if self._is_due(frame):
            node.publish(frame)
        else:
            self.dropped += 1
        if frame.last:
            node.get_logger().info(f'{node.parameters.input}: end after {frame.id + 1} frames')
        else:
            self._steps.put(None)

    def _open(self) -> bool:
        node, p = self._node, self._node.parameters
        now = node.get_clock().now().nanoseconds
        offset = now if p.stamp_offset < 0 else round(p.stamp_offset * 1e9)
        self._source = open_source(p.input, offset, p.bag_topic)
        self._frames = iter(self._source)
        return node.wait_for_reader()

    def _is_due(self, frame: Frame) -> bool:
        """At its own pace, wait until the frame's time has come; False when it is too late."""
        if not self._node.parameters.realtime:
            return True
        if self._start is None:
            self._start = time.monotonic() - frame.stamp * 1e-9
        lateness = time.monotonic() - self._start - frame.stamp * 1e-9
        if lateness < 0:
            time.sleep(-lateness)
        return lateness < 1.0 / self._source.fps or frame.last
