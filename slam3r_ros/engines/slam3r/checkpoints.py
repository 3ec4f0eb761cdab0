# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Checks and loads the official weights; a file is taken whole or not at all."""

import argparse
import hashlib
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from pickle import UnpicklingError  # no more than its name
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from slam3r_ros.engines.slam3r.config import OFFICIAL, NetworkConfig
from slam3r_ros.engines.slam3r.networks import Image2Points, Local2World
from slam3r_ros.engines.slam3r.weights import I2P, L2W, REMEDY, CheckpointError, Published

log = logging.getLogger(__name__)

_TYPES = {'F32': torch.float32, 'F16': torch.float16, 'BF16': torch.bfloat16}  # by their names in a safetensors file
NETWORKS: dict[Published, type[nn.Module]] = {I2P: Image2Points, L2W: Local2World}


class Report(NamedTuple):
    """What was loaded."""

    path: Path
    size: int  # bytes
    sha256: str  # empty where it was not asked for
    official: bool | None  # the checksum is the published one; None where none is known


def check(published: Published, path: str | Path, config: NetworkConfig = OFFICIAL) -> None:
    """Look at the size of a file, and at the names, shapes and types of its weights: soon done, they are not read.

    Args:
        published: which network it should be.
        path: a `.safetensors` or a `.pth` file.
        config: see `load`.

    Raises:
        CheckpointError: the file cannot be read, or is not what was published.
    """
    _fitting(published, Path(path), config, _read_header)


def load(
    published: Published,
    path: str | Path,
    config: NetworkConfig = OFFICIAL,
    device: str | torch.device = 'cpu',
    checksum: bool = True,
) -> tuple[nn.Module, Report]:
    """Make a network with the weights of a file.

    Args:
        published: which network.
        path: a `.safetensors` or a `.pth` file.
        config: another than the official one is for tests; size and checksum are then not expected.
        device: for the network.
        checksum: compute it, which takes about as long as all else.

    Returns:
        The network, ready for inference, and what was loaded.

    Raises:
        CheckpointError: the file cannot be read, or is not what was published.
    """
    path = Path(path)
    network, weights = _fitting(published, path, config, _read_safetensors)
    size, sha256 = path.stat().st_size, file_checksum(path) if checksum else ''
    official = sha256 == published.sha256 if checksum and _is_known(path, config) else None
    log.info('%s: %d bytes, sha256 %s', path, size, sha256 or 'as before')
    if official is False:
        log.warning('%s: sha256 %s is not %s, which others report for it', path, sha256, published.sha256)
    network.load_state_dict(weights, assign=True)
    return network.requires_grad_(False).eval().to(device), Report(path, size, sha256, official)


def _is_known(path: Path, config: NetworkConfig) -> bool:
    """Say whether size and checksum are published: of the older .pth files they are not."""
    return config == OFFICIAL and path.suffix == '.safetensors'


def _fitting(
    published: Published, path: Path, config: NetworkConfig, read: Callable[[Path], dict[str, Tensor]]
) -> tuple[nn.Module, Mapping[str, Tensor]]:
    """Return a network without weights, and those of a file, which fit it; `read` is for a safetensors file."""
    try:
        size = path.stat().st_size
    except OSError as error:
        raise CheckpointError(f'{path}: {error.strerror}: {REMEDY}') from error
    if _is_known(path, config) and size != published.size:
        raise CheckpointError(
            f'{path} has {size} bytes, {published.name} has {published.size}: incomplete or another file; {REMEDY}'
        )
    weights = read(path) if path.suffix == '.safetensors' else _read_pickle(path)
    with torch.device('meta'):
        network = NETWORKS[published](config)
    if published is L2W:  # needs no encoder; some files hold one
        weights = {key: value for key, value in weights.items() if not key.startswith('enc_blocks.')}
    _check(path, published, weights, network.state_dict())
    return network, weights


def file_checksum(path: Path) -> str:
    """Return the sha256 of a file, hexadecimal."""
    with path.open('rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise _incomplete(path, error) from error


def _read_header(path: Path) -> dict[str, Tensor]:
    """Return tensors without values in place of the weights."""
    try:
        with safe_open(path, 'pt') as file:
            slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 - it is no mapping
            return {
                key: torch.empty(each.get_shape(), dtype=_TYPES.get(each.get_dtype(), torch.bool), device='meta')
                for key, each in slices.items()
            }
    except (SafetensorError, OSError) as error:
        raise _incomplete(path, error) from error


def _incomplete(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f'{path} is no complete safetensors file ({error}): {REMEDY}')


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
