# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Both networks against the official ones: whole windows, with every combination of references and sources."""

import numpy as np
import pytest
from golden import MANIFEST, Vectors, limit, pixels, point_error, relative_error, scaled_error, thinned

I2P, L2W, RETRIEVAL = Vectors('i2p_cases.npz'), Vectors('l2w_cases.npz'), Vectors('retrieval.npz')
CORRELATION = [case for case in RETRIEVAL.cases() if f'corr/{case}' in MANIFEST['cases']]


def in_order(window, references):
    """Put the maps of (references, sources) back in the order of the window."""
    import torch

    count = sum(len(side.points) for side in window)
    places = [*references, *(i for i in range(count) if i not in references)]
    order = torch.tensor(places).argsort()
    return [torch.cat(both)[order].numpy() for both in zip(*window)]


def split(stack, references):
    """Split a window (V, ...) into references and sources."""
    return stack[references], stack[[i for i in range(len(stack)) if i not in references]]


def compare(within, found, expected_points, expected_confidence):
    points, confidence = found
    within('points', point_error(thinned(points, expected_points), expected_points), limit('points'))
    within('confidence', relative_error(thinned(confidence, expected_confidence), expected_confidence), limit('conf'))


@pytest.mark.parametrize('case', I2P.cases())
def test_image2points(case, i2p, within):
    facts = MANIFEST['cases'][f'i2p/{case}']
    images = pixels(I2P[f'{case}/img_u8'])
    height, width = images.shape[-2:]
    tokens = i2p.encode(images.flatten(0, 1)).unflatten(0, images.shape[:2])
    sides = split(tokens, [facts['ref_id']])
    found = in_order(i2p(*sides, height, width), [facts['ref_id']])
    compare(within, found, I2P[f'{case}/pts3d'], I2P[f'{case}/conf'])
    only, none = i2p(*sides, height, width, wanted='references')
    assert none is None
    np.testing.assert_allclose(only.points.numpy()[0], found[0][facts['ref_id']], rtol=1e-5, atol=1e-5)
    if f'{case}/pseudo_conf_src' in I2P:  # what the official network hands its training loss: logits of the scores
        scores = i2p.correlation(sides[0], i2p.prepare(sides[1], height, width), height, width).numpy()
        within('correlation', relative_error(scores, 1 + np.exp(I2P[f'{case}/pseudo_conf_src'])), limit('conf'))


@pytest.mark.parametrize('case', [case for case in L2W.cases() if case != 'tokenpath'])
def test_local2world(case, l2w_encoder, l2w, within):
    import torch

    facts = MANIFEST['cases'][f'l2w/{case}']
    images = pixels(L2W[f'{case}/img_u8'])
    tokens = l2w_encoder.encode(images.flatten(0, 1)).unflatten(0, images.shape[:2])
    points = torch.from_numpy(L2W[f'{case}/pointmap']).float()
    sides = *split(tokens, facts['ref_ids']), *split(points, facts['ref_ids'])
    found = in_order(l2w(*sides), facts['ref_ids'])
    compare(within, found, L2W[f'{case}/pts3d'], L2W[f'{case}/conf'])
    none, only = l2w(*sides, wanted='sources')
    assert none is None
    np.testing.assert_allclose(only.points.numpy(), split(found[0], facts['ref_ids'])[1], rtol=1e-5, atol=1e-5)


@pytest.mark.skipif('tokenpath/img' not in L2W, reason='not in this subset')
def test_tokens_are_shared_by_both_networks(i2p, l2w, within):
    import torch

    images, points = (torch.from_numpy(L2W[f'tokenpath/{name}']) for name in ('img', 'pointmap'))
    height, width = images.shape[-2:]
    tokens = i2p.encode(images.flatten(0, 1)).unflatten(0, images.shape[:2])
    within('tokens', scaled_error(tokens.numpy(), L2W['tokenpath/img_tokens_unnormalised']), limit('intermediates'))
    name, digits = L2W.find(r'(tokenpath/i2p_ref(\d+))_pts3d').groups()
    found = in_order(i2p(*split(tokens, [int(digits)]), height, width), [int(digits)])
    compare(within, found, L2W[f'{name}_pts3d'], L2W[f'{name}_conf'])
    name, digits = L2W.find(r'(tokenpath/l2w_ref(\d+))_pts3d').groups()
    references = [int(digit) for digit in digits]
    sides = *split(tokens, references), *split(points, references)
    found = in_order(l2w(*sides), references)
    compare(within, found, L2W[f'{name}_pts3d'], L2W[f'{name}_conf'])
    mask = L2W.find(r'tokenpath/patch_mask_view(\d+)')
    void = torch.zeros(tokens.shape[:3], dtype=torch.bool)
    void[int(mask[1])] = torch.from_numpy(L2W[mask[0]]).flatten(1)
    found = in_order(l2w(*sides, void=split(void, references)), references)
    compare(within, found, L2W['tokenpath/l2w_patchmask_pts3d'], L2W['tokenpath/l2w_patchmask_conf'])


@pytest.mark.parametrize('case', CORRELATION)
def test_correlation(case, i2p, within):
    import torch

    facts = MANIFEST['cases'][f'corr/{case}']
    tokens = torch.from_numpy(RETRIEVAL[f'{case}/img_tokens'])
    square = i2p.config.patch * round(tokens.shape[2] ** 0.5)
    size = facts.get('H', square), facts.get('W', square)
    query, others = split(tokens, [facts['ref_id']])
    found = i2p.correlation(query, i2p.prepare(others, *size), *size, facts['depth']).numpy()
    within('scores', relative_error(found, RETRIEVAL[f'{case}/scores']), limit('conf'))
