# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A full GPU, simulated: kernels that refuse to run beside a volume that is too large."""

import logging
import sys
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
from test_meshing_gpu import VOXEL, assert_same, cuda, moved, room_frame  # noqa: F401 - a fixture

from slam3r_ros.meshing import tsdf
from slam3r_ros.meshing.backend import DeviceError
from slam3r_ros.meshing.mesher import BlockMesher

ROOM = 2000  # blocks beside which there is memory to work


class OutOfMemoryError(MemoryError):
    """CuPy's is such a one."""


@pytest.fixture
def gpu(cuda, monkeypatch):  # noqa: F811
    """Notes how often the pool was freed; `full` names the functions that fail beside a large volume or torch."""
    gpu = SimpleNamespace(full=set(), freed=0, room=ROOM, torch_fills_it=False)
    torch = SimpleNamespace(is_initialized=lambda: True, empty_cache=lambda: gpu.torch_fills_it and gpu.full.clear())
    monkeypatch.setitem(sys.modules, 'torch', SimpleNamespace(cuda=torch, Tensor=int))
    pool = SimpleNamespace(free_all_blocks=lambda: setattr(gpu, 'freed', gpu.freed + 1))
    monkeypatch.setattr(cuda.xp, 'get_default_memory_pool', lambda: pool, raising=False)

    def watch(owner, name, function):
        def watched(*arguments, **options):
            volume = gpu.mesher.volume if 'mesher' in vars(gpu) else None
            nothing = name == '_free' and not arguments[1]
            if name in gpu.full and volume and not nothing and (volume.sums is None or volume.max_blocks > gpu.room):
                raise OutOfMemoryError('Out of memory allocating 4,194,304 bytes')
            return function(*arguments, **options)

        monkeypatch.setattr(owner, name, watched)

    for name in ('band_keys', 'fuse', 'march', 'as_array'):
        watch(cuda, name, getattr(cuda, name))
    watch(tsdf.BlockVolume, '_free', tsdf.BlockVolume._free)
    return gpu


def stream(count=12):
    """Frames around a room; the last ones revise earlier ones."""
    frames = [room_frame(i, count) for i in range(count)]
    return frames + [moved(frame, [0.04, 0, 0], revision=1) for frame in frames[:4]]


def mesh_of(mesher):
    return sorted((block.index, *(array.tobytes() for array in block[1:])) for block in mesher.snapshot().blocks)


@pytest.mark.parametrize('what', ['band_keys', 'fuse', 'march', 'as_array', '_free'])
def test_a_full_device_halves_the_volume_and_the_mesh_is_the_same(gpu, caplog, what):
    """There are fewer blocks than half, so that none need go."""
    frames = stream()
    expected = BlockMesher(VOXEL, max_blocks=ROOM, device='cuda')
    gpu.mesher = mesher = BlockMesher(VOXEL, max_blocks=2 * ROOM, device='cuda')
    for number, frame in enumerate(frames):
        if number == 6:
            mesher.update()
            expected.update()
            gpu.full, gpu.freed = {what}, 0
        with caplog.at_level(logging.WARNING):
            mesher.integrate(frame)
        expected.integrate(frame)
    ours, theirs = mesher.update(), expected.update()
    assert gpu.freed >= 1 and mesher.volume.max_blocks == len(mesher.volume.sums) == ROOM
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 1 and 'allocating 4,194,304 bytes' in messages[0] and f'{ROOM} blocks' in messages[0]
    assert [block.index for block in ours.blocks] == [block.index for block in theirs.blocks]
    for one, other in zip(ours.blocks, theirs.blocks, strict=True):
        assert_same(one[1:], other[1:])
    assert mesh_of(mesher) == mesh_of(expected) and len(mesher.mesh()[2]) > 1000
    assert mesher.counters == expected.counters and mesher.counters['dropped'] == 0


def test_what_torch_gives_back_may_suffice(gpu, caplog):
    """Then nothing of the mesh need go."""
    frames = stream()
    gpu.mesher = mesher = BlockMesher(VOXEL, max_blocks=2 * ROOM, device='cuda')
    mesher.integrate(frames[0])
    gpu.torch_fills_it = True
    for number, what in enumerate(('as_array', 'band_keys', 'fuse'), 1):
        gpu.full.add(what)
        mesher.integrate(frames[number])
        assert not gpu.full
    assert mesher.volume.max_blocks == 2 * ROOM and len(mesher.update().blocks) and not caplog.records


