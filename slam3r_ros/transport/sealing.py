# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What becomes of a value when it is published, since every reader then holds the very same object.

The contract: who has published a value does not write to it again, nor does who gets one.

- NumPy arrays are set read-only, the publisher's own included.  Views made before keep their right to write.
- Tensors cannot be protected.  (`torch.from_dlpack` makes even a read-only array writable, without a word.)
- The work that makes a CUDA tensor need not be done: an event is recorded on the publisher's current stream, and
  the stream that is current where the value is delivered waits for it, on the GPU.

With `SLAM3R_BUS_DEBUG=1` in the environment the bus compares every array and tensor with what was published,
and names the field, and who held the value when it changed.  That reads all data again and again: for debugging only.
"""

import dataclasses
import os
import sys
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

_PLAIN = (int, float, str, bool, bytes, type(None))


def is_watching() -> bool:
    """Whether the environment asks for the debug mode."""
    return os.environ.get('SLAM3R_BUS_DEBUG', '') not in ('', '0')


class Sealed:
    """A value on its way; all its readers share it."""

    def __init__(self, value: Any, publisher: str, watched: bool = False):
        """Set the arrays read-only and record where the CUDA streams are.

        Args:
            value: A dataclass, a tuple, a list, a dictionary, an array or a tensor, nested at will.
            publisher: Its name, to be told when somebody writes to the value.
            watched: Whether to look for that.
        """
        self.value, self.publisher = value, publisher
        self.readers: list[str] = []  # names of those who have it now
        self._cuda: list[tuple[Any, Any]] = []  # tensor, event
        leaves = list(_leaves(value, ''))
        for _, leaf in leaves:
            if isinstance(leaf, np.ndarray):
                leaf.setflags(write=False)
        cuda = [leaf for _, leaf in leaves if not isinstance(leaf, np.ndarray) and leaf.is_cuda]
        if cuda:
            events = {device: _record_event(device) for device in {leaf.device for leaf in cuda}}
            self._cuda = [(leaf, events[leaf.device]) for leaf in cuda]
        self._marks = [[name, leaf, _mark(leaf)] for name, leaf in leaves] if watched else []

    def open(self) -> Any:
        """Return the value, its CUDA work ordered before what follows on this thread's current streams."""
        for tensor, event in self._cuda:
            stream = sys.modules['torch'].cuda.current_stream(tensor.device)
            stream.wait_event(event)
            tensor.record_stream(stream)  # its memory is not used anew before this stream is done with it
        return self.value

    def changes(self) -> list[str]:
        """Return the names of the arrays and tensors that were written to since the last look."""
        changed = []
        for entry in self._marks:
            name, leaf, before = entry
            entry[2] = _mark(leaf)
            if entry[2] != before:
                changed.append(name)
        return changed


def _leaves(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Find the arrays and tensors in a value, with their names, such as `.pose.T_map_camera`."""
    torch = sys.modules.get('torch')  # without it there are no tensors
    if isinstance(value, _PLAIN):
        return
    if isinstance(value, np.ndarray) or (torch and isinstance(value, torch.Tensor)):
        yield name, value
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from _leaves(getattr(value, field.name), f'{name}.{field.name}')
    elif isinstance(value, tuple | list):
        for i, each in enumerate(value):
            yield from _leaves(each, f'{name}[{i}]')
    elif isinstance(value, dict):
        for key, each in value.items():
            yield from _leaves(each, f'{name}[{key!r}]')


def _record_event(device: Any) -> Any:
    cuda = sys.modules['torch'].cuda
    event = cuda.Event()
    event.record(cuda.current_stream(device))
    return event


def _mark(leaf: Any) -> tuple:
    """Return what changes when somebody writes: the checksum and, of most tensors, torch's own count of writes."""
    if isinstance(leaf, np.ndarray):
        return (zlib.crc32(leaf.tobytes()),)
    data = leaf.detach().cpu().contiguous().flatten().view(sys.modules['torch'].uint8)
    return 0 if leaf.is_inference() else leaf._version, zlib.crc32(data.numpy())
