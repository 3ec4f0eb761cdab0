# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Calls of the networks as CUDA graphs: a thousand small kernels are then sent to the GPU by one command.

A frame of one view keeps a large GPU busy for less time than Python needs to ask for it.  A call that comes often, with
arguments of the same shapes, is recorded, and from then on replayed.
"""

import logging
import threading
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from contextlib import suppress
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

log = logging.getLogger(__name__)

OFTEN = 10  # calls of the same shapes, from which on they are replayed
_MOST = 12  # recordings; a stream asks for eight in the end, and for others while its scene frames are few
_NEAR = 1e-2  # relative distance of what is replayed from what was computed: another kernel may have been chosen
_one_at_a_time = threading.Lock()  # recordings in this process: a second would wait for the GPU, which spoils the first


@cache
def streams_of(device: torch.device) -> tuple[Any, Any]:
    """Return a stream to encode on and one to record on, the same ones in the whole process; those of a CPU do nothing.

    Whatever comes on a stream while it records is recorded, from other threads, too: the second is for nothing else.
    """
    make = partial(torch.cuda.Stream, device) if device.type == 'cuda' else torch.cpu.Stream
    return make(), make()


class Recording:
    """A call that can be done again with other values in its tensors."""

    def __init__(self, arguments: list[Any], result: Any, replay: Callable[[], None]) -> None:
        """Take the arguments that were recorded, the result that `replay` writes to, and `replay`."""
        self._inputs = [value for value in arguments if isinstance(value, Tensor)]
        self._result, self._replay = result, replay

    def __call__(self, tensors: list[Tensor]) -> Any:
        """Do it with these tensors; the result is the caller's own."""
        for recorded, value in zip(self._inputs, tensors, strict=True):
            recorded.copy_(value)
        self._replay()
        return _copied(self._result)


class CudaGraphs:
    """Calls functions of tensors, and replays what comes often.

    All calls must come on one stream: the recordings share their memory.
    """

    def __init__(self, enabled: bool, stream: Any = None) -> None:
        """Begin with no recordings.

        Args:
            enabled: if not, functions are simply called.
            stream: of CUDA, to record on, and for nothing else.
        """
        self.enabled, self._stream = enabled, stream
        self._calls: Counter[Hashable] = Counter()
        self._recordings: dict[Hashable, Recording] = {}  # what was replayed last is at the end
        self._pool: Any = None  # of memory

    def __call__(self, function: Callable, *arguments: Any, **options: Hashable) -> Any:
        """Call a function that leaves its arguments as they are and never waits for the GPU.

        Args:
            function: of tensors, to a tensor, None, or (named) tuples of those.
            arguments: for it: tensors, and values that belong to the kind of the call.
            options: likewise, none of them a tensor.
        """
        if not self.enabled:
            return function(*arguments, **options)
        tensors = [value for value in arguments if isinstance(value, Tensor)]
        kinds = tuple((value.shape, value.dtype) if isinstance(value, Tensor) else value for value in arguments)
        call = function, kinds, tuple(sorted(options.items()))
        if recording := self._recordings.pop(call, None):
            self._recordings[call] = recording
            return recording(tensors)
        result = function(*arguments, **options)
        self._calls[call] += 1
        if self._calls[call] == OFTEN:
            self._keep(call, partial(function, **options), arguments, result)
        return result

    def _keep(self, call: Hashable, function: Callable, arguments: tuple, expected: Any) -> None:
        """Record a call, and believe the recording if it gives what the call gave."""
        try:
            own = [value.clone() if isinstance(value, Tensor) else value for value in arguments]
            recording = Recording(own, *self.record(partial(function, *own)))
            found = recording([value for value in arguments if isinstance(value, Tensor)])
            pairs = zip(_tensors(found), _tensors(expected))
            off = float(torch.stack([(a - b).norm() / b.norm() for a, b in pairs]).max())
        except (RuntimeError, AttributeError) as error:  # a full memory, too, or a torch that lacks a name
            self._refuse(str(error).splitlines()[0])
            return
        if not off <= _NEAR:  # not a number, perhaps
            self._refuse(f'what was replayed was off by {off:.1e}')
            return
        self._recordings[call] = recording
        if len(self._recordings) > _MOST:
            oldest = next(iter(self._recordings))
            del self._recordings[oldest], self._calls[oldest]

    def _refuse(self, reason: str) -> None:
        log.warning('the networks go on without CUDA graphs: %s', reason)
        self.give_up()

    def record(self, call: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
        """Record a call; return where its result lies, and what computes it anew.

        Other threads, as the mesher's, may use the GPU meanwhile.
        """
        graph, stream = torch.cuda.CUDAGraph(), self._stream
        # Those of torch 2.8 and later; looked up while nothing has begun.
        end, release = torch._C._cuda_endAllocateToPool, torch._C._cuda_releasePool
        clear = torch._C._cuda_clearCublasWorkspaces
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        # A recording that fails leaves its stream to be the present one: the outer `stream` puts that right.
        with _one_at_a_time, torch.cuda.stream(stream):
            try:
                with torch.cuda.graph(graph, pool=self._pool, stream=stream, capture_error_mode='thread_local'):
                    result = call()
            except RuntimeError:
                with suppress(RuntimeError):  # else the allocator may wait for ever for the end of the recording
                    end(stream.device_index, self._pool)
                    release(stream.device_index, self._pool)
                raise
            finally:
                # torch would lend cuBLAS's workspace, which is in the pool, to all recordings made on the stream, and
                # take it from them with the first that goes (pytorch#193402).  Left to the pool, it stays as long as
                # they do, and what encodes shares none with what decodes, beside which it is replayed.
                clear()
        return result, graph.replay

    def give_up(self) -> bool:
        """Free the recordings and make no more; return whether there were any."""
        self.enabled, self._pool, held = False, None, bool(self._recordings)
        self._calls.clear()
        self._recordings.clear()
        return held


def _copied(result: Any) -> Any:
    if isinstance(result, Tensor):
        return result.clone()
    return result and getattr(type(result), '_make', type(result))(map(_copied, result))


def _tensors(result: Any) -> Iterator[Tensor]:
    if isinstance(result, Tensor):
        yield result
    for part in result if isinstance(result, tuple) else ():
        yield from _tensors(part)
