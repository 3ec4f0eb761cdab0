# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Finds, checks and loads the official weights; a file is taken whole or not at all."""

import argparse
import hashlib
import logging
import os
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from slam3r_ros.engines.slam3r.config import OFFICIAL, NetworkConfig
from slam3r_ros.engines.slam3r.networks import Image2Points, Local2World

log = logging.getLogger(__name__)

VARIABLE = 'SLAM3R_CHECKPOINTS_DIR'
LICENSE = 'CC BY-NC-SA 4.0'


class CheckpointError(RuntimeError):
    """Weights are missing or are not the official ones; says which file, what was expected and how to get it."""


@dataclass(frozen=True)
class Published:
    """An official file."""

    network: type[nn.Module]
    repository: str  # on huggingface.co
    size: int  # bytes of model.safetensors
    sha256: str  # of model.safetensors, as a third party reports it
    own_key: str  # a weight that only this network has

    @property
    def name(self) -> str:
        """The short name, also that of the folder it is kept in."""
        return self.repository.split('/')[-1]


I2P = Published(
    Image2Points,
    'siyan824/slam3r_i2p',
    2_131_831_108,
    '9f58b4a39f9e3641ed2fe19d16a82be956975ec1ecb568899c8852370aa78b8c',
    'corr_score_norm.weight',
)
L2W = Published(
    Local2World,
    'siyan824/slam3r_l2w',
    922_557_296,
    '637c3bd3d440d84e2976d898569716ef64cadd446fce61ad5dd9236fa2c58359',
    'ponit_embedder.weight',
)
REMEDY = 'get it with `slam3r weights download`'


class Report(NamedTuple):
    """What was loaded."""

    path: Path
    size: int  # bytes
    sha256: str
    official: bool  # the checksum is the published one


def default_folder() -> Path:
    """Return where weights are kept: `SLAM3R_CHECKPOINTS_DIR`, else the user's cache."""
    cache = Path(os.environ.get('XDG_CACHE_HOME') or '~/.cache').expanduser()
    return Path(os.environ.get(VARIABLE) or cache / 'slam3r_ros')


def find(published: Published, folder: str | Path = '') -> Path:
    """Return the weights of a network: `<name>/model.safetensors`, `<name>.safetensors` or `<name>.pth` in the folder.

    Args:
        published: which network.
        folder: where to look; empty for the default one.

    Raises:
        CheckpointError: there are none.
    """
    root = Path(folder).expanduser() if folder else default_folder()
    places = [root / published.name / 'model.safetensors', root / f'{published.name}.safetensors']
    places += [root / published.name / f'{published.name}.pth', root / f'{published.name}.pth']
    for path in places:
        if path.is_file():
            return path
    raise CheckpointError(
        f'no weights of {published.name} in {root} (looked for {", ".join(str(p.relative_to(root)) for p in places)}): '
        f'{REMEDY}, or set {VARIABLE} to the folder that holds them'
    )


def available(folder: str | Path = '') -> bool:
    """Say whether both files are there; they are not opened."""
    try:
        return bool(find(I2P, folder) and find(L2W, folder))
    except CheckpointError:
        return False


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
    packed = path.suffix != '.safetensors'  # the older .pth files; their sizes are not known
    if config == OFFICIAL and not packed and size != published.size:
        raise CheckpointError(
            f'{path} has {size} bytes, {published.name} has {published.size}: incomplete or another file; {REMEDY}'
        )
    weights = _read_pickle(path) if packed else _read_safetensors(path)
    with torch.device('meta'):
        network = published.network(config)
    if published is L2W:  # needs no encoder; some files hold one
        weights = {key: value for key, value in weights.items() if not key.startswith('enc_blocks.')}
    _check(path, published, weights, network.state_dict())
    checksum = file_checksum(path)
    official = checksum == published.sha256
    if config == OFFICIAL and not packed and not official:
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
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f'{path} is no plain checkpoint: it is damaged or holds code, which is not run; {REMEDY}'
        ) from error
    except (RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        raise CheckpointError(f'{path} is no complete checkpoint ({str(error).splitlines()[0]}): {REMEDY}') from error
    weights = content.get('model') if isinstance(content, Mapping) else None
    if not isinstance(weights, Mapping) or not all(isinstance(value, Tensor) for value in weights.values()):
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
