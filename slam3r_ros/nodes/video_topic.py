# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Video in messages: every packet is decoded, in order, however busy the others are; newer pictures need older ones."""

import math
from collections.abc import Callable
from typing import NamedTuple

from slam3r_ros.transport.worker import Worker
from slam3r_ros.video.h264 import MAX_UNIT
from slam3r_ros.video.picture import Picture, VideoError
from slam3r_ros.video.streams import PacketStream
from slam3r_ros.video.topics import Packet

_DEPTH = 30  # packets that may wait, a second or so


class _Waiting(NamedTuple):
    era: int  # grows with every gap
    packet: Packet
    stamp: int  # nanoseconds


class PacketDecoder:
    """Decodes the messages of a video topic on a thread of its own.

    What waits is bounded: when decoding falls behind, all that is given up, and it goes on at the next key picture.
    """

    def __init__(
        self, name: str, take: Callable[[Picture | None], None], report: Callable[[str], None], hardware: str = ''
    ):
        """Start the thread.

        Args:
            name: Of the topic.
            take: Called on the thread with each picture, as they are presented; with None for each that is lost.
            report: Told what is wrong with the stream.
            hardware: As in `Decoder.of`.
        """
        self._take, self._report = take, report
        self._stream = PacketStream(name, hardware)
        self._worker = Worker(f'decoding {name}', report)
        self._inbox = self._worker.inbox(self._decode, depth=math.inf)
        self._era = self._decoded_era = 0

    def put(self, packet: Packet, stamp: int) -> bool:
        """Take a packet; False when it is lost since too much waits, or it is too long.

        Args:
            packet: As it came.
            stamp: Of its picture, nanoseconds.
        """
        if len(packet.data) > MAX_UNIT or len(self._inbox) >= _DEPTH:
            self.interrupt()
            return False
        return self._inbox.put(_Waiting(self._era, packet, stamp))

    def interrupt(self) -> None:
        """Give up what waits: what comes next does not follow it."""
        self._era += 1

    def close(self) -> None:
        """End the thread."""
        self._worker.close()

    def _decode(self, waiting: _Waiting) -> None:
        era, packet, stamp = waiting
        if era != self._era:
            self._take(None)
            return
        pictures = []
        if era != self._decoded_era:
            self._decoded_era = era
            pictures += self._stream.flush()
        try:
            pictures += self._stream.feed(packet.data, packet.encoding, stamp)
        except VideoError as error:
            self._report(str(error))
            pictures.append(None)
        for each in pictures:
            self._take(each)
