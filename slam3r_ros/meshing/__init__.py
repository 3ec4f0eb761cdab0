# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The live mesh: a block TSDF, marching cubes over what changed, files and pictures."""
