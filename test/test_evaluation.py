# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
import argparse
import json
import time
from fractions import Fraction
from types import SimpleNamespace

import av
import cv2
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from slam3r_ros.engines.protocol import EngineOutput, OneByOne
from slam3r_ros.evaluation import evaluate as module
from slam3r_ros.evaluation import metrics
from slam3r_ros.evaluation.evaluate import add_arguments, evaluate, main
from slam3r_ros.evaluation.groundtruth import Camera, DepthImages, GroundTruthError
from slam3r_ros.evaluation.score import NewestKeyframes, format_table, score
from slam3r_ros.mapping.frames import rigid
from slam3r_ros.mapping.trajectory import write_tum
from slam3r_ros.values import Intrinsics, Keyframe, Pose, State

FRAMES, FPS, EVERY, FIRST = 40, 20, 10, 6
WIDTH, HEIGHT = 128, 96
CAMERA = Intrinsics(110.0, 110.0, 63.5, 47.5)
GRID = 32, 24  # of the keyframes
SCALE = 0.4  # map units a metre
T_MAP_WORLD = rigid(Rotation.from_rotvec([0.2, 0.1, -0.4]).as_matrix(), np.array([1.0, 2, 3]))  # and SCALE
PLANE = np.array([0.15, -0.1, 1.0]), 3.0  # normal @ x = offset, world metres


def true_pose(i):
    turn = Rotation.from_rotvec([0.02 * np.sin(i / 5), 0.1 * np.sin(i / 9), 0.05 * np.sin(i / 4)]).as_matrix()
    return rigid(turn, np.array([0.03 * i, 0.2 * np.sin(i / 7), 0.1 * np.cos(i / 6)]))


def true_depth(T, camera, width, height):
    u, v = np.meshgrid(np.arange(width), np.arange(height))
    rays = np.stack([(u - camera.cx) / camera.fx, (v - camera.cy) / camera.fy, np.ones(u.shape)], axis=-1)
    normal, offset = PLANE
    return (offset - normal @ T[:3, 3]) / (rays @ T[:3, :3].T @ normal), rays


def in_map(T):
    moved = T_MAP_WORLD @ T
    moved[:3, 3] = SCALE * moved[:3, 3]
    return moved


