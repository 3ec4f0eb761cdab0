# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The official weights: which files they are, and where they are kept.  Needs no torch."""

import os
from dataclasses import dataclass
from pathlib import Path

VARIABLE = 'SLAM3R_CHECKPOINTS_DIR'
LICENSE = 'CC BY-NC-SA 4.0'
REMEDY = 'get it with `slam3r weights download`'


class CheckpointError(RuntimeError):
    """Weights are missing or are not the official ones; says which file, what was expected and how to get it."""


@dataclass(frozen=True)
class Published:
    """An official file."""

    repository: str  # on huggingface.co
    size: int  # bytes of model.safetensors
    sha256: str  # of model.safetensors, as a third party reports it
    own_key: str  # a weight that only this network has

    @property
    def name(self) -> str:
        """The short name, also that of the folder it is kept in."""
        return self.repository.split('/')[-1]


I2P = Published(
    'siyan824/slam3r_i2p',
    2_131_831_108,
    '9f58b4a39f9e3641ed2fe19d16a82be956975ec1ecb568899c8852370aa78b8c',
    'corr_score_norm.weight',
)
L2W = Published(
    'siyan824/slam3r_l2w',
    922_557_296,
    '637c3bd3d440d84e2976d898569716ef64cadd446fce61ad5dd9236fa2c58359',
    'ponit_embedder.weight',
)


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
