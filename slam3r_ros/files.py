# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Write files so that whoever looks, whenever, finds the old ones or the new ones, whole."""

import os
import secrets
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


def write_whole(path: str | Path, data: bytes) -> None:
    """Write a file in one step: a crash or a power cut at any moment leaves the old file or the new one.

    Args:
        path: of the file; one that is there is replaced, as is a symbolic link, not what that leads to.
        data: what it shall hold.

    Raises:
        OSError: it cannot be written; then what was there stays.
    """
    path = Path(path)
    partial = path.with_name(f'.{path.name}.{secrets.token_hex(4)}.partial')
    try:
        with open(partial, 'xb') as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    _settle(path.parent)  # the new name, too, is on the disk


@contextmanager
def written_together(folder: Path, obsolete: Iterable[Path] = ()) -> Iterator[Path]:
    """Yield a folder to write files into, with `write_whole`; at the end they take their places together.

    Until then an error or a crash leaves all that was there.  Only a crash amid the renaming itself, which takes
    microseconds, leaves some of both.

    Args:
        folder: Where the files shall be.
        obsolete: Files that go as the new ones come.

    Raises:
        OSError: they cannot be written; then what was there stays.
    """
    with tempfile.TemporaryDirectory(prefix='.', suffix='.partial', dir=folder) as staging:
        yield Path(staging)
        for path in Path(staging).iterdir():
            os.replace(path, folder / path.name)
        for path in obsolete:
            path.unlink(missing_ok=True)
        _settle(folder)


def _settle(folder: Path) -> None:
    """Have the names in a folder written to the disk."""
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
