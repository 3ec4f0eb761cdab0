# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A request can have files written below the folder for maps and nowhere else."""

import ast
import os
from pathlib import Path

import pytest
from nodes_stubs import StubEngine, images
from ros_helpers import ros_fixture  # noqa: F401

from slam3r_ros.engines.protocol import EngineError
from slam3r_ros.files import write_whole
from slam3r_ros.mapping.map_file import MapFileError, read_arrays
from slam3r_ros.nodes import slam3r
from slam3r_ros.nodes.mesher import Mesher
from slam3r_ros.nodes.saving import SaveError, files_to_write, in_map_folder
from slam3r_ros.nodes.slam3r import Slam3r
from slam3r_ros.srv import LoadMap, SaveMap

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
