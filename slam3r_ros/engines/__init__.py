# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The reconstruction engines, one folder each, behind one protocol."""

from typing import Any

from slam3r_ros.engines.protocol import Engine, EngineError

NAMES = ('auto', 'geometric', 'slam3r')


def create_engine(name: str = 'auto', checkpoints: str = '', lossless: bool = True, **options: Any) -> Engine:
    """Make an engine by its name.

    Args:
        name: one of `NAMES`; `auto` takes `slam3r` where it can be had, else `geometric`.
        checkpoints: folder of the networks' weights, for `slam3r`.
        lossless: wait for depth that is computed beside the tracking; `slam3r` computes none there.
        options: of the engine's constructor.

    Raises:
        EngineError: the name is unknown, or the engine cannot be had.
    """
    if name not in NAMES:
        raise EngineError(f'there is no engine {name!r}: use one of {", ".join(NAMES)}')
    if name == 'slam3r' or (name == 'auto' and _slam3r_is_available(checkpoints)):
        try:
            from slam3r_ros.engines.slam3r.engine import Slam3rEngine
        except ImportError as error:
            raise EngineError(f"engine 'slam3r' lacks a package ({error}): pip install slam3r_ros[slam3r]") from error
        return Slam3rEngine(checkpoints, **options)
    from slam3r_ros.engines.geometric.engine import GeometricEngine  # compiles: only when it is wanted

    return GeometricEngine(lossless=lossless, **options)


def _slam3r_is_available(checkpoints: str) -> bool:
    """Say whether the networks' packages and weights are there."""
    try:
        from slam3r_ros.engines.slam3r.checkpoints import available
    except ImportError:
        return False
    return available(checkpoints)
