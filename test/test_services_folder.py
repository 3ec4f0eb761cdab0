# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A request can have files written below the folder for maps and nowhere else."""

import ast
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from nodes_stubs import StubEngine, images
from ros_helpers import ros_fixture  # noqa: F401

from slam3r_ros.engines.protocol import EngineError
from slam3r_ros.files import write_whole
from slam3r_ros.mapping.map_file import MapFileError, read_arrays
from slam3r_ros.meshing.export import ExportError
from slam3r_ros.nodes import mesher, slam3r
from slam3r_ros.nodes.mesher import Mesher
from slam3r_ros.nodes.saving import SaveError, files_to_write, in_map_folder, save
from slam3r_ros.nodes.slam3r import Slam3r
from slam3r_ros.srv import LoadMap, SaveMap
from slam3r_ros.values import Pose

PACKAGE = Path(__file__).parents[1] / 'slam3r_ros'
NAMES = ('map.npz', 'cloud.ply')


@pytest.fixture
def maps(tmp_path):
    """Return a folder for maps with links in it, and another folder that nobody may write to."""
    (tmp_path / 'maps').mkdir()
    (tmp_path / 'other').mkdir()
    (tmp_path / 'maps' / 'way_out').symlink_to(tmp_path / 'other')
    (tmp_path / 'maps' / 'way_in').symlink_to(tmp_path / 'maps')
    return tmp_path / 'maps'


@pytest.mark.parametrize('path', ['room', './a/b/../room', 'way_in/room', '{maps}/room', '{maps}/../maps/room', '.'])
def test_paths_below_the_folder_are_taken(maps, path):
    paths = files_to_write(SaveMap.Request(path=path.format(maps=maps)), NAMES, str(maps))
    assert [each.name for each in paths] == list(NAMES)
    assert all(each.parent.is_dir() and each.parent.is_relative_to(maps) for each in paths)


@pytest.mark.parametrize(
    'path', ['..', '../other', 'a/../../other', '/tmp', '/', '{maps}/..', '{maps}_too', 'way_out', 'way_out/new', '~']
)
def test_paths_that_lead_out_of_the_folder_are_refused(maps, path):
    before = sorted(maps.parent.rglob('*'))
    with pytest.raises(SaveError, match=f'is outside of {maps}; .* parameter map_folder'):
        files_to_write(SaveMap.Request(path=path.format(maps=maps)), NAMES, str(maps))
    assert sorted(maps.parent.rglob('*')) == before


def test_the_folder_for_maps_may_be_a_link_and_is_made_when_it_is_missing(maps):
    (maps.parent / 'link').symlink_to(maps)
    request = SaveMap.Request(path='room')
    assert files_to_write(request, NAMES, str(maps.parent / 'link'))[0] == maps / 'room' / 'map.npz'
    assert files_to_write(request, NAMES, str(maps.parent / 'new'))[0].parent.is_dir()


def test_links_in_the_place_of_files_are_replaced_not_followed(maps):
    victim = maps.parent / 'other' / 'victim'
    victim.write_bytes(b'dear')
    for target in (victim, maps.parent / 'other' / 'missing'):
        link = maps / 'map.npz'
        link.symlink_to(target)
        with pytest.raises(SaveError, match='is there already'):
            files_to_write(SaveMap.Request(path='.'), NAMES, str(maps))
        (path, _) = files_to_write(SaveMap.Request(path='.', overwrite=True), NAMES, str(maps))
        write_whole(path, b'map')
        assert not link.is_symlink() and link.read_bytes() == b'map' and victim.read_bytes() == b'dear'
        assert list((maps.parent / 'other').iterdir()) == [victim]
        link.unlink()


def test_a_link_planted_under_a_name_to_come_is_not_followed(maps, monkeypatch):
    victim = maps.parent / 'other' / 'victim'
    victim.write_bytes(b'dear')
    monkeypatch.setattr('secrets.token_hex', lambda count: 'guessed')
    (maps / '.map.npz.guessed.partial').symlink_to(victim)
    with pytest.raises(FileExistsError):
        write_whole(maps / 'map.npz', b'map')
    assert victim.read_bytes() == b'dear'


