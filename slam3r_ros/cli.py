# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The `slam3r` command."""

import argparse
import importlib
import os
import signal
import sys

COMMANDS = {
    'demo': ('slam3r_ros.demo', 'map a video with the ROS graph and show what came of it'),
    'evaluate': ('slam3r_ros.evaluation.evaluate', 'score an engine on a video with ground truth'),
    'weights': ('slam3r_ros.engines.slam3r.download', 'download or check the weights of the slam3r engine'),
    'bench': ('slam3r_ros.bench', 'measure what the parts of the program cost on this machine'),
}


def main(argv: list[str] | None = None) -> int:
    """Run one sub-command; each is a module with `add_arguments(parser)` and `main(arguments) -> int`."""
    # Where ROS comes from PyPI nobody has sourced a setup file.
    os.environ.setdefault('AMENT_PREFIX_PATH', sys.prefix)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until all is imported: some libraries swallow KeyboardInterrupt
    words = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(prog='slam3r', description='Live dense mapping from any RGB video.')
    commands = parser.add_subparsers(dest='command', required=True)
    for name, (module, summary) in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + '.')
        if name in words[:1]:  # the others need not even be importable
            importlib.import_module(module).add_arguments(command)
    arguments = parser.parse_args(words)
    command = importlib.import_module(COMMANDS[arguments.command][0])
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return command.main(arguments) or 0
    except KeyboardInterrupt:
        return 130


if __name__ == '__main__':
    sys.exit(main())
