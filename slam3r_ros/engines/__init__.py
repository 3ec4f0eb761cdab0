# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The reconstruction engines, one folder each, behind one protocol."""

from typing import Any

from slam3r_ros.engines.protocol import Engine, EngineError

NAMES = ('auto', 'geometric', 'slam3r')


def create_engine(name: str = 'auto', checkpoints: str = '', **options: Any) -> Engine:
    """Make an engine by its name.

    Args:
        name: one of `NAMES`; `auto` takes `slam3r` where it can be had, else `geometric`.
        checkpoints: folder of the networks' weights, for `slam3r`.
        options: of the engine's constructor.

    Raises:
        EngineError: the name is unknown, or the engine cannot be had.
    """
    if name == 'slam3r':
        raise EngineError("engine 'slam3r' is not available yet: use 'geometric'")
    if name not in NAMES:
        raise EngineError(f'there is no engine {name!r}: use one of {", ".join(NAMES)}')
    from slam3r_ros.engines.geometric.engine import GeometricEngine  # compiles: only when it is wanted

    return GeometricEngine(**options)