def test_maps_are_loaded_from_the_folder_and_elsewhere_by_their_whole_path(maps):
    assert in_map_folder('room', str(maps)) == maps / 'room'
    assert in_map_folder('/data/room', str(maps)) == Path('/data/room')


@pytest.mark.parametrize('what', ['pipe', 'folder', 'device'])
def test_what_is_no_file_is_not_opened(tmp_path, what):
    path = tmp_path / 'map.npz'
    {'pipe': lambda: os.mkfifo(path), 'folder': path.mkdir, 'device': lambda: path.symlink_to('/dev/zero')}[what]()
    with pytest.raises(MapFileError, match='map.npz is no file'):
        read_arrays(path, {})


def save_map(maps, metres, others=0, can_save=True, overwrite=True):
    """Save a map into the folder `room`: of one pose, so far from the origin, and of others that are not joined."""
    poses = [Pose(0, 0, np.diag([1.0, 1, 1, 1]) + metres * np.eye(4, k=3))]
    engine = SimpleNamespace(
        can_save=can_save, trajectory=lambda: poses, other_trajectories=lambda: [poses] * others,
        save=lambda path: write_whole(path, f'map {metres}'.encode()),
    )  # fmt: skip
    points = np.full((3, 3), metres, np.float32), np.zeros((3, 3), np.uint8)
    return save(engine, points, SaveMap.Request(path='room', overwrite=overwrite), str(maps))()['files']


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize('name', ['map.npz', 'trajectory.tum', 'cloud.ply'])
def test_a_full_disk_amid_a_save_leaves_the_whole_map_that_was_there(maps, monkeypatch, name):
    save_map(maps, 1)
    before, real = contents(maps / 'room'), os.fsync

    def fsync(number):
        if f'/.{name}.' in os.readlink(f'/proc/self/fd/{number}'):
            raise OSError(28, 'No space left on device')
        real(number)

    monkeypatch.setattr(os, 'fsync', fsync)
    with pytest.raises(SaveError, match=f'{maps}/room cannot be written to: No space left on device; make room, or'):
        save_map(maps, 2)
    assert contents(maps / 'room') == before
    monkeypatch.undo()
    save_map(maps, 2)
    after = contents(maps / 'room')
    assert sorted(after) == sorted(before) and all(after[each] != before[each] for each in before)


def test_the_map_that_was_there_goes_when_the_new_one_has_come(maps, monkeypatch):
    save_map(maps, 1, others=2)
    before = contents(maps / 'room')

    def replace(source, target):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr('slam3r_ros.files.os', SimpleNamespace(**vars(os) | {'replace': replace}))
    with pytest.raises(SaveError, match='what was there stays'):
        save_map(maps, 2, can_save=False)
    assert contents(maps / 'room') == before


@pytest.mark.parametrize('can_save', [True, False])
def test_nothing_of_the_map_before_stays_beside_the_new_one(maps, can_save):
    """`load_map` would take its map.npz for the new one's; what others keep there stays."""
    save_map(maps, 1, others=2)
    for name in ('notes.txt', 'trajectory_a.tum', 'mesh.ply'):
        (maps / 'room' / name).write_text('dear')
    files = save_map(maps, 2, others=1, can_save=can_save)
    written = {'trajectory.tum', 'trajectory_1.tum', 'cloud.ply'} | ({'map.npz'} if can_save else set())
    assert {Path(each).name for each in files} == written
    assert contents(maps / 'room').keys() == written | {'notes.txt', 'trajectory_a.tum', 'mesh.ply'}


def test_without_overwrite_nothing_of_another_map_goes(maps):
    (maps / 'room').mkdir()
    (maps / 'room' / 'trajectory_1.tum').write_text('dear')
    with pytest.raises(SaveError, match='trajectory_1.tum is there already; set overwrite'):
        save_map(maps, 1, overwrite=False)
    assert contents(maps / 'room') == {'trajectory_1.tum': b'dear'}


