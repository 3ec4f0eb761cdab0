# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Write a file so that whoever looks, whenever, finds the old one or the new one, whole."""

import os
import secrets
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
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name, too, is on the disk
    finally:
        os.close(folder)
