# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The reconstruction engines, one folder each, behind one protocol."""

import logging
from typing import Any

from slam3r_ros.engines.protocol import Engine, EngineError
from slam3r_ros.engines.slam3r.weights import available

log = logging.getLogger(__name__)

MAX_KEYFRAMES = 400  # that `geometric` keeps in memory, if nothing else is said
NAMES = ('auto', 'geometric', 'slam3r')


def create_engine(name: str = 'auto', checkpoints: str = '', lossless: bool = True, max_keyframes: int = MAX_KEYFRAMES,
                  precision: str = 'auto', cuda_graphs: bool = True, **options: Any) -> Engine:
    """Make an engine by its name.

    Args:
        name: one of `NAMES`; `auto` takes `slam3r` where its weights and packages are there, else `geometric`.
        checkpoints: folder of the networks' weights, for `slam3r`.
        lossless: let `geometric` wait for the depth that it computes beside the tracking, rather than skip some.  For
            `slam3r` both are the same: pose and depth are one computation, done before `process` returns.
        max_keyframes: that `geometric` keeps; `slam3r` has bounds of its own.
        precision: of the networks, for `slam3r`.
        cuda_graphs: whether they are recorded and replayed on a GPU, for `slam3r`.
        options: of the engine's constructor.

    Raises:
        EngineError: the name is unknown, or the engine cannot be had.
    """
    if name not in NAMES:
        raise EngineError(f'there is no engine {name!r}: use one of {", ".join(NAMES)}')
    if name == 'slam3r' or (name == 'auto' and available(checkpoints)):
        try:
            from slam3r_ros.engines.slam3r.engine import Slam3rEngine  # imports torch: only when it is wanted
        except ImportError as error:
            reason = f"engine 'slam3r' lacks a package ({error}): pip install slam3r_ros[slam3r]"
            if name == 'slam3r':
                raise EngineError(reason) from error
            log.warning('%s; taking geometric', reason)
        else:
            return Slam3rEngine(checkpoints, precision=precision, cuda_graphs=cuda_graphs, **options)
    from slam3r_ros.engines.geometric.engine import GeometricEngine  # compiles: only when it is wanted

    return GeometricEngine(lossless=lossless, max_keyframes=max_keyframes, **options)
