# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The same against the official networks and pipelines, with the layers as the engine has them in float32 on a CPU."""

import copy

import pytest
from test_networks import (  # noqa: F401
    test_correlation,
    test_image2points,
    test_local2world,
    test_tokens_are_shared_by_both_networks,
)
from test_pipelines import test_run, tracing_scene  # noqa: F401


def converted(network, torch):
    from slam3r_ros.engines.slam3r.precision import convert

    return convert(copy.deepcopy(network), 'float32', torch.device('cpu'))


@pytest.fixture(scope='module')
def i2p(i2p, torch):
    return converted(i2p, torch)


@pytest.fixture(scope='module')
def l2w(l2w, torch):
    return converted(l2w, torch)


@pytest.fixture(scope='module')
def l2w_encoder(l2w_encoder, torch):
    return converted(l2w_encoder, torch)
