# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The two networks on their device: chosen and looked at when the engine is made, read when they are wanted.

They take most of a GPU's memory, so they can be freed while nothing is mapped; what was mapped does not go with them.
"""

import logging
import os

import torch

from slam3r_ros.engines.protocol import EngineError
from slam3r_ros.engines.slam3r.checkpoints import check, load
from slam3r_ros.engines.slam3r.networks import Image2Points, Local2World, TwoSidedNetwork
from slam3r_ros.engines.slam3r.precision import PrecisionError, choose, convert
from slam3r_ros.engines.slam3r.weights import I2P, L2W, CheckpointError, Published, find
from slam3r_ros.gpu_memory import give_back_gpu_memory

log = logging.getLogger(__name__)

Networks = tuple[Image2Points, Local2World]


class Models:
    """Where the networks compute, in which numbers, and the networks themselves while they are there.

    Attributes:
        device: 'cpu', 'cuda' or another of torch's.
        precision: one of `precision.PRECISIONS`, not 'auto'.
    """

    def __init__(
        self, checkpoints: str = '', device: str = 'auto', precision: str = 'auto', networks: Networks | None = None
    ) -> None:
        """Choose the device and the precision, and look at the files; nothing large is read.

        Args:
            checkpoints: folder of the weights; empty for the default one.
            device: 'cpu', 'cuda' or 'auto'.
            precision: of the networks, one of `precision.PRECISIONS`.
            networks: to be kept for good, instead of the official ones; on the device and in their precision.

        Raises:
            EngineError: the weights, the device or the precision cannot be had.
        """
        if device == 'auto':
            device = 'cuda' if torch.cuda.is_available() else 'cpu'
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            raise EngineError(f"there is no device {device!r} ({error}): use 'cpu', 'cuda' or 'auto'") from error
        self.device = device
        self._networks, self._checked = networks, False
        try:
            self.precision = choose(precision, torch.device(device))
            self._files = {} if networks else {kind: find(kind, checkpoints) for kind in (I2P, L2W)}
            for kind, path in self._files.items():
                check(kind, path)
        except (PrecisionError, CheckpointError) as error:
            raise EngineError(str(error)) from error
        log.info('the networks compute on %s in %s', device, self.precision)
        if device == 'cpu':
            torch.set_num_threads(_threads())

    def get(self) -> Networks:
        """Return the networks; where they are not there they are read, which takes seconds.

        Raises:
            EngineError: the files have changed for the worse, or the memory of the device is full.
        """
        if self._networks is None:
            give_back_gpu_memory()  # others in this process may hold what they do not use
            full = None
            try:
                self._networks = tuple(self._read(kind) for kind in self._files)
            except torch.OutOfMemoryError as error:
                full = self.full('for the networks', error)
            except RuntimeError as error:  # a file is wrong
                raise EngineError(str(error)) from error
            if full:
                raise full
            self._checked = True
        return self._networks

    def _read(self, kind: Published) -> TwoSidedNetwork:
        """Read one network; the file is mapped, so it is there once only, and on the device in its precision only."""
        network, _ = load(kind, self._files[kind], checksum=not self._checked)
        return convert(network, self.precision, torch.device(self.device))

    def release(self) -> None:
        """Free the networks, if they can be read again."""
        if self._files:
            self._networks = None

    def full(self, what: str, error: torch.OutOfMemoryError) -> EngineError:
        """Return what is said of a full device.

        To be raised after the `except`: in it, it would hold torch's error, whose traceback keeps tensors alive.

        Args:
            what: for what there is no room.
            error: torch's.
        """
        smaller = 'precision:=float16 or ' if self.precision == 'float32' else ''
        return EngineError(
            f'the memory of {self.device} is full, {what}: stop what else uses it, raise gpu_memory_mb where that is '
            f'set, or take {smaller}engine:=geometric ({str(error).splitlines()[0]})'
        )

    def overflown(self) -> EngineError:
        """Return what is said when the networks' numbers are not finite."""
        return EngineError(f'the networks overflow in {self.precision}: set another precision, and reset the map')


def _threads() -> int:
    """Return how many threads to compute with: of three cores or more, one is left to the rest of ROS.

    Two threads that wait for each other at every layer are slower than one where a busy process takes a core.
    """
    cores = len(os.sched_getaffinity(0))
    return min(torch.get_num_threads(), max(cores - 1, 2))
