# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`slam3r bench fuzz`: damaged H.264 and random WebSocket messages: no crash, no hang, no exception that escapes.

Real streams (x264, four kinds) are mutated: bits, bytes, NAL units lost, cut, doubled, swapped, spliced.  Processes of
their own decode them, so that a crash of native code is seen and counted.  Beside stands how many of the pictures
handed on are none of the undamaged ones: H.264 has no checksums, and a flipped bit may leave valid syntax.
"""

import argparse
import multiprocessing
import os
import random
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing.connection import Connection, wait

from slam3r_ros.bench.damage import decode, encode, mutate
from slam3r_ros.video.network import MAX_MESSAGE, SILENT, websocket
from slam3r_ros.video.picture import VideoError
from slam3r_ros.video.streams import H264Stream, PacketStream

LIMIT = 2.0  # seconds for one stream or message
_START = 30.0  # seconds for a process to start
_KINDS = {
    'cabac': {'bf': '0'},
    'b-frames': {'bf': '3', 'b_strategy': '0'},
    'cavlc': {'profile': 'baseline'},
    'slices': {'bf': '0', 'slices': '3'},
}
_PER_CONNECTION = 100  # messages


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument('--count', type=int, default=10_000, help='streams, and as many messages')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--workers', type=int, default=os.cpu_count() or 1)


def main(arguments: argparse.Namespace) -> int:
    """Print what happened; return 1 when anything but a clean end did."""
    faults = Counter()
    for name, run in (('streams', _fuzz_streams), ('messages', _fuzz_messages)):
        start = time.monotonic()
        counts = run(arguments.count, arguments.seed, arguments.workers)
        seconds = time.monotonic() - start
        faults.update({fault: counts[fault] for fault in ('crashes', 'hangs', 'exceptions')})
        print(
            f'{name:<9}{counts["done"]:6d} of {arguments.count}: {counts["crashes"]} crashes, {counts["hangs"]} hangs, '
            f'{counts["exceptions"]} exceptions; slowest {counts["slowest"]} ms; {counts["pictures"]} pictures; '
            f'{seconds:.0f} s'
        )
        if run is _fuzz_streams:
            share = counts['unlike'] / max(1, counts['pictures'])
            print(f'{"":<9}{counts["skipped"]} pictures skipped; {share:.2%} of the others unlike the undamaged')
    return int(faults.total() > 0)


def _streams() -> tuple[list[list[bytes]], set[bytes]]:
    """Return real streams of each kind and one of another size, and all of their pictures."""
    streams = [encode(options) for options in _KINDS.values()] + [encode({}, size=(128, 96))]
    return streams, {image.tobytes() for stream in streams for image in decode(stream)}


def _decode_streams(pipe: Connection, seed: int) -> None:
    """Decode the stream of each number that comes, in a process of its own."""
    streams, pictures = _streams()
    pipe.send(None)
    while (number := pipe.recv()) is not None:
        rng = random.Random(f'{seed} {number}')
        units = mutate(rng.choice(streams[:-1]), streams, rng)
        try:
            if number % 2:
                stream = PacketStream('fuzz')
                decoded = [each for i, unit in enumerate(units) for each in stream.feed(unit, 'h264', i)]
                decoded += stream.flush()
            else:
                stream, data = H264Stream('fuzz'), b''.join(units)
                step = rng.choice((1, 7, 100, 1500, 100_000))
                decoded = [each for at in range(0, len(data), step) for each in stream.feed(data[at : at + step], at)]
        except VideoError:  # too small, say: the caller is told
            decoded = []
        except Exception:  # noqa: BLE001 - that is what is looked for
            pipe.send((number, traceback.format_exc(), 0, 0, 0))
            continue
        whole = [each.image.tobytes() for each in decoded if each is not None]
        pipe.send((number, '', len(whole), sum(each not in pictures for each in whole), decoded.count(None)))


class _Process:
    """A worker process, and the number it is at."""

    def __init__(self, work: Callable, *arguments: object) -> None:
        context = multiprocessing.get_context('spawn')
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=work, args=(other, *arguments), daemon=True)
        self.process.start()
        other.close()
        self.number: int | None = None
        self.deadline = time.monotonic() + _START

    def give(self, number: int | None) -> None:
        """Hand over the next number; None: end."""
        self.number, self.deadline = number, time.monotonic() + LIMIT
        self.pipe.send(number)

    def end(self) -> None:
        """Kill it if it is still there."""
        self.process.kill()
        self.process.join()
        self.pipe.close()


def _fuzz_streams(count: int, seed: int, workers: int, work: Callable = _decode_streams) -> Counter:
    counts, numbers = Counter(), iter(range(count))
    processes = [_Process(work, seed) for _ in range(min(workers, count))]
    while processes:
        ready = wait([each.pipe for each in processes], timeout=0.1)
        for worker in list(processes):
            fault = ''
            if worker.pipe in ready:
                try:
                    answer = worker.pipe.recv()
                except EOFError:
                    fault = 'crashes'
                else:
                    _count(counts, worker, answer)
            elif time.monotonic() > worker.deadline:
                fault = 'hangs'
            else:
                continue
            if fault:
                counts[fault] += 1
                print(f'{fault}: stream {worker.number} of seed {seed}, exit code {worker.process.exitcode}')
                worker.end()
                processes.remove(worker)
                processes.append(_Process(work, seed))
                continue
            if (number := next(numbers, None)) is None:
                worker.end()
                processes.remove(worker)
            else:
                worker.give(number)
    return counts


def _count(counts: Counter, worker: _Process, answer: tuple | None) -> None:
    if answer is None:  # it has started
        return
    number, error, pictures, unlike, skipped = answer
    if error:
        print(f'stream {number}: {error}')
    milliseconds = round(1000 * (time.monotonic() - worker.deadline + LIMIT))
    counts['slowest'] = max(counts['slowest'], milliseconds)
    counts.update(done=1, exceptions=bool(error), pictures=pictures, unlike=unlike, skipped=skipped)


def _messages(number: int, seed: int, video: list[bytes]) -> Iterator[bytes | str]:
    """Yield the messages of one connection."""
    rng = random.Random(f'{seed} connection {number}')
    for i in range(_PER_CONNECTION):
        kind = rng.randrange(8)
        if kind == 0:
            yield ''.join(chr(rng.randrange(32, 0xD000)) for _ in range(rng.randrange(200)))
        elif kind == 1:
            yield b''
        elif kind == 2:
            yield b'\0\0\1' * rng.randrange(2000)
        elif kind == 3:
            yield b''.join(b'\0\0\1' + rng.randbytes(rng.randrange(64)) for _ in range(100))
        elif kind == 4 and i == _PER_CONNECTION - 1:
            yield bytes(MAX_MESSAGE + 1)  # refused by the client, which ends the connection
        elif kind < 6:
            yield rng.randbytes(rng.randrange(1 << rng.randrange(18)))
        else:
            yield b''.join(mutate(video, [video], rng) if kind == 6 else video)


def _consume(pipe: Connection, port: int) -> None:
    """Read one connection after the other, as `LiveSource` does, in a process of its own."""
    pipe.send(None)
    while pipe.recv() is not None:
        error, pictures = '', 0
        try:
            with websocket('fuzz', f'ws://127.0.0.1:{port}/ws/video/consume', threading.Event()) as stream:
                for each in stream:
                    pictures += each is not None
        except VideoError:  # what every connection ends with
            pass
        except Exception:  # noqa: BLE001 - that is what is looked for
            error = traceback.format_exc()
        pipe.send((error, pictures))


def _fuzz_messages(count: int, seed: int, workers: int) -> Counter:
    from websockets.exceptions import ConnectionClosed
    from websockets.sync.server import ServerConnection, serve

    counts, video = Counter(), encode({})
    connection_number = 0

    def send(socket: ServerConnection) -> None:
        sent = 0
        try:
            for message in _messages(connection_number, seed, video):
                if counts['done'] >= count:
                    break
                start = time.monotonic()
                socket.send(message)
                sent += 1
                counts['done'] += 1
                counts['slowest'] = max(counts['slowest'], round(1000 * (time.monotonic() - start)))
        except ConnectionClosed:
            return
        with suppress(OSError):  # the client has gone
            if connection_number % 3 == 1:  # no frame of WebSocket
                socket.socket.sendall(b'\xff' * 16)
            elif connection_number % 3 == 2:
                socket.socket.close()

    with serve(send, '127.0.0.1', 0, max_size=1 << 10, compression=None, logger=SILENT) as server:
        port = server.socket.getsockname()[1]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        worker, started = _Process(_consume, port), False
        while counts['done'] < count or worker.number is not None:
            before = counts['done']
            if not worker.pipe.poll(LIMIT if started else _START):
                if counts['done'] == before:
                    fault = 'hangs'
                else:
                    continue
            else:
                try:
                    answer, fault, started = worker.pipe.recv(), '', True
                except EOFError:
                    fault = 'crashes'
            if fault:
                counts[fault] += 1
                print(f'{fault}: connection {connection_number} of seed {seed}, exit code {worker.process.exitcode}')
                worker.end()
                worker, started = _Process(_consume, port), False
                continue
            if answer is not None:
                error, pictures = answer
                worker.number = None
                counts.update(exceptions=bool(error), pictures=pictures)
                if error:
                    print(f'connection {connection_number}: {error}')
            if counts['done'] < count:
                connection_number += 1
                worker.give(connection_number)
        worker.end()
        server.shutdown()
    return counts
