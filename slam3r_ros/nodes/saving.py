# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What the map services of two nodes have in common: reading the request, and staying in the folder for maps."""

import os
from pathlib import Path

from slam3r_ros.srv import SaveMap

_FORMATS = ('', 'all', 'ply', 'glb')
_METHODS = ('', 'tsdf', 'poisson')


class SaveError(ValueError):
    """A request to save cannot be met; the message names the reason and the way out."""


def in_map_folder(path: str, map_folder: str) -> Path:
    """Return a folder as a request names it: a relative path begins in the folder for maps."""
    return Path(map_folder).expanduser() / Path(path).expanduser()


def files_to_write(request: SaveMap.Request, names: tuple[str, ...], map_folder: str) -> list[Path]:
    """Make the folder and return which of the files are asked for, by their suffix.

    Args:
        request: As it came.
        names: Of the files that the node has; those that are no meshes or clouds are always written.
        map_folder: Nothing is written elsewhere.

    Raises:
        SaveError: Unknown format or method, no path, one that leads out of the folder for maps, a file is in the way,
            or the folder cannot be made.
    """
    if not request.path:
        raise SaveError('path is empty; name the folder to write to')
    if request.format not in _FORMATS:
        raise SaveError(f'format {request.format!r} is unknown; use ply, glb or all')
    if request.method not in _METHODS:
        raise SaveError(f'method {request.method!r} is unknown; use tsdf or poisson')
    root, folder = Path(map_folder).expanduser().resolve(), in_map_folder(request.path, map_folder).resolve()
    if not folder.is_relative_to(root):  # symbolic links and `..` are resolved by now
        raise SaveError(f'{request.path} is outside of {root}; give a path below it, or set the parameter map_folder')
    skipped = {'ply': '.glb', 'glb': '.ply'}.get(request.format)
    paths = [folder / name for name in names if not (skipped and name.endswith(skipped))]
    if not request.overwrite and (present := next((path for path in paths if os.path.lexists(path)), None)):
        raise SaveError(f'{present} is there already; set overwrite, or save to another folder')
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SaveError(f'{folder} cannot be made: {error.strerror}') from None
    return paths
