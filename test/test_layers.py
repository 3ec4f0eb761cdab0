# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Two layers, one direction: nodes import the core, the core never imports ROS."""

import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / 'slam3r_ros'
CORE = ('engines', 'evaluation', 'mapping', 'meshing', 'monitoring', 'video')
MODULES = sorted(
    '.'.join(path.relative_to(PACKAGE.parent).with_suffix('').parts)
    for folder in CORE
    for path in (PACKAGE / folder).rglob('*.py')
)


@pytest.mark.parametrize('module', ['the core', 'slam3r_ros.nodes.base'])
def test_the_core_does_not_know_ros(module):
    modules = MODULES if module == 'the core' else [module]
    stand_in = 'from unittest.mock import MagicMock; sys.modules["cupy"] = MagicMock()'  # not everywhere
    code = f'import sys; {stand_in}; import {", ".join(modules)}; sys.exit("rclpy" in sys.modules)'
    done = subprocess.run([sys.executable, '-c', code], cwd=PACKAGE.parent, check=False)
    assert done.returncode == (module != 'the core')  # the nodes do: the check can fail
