# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""kill -9 while a map is saved: the files are the old ones or the new ones, whatever the moment."""

import signal
import subprocess
import sys

import pytest
import trimesh

from slam3r_ros.engines.geometric import storage
from slam3r_ros.engines.geometric.engine import GeometricEngine
from slam3r_ros.mapping.trajectory import read_tum

NAMES = ('map.npz', 'trajectory.tum', 'cloud.ply', 'mesh.ply', 'mesh.glb')

# Saves the new map over the old one, in one process after the other, each of which is killed one step later.
SAVER = """
import os, signal, sys
from pathlib import Path
import numpy as np
from slam3r_ros import files
from slam3r_ros.engines.geometric.engine import GeometricEngine
from slam3r_ros.mapping.trajectory import write_tum
from slam3r_ros.meshing.export import write_cloud, write_mesh

folder, given = Path(sys.argv[1]), sys.argv[2]
engine = GeometricEngine(dense=False)
engine.load(given)

def save(folder, size):
    folder.mkdir(exist_ok=True)
    points = size * np.float32([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    colors = np.full((4, 3), 100, np.uint8)
    with files.written_together(folder) as folder:
        engine.save(folder / 'map.npz')
        write_tum(folder / 'trajectory.tum', engine.trajectory())
        write_cloud(folder / 'cloud.ply', points, colors)
        for name in ('mesh.ply', 'mesh.glb'):
            write_mesh(folder / name, points, colors, [[0, 1, 2], [0, 2, 3]])

save(folder / 'old', 1)
engine.set_scale(2.0)
save(folder / 'new', 2)

class Doomed:
    'The module os, in which every call is a step; the last one is never made.'
    steps = 0

    def __getattr__(self, name):
        real = getattr(os, name)
        if not callable(real):
            return real
        def call(*args, **kwargs):
            self.step()
            return real(*args, **kwargs)
        return call

    def step(self):
        self.steps += 1
        if self.steps == self.last:
            os.kill(os.getpid(), signal.SIGKILL)

class DoomedFile:
    'Half of what is written is there before the step, half behind it.'
    def __init__(self, path, mode):
        self.file = open(path, mode)
        files.os.step()
    def __enter__(self):
        return self
    def __exit__(self, *error):
        self.file.close()
    def write(self, data):
        data = bytes(data)
        self.file.write(data[:len(data) // 2])
        self.file.flush()
        files.os.step()
        self.file.write(data[len(data) // 2:])
    def __getattr__(self, name):
        return getattr(self.file, name)

files.os, files.open = Doomed(), DoomedFile
print('ready', flush=True)
for line in sys.stdin:
    files.os.last = int(line)
    child = os.fork()
    if child == 0:
        save(folder / 'map', 2)
        os._exit(0)
    print(os.waitpid(child, 0)[1], flush=True)
"""


@pytest.fixture(scope='module')
def map_file(tmp_path_factory):
    """Return a small map."""
    from geometric_scenes import Room, stream, walk

    engine, room = GeometricEngine(max_features=350, dense=False), Room()
    for frame in stream([room.render(T) for T in walk(0, 0.07, 25)]):
        engine.process(frame)
    path = tmp_path_factory.mktemp('maps') / 'map.npz'
    engine.save(path)
    return path


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith('.')}


def test_killed_at_each_step_of_a_save_the_files_are_all_old_or_all_new(map_file, tmp_path):
    saver = subprocess.Popen(
        [sys.executable, '-c', SAVER, str(tmp_path), str(map_file)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert saver.stdout.readline() == 'ready\n'
        old, new, folder = contents(tmp_path / 'old'), contents(tmp_path / 'new'), tmp_path / 'map'
        assert sorted(old) == sorted(new) == sorted(NAMES)
        assert all(old[name] != new[name] for name in NAMES)
        folder.mkdir()
        steps, replaced, mixtures = 0, set(), 0
        while len(replaced) < len(NAMES):
            steps += 1
            for name in NAMES:
                (folder / name).write_bytes(old[name])
            saver.stdin.write(f'{steps}\n')
            saver.stdin.flush()
            status = int(saver.stdout.readline())
            found = contents(folder)
            assert sorted(found) == sorted(NAMES)
            assert all(found[name] in (old[name], new[name]) for name in NAMES), steps
            replaced = {name for name in NAMES if found[name] == new[name]}
            mixtures += 0 < len(replaced) < len(NAMES)
            assert status == signal.SIGKILL
        assert steps > 5 * len(NAMES)  # open, write, fsync, replace, fsync of the folder
        assert mixtures == len(NAMES) - 1  # one rename follows the other
    finally:
        saver.kill()
        saver.communicate()
    for name, read in {
        'map.npz': storage.load,
        'trajectory.tum': read_tum,
        'cloud.ply': trimesh.load,
        'mesh.ply': trimesh.load,
        'mesh.glb': trimesh.load,
    }.items():
        assert read(tmp_path / 'map' / name)