class Replay(OneByOne):
    """An engine that knows the truth and errs as told."""

    name, device, model_license, depth_skipped = 'replay', 'cpu', '', 3
    state = State.TRACKING

    def __init__(self, drift=0.0, wrong=0.0, hidden=0.0, focal=1.0, keyframe_every=5, lost=(), interrupt=None):
        self.drift, self.wrong, self.hidden, self.focal = drift, wrong, hidden, focal
        self.keyframe_every, self.lost, self.interrupt = keyframe_every, lost, interrupt
        self.seen, self.closed, self.finished, self.milliseconds = [], False, False, {'replay': 1.0}

    def process(self, frame):
        if frame.id == self.interrupt:
            raise KeyboardInterrupt
        self.seen.append(frame)
        if frame.id < FIRST or frame.id in self.lost:
            return EngineOutput(None)
        pose = Pose(frame.id, frame.stamp, in_map(true_pose(frame.id)))
        pose.T_map_camera[:3, 3] += self.drift * SCALE * (-1) ** frame.id * np.array([0, 0, 1])
        keyframes = (self.keyframe(frame), self.keyframe(frame, 1)) if frame.id % self.keyframe_every == 0 else ()
        return EngineOutput(pose, keyframes)

    def keyframe(self, frame, revision=0):
        camera = CAMERA.scaled(GRID[0] / WIDTH, GRID[1] / HEIGHT)
        depth, rays = true_depth(true_pose(frame.id), camera, *GRID)
        depth[:, : int(GRID[0] * self.wrong)] *= 1.5
        confidence = np.ones(depth.shape, np.float32)
        confidence[: int(GRID[1] * self.hidden)] = 0
        if revision == 0:
            depth *= 7  # the higher revision must count
        told = camera._replace(fx=camera.fx * self.focal, fy=camera.fy * self.focal)
        return Keyframe(Pose(frame.id, frame.stamp, in_map(true_pose(frame.id))), told,
                        (SCALE * rays * depth[..., None]).astype(np.float32), confidence,
                        np.zeros((*depth.shape, 3), np.uint8), revision)

    def finish(self):
        self.finished = True
        return EngineOutput(None)

    def trajectory(self):
        return [Pose(f.id, f.stamp, in_map(true_pose(f.id))) for f in self.seen if f.id >= FIRST // 2]

    def close(self):
        self.closed = True


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp('data')
    generator = np.random.default_rng(0)
    texture = cv2.resize(generator.integers(0, 255, (48, 64, 3), np.uint8), (2 * WIDTH, 2 * HEIGHT))
    with av.open(str(folder / 'video.mp4'), 'w') as container:
        stream = container.add_stream('libx264', rate=FPS)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, 'yuv420p'
        for i in range(FRAMES):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(texture[:HEIGHT, i : i + WIDTH]), format='rgb24')
            frame.pts, frame.time_base = i, Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    write_tum(folder / 'truth.tum', [Pose(i, i * 10**9 // FPS, true_pose(i)) for i in range(FRAMES)])
    (folder / 'depth').mkdir()
    for i in range(0, FRAMES, EVERY):  # at half the video's resolution
        depth, _ = true_depth(true_pose(i), CAMERA.scaled(0.5, 0.5), WIDTH // 2, HEIGHT // 2)
        cv2.imwrite(str(folder / 'depth' / f'{i:06d}.png'), np.round(1000 * depth).astype(np.uint16))
    content = {'width': WIDTH, 'height': HEIGHT, 'fps': FPS, 'depth_every': EVERY, 'depth_scale': 1000.0,
               'rgb': CAMERA._asdict()}
    (folder / 'camera.json').write_text(json.dumps(content))
    return folder


def run(data, engine, **options):
    paths = [data / name for name in ('video.mp4', 'truth.tum', 'depth', 'camera.json')]
    return evaluate(*paths, engine=engine, **options)


def test_a_perfect_engine_scores_perfectly(data):
    engine = Replay()
    result = run(data, engine)
    assert result['ate_live'] < 1e-6 and result['ate_final'] < 1e-6
    assert result['scale'] == pytest.approx(1 / SCALE)
    assert (result['frames'], result['init_frames']) == (FRAMES, FIRST)
    assert result['tracked_share'] == 1 and result['backfilled_share'] == (FRAMES - FIRST // 2) / FRAMES
    assert (result['keyframes'], result['keyframes_with_depth'], result['depth_skipped']) == (6, 6, 3)
    depth, exact = result['depth'], result['depth_exact']
    assert depth['abs_rel'] < 0.002 and depth['delta1'] == 1 and depth['coverage'] == 1
    assert depth['scale'] == pytest.approx(1 / SCALE, rel=1e-3)
    # frames 10, 20, 30 have depth of their own; 15, 25 and 35 are half an interval away
    assert (exact['keyframes'], depth['keyframes']) == (3, 6)
    assert exact['abs_rel'] < 5e-4
    assert result['cloud']['accuracy'] < 0.03 and result['cloud']['accuracy_share'] > 0.99
    assert result['focal_error_percent'] == pytest.approx(0, abs=1e-9)
    assert result['intrinsics_used'] is False and engine.seen[0].intrinsics is None
    assert engine.closed and engine.finished
    assert engine.seen[-1].last and engine.seen[1].stamp == 10**9 // FPS
    assert set(result['stage_fps']) == {'decode', 'select', 'engine'}
    assert 0 < result['fps'] < min(result['stage_fps'].values()) and result['milliseconds'] == {'replay': 1.0}
    json.dumps(result)


def test_what_is_read_beforehand_is_no_part_of_the_speed(data, monkeypatch):
    hour = 0

    class Reader(Replay):
        def prepare(self):
            nonlocal hour
            hour = 3600

    monkeypatch.setattr(module, 'time', SimpleNamespace(perf_counter=lambda: time.perf_counter() + hour))
    result = run(data, Reader())
    assert result['seconds'] < 3600 <= result['prepare_seconds']
    assert f'{result["prepare_seconds"]:.1f} s to prepare' in format_table(result)
    assert 'networks' not in format_table(result | {'prepare_seconds': 0.01})


def test_live_poses_are_scored_as_they_were_published(data):
    result = run(data, Replay(drift=0.05))
    # The alignment can do little against an error that changes its sign each frame.
    assert result['ate_live'] == pytest.approx(0.05, rel=0.02)
    steps = [true_pose(i)[:3, 3] for i in range(FIRST, FRAMES)]
    length = np.linalg.norm(np.diff(steps, axis=0), axis=1).sum()
    assert result['ate_live_percent'] == pytest.approx(100 * result['ate_live'] / result['path_length'], rel=0.1)
    assert result['path_length'] > length  # the final trajectory begins earlier
    assert result['ate_final'] < 1e-6


def test_wrong_depth_and_coverage_are_told_exactly(data):
    result = run(data, Replay(wrong=0.25, hidden=0.5))
    exact = result['depth_exact']
    assert exact['abs_rel'] == pytest.approx(0.25 * 0.5, abs=1e-3)
    assert exact['delta1'] == pytest.approx(0.75)
    assert exact['coverage'] == pytest.approx(0.5)
    assert 0.6 < result['cloud']['accuracy_share'] < 0.8  # what is wrong is far, and so fills more voxels
    assert result['cloud']['completeness'] > 0.05


def test_focal_error_is_told(data):
    assert run(data, Replay(focal=1.1))['focal_error_percent'] == pytest.approx(10)


def test_lost_frames_lower_the_tracked_share(data):
    result = run(data, Replay(lost=range(10, 27)))
    assert result['tracked_share'] == pytest.approx(17 / 34)
    assert result['init_frames'] == FIRST


def test_intrinsics_are_handed_on_only_when_wanted(data):
    engine = Replay()
    assert run(data, engine, use_intrinsics=True)['intrinsics_used'] is True
    assert engine.seen[0].intrinsics == CAMERA
    with pytest.raises(GroundTruthError, match='give --intrinsics'):
        evaluate(data / 'video.mp4', data / 'truth.tum', engine=Replay(), use_intrinsics=True)


def test_a_distorted_video_is_undistorted_first(data, tmp_path):
    content = json.loads((data / 'camera.json').read_text())
    content['rgb']['dist'] = [-0.2, 0.05, 0, 0]
    (tmp_path / 'camera.json').write_text(json.dumps(content))
    engine = Replay()
    evaluate(data / 'video.mp4', data / 'truth.tum', None, tmp_path / 'camera.json', True, engine)
    undistorter = Camera(tmp_path / 'camera.json').undistorter()
    assert engine.seen[0].intrinsics == undistorter.intrinsics != CAMERA
    plain = Replay()
    run(data, plain)
    np.testing.assert_array_equal(engine.seen[3].image, undistorter(plain.seen[3].image))


def test_without_depth_or_truth_what_can_be_told_is_told(data):
    result = evaluate(data / 'video.mp4', data / 'truth.tum', engine=Replay())
    assert result['depth'] is None and result['cloud'] is None and result['focal'] is None
    assert result['ate_live'] < 1e-6
    poses = [Pose(-1, i * 10**9 // FPS, in_map(true_pose(i))) for i in range(FIRST, FRAMES)]
    result = score(poses, poses, NewestKeyframes(), None, frames=FRAMES)
    assert result['ate_live'] is None and result['tracked_share'] == 1
    assert result['init_frames'] == FIRST  # by the stamps, where poses do not know their frame
    assert 'ATE' not in format_table(result) and 'tracked' in format_table(result)


def test_a_run_without_poses_gives_nulls_and_status_2(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(module, 'create_engine', lambda *_: Replay(lost=range(FRAMES)))
    words = ['--video', data / 'video.mp4', '--groundtruth', data / 'truth.tum', '--json', tmp_path / 'out.json']
    assert command(words) == 2
    assert 'never found a pose' in capsys.readouterr().err.splitlines()[-1]
    result = json.loads((tmp_path / 'out.json').read_text())
    assert result['init_frames'] is result['tracked_share'] is result['ate_live'] is None


def test_ctrl_c_scores_what_there_is(data, tmp_path, monkeypatch, capsys):
    engine = Replay(interrupt=25)
    monkeypatch.setattr(module, 'create_engine', lambda *_: engine)
    words = ['--video', data / 'video.mp4', '--groundtruth', data / 'truth.tum', '--json', tmp_path / 'out.json']
    assert command(words) == 130
    result = json.loads((tmp_path / 'out.json').read_text())
    assert result['interrupted'] and result['ate_live'] < 1e-6 and engine.finished and engine.closed
    assert 'ATE' in capsys.readouterr().out


def command(words):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return main(parser.parse_args([str(word) for word in words]))


@pytest.mark.parametrize('words, reason', [
    (['--video', 'none.mp4', '--groundtruth', '{data}/truth.tum'], 'none.mp4: does not exist'),
    (['--video', '{data}/video.mp4', '--groundtruth', 'none.tum'], 'none.tum: .*No such file'),
    (['--video', '{data}/video.mp4', '--groundtruth', '{data}/camera.json'], 'camera.json:1: has'),
    (['--video', '{data}/video.mp4', '--groundtruth', '{data}/truth.tum', '--depth', '{data}/depth'], 'give both'),
    (['--video', '{data}/video.mp4', '--groundtruth', '{data}/truth.tum', '--intrinsics', '{data}/truth.tum'],
     'is no intrinsics file'),
    (['--video', '{data}/video.mp4', '--groundtruth', '{data}/truth.tum', '--intrinsics', '{data}/camera.json',
      '--depth', '{data}'], 'holds no depth images'),
    (['--video', '{data}/video.mp4', '--groundtruth', '{data}/truth.tum', '--json', '/none/out.json'],
     'no folder /none'),
    (['--video', '{data}/video.mp4', '--groundtruth', '{data}/truth.tum', '--engine', 'slam3r',
      '--checkpoints', '/nowhere'], 'weights download|pip install'),
])
def test_bad_input_is_one_line_and_status_1(data, words, reason, capsys):
    import re

    assert command([word.format(data=data) for word in words]) == 1
    error = capsys.readouterr().err
    assert re.search(reason, error) and error.count('\n') == 1


def test_warped_depth_agrees_with_the_scene(data):
    camera = Camera(data / 'camera.json')
    poses = [Pose(i, i * 10**9 // FPS, true_pose(i)) for i in range(FRAMES)]
    images = DepthImages(data / 'depth', camera, poses)
    grid = CAMERA.scaled(GRID[0] / WIDTH, GRID[1] / HEIGHT)
    pointmap = np.zeros((GRID[1], GRID[0], 3), np.float32)
    seen, exact = images.seen_by(Keyframe(Pose(13, 13 * 10**9 // FPS, np.eye(4)), grid, pointmap))
    expected, _ = true_depth(true_pose(13), grid, *GRID)
    assert not exact and (seen > 0).mean() > 0.85
    np.testing.assert_allclose(seen[seen > 0], expected[seen > 0], rtol=0.02)
    assert DepthImages(data / 'depth', camera, poses[:5]).seen_by(Keyframe(poses[13], grid, pointmap)) is None


def test_what_is_near_hides_what_is_behind(data, tmp_path):
    camera = Camera(data / 'camera.json')
    depth = np.full((HEIGHT, WIDTH), 4000, np.uint16)
    depth[:, 48:80] = 1000  # a post
    cv2.imwrite(str(tmp_path / '000000.png'), depth)
    here, aside = np.eye(4), rigid(np.eye(3), np.array([0.1, 0, 0]))
    poses = [Pose(0, 0, here), Pose(1, 10**9 // FPS, aside)]
    pointmap = np.zeros((HEIGHT, WIDTH, 3), np.float32)
    seen, _ = DepthImages(tmp_path, camera, poses).seen_by(Keyframe(poses[1], CAMERA, pointmap))
    # The post moves 11 pixels to the left, the wall 2.75: beside the post nobody knows what there is.
    row = seen[40]
    assert (row[38:68] == 1).all() and (row[:36] == 4).all() and (row[78:124] == 4).all()
    assert (row[70:76] == 0).all()


def test_a_grid_of_another_shape_is_cut_from_the_middle(data):
    camera = Camera(data / 'camera.json')
    square = Intrinsics(55.0, 55.0, 23.5, 23.5)  # the middle 96x96 at half size
    assert camera.on_image(square, 48, 48) == pytest.approx(CAMERA)
    assert camera.on_image(CAMERA.scaled(0.25, 0.25), 32, 24) == pytest.approx(CAMERA)


def test_cloud_distances():
    generator = np.random.default_rng(0)
    plane = np.column_stack([generator.uniform(0, 2, (20000, 2)), np.zeros(20000)])
    error = metrics.score_cloud(plane[plane[:, 0] < 1] + (0, 0, 0.03), plane)
    assert error.accuracy == pytest.approx(0.03, abs=0.003) and error.accuracy_share == 1
    assert error.completeness_share == pytest.approx(0.52, abs=0.02)
    assert metrics.score_cloud(np.empty((0, 3)), plane) is None


def test_too_little_to_align_is_none():
    still = [Pose(i, i, np.eye(4)) for i in range(9)]
    assert metrics.score_trajectory(still, still) is None
    assert metrics.score_trajectory(still[:2], still) is None
