# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Gives what takes its ROS domain from the environment one that nobody else has."""

import os

from domains import take_domain

_domain, _guard = take_domain()  # until this process has ended
os.environ['ROS_DOMAIN_ID'] = str(_domain)
