# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Files, bags, cameras and streams as input of the decoder."""

import math
import time
from collections.abc import Iterator
from dataclasses import replace

from slam3r_ros.nodes.base import PipelineNode
from slam3r_ros.nodes.frames import FrameOutput
from slam3r_ros.transport.inbox import pausable
from slam3r_ros.values import Frame
from slam3r_ros.video.live import LiveSource
from slam3r_ros.video.picture import VideoError, printable
from slam3r_ros.video.source import Source, is_bag, is_live, open_source
from slam3r_ros.video.stamps import JUMP

_TURN = 0.2  # seconds to wait for a live frame, or for the clock, before others have their turn
_DRIFT = 200_000_000  # nanoseconds that the stamps of what is live may differ from the clock: it may tick in steps


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
        self._told = ''  # why there are no frames from what is live
        self._frames: Iterator[Frame] = iter(())
        self._start, self._stamp = 0, -math.inf  # nanoseconds: time.monotonic_ns() at stamp 0, the last frame's stamp
        self._lead = math.inf  # of the node's clock, nanoseconds before that of a live source
        self._steps = node.worker.inbox(self._step, depth=1)

    def start(self) -> None:
        """Begin to read, on the node's worker."""
        self._steps.put(None)

    @property
    def dropped(self) -> int:
        """Frames that came too late for their own pace or too early for a clock, or that newer ones have replaced."""
        return self._late + (self._source.dropped if isinstance(self._source, LiveSource) else 0)

    @property
    def waiting(self) -> int:
        """Frames of a camera or a stream that wait to be handed on."""
        return self._source.waiting if isinstance(self._source, LiveSource) else 0

    @property
    def reconnects(self) -> int:
        """How often a camera or a stream broke off, or did not answer."""
        return self._source.breaks if isinstance(self._source, LiveSource) else 0

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
        self._output.publish(frame, self._is_due)
        if frame.last:
            node.get_logger().info(f'{node.parameters.input}: end after {frame.id + 1} frames')
        else:
            self._steps.put(None)

    def _read_live(self) -> None:
        self._tell_trouble()
        if (frame := self._source.read(_TURN)) is not None:
            self.received += 1
            if now := self._output.now():
                lead = now - self._source.now
                if abs(lead - self._lead) > _DRIFT:  # simulated time runs at a pace of its own, and may go back
                    self._lead = lead
                self._output.publish(replace(frame, stamp=frame.stamp + self._lead))
            else:
                self._late += 1
        self._steps.put(None)

    def _tell_trouble(self) -> None:
        """Log why a connection broke or cannot be made, unless it is still the same."""
        reason = self._source.reason if self._source.error else ''
        if reason and reason != self._told:
            self._node.get_logger().error(f'{reason}; trying again')
        self._told = reason

    def _open(self) -> bool:
        p, offset = self._node.parameters, 0
        if p.stamp_offset >= 0:
            offset = round(p.stamp_offset * 1e9)
        elif not (is_live(p.input) or is_bag(p.input) or (offset := self._output.now())):
            time.sleep(_TURN)
            self._steps.put(None)
            return False
        self._source = open_source(p.input, offset, p.bag_topic, p.fps, p.hardware)
        self._frames = iter(self._source)
        return self._output.wait_for_reader()

    def _is_due(self, frame: Frame) -> bool:
        """At its own pace, wait until the frame's time has come; False, and counted, when it is too late."""
        if not self._node.parameters.realtime:
            return True
        period = 1e9 / self._source.fps
        if abs(frame.stamp - self._stamp) > max(JUMP, 2 * period):  # a pause in the recording: not repeated here
            self._start = time.monotonic_ns() - frame.stamp
        self._stamp = frame.stamp
        while (lateness := time.monotonic_ns() - self._start - frame.stamp) < 0 and not self._node.worker.closed:
            with pausable():
                time.sleep(min(-lateness * 1e-9, _TURN))
        in_time = lateness < period or frame.last
        self._late += not in_time
        return in_time
