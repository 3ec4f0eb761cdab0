# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Live dense mapping from any RGB video, on ROS 2."""

from pkgutil import extend_path

# The generated slam3r_ros.msg and slam3r_ros.srv may lie in another folder of this name on
# sys.path (source tree and install tree): join them.
__path__ = extend_path(__path__, __name__)
__version__ = '0.1.0'
