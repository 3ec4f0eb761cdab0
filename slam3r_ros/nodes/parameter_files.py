# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The parameters as users read them: config/slam3r.yaml and the table of README.md.

`python -m slam3r_ros.nodes.parameter_files --write` in the repository brings both up to date.
"""

import argparse
import sys
from pathlib import Path

from slam3r_ros.nodes.parameters import GROUPS, ParameterError, Value

BEGIN, END = '<!-- parameters:begin -->', '<!-- parameters:end -->'


def config_file() -> str:
    """Return the text of config/slam3r.yaml."""
    lines = [
        '# Copyright 2026 the slam3r_ros authors',
        '# SPDX-License-Identifier: Apache-2.0',
        '# Written by `python -m slam3r_ros.nodes.parameter_files --write`. Every parameter with its default; those',
        '# that an environment variable sets are commented out, for a value here would win. One block for all nodes: a',
        '# parameter of two nodes means the same in both.',
        '/**:',
        '  ros__parameters:',
    ]
    seen = set()
    for node, group in GROUPS.items():
        lines.append(f'    # --- {node}')
        for each in group:
            if each.name not in seen:
                variable = f' [{each.environment}]' if each.environment else ''
                lines.append(f'    # {each.description}{variable}')
                lines.append(f'    {"# " if variable else ""}{each.name}: {_yaml(each.default)}')
            seen.add(each.name)
    return '\n'.join(lines) + '\n'


def markdown_table() -> str:
    """Return the parameter table of README.md, markers not included."""
    lines = ['| node | parameter | default | range | environment variable | meaning |', '|---|---|---|---|---|---|']
    for node, group in GROUPS.items():
        for each in group:
            allowed = ' ... '.join(map(_yaml, each.range)) if each.range else ', '.join(each.choices)
            variable = f'`{each.environment}`' if each.environment else ''
            lines.append(
                f'| {node} | `{each.name}` | `{_yaml(each.default)}` | {allowed} | {variable} | {each.description} |'
            )
    return '\n'.join(lines) + '\n'


def insert_table(readme: str) -> str:
    """Return the text of README.md with the table between its markers brought up to date.

    Raises:
        ParameterError: The markers are missing.
    """
    if not readme.count(BEGIN) == readme.count(END) == 1 or readme.index(BEGIN) > readme.index(END):
        raise ParameterError(f'README.md must hold the lines {BEGIN} and {END} once, in this order')
    before, rest = readme.split(BEGIN)
    return f'{before}{BEGIN}\n{markdown_table()}{END}{rest.split(END)[1]}'


def main(argv: list[str] | None = None) -> int:
    """Print the table and the configuration file, or write them."""
    parser = argparse.ArgumentParser(prog='python -m slam3r_ros.nodes.parameter_files', description=main.__doc__)
    parser.add_argument('--write', action='store_true', help='update config/slam3r.yaml and README.md in this folder')
    if not parser.parse_args(argv).write:
        print(markdown_table(), config_file(), sep='\n')
        return 0
    readme = Path('README.md')
    readme.write_text(insert_table(readme.read_text()))
    Path('config/slam3r.yaml').write_text(config_file())
    return 0


def _yaml(value: Value) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f'[{", ".join(f"{each:.10g}" if each % 1 else f"{each:.1f}" for each in value)}]'
    return f"'{value}'" if isinstance(value, str) else str(value)


if __name__ == '__main__':
    sys.exit(main())
