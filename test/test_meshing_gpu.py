# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The mesher on CUDA: its results are those of the plain NumPy twin, bit for bit.

Every test runs twice: `emulated`, everywhere, with the kernels' own source compiled by g++ (see `cuda_on_cpu`), and
on the `hardware`, where CuPy finds a GPU.  There, `python -m pytest -rs test/test_meshing_gpu.py` needs numpy, scipy,
CuPy and pytest, and torch for one test.
"""

import shutil
import subprocess
import sys
import time
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import ModuleType
from unittest.mock import Mock

import numpy as np
import pytest
from cuda_on_cpu import CudaTensor, fake_cupy
from meshing_scenes import CAMERA, HEIGHT, WIDTH, keyframe, look_at, random_blocks, room_depth, room_poses

from slam3r_ros.mapping.frames import invert, rigid
from slam3r_ros.meshing import reference
from slam3r_ros.meshing.backend import DeviceError, choose
from slam3r_ros.meshing.lattice import unpack
from slam3r_ros.meshing.mesher import BlockMesher
from slam3r_ros.meshing.tsdf import view_of
from slam3r_ros.values import Intrinsics, Pose

VOXEL = 0.05
ROOT = Path(__file__).parents[1]
MODULE = 'slam3r_ros.meshing.kernels_gpu'


@pytest.fixture(scope='module', params=['emulated', 'hardware'])
def cuda(request, tmp_path_factory):
    """The kernels of the GPU."""
    if request.param == 'hardware':
        try:
            choose('cuda')
        except DeviceError as error:
            pytest.skip(str(error))
        yield import_module(MODULE)
    else:
        if shutil.which('g++') is None:
            pytest.skip('there is no g++ to compile the kernels for the CPU')
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(sys.modules, 'cupy', fake_cupy(tmp_path_factory.mktemp('kernels')))
            sys.modules.pop(MODULE, None)
            yield import_module(MODULE)
    sys.modules.pop(MODULE, None)


def moved(frame, shift, revision=0):
    pose = replace(frame.pose, T_map_camera=rigid(np.eye(3), np.array(shift)) @ frame.pose.T_map_camera)
    return replace(frame, pose=pose, revision=revision)


def room_frame(id=0, count=5):
    pose, random = room_poses(count)[id], np.random.default_rng(id)
    depth = room_depth(pose) * random.normal(1, 0.01, (HEIGHT, WIDTH))
    return keyframe(depth, pose, id=id, confidence=random.uniform(0, 1, (HEIGHT, WIDTH)))


def assert_same(ours, theirs):
    for one, other in zip(ours, theirs, strict=True):
        assert one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()


def camera(T):
    return np.concatenate((CAMERA, T[:3].ravel()))


def test_view_is_that_of_the_twin(cuda):
    frame = room_frame()
    frame.pointmap[:5] = [[[np.nan] * 3], [[np.inf] * 3], [[1, 1, -1]], [[0, 0, 1000]], [[0, 0, 5]]]
    frame.confidence[6:8] = [[np.nan], [np.inf]]
    for colors in (frame.colors, None):
        ours, our_far = view_of(replace(frame, colors=colors), VOXEL, cuda)
        theirs, their_far = view_of(replace(frame, colors=colors), VOXEL, reference)
        assert_same(map(cuda.xp.asnumpy, ours[:3]), theirs[:3])
        assert our_far == their_far == WIDTH


def test_band_is_that_of_the_twin(cuda):
    frame = room_frame()
    frame.pointmap[:10] *= 0.05  # the band begins behind the camera
    frame.confidence[10:] *= np.arange(WIDTH) > 20  # else without depth
    for far in (0, 4e5, 6e5, 1e12):  # the lattice ends at 419430
        T = rigid(frame.pose.T_map_camera[:3, :3], (0, far, far))  # at a corner of blocks: others lie behind
        ours, theirs = view_of(frame, VOXEL, cuda)[0], view_of(frame, VOXEL, reference)[0]
        keys = cuda.band_keys(ours.depth, ours.weight, camera(T), 8 * VOXEL, 4 * VOXEL)
        twins = reference.band_keys(theirs.depth, theirs.weight, camera(T), 8 * VOXEL, 4 * VOXEL)
        assert_same([keys], [twins])
        assert len(keys) == 0 if far > 5e5 else len(keys) > 20


@pytest.mark.parametrize('max_weight', [10000, 300])
def test_fuse_is_that_of_the_twin(cuda, max_weight):
    frames = [room_frame(id, 20) for id in range(3)]
    views = [[view_of(frame, VOXEL, kernels)[0] for frame in frames] for kernels in (cuda, reference)]
    keys = np.unique(np.concatenate([
        reference.band_keys(view.depth, view.weight, camera(view.T_map_camera), 8 * VOXEL, 4 * VOXEL)
        for view in views[1]]))
    slots = np.random.default_rng(1).permutation(len(keys))
    sums = [kernels.xp.zeros((len(keys), 512, 5), np.int32) for kernels in (cuda, reference)]
    for i, sign in ((0, 1), (1, 1), (2, 1), (1, -1), (0, -1)):
        ours, theirs = [
            kernels.fuse(sums[n], slots, unpack(keys), *views[n][i][:3], camera(invert(views[n][i].T_map_camera)),
                         VOXEL, 4 * VOXEL, sign, max_weight) for n, kernels in enumerate((cuda, reference))]
        assert_same(ours, theirs)
        assert_same([cuda.xp.asnumpy(sums[0])], [sums[1]])
    assert 0 < ours[0].sum() < len(keys) and sums[1][..., 0].max() > 250
    assert 0 < ours[1].sum() < ours[1].size


@pytest.mark.parametrize('min_weight', [1, 30])
def test_extraction_is_that_of_the_twin(cuda, min_weight):
    sums, slots, indices = random_blocks()
    ours = cuda.march(cuda.xp.asarray(sums), slots, indices, VOXEL, min_weight)
    theirs = reference.march(sums, slots, indices, VOXEL, min_weight)
    assert_same(ours, theirs)
    assert len(ours[2]) > 50 and (slots < 0).any()


def test_updates_are_those_of_the_twin(cuda):
    """With revisions, a volume and a ring too small, and a reset."""
    random = np.random.default_rng(0)
    meshers = [BlockMesher(VOXEL, max_blocks=100, min_weight=0.1, device=device) for device in ('cuda', 'numpy')]
    for step in range(15):
        id = step - step % 3 * random.integers(2)  # of three, some are revisions of one of the two before
        frame = moved(room_frame(id % 5), random.normal(0, 0.05, 3), revision=step)
        frame = replace(frame, pose=replace(frame.pose, id=int(id)))
        for mesher in meshers:
            if step == 9:
                mesher.reset(0)
            mesher.integrate(frame)
        ours, theirs = (mesher.update() for mesher in meshers)
        assert [block.index for block in ours.blocks] == [block.index for block in theirs.blocks]
        for one, other in zip(ours.blocks, theirs.blocks, strict=True):
            assert_same(one[1:], other[1:])
        assert meshers[0].counters == meshers[1].counters
    assert meshers[0].counters['dropped'] > 0 and meshers[0].counters['late'] == 0 and len(meshers[0].mesh()[2]) > 1000
    assert meshers[0].device == 'cuda' and isinstance(meshers[0].volume.sums, cuda.xp.ndarray)


@pytest.mark.parametrize('kind', ['CuPy', 'torch'])
def test_arrays_of_the_gpu_are_taken_where_they_lie(cuda, kind):
    """Such arrays refuse to be read by NumPy, so that a detour by the host would raise."""
    frame = room_frame()
    if kind == 'CuPy':
        move = cuda.xp.asarray
    elif cuda.xp.__version__ == 'on the CPU':
        move = CudaTensor
    else:
        torch = pytest.importorskip('torch')
        if not torch.cuda.is_available():
            pytest.skip('this torch does not see the GPU')
        move = lambda array: torch.from_numpy(array).cuda()
    arrays = {name: move(getattr(frame, name)) for name in ('pointmap', 'confidence', 'colors')}
    for array in arrays.values():
        assert pointer(cuda.as_array(array)) == pointer(array)
    view, _ = view_of(replace(frame, **arrays), VOXEL, cuda)
    assert_same(map(cuda.xp.asnumpy, view[:3]), view_of(frame, VOXEL, reference)[0][:3])


def pointer(array):
    """Return where an array of the GPU lies."""
    if hasattr(array, 'data_ptr'):  # torch
        return array.data_ptr()
    return array.ctypes.data if hasattr(array, 'ctypes') else array.data.ptr


@pytest.mark.parametrize('layout', ['transposed', 'read-only', 'double', 'torch'])
def test_arrays_of_the_host_are_taken(cuda, layout):
    frame = room_frame()
    if layout == 'torch':
        torch = pytest.importorskip('torch')
    change = {'transposed': lambda array: np.asfortranarray(array), 'double': lambda array: array.astype(float),
              'torch': lambda array: torch.from_numpy(array), 'read-only': lambda array: array}[layout]
    arrays = {name: change(getattr(frame, name)) for name in ('pointmap', 'confidence', 'colors')}
    if layout == 'read-only':
        for array in arrays.values():
            array.setflags(write=False)
    view, _ = view_of(replace(frame, **arrays), VOXEL, cuda)
    assert all(array.flags.c_contiguous for array in view[:3])
    assert_same(map(cuda.xp.asnumpy, view[:3]), view_of(frame, VOXEL, reference)[0][:3])


@pytest.mark.parametrize('spoil', [
    lambda frame: replace(frame, pointmap=np.full_like(frame.pointmap, np.nan)),
    lambda frame: replace(frame, confidence=np.zeros_like(frame.confidence)),
    lambda frame: replace(frame, pointmap=frame.pointmap * 1000),
    lambda frame: replace(frame, pointmap=frame.pointmap[:0], confidence=frame.confidence[:0], colors=frame.colors[:0]),
    lambda frame: replace(frame, pose=Pose(frame.id, 0, np.zeros((4, 4)))),
], ids=['nan', 'unsure', 'far', 'no pixels', 'singular pose'])
def test_bad_keyframes_add_nothing(cuda, spoil):
    mesher = BlockMesher(VOXEL, max_blocks=100, device='cuda')
    mesher.integrate(spoil(room_frame()))
    assert mesher.counters['blocks'] == 0 and mesher.update() is None and not len(mesher.mesh()[0])


@pytest.mark.parametrize('cupy', ['absent', 'without a driver', 'without a word'])
def test_without_a_gpu_there_is_the_cpu_and_a_reason(cupy, monkeypatch):
    broken = None  # importing it raises
    if cupy != 'absent':
        broken, said = ModuleType('cupy'), ['no driver\nmore'] if cupy == 'without a driver' else []
        broken.__version__, broken.arange = '13.6', Mock(side_effect=RuntimeError(*said))
    monkeypatch.setitem(sys.modules, 'cupy', broken)
    assert choose('auto') == 'cpu' and choose('numpy') == 'numpy'
    cause = 'CuPy cannot be imported' if cupy == 'absent' else 'CuPy 13.6 fails with RuntimeError'
    with pytest.raises(DeviceError, match=f"'cuda' cannot be used: {cause}.*take 'cpu'"):
        BlockMesher(VOXEL, device='cuda')


def test_no_such_device():
    with pytest.raises(DeviceError, match='auto, cuda, cpu and numpy'):
        choose('tpu')


def test_a_device_needs_nothing_of_the_others():
    code = (f'import sys; sys.modules.update(numba=None, cupy=None); sys.path.insert(0, {str(ROOT)!r}); '
            'from slam3r_ros.meshing.mesher import BlockMesher; BlockMesher(device="numpy")')
    subprocess.run([sys.executable, '-c', code], check=True)


@pytest.mark.skipif(shutil.which('nvcc') is None, reason='there is no nvcc')
def test_the_compiler_of_cuda_takes_the_kernels_as_they_are(cuda, tmp_path):
    """Without contraction: fused multiply-adds would round otherwise than the twin."""
    (tmp_path / 'kernels.cu').write_text(cuda.source())
    subprocess.run(['nvcc', '-ptx', '--fmad=false', '-Werror', 'all-warnings', 'kernels.cu'], cwd=tmp_path, check=True)
    code = (tmp_path / 'kernels.ptx').read_text()
    assert code.count('.entry') == 6 and 'mul.rn.f64' in code and 'fma.' not in code


def test_a_keyframe_takes_less_than_five_milliseconds(cuda, capsys):
    """Integrated and meshed, of 224 x 224 pixels at 5 cm in a room of 6 m by 5 m."""
    if cuda.xp.__version__ == 'on the CPU':
        pytest.skip('a figure of the hardware')
    torch = pytest.importorskip('torch')
    lens = Intrinsics(200.0, 200.0, 111.5, 111.5)
    v, u = np.mgrid[:224, :224]
    local = np.stack(((u - lens.cx) / lens.fx, (v - lens.cy) / lens.fy, np.ones(u.shape)), axis=-1)
    mesher, seconds = BlockMesher(0.05, device='cuda'), []
    for id in range(300):
        angle = id * 0.13
        pose = look_at((0, 0, 0), (np.cos(angle), np.sin(angle), 0.3 * np.sin(angle * 5)))
        with np.errstate(divide='ignore'):
            depth = np.min([3, 2.5, 1.3] / np.abs(local @ pose[:3, :3].T), axis=-1)
        depth *= np.random.default_rng(id).normal(1, 0.01, depth.shape)
        frame = keyframe(np.ones((224, 224)), pose, id=id)
        pointmap, confidence, colors = (torch.from_numpy(array).cuda() for array in (
            (local * depth[..., None]).astype(np.float32), frame.confidence, frame.colors))
        frame = replace(frame, intrinsics=lens, pointmap=pointmap, confidence=confidence, colors=colors)
        torch.cuda.synchronize()
        start = time.perf_counter()
        mesher.integrate(frame)
        assert mesher.update().blocks
        seconds.append(time.perf_counter() - start)
    median = np.median(seconds[50:])
    with capsys.disabled():
        print(f'\na keyframe of 224 x 224 integrated and meshed in {1000 * median:.2f} ms (median), '
              f'p95 {1000 * np.percentile(seconds[50:], 95):.2f} ms; {mesher.counters}')
    assert median < 0.005