def test_a_folder_in_the_place_of_a_file_is_told_before_anything_is_written(maps):
    (maps / 'room' / 'cloud.ply').mkdir(parents=True)
    with pytest.raises(SaveError, match='cloud.ply is a folder; save to another one'):
        save_map(maps, 1)
    assert [each.name for each in (maps / 'room').iterdir()] == ['cloud.ply']


def test_both_nodes_write_below_the_folder_only(ros, maps, monkeypatch):
    class Engine(StubEngine):
        def load(self, path):
            raise EngineError(f'asked for {path}')

    engine = Engine()
    monkeypatch.setattr(slam3r, 'create_engine', engine.made)
    monkeypatch.setenv('SLAM3R_MAP_FOLDER', str(maps))
    nodes = [ros.node(Mesher, parameters={'mesh_min_weight': 0.0}), ros.node(Slam3r)]
    for frame in images():
        nodes[1].worker.call(nodes[1]._process, frame)
    nodes[0].worker.call(lambda: None)  # has got the keyframes
    client = ros.apart().node(node_name='client')
    for name in ('mesher', 'slam3r'):
        for path in ('../other', str(maps.parent / 'other'), 'way_out'):
            answer = ros.call(client, SaveMap, f'/{name}/save_map', SaveMap.Request(path=path))
            assert not answer.success and f'{path} is outside of {maps}' in answer.message
        answer = ros.call(client, SaveMap, f'/{name}/save_map', SaveMap.Request(path='room'))
        assert answer.success, answer.message
        assert {Path(each).parent for each in answer.files} == {maps / 'room'}
    assert not list((maps.parent / 'other').iterdir())
    answer = ros.call(client, LoadMap, '/slam3r/load_map', LoadMap.Request(path='room'))
    assert answer.message == f'asked for {maps / "room" / "map.npz"}'


def test_a_mesh_is_saved_in_both_forms_or_in_none(ros, maps, monkeypatch):
    monkeypatch.setenv('SLAM3R_MAP_FOLDER', str(maps))
    monkeypatch.setattr(slam3r, 'create_engine', StubEngine().made)
    nodes = [ros.node(Mesher, parameters={'mesh_min_weight': 0.0}), ros.node(Slam3r)]
    for frame in images():
        nodes[1].worker.call(nodes[1]._process, frame)
    nodes[0].worker.call(lambda: None)  # has got the keyframes
    real = mesher.write_mesh

    def write(path, *mesh):
        if path.suffix == '.glb':
            raise ExportError(f'{path}: cannot be written') from OSError(28, 'No space left on device')
        real(path, *mesh)

    monkeypatch.setattr(mesher, 'write_mesh', write)
    client = ros.apart().node(node_name='client')
    answer = ros.call(client, SaveMap, '/mesher/save_map', SaveMap.Request(path='room'))
    assert not answer.success and f'{maps}/room cannot be written to: No space left on device' in answer.message
    assert list((maps / 'room').iterdir()) == []


def test_nothing_is_ever_unpickled():
    """A pickle runs what its author likes.  PyTorch's reader of weights alone knows plain types only."""
    forbidden = {'pickle', '_pickle', 'cPickle', 'dill', 'cloudpickle', 'joblib', 'shelve', 'marshal'}
    for path in PACKAGE.rglob('*.py'):
        for node in ast.walk(ast.parse(path.read_text())):
            where = f'{path}:{getattr(node, "lineno", 0)}'
            if isinstance(node, ast.Import):
                assert not {each.name.partition('.')[0] for each in node.names} & forbidden, where
            elif isinstance(node, ast.ImportFrom) and (node.module or '').partition('.')[0] in forbidden:
                assert [each.name for each in node.names] == ['UnpicklingError'], where
            elif isinstance(node, ast.Call):
                given = {each.arg: ast.unparse(each.value) for each in node.keywords}
                assert given.get('allow_pickle', 'False') == 'False', where
                if ast.unparse(node.func) == 'torch.load':
                    assert given.get('weights_only') == 'True', where
