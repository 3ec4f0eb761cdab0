# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""For modules whose small networks are slower on several threads; import the fixture to have it."""

import pytest


@pytest.fixture(scope='module', autouse=True)
def one_thread():
    """Let torch compute on one thread."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
