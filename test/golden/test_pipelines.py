# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Whole runs against the official pipelines: same calls on the same frames, the same maps, the same random state."""

import numpy as np
import pytest
from golden import Vectors, limit, point_error, read_json, relative_error

RUNS, VECTORS = read_json('e2e.json'), Vectors('e2e.npz')


@pytest.fixture
def tracing_scene(i2p, l2w, torch):
    """A scene that notes every call as the official run did."""
    from slam3r_ros.engines.slam3r.pointmaps import relative
    from slam3r_ros.engines.slam3r.scene import Scene

    class TracingScene(Scene):
        def __init__(self, args):
            super().__init__(i2p, l2w, args['conf_thres_i2p'], args['norm_input'])
            self.trace = []

        def reconstruct(self, windows, reference=0, wanted='references'):
            own, others = super().reconstruct(windows, reference, 'both')
            mean = torch.cat([own.confidence, others.confidence]).mean().item()
            self.trace.append(('i2p', [list(window) for window in windows], reference, mean))
            return own, others

        def register(self, sources, references):
            self.trace.append(('l2w', list(sources), list(references)))
            super().register(sources, references)

        def retrieve(self, queries, candidates, count):
            chosen = super().retrieve(queries, candidates, count)
            scored = count < len(candidates)
            values = relative(self.correlate(queries, candidates).mean(dim=(1, 2))).tolist() if scored else None
            self.trace.append(('retrieve', list(candidates), list(queries), list(chosen), values))
            return chosen

    return TracingScene


def settings_of(run):
    from slam3r_ros.engines.slam3r.settings import Settings

    args = run['args']
    return Settings(
        stride=max(args['keyframe_stride'], 0),
        window=args['initial_winsize'],
        radius=args['win_r'],
        scene_frames=args['num_scene_frame'],
        min_confidence=args['conf_thres_i2p'],
        normalise_input=args['norm_input'],
        buffer_size=args['buffer_size'],
        buffer_strategy=args['buffer_strategy'],
        buffer_interval=args['update_buffer_intv'],
        retrieve_every=args['retrieve_freq'],
        sources=args['max_num_register'] if run['kind'] == 'offline_multi' else 1,
        min_stride=args['keyframe_adapt_min'],
        max_stride=args['keyframe_adapt_max'],
        stride_step=args['keyframe_adapt_stride'],
        mode='fixed' if run['fixed_ids'] else 'as_is',
        seed=run['np_seed'],
    )


@pytest.mark.parametrize('name', RUNS)
def test_run(name, tracing_scene, within, torch):
    from slam3r_ros.engines.slam3r.offline import OfflinePipeline
    from slam3r_ros.engines.slam3r.online import OnlinePipeline
    from slam3r_ros.engines.slam3r.preprocess import to_tensor

    run = RUNS[name]
    scene, settings = tracing_scene(run['args']), settings_of(run)
    images = to_tensor(VECTORS['frames_u8'])[:: run['args']['perframe']]
    if run['kind'] == 'online':
        pipeline = OnlinePipeline(scene, settings)
        pipeline.grows_references = True  # the official `fixed` runs mend the frame numbers only
        views = [view for image in images for _, view in sorted(pipeline.process(image))]
    else:
        pipeline = OfflinePipeline(scene, settings)
        views = pipeline.run(images)
        assert pipeline.stride == run['meta']['kf_stride']

    compare_traces(scene.trace, run['trace'], within)
    np.testing.assert_array_equal(pipeline.rng.rand(3), run['rng_probe_before_save'])
    step = run['stored_stride']
    for key, part, error, tolerance in (
        ('local_pcds', 'local', point_error, 2 * limit('points')),
        ('registered_pcds', 'world', point_error, 2 * limit('points')),
        ('local_confs', 'local_confidence', relative_error, limit('conf')),
        ('registered_confs', 'confidence', relative_error, limit('conf')),
    ):
        found = torch.stack([getattr(view, part) for view in views])[:, ::step, ::step]
        within(key, error(found.numpy(), VECTORS[f'{name}/{key}']), tolerance)


def compare_traces(found, expected, within):
    """The frames of every call are the same, in the same order; means and scores agree within tolerance."""
    worst = 0.0
    for ours, official in zip(found, expected):
        kind, *details = official
        assert ours[0] == kind, (ours, official)
        if kind == 'i2p':
            assert ours[1:3] == tuple(details[:2])
            worst = max(worst, abs(ours[3] / details[2] - 1))
        elif kind == 'retrieve':
            assert ours[1:4] == tuple(details[:3])
            assert (ours[4] is None) == (details[3] is None)
            worst = max([worst, *(abs(a / b - 1) for a, b in zip(ours[4] or (), details[3] or ()))])
        else:
            frames, references = details
            assert ours[2] == [frames[i] for i in references]
            assert ours[1] == [frame for i, frame in enumerate(frames) if i not in references]
    assert len(found) == len(expected)
    within('trace', worst, limit('conf'))
