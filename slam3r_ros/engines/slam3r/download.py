# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`slam3r weights`: fetch the official checkpoints, or say what is there."""

import argparse
import sys
from pathlib import Path

from slam3r_ros.engines.slam3r.checkpoints import I2P, L2W, LICENSE, CheckpointError, default_folder, find, load

TERMS = f"""The SLAM3R weights are the work of its authors (https://github.com/PKU-VCL-3DV/SLAM3R), under {LICENSE}:
you must name them, you must share what you derive under the same terms, and you must not use them commercially.
The terms: https://creativecommons.org/licenses/by-nc-sa/4.0/"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument('action', choices=('download', 'check'), help='fetch both files, or load those that are there')
    parser.add_argument('--dir', default='', help='folder of the weights (default: SLAM3R_CHECKPOINTS_DIR or the cache)')
    parser.add_argument('--accept-license', action='store_true', help=f'agree to {LICENSE} without being asked')


def main(arguments: argparse.Namespace) -> int:
    """Run the command; return its exit status."""
    folder = Path(arguments.dir).expanduser() if arguments.dir else default_folder()
    try:
        if arguments.action == 'download':
            download(folder, arguments.accept_license)
        for published in (I2P, L2W):
            _, report = load(published, find(published, folder))
            known = 'as published' if report.official else 'not the one that others report'
            print(f'{report.path}: {report.size} bytes, every weight in place, sha256 {report.sha256} ({known})')
    except CheckpointError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def download(folder: Path, accepted: bool) -> None:
    """Fetch what is missing; an interrupted download goes on where it stopped.

    Args:
        folder: where to put it.
        accepted: the licence; else it is asked for.

    Raises:
        CheckpointError: the licence is declined, or a file cannot be had.
    """
    print(TERMS)
    if not accepted and not (sys.stdin.isatty() and input('Do you agree? [y/N] ').strip().lower() in ('y', 'yes')):
        raise CheckpointError('nothing was downloaded: agree to the licence, or pass --accept-license')
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError
    except ImportError as error:
        raise CheckpointError('huggingface_hub is not installed: pip install huggingface_hub') from error
    for published in (I2P, L2W):
        try:
            hf_hub_download(published.repository, 'model.safetensors', local_dir=folder / published.name)
        except (HfHubHTTPError, OSError) as error:
            raise CheckpointError(
                f'{published.repository} cannot be downloaded to {folder} ({str(error).splitlines()[0]}): '
                'check the network and run the command again, it goes on where it stopped'
            ) from error
