# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The node that looks at each frame before the engine does: advice on keyframes, blurred frames left out."""

import sys
from typing import Any

from slam3r_ros.mapping.selection import FrameSelector
from slam3r_ros.nodes.base import PipelineNode
from slam3r_ros.nodes.process import run
from slam3r_ros.transport.bus import create_publisher, create_subscription
from slam3r_ros.values import Frame, Keyframe


class KeyframeSelector(PipelineNode):
    """Takes `frames`, publishes `selected_frames`; hears of the engine's confidence by `keyframes`."""

    NAME = 'keyframe_selector'

    def configure(self) -> None:
        """Prepare to look at frames."""
        p = self.parameters
        self._selector = FrameSelector(p.keyframe_stride)
        self._selected = create_publisher(
            self, Frame, 'selected_frames', depth=4, frame_id=p.camera_frame, lossless=True
        )
        if not p.keyframe_stride:  # not lossless: the engine must never wait for this node, which waits for the engine
            create_subscription(self, Keyframe, 'keyframes', self._selector.hear)
        create_subscription(self, Frame, 'frames', self._select, p.queue_depth, lossless=True)

    def diagnostics(self) -> dict[str, Any]:
        """Return what was counted."""
        counter = self._selector
        return {'received': counter.received, 'blurred': counter.blurred, 'unreadable': counter.unreadable}

    def _select(self, frame: Frame) -> None:
        selected = self._selector.select(frame)
        if selected is not None and self._selected.wait_for_reader():
            self._selected.publish(selected)


def main(arguments: list[str] | None = None) -> int:
    """Run the node alone."""
    return run(KeyframeSelector, arguments)


if __name__ == '__main__':
    sys.exit(main())
