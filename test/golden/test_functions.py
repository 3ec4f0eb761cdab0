# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Preprocessing, scale, choice of scene frames, focal and pose against the official functions."""

import numpy as np
import pytest
from golden import MANIFEST, Vectors, relative_error, scaled_error

FUNCTIONS, PREPROCESS, RETRIEVAL = (Vectors(f'{name}.npz') for name in ('functions', 'preprocess', 'retrieval'))
BUFFERS = [case.removeprefix('buf/') for case in MANIFEST['cases'] if case.startswith('buf/')]


@pytest.mark.parametrize('case', PREPROCESS.cases())
def test_preprocessing_is_exact(case, torch):
    from slam3r_ros.engines.slam3r.preprocess import square, to_tensor

    image = PREPROCESS[f'{case}/rgb']
    side = len(PREPROCESS[f'{case}/online_u8'])
    online, _ = square(image, side)
    offline, _ = square(image, side, upscale_bicubic=True)
    np.testing.assert_array_equal(online, PREPROCESS[f'{case}/online_u8'])
    np.testing.assert_array_equal(offline, PREPROCESS[f'{case}/offline_u8'])
    if f'{case}/offline_float_row100' in PREPROCESS:  # (3, W)
        np.testing.assert_array_equal(to_tensor(offline)[:, 100].numpy(), PREPROCESS[f'{case}/offline_float_row100'])


def test_scale(torch, within):
    from slam3r_ros.engines.slam3r.pointmaps import mean_distance, normalise

    points, masks = (torch.from_numpy(FUNCTIONS[f'norm/{name}']) for name in ('pts', 'masks'))
    within('masked', relative_error(mean_distance(points, masks).numpy(), FUNCTIONS['norm/factor_masked']), 1e-6)
    within('no mask', relative_error(mean_distance(points).numpy(), FUNCTIONS['norm/factor_nomask']), 1e-6)
    nothing = torch.zeros_like(masks)
    factor = mean_distance(points, nothing).numpy()
    within('none valid', relative_error(factor, FUNCTIONS['norm/factor_allinvalid']), 1e-6)
    expected = np.where(masks[..., None], FUNCTIONS['norm/out_masked'], 0)
    found = torch.stack(normalise(points, masks)).numpy()
    within('normalised', scaled_error(found, expected), 1e-6)
    assert not torch.stack(normalise(points, nothing)).any()


@pytest.mark.parametrize('case', BUFFERS)
def test_scene_buffer(case, torch):
    from slam3r_ros.engines.slam3r.buffer import SceneBuffer
    from slam3r_ros.engines.slam3r.pointmaps import relative

    facts = MANIFEST['cases'][f'buf/{case}']
    stride, initial = facts['kf_stride'], facts['init']
    rng = np.random.RandomState(facts['seed'])
    frames = list(range(0, initial * stride, stride))
    buffer = SceneBuffer(
        frames, initial * stride + 1, facts['size'], facts['strategy'], facts['update_buffer_intv'], rng
    )
    quality = relative(FUNCTIONS[f'buf/{case}/recon_conf']) * relative(FUNCTIONS[f'buf/{case}/local_conf'])
    trace = []
    for frame in range((initial - 1) * stride + 1, facts['n']):
        before = buffer.milestone
        buffer.update(frame + 1, stride, quality.__getitem__)
        if buffer.milestone != before:
            trace.append([frame, buffer.milestone, buffer.candidates, *buffer.frames])
    expected = [[int(x) for x in row if x >= 0] for row in FUNCTIONS[f'buf/{case}/trace']]
    assert trace == expected
    np.testing.assert_array_equal(rng.rand(3), FUNCTIONS[f'buf/{case}/rng_probe'])


def test_choice_of_candidates(torch, within):
    from slam3r_ros.engines.slam3r.pointmaps import best_candidates

    scores, confidence, used = (
        torch.from_numpy(RETRIEVAL[f'sel/{name}']) for name in ('corr_scores', 'align_confs', 'culmu_count')
    )
    for name, extra in (('top5', {}), ('top5_align', {'confidence': confidence}), ('top5_culmu', {'used': used})):
        expected = RETRIEVAL[f'sel/{name}'].tolist()
        assert best_candidates(scores, len(expected), **extra)[0] == expected
    for case in RETRIEVAL.cases():
        if f'{case}/scores' in RETRIEVAL:
            expected = RETRIEVAL[f'{case}/sel_top3'].tolist()
            chosen, values = best_candidates(torch.from_numpy(RETRIEVAL[f'{case}/scores']), len(expected))
            assert chosen == expected
            within(case, relative_error(values, RETRIEVAL[f'{case}/norm_score']), 1e-6)


def local_points():
    return FUNCTIONS[FUNCTIONS.find(r'cam/pts_local_strided\d+')[0]]


def test_focal(within):
    from slam3r_ros.mapping.pointmap_pose import estimate_focal, median_focal

    points = local_points()
    for kind, estimate in (('weiszfeld', estimate_focal), ('median', median_focal)):
        name = FUNCTIONS.find(rf'cam/focal_{kind}_strided_pp(\d+)')
        middle = float(name[1])
        within(kind, relative_error(np.array(estimate(points, (middle, middle))), FUNCTIONS[name[0]]), 1e-5)


@pytest.mark.parametrize('with_local', [False, True])
def test_pose(with_local, within):
    from slam3r_ros.mapping.pointmap_pose import estimate_pose
    from slam3r_ros.values import Intrinsics

    K, world = FUNCTIONS['cam/K_strided'], FUNCTIONS['cam/pts_world_strided']
    camera = Intrinsics(K[0, 0], K[1, 1], K[0, 2], K[1, 2])
    local = local_points() if with_local else None
    found = estimate_pose(world, np.ones(world.shape[:2]), camera, local)
    truth, official = FUNCTIONS['cam/c2w_gt'], FUNCTIONS['cam/c2w_pnp_strided']
    within('truth', np.abs(found.T_world_camera - truth).max(), 1.01 * np.abs(official - truth).max())
    if not with_local:
        within('official', np.abs(found.T_world_camera - official).max(), 1e-5)
    assert found.inliers > 0.9
