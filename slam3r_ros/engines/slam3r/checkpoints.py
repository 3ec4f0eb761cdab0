# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Checks and loads the official weights; a file is taken whole or not at all."""

import argparse
import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError  # no more than its name
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from slam3r_ros.engines.slam3r.config import OFFICIAL, NetworkConfig
from slam3r_ros.engines.slam3r.networks import Image2Points, Local2World
from slam3r_ros.engines.slam3r.weights import I2P, L2W, REMEDY, CheckpointError, Published

log = logging.getLogger(__name__)

NETWORKS: dict[Published, type[nn.Module]] = {I2P: Image2Points, L2W: Local2World}


class Report(NamedTuple):
    """What was loaded."""

    path: Path
    size: int  # bytes
    sha256: str
    official: bool | None  # the checksum is the published one; None where none is known


def load(
    published: Published, path: str | Path, config: NetworkConfig = OFFICIAL, device: str | torch.device = 'cpu'
) -> tuple[nn.Module, Report]:
    """Make a network with the weights of a file.

    Args:
        published: which network.
        path: a `.safetensors` or a `.pth` file.
        config: another than the official one is for tests; size and checksum are then not expected.
        device: for the network.

    Returns:
        The network, ready for inference, and what was loaded.

    Raises:
        CheckpointError: the file cannot be read, or is not what was published.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
    except OSError as error:
        raise CheckpointError(f'{path}: {error.strerror}: {REMEDY}') from error
    packed = path.suffix != '.safetensors'
    known = config == OFFICIAL and not packed  # of the older .pth files neither size nor checksum is published
    if known and size != published.size:
        raise CheckpointError(
            f'{path} has {size} bytes, {published.name} has {published.size}: incomplete or another file; {REMEDY}'
        )
    weights = _read_pickle(path) if packed else _read_safetensors(path)
    with torch.device('meta'):
        network = NETWORKS[published](config)
    if published is L2W:  # needs no encoder; some files hold one
        weights = {key: value for key, value in weights.items() if not key.startswith('enc_blocks.')}
    _check(path, published, weights, network.state_dict())
    checksum = file_checksum(path)
    official = checksum == published.sha256 if known else None
    log.info('%s: %d bytes, sha256 %s', path, size, checksum)
    if official is False:
        log.warning('%s: sha256 %s is not %s, which others report for it', path, checksum, published.sha256)
    network.load_state_dict(weights, assign=True)
    return network.requires_grad_(False).eval().to(device), Report(path, size, checksum, official)


def file_checksum(path: Path) -> str:
    """Return the sha256 of a file, hexadecimal."""
    with path.open('rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f'{path} is no complete safetensors file ({error}): {REMEDY}') from error


def _read_pickle(path: Path) -> Mapping[str, Tensor]:
    """Read a .pth file without running code that it may hold."""
    try:
        # Training scripts put their arguments beside the weights; a Namespace runs nothing.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location='cpu', weights_only=True, mmap=True)
    except UnpicklingError as error:
        raise CheckpointError(
            f'{path} is no plain checkpoint: it is damaged or holds code, which is not run; {REMEDY}'
        ) from error
    except (RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        raise CheckpointError(f'{path} is no complete checkpoint ({str(error).splitlines()[0]}): {REMEDY}') from error
    weights = content.get('model') if isinstance(content, Mapping) else None
    if not isinstance(weights, Mapping) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in weights.items()
    ):
        raise CheckpointError(f"{path} holds no weights under 'model': another kind of file; {REMEDY}")
    return weights


def _check(path: Path, published: Published, found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Refuse weights whose names, shapes or types are not exactly those of the network."""
    other = L2W if published is I2P else I2P
    if published.own_key not in found and other.own_key in found:
        raise CheckpointError(f'{path} holds {other.name}, not {published.name}: the two files were mixed up')
    problems = [f'{key} is missing' for key in expected if key not in found]
    problems += [f'{key} does not belong there' for key in found if key not in expected]
    for key in expected.keys() & found.keys():
        if found[key].shape != expected[key].shape:
            problems.append(f'{key} is {tuple(found[key].shape)} instead of {tuple(expected[key].shape)}')
        elif found[key].dtype != expected[key].dtype:
            problems.append(f'{key} is {found[key].dtype} instead of {expected[key].dtype}')
    if problems:
        more = f' and {len(problems) - 3} more' if len(problems) > 3 else ''
        raise CheckpointError(f'{path} is not {published.name}: {"; ".join(problems[:3])}{more}; {REMEDY}')
