# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What the map services of two nodes have in common: reading the request, and staying in the folder for maps."""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from slam3r_ros.engines.protocol import Engine
from slam3r_ros.files import written_together
from slam3r_ros.mapping.trajectory import write_tum
from slam3r_ros.meshing.export import ExportError, write_cloud
from slam3r_ros.srv import SaveMap

MAP = 'map.npz'  # what load_map reads
_FORMATS = ('', 'all', 'ply', 'glb')
_METHODS = ('', 'tsdf', 'poisson')
_OF_A_MAP = re.compile(r'map\.npz|cloud\.ply|trajectory(_\d+)?\.tum')  # names that `save` may give
_IN_THE_WAY = '{} is there already; set overwrite, or save to another folder'


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
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            raise SaveError(f'{path} is a folder; save to another one')
        if not request.overwrite and os.path.lexists(path):
            raise SaveError(_IN_THE_WAY.format(path))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SaveError(f'{folder} cannot be made: {error.strerror}') from None
    return paths


@contextmanager
def saved_together(paths: Sequence[Path], obsolete: Sequence[Path] = ()) -> Iterator[Path]:
    """Yield a folder to write files into; see `written_together`.

    Args:
        paths: Of the files, in one folder.
        obsolete: Files that go.

    Raises:
        SaveError: They cannot be written; then what was there stays.
    """
    folder = paths[0].parent
    try:
        with written_together(folder, obsolete) as staging:
            yield staging
    except (OSError, ExportError) as error:
        cause = error.__cause__ or error
        if not isinstance(cause, OSError):
            raise
        raise SaveError(
            f'{folder} cannot be written to: {cause.strerror or cause}; make room, or save to another folder; '
            'what was there stays'
        ) from error


def save(
    engine: Engine, points: tuple[np.ndarray, ...], request: SaveMap.Request, map_folder: str
) -> Callable[[], dict[str, Any]]:
    """Write an engine's maps, and return what writes the rest: trajectories and cloud.

    Args:
        engine: No frame changes its map meanwhile.
        points: Of the cloud, as `write_cloud` takes them.
        request: As it came.
        map_folder: Nothing is written elsewhere.

    Returns:
        A function that may take long, and gives the fields of the answer.

    Raises:
        SaveError: There is nothing to save, or as in `files_to_write`.
    """
    if not (trajectory := engine.trajectory()):
        raise SaveError('there is no pose yet, nothing was written; map something first')
    files: dict[str, Callable[[Path], None]] = {'trajectory.tum': lambda path: write_tum(path, trajectory)}
    for number, other in enumerate(engine.other_trajectories(), 1):  # each in a frame of its own
        files[f'trajectory_{number}.tum'] = lambda path, other=other: write_tum(path, other)
    if len(points[0]):
        files['cloud.ply'] = lambda path: write_cloud(path, *points)
    names = (MAP, *files) if engine.can_save else tuple(files)
    paths = files_to_write(request, names, map_folder)
    # What only the map that was saved there before has would seem to be of this one, to `load_map` too.
    present = [path for path in paths[0].parent.iterdir() if _OF_A_MAP.fullmatch(path.name) and not path.is_dir()]
    obsolete = [path for path in present if path not in paths]
    if obsolete and not request.overwrite:
        raise SaveError(_IN_THE_WAY.format(obsolete[0]))
    with ExitStack() as stack:
        staging = stack.enter_context(saved_together(paths, obsolete))
        if engine.can_save:
            engine.save(staging / MAP)
        rest = stack.pop_all()

    def write() -> dict[str, Any]:
        with rest:
            for path in paths:
                if path.name in files:
                    files[path.name](staging / path.name)
        return {'files': [str(path) for path in paths]}

    return write
