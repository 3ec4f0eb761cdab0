# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The square that a GPU cuts is the one that Pillow cuts, to the last bit."""

import numpy as np
import pytest

torch = pytest.importorskip('torch', reason='the networks need torch')

from slam3r_ros.engines.slam3r import preprocess
from slam3r_ros.engines.slam3r.preprocess import square, square_on

SHAPES = [(480, 640), (1080, 1920), (1920, 1080), (224, 400), (500, 333), (100, 130), (225, 224), (1, 3)]


@pytest.fixture
def on_a_gpu(monkeypatch):
    """A device of that name whose tensors are on the CPU after all."""
    filters = preprocess._filters.__wrapped__
    monkeypatch.setattr(preprocess, '_filters', lambda height, width, side, device: filters(height, width, side, 'cpu'))
    move = torch.Tensor.to
    monkeypatch.setattr(torch.Tensor, 'to', lambda tensor, *to: tensor if to == ('cuda',) else move(tensor, *to))


@pytest.mark.parametrize('shape', SHAPES, ids=str)
@pytest.mark.parametrize('kind', ['noise', 'stripes'])
def test_the_square_is_pillows(on_a_gpu, monkeypatch, shape, kind):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    if kind == 'stripes':  # the filter overshoots black and white
        image = np.where(image[:1] > 127, np.uint8(255), np.uint8(0)) + np.zeros_like(image)
    expected, crop = square(image)
    monkeypatch.setattr(preprocess, 'square', None)
    found, found_crop = square_on(np.asfortranarray(image))  # any memory order
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == np.uint8 and found_crop == crop


def test_a_full_gpu_leaves_it_to_the_cpu(monkeypatch):
    image = np.random.default_rng(0).integers(0, 256, (240, 320, 3), np.uint8)

    def full(*_):
        raise torch.OutOfMemoryError('CUDA out of memory')

    monkeypatch.setattr(preprocess, '_filters', full)
    np.testing.assert_array_equal(square_on(image, 64)[0], square(image, 64)[0])
