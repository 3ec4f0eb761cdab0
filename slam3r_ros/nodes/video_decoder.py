# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The node that turns a video, whatever its source, into the stream of undistorted frames."""

import re
import sys
from pathlib import Path
from typing import Any

from slam3r_ros import msg
from slam3r_ros.nodes.base import OnDemand, PipelineNode
from slam3r_ros.nodes.camera_input import CameraInput
from slam3r_ros.nodes.frames import FrameOutput
from slam3r_ros.nodes.playback import Playback
from slam3r_ros.nodes.process import run
from slam3r_ros.transport.messages import status_to_message
from slam3r_ros.values import SlamStatus, State
from slam3r_ros.video.picture import printable
from slam3r_ros.video.source import is_live


class VideoDecoder(PipelineNode):
    """Publishes `frames` and, for whoever asks, `image`."""

    NAME = 'video_decoder'

    def configure(self) -> None:
        """Prepare to read; what is wrong with a file fails the node soon after it became active.

        Raises:
            ParameterError: The input is no valid name of a topic.
        """
        output = FrameOutput(self)
        self._stamps = output.stamps
        self._status = OnDemand(self.create_publisher(msg.SlamStatus, 'status', 10))
        topic = topic_of(self.parameters.input)
        self._source = Playback(self, output) if topic is None else CameraInput(self, output, topic)
        self.closing.callback(self._source.close)
        if hardware := self.parameters.hardware:
            from slam3r_ros.video.decoder import why_no  # one needs no PyAV for images

            if reason := why_no(hardware):
                self.get_logger().warning(f'hardware {hardware!r} cannot decode ({reason}); software does')
        self._source.start()

    def diagnostics(self) -> dict[str, Any]:
        """Return what was counted."""
        source, stamps = self._source, self._stamps
        return {
            'input': printable(self.parameters.input),
            'received': source.received,
            'dropped': source.dropped + stamps.dropped,
            'queue input': source.waiting,
            'reconnects': source.reconnects,
            'stamps_repeated': stamps.duplicates,
            'stamps_disordered': stamps.disordered,
            'stamps_astray': stamps.strays,
        }

    @property
    def trouble(self) -> str:
        """Say, too, why a camera or a stream gives no frames now."""
        return super().trouble or self._source.error

    def tell_failure(self) -> None:
        """Say on `status` too that the node failed."""
        super().tell_failure()
        stamp = self.get_clock().now().nanoseconds
        status = SlamStatus(stamp, State.ERROR, frames_in=self._source.received, last_error=self.last_error)
        self._status.publish(lambda: status_to_message(status, self.parameters.camera_frame))


def topic_of(name: str) -> str | None:
    """Return the image topic that the parameter `input` means; None when it means another source."""
    if not name:
        return 'image_raw'
    if name.startswith('topic:'):
        return name.removeprefix('topic:')
    is_name = re.fullmatch(r'(/[A-Za-z_]\w*)+', name, re.ASCII)
    if is_name and not is_live(name) and not Path(name).exists():
        return name
    return None


def main(arguments: list[str] | None = None) -> int:
    """Run the node alone."""
    return run(VideoDecoder, arguments)


if __name__ == '__main__':
    sys.exit(main())
