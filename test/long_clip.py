# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A video that is long enough to be interrupted, however late."""

import av


def repeat(clip, path, times):
    """Write a video that shows another one several times; return its path."""
    shift = 0
    with av.open(str(path), 'w') as target:
        for _ in range(times):
            with av.open(str(clip)) as source:
                stream = source.streams.video[0]
                copy = target.streams.video[0] if target.streams.video else target.add_stream_from_template(stream)
                for packet in source.demux(stream):
                    if packet.dts is not None:  # else it is the one that ends the stream
                        packet.pts, packet.dts, packet.stream = packet.pts + shift, packet.dts + shift, copy
                        target.mux(packet)
                shift += stream.duration
    return path
