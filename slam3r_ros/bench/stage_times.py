# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""When the stages of the graph begin and end: the calls of a few functions, timed from outside."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

from rclpy.publisher import Publisher

from slam3r_ros.mapping.selection import FrameSelector
from slam3r_ros.transport.ends import Publisher as BusPublisher
from slam3r_ros.transport.stamps import from_stamp
from slam3r_ros.video import file as video_file
from slam3r_ros.video.decoder import Decoder

Times = dict[str, dict[int, tuple[int, int]]]  # by stage, then by stamp: when it began and ended, monotonic nanoseconds


@contextmanager
def timed(engine: str) -> Iterator[Times]:
    """Note when the functions that make up the stages are called; pictures are known by number, frames by stamp."""
    if engine == 'slam3r':
        from slam3r_ros.engines.slam3r.engine import Slam3rEngine as engine_class
    else:
        from slam3r_ros.engines.geometric.engine import GeometricEngine as engine_class

    times: Times = defaultdict(dict)

    def key_of_frame(_: object, frame: Any) -> int:
        return frame.stamp

    def key_of_bus(publisher: BusPublisher, value: Any) -> int | None:
        return value.stamp if publisher.topic_name.endswith('/frames') else None

    def key_of_tf(publisher: Publisher, message: Any) -> int | None:
        return from_stamp(message.transforms[0].header.stamp) if publisher.topic_name == '/tf' else None

    def wrap(place: Any, name: str, stage: str, key: Callable[..., int | None] | None) -> Any:
        function = getattr(place, name)

        def call(*arguments: Any, **options: Any) -> Any:
            start = time.monotonic_ns()
            try:
                return function(*arguments, **options)
            finally:
                number = len(times[stage]) if key is None else key(*arguments)
                if number is not None:
                    times[stage][number] = start, time.monotonic_ns()

        return patch.object(place, name, call)

    with ExitStack() as stack:
        for each in (
            (Decoder, 'decode', 'decode', None),
            (video_file, 'picture', 'convert', None),
            (BusPublisher, 'publish', 'hand on', key_of_bus),
            (FrameSelector, 'select', 'select', key_of_frame),
            (engine_class, 'process', 'engine', key_of_frame),
            (Publisher, 'publish', 'publish', key_of_tf),
        ):
            stack.enter_context(wrap(*each))
        yield times
