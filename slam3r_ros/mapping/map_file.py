# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Named arrays in one file: NumPy's .npz without pickle or compression, written in one step, read with suspicion.

Nothing is deflated, so what is read never takes more memory than the file does.  A layout says of every array its type
and its shape; lengths that go by the same name must be the same.
"""

import io
import math
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from slam3r_ros.files import write_whole

_LARGEST = 8 << 30  # bytes
Layout = Mapping[str, tuple[type, tuple[str | int, ...]]]  # of each array: its type, and its lengths or their names


class MapFileError(ValueError):
    """A file holds no map that can be used; the message names it and says why."""


def write_arrays(path: str | Path, arrays: Mapping[str, np.ndarray], layout: Layout) -> None:
    """Write arrays to a file: a crash at any moment leaves the old one or the new one.

    Raises:
        OSError: it cannot be written.
    """
    buffer = io.BytesIO()
    np.savez(buffer, **{name: np.asarray(arrays[name], dtype) for name, (dtype, _) in layout.items()})
    write_whole(path, buffer.getbuffer())


def read_arrays(path: str | Path, layout: Layout) -> dict[str, np.ndarray]:
    """Read the arrays of a layout; real numbers among them are finite, but in half precision.

    Raises:
        MapFileError: the file cannot be read, or holds something else.
    """
    try:
        if Path(path).exists() and not Path(path).is_file():  # to open a pipe would take for ever
            raise MapFileError(f'{path} is no file')
        if Path(path).stat().st_size > _LARGEST:
            raise MapFileError(f'{path} is larger than {_LARGEST >> 30} GiB: that is no map of ours')
        with zipfile.ZipFile(path) as archive:
            members = {member.filename: member for member in archive.infolist()}
            if sorted(members) != sorted(f'{name}.npy' for name in layout) or len(archive.infolist()) != len(members):
                raise MapFileError(f'{path} does not hold what a map holds: it is no map, or of another version')
            lengths: dict[str, int] = {}
            return {name: _read(archive, members[f'{name}.npy'], *each, lengths) for name, each in layout.items()}
    except OSError as error:
        raise MapFileError(f'{path} cannot be read: {error.strerror or error}') from error
    except (zipfile.BadZipFile, ValueError, NotImplementedError, RuntimeError, EOFError) as error:
        if isinstance(error, MapFileError):
            raise
        raise MapFileError(f'{path} is no map, or a damaged one: {error}') from error


def _read(archive: zipfile.ZipFile, member: zipfile.ZipInfo, dtype: type, shape: tuple[str | int, ...],
          lengths: dict[str, int]) -> np.ndarray:
    if member.compress_type != zipfile.ZIP_STORED or member.file_size > Path(archive.filename).stat().st_size:
        raise ValueError(f'{member.filename} is compressed')
    stream = io.BytesIO(archive.read(member))  # checks the CRC
    if np.lib.format.read_magic(stream) != (1, 0):
        raise ValueError(f'{member.filename} has an unknown header')
    found, fortran, kind = np.lib.format.read_array_header_1_0(stream)
    if kind != np.dtype(dtype) or len(found) != len(shape) or fortran and len(found) > 1:
        raise ValueError(f'{member.filename} is {kind} of shape {found}')
    for length, wanted in zip(found, shape, strict=True):
        if length != (wanted if isinstance(wanted, int) else lengths.setdefault(wanted, length)):
            raise ValueError(f'{member.filename} has the shape {found}, which does not fit the rest')
    if min(found, default=1) < 0 or stream.getbuffer().nbytes - stream.tell() != math.prod(found) * kind.itemsize:
        raise ValueError(f'{member.filename} has another size than it says')
    array = np.frombuffer(stream.getbuffer()[stream.tell():], kind).reshape(found).copy()
    if kind in (np.float32, np.float64) and not np.isfinite(array).all():
        raise ValueError(f'{member.filename} holds numbers that are not finite')
    return array
