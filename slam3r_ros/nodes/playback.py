# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Files, bags, cameras and streams as input of the decoder."""

import time
from collections.abc import Iterator

from slam3r_ros.nodes.base import PipelineNode
from slam3r_ros.nodes.frames import FrameOutput
from slam3r_ros.values import Frame
from slam3r_ros.video.live import LiveSource
from slam3r_ros.video.picture import VideoError, printable
from slam3r_ros.video.source import Source, open_source

_TURN = 0.2  # seconds to wait for a live frame before others have their turn


class Playback:
    """Reads a file or a bag to its end: as fast as the others take it, or at its own pace; what is live, for ever.

    Attributes:
        received: Frames read so far.
    """

    def __init__(self, node: PipelineNode, output: FrameOutput):
        """Prepare; nothing is opened yet."""
        self.received = self._late = 0
        self._node, self._output = node, output
        self._source: Source | None = None
        self._frames: Iterator[Frame] = iter(())
        self._start: float | None = None  # time.monotonic() at stamp 0
        self._steps = node.worker.inbox(self._step, depth=1)

    def start(self) -> None:
        """Begin to read, on the node's worker."""
        self._steps.put(None)

    @property
    def dropped(self) -> int:
        """Frames that came too late for their own pace, or of which newer ones came before anybody took them."""
        return self._late + (self._source.dropped if isinstance(self._source, LiveSource) else 0)

    @property
    def error(self) -> str:
        """Why a camera or a stream gives no frames now; empty while it does."""
        return self._source.error if isinstance(self._source, LiveSource) else ''

    def close(self) -> None:
        """Close the file or the connection."""
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
                self._node.fail(f'{printable(self._node.parameters.input)}: {type(error).__name__}: {error}')

    def _read_on(self) -> None:
        node = self._node
        if self._source is None and not self._open():
            return
        if isinstance(self._source, LiveSource):
            self._read_live()
            return
        frame = next(self._frames, None)
        if frame is None:
            return
        self.received += 1
        if self._is_due(frame):
            self._output.publish(frame)
        else:
            self._late += 1
        if frame.last:
            node.get_logger().info(f'{node.parameters.input}: end after {frame.id + 1} frames')
        else:
            self._steps.put(None)

    def _read_live(self) -> None:
        if (frame := self._source.read(_TURN)) is not None:
            self.received += 1
            self._output.publish(frame)
        self._steps.put(None)

    def _open(self) -> bool:
        node, p = self._node, self._node.parameters
        now = node.get_clock().now().nanoseconds
        offset = now if p.stamp_offset < 0 else round(p.stamp_offset * 1e9)
        self._source = open_source(p.input, offset, p.bag_topic)
        self._frames = iter(self._source)
        return self._output.wait_for_reader()

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
