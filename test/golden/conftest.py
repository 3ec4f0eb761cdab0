# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
import pytest
from golden import MANIFEST, load


@pytest.fixture(scope='session')
def torch():
    torch = pytest.importorskip('torch', reason='the networks need torch')
    torch.set_num_threads(1)
    return torch


@pytest.fixture(autouse=True)
def _without_gradients(torch):
    with torch.inference_mode():
        yield


@pytest.fixture(scope='session')
def config(torch):
    from slam3r_ros.engines.slam3r.config import NetworkConfig

    return NetworkConfig.from_official({**MANIFEST['config'], **MANIFEST})


@pytest.fixture(scope='session')
def i2p(torch, config):
    from slam3r_ros.engines.slam3r.networks import Image2Points

    return load(Image2Points(config), 'i2p')


@pytest.fixture(scope='session')
def l2w(torch, config):
    from slam3r_ros.engines.slam3r.networks import Local2World

    return load(Local2World(config), 'l2w')


@pytest.fixture(scope='session')
def l2w_encoder(torch, config):
    """The encoder that the official tiny Local2World has of its own; the published file has none."""
    from slam3r_ros.engines.slam3r.networks import Image2Points

    return load(Image2Points(config), 'l2w', strict=False)


@pytest.fixture
def within(record_property):
    """Check an error against a tolerance, and note both for the report of `pytest --junitxml`."""

    def check(name: str, error: float, tolerance: float) -> None:
        record_property(name, f'{error:.2e} of {tolerance:.0e}')
        print(f'{name}: {error:.2e} of {tolerance:.0e}')
        assert error <= tolerance, f'{name}: {error:.2e} exceeds {tolerance:.0e}'

    return check