@pytest.mark.parametrize('what', ['as_array', 'band_keys', 'fuse', '_free', 'band_keys of the new view'])
def test_after_a_revision_that_had_no_room_the_next_one_counts(gpu, monkeypatch, what):
    frames = stream()
    expected = BlockMesher(VOXEL, max_blocks=2 * ROOM, device='cuda')
    gpu.mesher = mesher = BlockMesher(VOXEL, max_blocks=2 * ROOM, device='cuda')
    for frame in frames[:4]:
        mesher.integrate(frame)
        expected.integrate(frame)
    remove, gpu.room = mesher.volume.remove, 0
    with monkeypatch.context() as patch, nullcontext() if what == '_free' else pytest.raises(DeviceError):
        if what == 'band_keys of the new view':
            patch.setattr(mesher.volume, 'remove', lambda *view: (remove(*view), gpu.full.add('band_keys')))
        else:
            gpu.full.add(what)
        mesher.integrate(moved(frames[0], [0.3, 0, 0], revision=1))
    gpu.full.clear()
    for each in mesher, expected:
        each.integrate(moved(frames[0], [0.04, 0, 0], revision=2))
    assert mesh_of(mesher) == mesh_of(expected) and mesher.counters['duplicates'] == 0


def test_what_is_longest_untouched_goes(gpu):
    frames = stream()
    gpu.mesher = mesher = BlockMesher(VOXEL, max_blocks=2 * ROOM, device='cuda')
    for frame in frames[:8]:
        mesher.integrate(frame)
    mesher.update()
    keys = list(mesher.volume.slots)
    gpu.full, gpu.room = {'fuse'}, len(keys) // 2
    mesher.volume.max_blocks = gpu.room * 2
    mesher.integrate(frames[8])
    volume = mesher.volume
    assert volume.max_blocks == gpu.room >= len(volume.slots) and volume.dropped > 0
    assert not set(keys[:100]) & volume.slots.keys()
    assert sorted(volume.slots.values()) == sorted(set(volume.slots.values())) and max(volume.slots.values()) < gpu.room
    update = mesher.update()
    assert any(not len(block.triangles) for block in update.blocks)
    assert any(len(block.triangles) for block in update.blocks)
    for frame in frames[9:]:
        mesher.integrate(frame)
    assert len(mesher.update().blocks)


@pytest.mark.parametrize('what', ['band_keys', 'fuse', 'march', 'as_array'])
def test_no_room_at_all_is_said_and_the_next_keyframes_go_in(gpu, what):
    frames = stream()
    gpu.mesher = mesher = BlockMesher(VOXEL, max_blocks=2 * ROOM, device='cuda')
    for frame in frames[:4]:
        mesher.integrate(frame)
    before = mesh_of(mesher)
    gpu.full, gpu.room = {what}, 0
    with pytest.raises(DeviceError, match='even for 2000 blocks.*allocating 4,194,304.*mesh_device:=cpu'):
        mesher.integrate(frames[4])
        mesher.update()
    gpu.full = set()
    mesher.integrate(frames[5])
    assert len(set(mesh_of(mesher)) & set(before)) > 10 and len(mesher.update().blocks)


def test_a_volume_that_cannot_even_be_halved_begins_anew(gpu, cuda, monkeypatch):  # noqa: F811
    frames = stream()
    gpu.mesher = mesher = BlockMesher(VOXEL, max_blocks=2 * ROOM, device='cuda')
    mesher.integrate(frames[0])
    zeros = cuda.xp.zeros

    def refuse(shape, dtype):
        if shape == (ROOM, tsdf.VOXELS, 5):
            raise OutOfMemoryError('Out of memory')
        return zeros(shape, dtype)

    monkeypatch.setattr(cuda.xp, 'zeros', refuse)
    gpu.full = {'fuse'}
    with pytest.raises(DeviceError, match='even for 64 blocks'):
        mesher.integrate(frames[1])
    mesher.integrate(frames[2])
    assert 0 < mesher.counters['blocks'] <= tsdf.FEWEST_BLOCKS and np.asarray(mesher.mesh()[2]).size
