# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`slam3r weights`: fetch the official checkpoints, or say what is there."""

import argparse
import sys
from pathlib import Path

from slam3r_ros.engines.slam3r.weights import I2P, L2W, LICENSE, CheckpointError, Published, default_folder, find

TERMS = f"""The SLAM3R weights are the work of its authors (https://github.com/PKU-VCL-3DV/SLAM3R), under {LICENSE}:
you must name them, you must share what you derive under the same terms, and you must not use them commercially.
The terms: https://creativecommons.org/licenses/by-nc-sa/4.0/"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.add_argument('action', choices=('download', 'check'), help='fetch both files, or load those that are there')
    parser.add_argument('--dir', default='', help='folder of the weights; else SLAM3R_CHECKPOINTS_DIR or the cache')
    parser.add_argument('--accept-license', action='store_true', help=f'agree to {LICENSE} without being asked')


def main(arguments: argparse.Namespace) -> int:
    """Run the command; return its exit status."""
    folder = Path(arguments.dir).expanduser() if arguments.dir else default_folder()
    try:
        if arguments.action == 'download':
            download(folder, arguments.accept_license)
        check(folder)
    except CheckpointError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def check(folder: Path) -> None:
    """Load both networks and say what was found.

    Raises:
        CheckpointError: a file is missing or is not the official one, or torch is.
    """
    try:
        from slam3r_ros.engines.slam3r.checkpoints import load  # imports torch: not needed to download
    except ImportError as error:
        raise CheckpointError(f'nothing was checked ({error}): pip install slam3r_ros[slam3r]') from error

    verdicts = {True: 'as published', False: 'NOT the one that others report', None: 'none is published for this kind'}
    for published in (I2P, L2W):
        report = load(published, find(published, folder))[1]
        verdict = verdicts[report.official]
        print(f'{report.path}: {report.size} bytes, every weight in place, sha256 {report.sha256} ({verdict})')


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
    for published in (I2P, L2W):
        path = folder / published.name / 'model.safetensors'
        if path.is_file() and path.stat().st_size == published.size:
            continue
        try:
            _fetch(published, path)
        except CheckpointError:
            raise
        except ImportError as error:
            raise CheckpointError(f'{error}: pip install huggingface_hub') from error
        except Exception as error:  # those of the network have no common base, and change with huggingface_hub
            raise CheckpointError(
                f'{published.repository} cannot be downloaded to {path} '
                f'({(str(error) or repr(error)).splitlines()[0]}): check the network and run the command again, it '
                'goes on where it stopped'
            ) from error


def _fetch(published: Published, path: Path) -> None:
    """Download a file beside its place, with a progress bar, and move it there once it is complete."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.file_download import http_get

    offered = get_hf_file_metadata(hf_hub_url(published.repository, path.name))
    if offered.size != published.size:
        raise CheckpointError(
            f'{published.repository} now offers {offered.size} bytes, {published.size} were published: '
            'nothing was downloaded; look for a newer slam3r_ros'
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    # huggingface_hub's own download forgets what it had when it is interrupted.
    part = path.with_name(f'{path.name}.{offered.etag[:16]}.part')  # another file has another etag
    with part.open('ab') as file:
        sizes = {'resume_size': file.tell(), 'expected_size': offered.size}
        http_get(offered.location, file, displayed_filename=published.name, **sizes)
    part.replace(path)
