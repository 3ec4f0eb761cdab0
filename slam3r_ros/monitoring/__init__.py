# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""How the nodes fare, as pages that monitors read: knows values, HTTP and Prometheus, not ROS."""
