# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The networks at official size: the names and shapes of all weights, and their numbers with generated weights."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from golden import Vectors, generate, limit, pixels, point_error, read_json, relative_error, scaled_error

from slam3r_ros.bench.golden import pointmap


@pytest.fixture
def empty(torch):
    """Networks of the official size without memory for their weights."""
    from slam3r_ros.engines.slam3r.config import OFFICIAL
    from slam3r_ros.engines.slam3r.networks import Image2Points, Local2World

    with torch.device('meta'):
        return {'i2p': Image2Points(OFFICIAL), 'l2w': Local2World(OFFICIAL)}


@pytest.mark.parametrize('name', ['i2p', 'l2w', 'l2w_enc'])
def test_names_and_shapes(name, empty):
    expected = read_json(f'full_{name}_shapes.json')
    ours = {key: list(value.shape) for key, value in empty[name[:3]].state_dict().items()}
    if name == 'l2w_enc':  # some files of Local2World hold the encoder of the other network
        encoder = empty['i2p'].state_dict().items()
        ours |= {key: list(value.shape) for key, value in encoder if key.startswith('enc_blocks.')}
    assert ours == expected


def available_memory() -> int:
    lines = dict(line.split(':') for line in Path('/proc/meminfo').read_text().splitlines())
    return 1024 * int(lines['MemAvailable'].split()[0])


@pytest.fixture
def all_cores(torch):
    """Compute on every core: these networks are large."""
    before = torch.get_num_threads()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    yield
    torch.set_num_threads(before)


@pytest.mark.skipif(available_memory() < 5e9, reason='needs 5 GB of free memory')
def test_numbers(empty, torch, within, all_cores):
    facts, vectors = read_json('full_size.json'), Vectors('full_size.npz')
    for name, network in empty.items():
        fill(network, facts[f'salt_{name}'], facts.get('conf_bias_shift', 0.0))
    i2p, l2w = empty['i2p'], empty['l2w']
    images = pixels(vectors['img_u8'])[:, None]
    count, height, width = len(images), *images.shape[-2:]
    step, reference, references = facts['stride'], facts['ref_id'], facts['l2w_ref_ids']

    tokens = i2p.encode(images.flatten(0, 1))[:, None]
    name = vectors.find(r'tokens_unnorm_tok(\d+(_\d+)*)')
    places = [int(place) for place in name[1].split('_')]
    within('tokens', scaled_error(tokens[:, 0, places].numpy(), vectors[name[0]]), limit('intermediates'))

    others = [i for i in range(count) if i != reference]
    sides = i2p(tokens[[reference]], tokens[others], height, width)
    check(within, 'i2p', sides, [reference, *others], vectors, step)
    name = vectors.find(r'corr_ref(\d+)')
    query = int(name[1])
    others = [i for i in range(count) if i != query]
    scores = i2p.correlation(tokens[[query]], i2p.prepare(tokens[others], height, width), height, width)
    within('scores', relative_error(scores.numpy(), vectors[name[0]]), limit('conf'))

    points = torch.from_numpy(np.stack([pointmap(i, height, width) for i in range(count)]))[:, None]
    expected = vectors[f'l2w_pointmap_s{step}_check']
    within('pointmap', np.abs(points[:, 0, ::step, ::step].numpy() - expected).max(), 1e-6)
    others = [i for i in range(count) if i not in references]
    sides = l2w(tokens[references], tokens[others], points[references], points[others])
    check(within, 'l2w', sides, [*references, *others], vectors, step)


def fill(network, salt, shift):
    """Give a network that has no memory yet its weights; each is made on a thread of its own."""
    import torch

    shapes = {key: list(value.shape) for key, value in network.state_dict().items()}
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        made = pool.map(lambda item: generate(dict([item]), salt, shift), shapes.items())
        weights = {key: torch.from_numpy(weight) for each in made for key, weight in each.items()}
    network.load_state_dict(weights, assign=True)  # without a copy: 3 GB are enough
    network.eval()


def check(within, name, sides, places, vectors, step):
    import torch

    points, confidence = (torch.cat(both)[np.argsort(places).tolist(), 0].numpy() for both in zip(*sides))
    sampled = np.s_[:, ::step, ::step]
    within(f'{name} points', point_error(points[sampled], vectors[f'{name}_pts3d_s{step}']), limit('points'))
    within(f'{name} confidence', relative_error(confidence[sampled], vectors[f'{name}_conf_s{step}']), limit('conf'))
    sums, sizes = (values.sum(axis=(1, 2, 3), dtype=np.float64) for values in (points, np.abs(points)))
    within(f'{name} sum', float((np.abs(sums - vectors[f'{name}_pts3d_sum']) / sizes).max()), limit('points'))
    means = confidence.mean(axis=(1, 2), dtype=np.float64)
    within(f'{name} mean confidence', relative_error(means, vectors[f'{name}_conf_mean']), limit('conf'))
