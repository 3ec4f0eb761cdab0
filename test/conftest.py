# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Gives what takes its ROS domain from the environment one that nobody else has; lets no thread spin, heeds Ctrl-C."""

import os
import signal

from slam3r_ros.transport.domains import take_domain

_domain, _guard = take_domain()  # until this process has ended
os.environ['ROS_DOMAIN_ID'] = str(_domain)
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where a shell began the tests with &
# Threads that wait spin, on the cores that others need: OpenMP's, as in the nodes, and OpenBLAS', by small products.
os.environ.setdefault('OMP_WAIT_POLICY', 'passive')
os.environ.setdefault('OPENBLAS_NUM_THREADS', '1')
