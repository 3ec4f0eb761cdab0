# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
