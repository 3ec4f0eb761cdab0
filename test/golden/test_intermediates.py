# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Every layer against the official one; the `small_*` vectors have so little variance that a wrong eps shows."""

import pytest
from golden import Vectors, limit, point_error, relative_error, scaled_error

VECTORS = Vectors('intermediates.npz')


@pytest.fixture
def given(torch):
    return lambda name: torch.from_numpy(VECTORS[name])


@pytest.fixture
def same(within):
    def check(name, found, kind='intermediates'):
        within(name, scaled_error(found.numpy(), VECTORS[name]), limit(kind))

    return check


@pytest.fixture
def grid():
    height, width = VECTORS['img'].shape[-2:]
    return height, width


@pytest.fixture
def rotation(i2p, grid):
    return i2p.rotation(*i2p.grid(*grid))


def encoder_rotation(i2p, grid):
    from slam3r_ros.engines.slam3r.layers import grid_rotation

    config = i2p.config
    width = config.encoder_width // config.encoder_heads
    return grid_rotation(*i2p.grid(*grid), width, config.rope_base, i2p.dec_norm.weight.device)


def test_patches_and_positions(i2p, given, same, grid, torch):
    same('patch_embed', i2p.patch_embed(given('img').flatten(0, 1)))
    rows, columns = i2p.grid(*grid)
    expected = torch.cartesian_prod(torch.arange(rows), torch.arange(columns))
    assert (given('pos') == expected).all()


def test_encoder(i2p, given, same, grid):
    rotation = encoder_rotation(i2p, grid)
    tokens = given('patch_embed')
    for number, block in enumerate(i2p.enc_blocks):
        tokens = block(tokens, rotation)
        same(f'enc_block{number}', tokens)
    same('enc_norm', i2p.enc_norm(tokens))
    same('small_enc_block0', i2p.enc_blocks[0](given('small_enc_in'), rotation))
    same('small_enc_norm', i2p.enc_norm(given('small_enc_in')))


@pytest.mark.parametrize('name, positions', [('rope', 'rope_pos'), ('rope', 'rope_pos2'), ('rope64', 'rope_pos')])
def test_rotary_code(name, positions, config, given, same):
    from slam3r_ros.engines.slam3r.layers import rotary, rotate

    tokens = given(f'{name}_in')
    out = f'{name}_out2' if positions == 'rope_pos2' else f'{name}_out'
    code = rotary(given(positions)[: len(tokens), None], tokens.shape[-1], config.rope_base)
    same(out, rotate(tokens, code))


def test_decoder_levels(i2p, given, same, rotation):
    """Which view is the reference only the values tell."""
    tokens = given('enc_norm')[:, None]  # (V, 1, S, E)
    reference = next(
        i for i in range(len(tokens)) if scaled_error(tokens[i].numpy(), VECTORS['i2p_dec_ref_level0']) < 1e-4
    )
    others = [i for i in range(len(tokens)) if i != reference]
    same('i2p_dec_ref_level0', tokens[[reference]][:, 0])
    same('i2p_dec_src_level0', tokens[others][:, 0])
    embedded = i2p.decoder_embed(tokens)
    depth = i2p.config.decoder_depth
    for level in range(1, depth + 1):
        sides = i2p.decode(embedded[[reference]], embedded[others], rotation, layers=slice(0, level))
        for name, side in zip(('ref', 'src'), sides):
            same(f'i2p_dec_{name}_level{level}', (i2p.dec_norm(side) if level == depth else side)[:, 0])


def test_decoder_block(i2p, given, same, rotation):
    same('blk_out', i2p.mv_dec_blocks1[0](given('blk_x'), given('blk_y'), rotation))


def test_decoder_norms(i2p, given, same, rotation):
    x = given('small_dec_in')
    same('small_dec_norm', i2p.dec_norm(x))
    same('small_corr_norm', i2p.corr_score_norm(x))
    same('small_corr_proj', i2p.corr_score_proj(i2p.corr_score_norm(x)))
    same('small_dec_block2_0', i2p.mv_dec_blocks2[0](x[:1], x[1:], rotation))


def test_head(i2p, given, within, torch):
    name = VECTORS.find(r'head_tokens_(\d+)x(\d+)')
    points, confidence = i2p.downstream_head1(given(name[0]), int(name[1]), int(name[2]))
    within('points', point_error(points.numpy(), VECTORS['head1_pts3d']), limit('points'))
    within('confidence', relative_error(confidence.numpy(), VECTORS['head1_conf']), limit('conf'))


def test_unfolding(config, given, within):
    from slam3r_ros.engines.slam3r.head import unfold

    points, confidence = unfold(given('post_in'), config.confidence_floor)
    within('points', point_error(points.numpy(), VECTORS['post_pts3d']), limit('points'))
    within('confidence', relative_error(confidence.numpy(), VECTORS['post_conf']), limit('conf'))


def test_embedded_pointmap(l2w, given, same):
    same('l2w_pointmap_embedding', l2w.embed_points(given('l2w_pointmap')[None])[0])
