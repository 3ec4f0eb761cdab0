# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Marks the tests that need Open3D, and says what is missing where they are skipped."""

import pytest

from slam3r_ros.meshing.poisson import load_open3d

try:
    load_open3d()
    MISSING = None
except ImportError as error:
    MISSING = str(error)
NEEDS_OPEN3D = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))
