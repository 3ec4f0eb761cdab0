# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`slam3r weights` and what is found, with a hub of our own; none of it needs torch."""

import argparse
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from slam3r_ros.engines import create_engine
from slam3r_ros.engines.protocol import EngineError
from slam3r_ros.engines.slam3r import download
from slam3r_ros.engines.slam3r.weights import I2P, L2W, VARIABLE, CheckpointError, available, find

ROOT = Path(__file__).resolve().parents[1]
SIZE = 25_000_000  # bytes; several of the chunks that huggingface_hub writes
CONTENT = np.random.default_rng(0).bytes(SIZE)
CLIENT = """
import dataclasses, sys
from pathlib import Path
from slam3r_ros.engines.slam3r import download
download.I2P, download.L2W = (dataclasses.replace(kind, size=int(sys.argv[2])) for kind in (download.I2P, download.L2W))
try:
    download.download(Path(sys.argv[1]), accepted=True)
except download.CheckpointError as error:
    sys.exit(str(error))
"""


class Hub(ThreadingHTTPServer):
    """Serves `CONTENT` for every file; breaks off after `patience` bytes, and answers nothing more until mended."""

    daemon_threads = True

    def __init__(self):
        super().__init__(('127.0.0.1', 0), Handler)
        self.patience: int | None = None
        self.broken = False
        self.asked: list[tuple[str, str | None]] = []  # path and range


class Handler(BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.send_response(200)
        self.send_header('X-Repo-Commit', '0' * 40)
        self.send_header('ETag', '"0123456789abcdef0123"')
        self.send_header('Content-Length', str(SIZE))
        self.end_headers()

    def do_GET(self):
        hub, wanted = self.server, self.headers.get('Range')
        if '/resolve/' not in self.path:  # huggingface_hub asks for other things too
            self.send_error(404)
            return
        hub.asked.append((self.path, wanted))
        if hub.broken:
            self.send_error(503)
            return
        start = int(wanted.removeprefix('bytes=').split('-')[0]) if wanted else 0
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header('Content-Range', f'bytes {start}-{SIZE - 1}/{SIZE}')
        self.send_header('Content-Length', str(SIZE - start))
        self.end_headers()
        self.wfile.write(CONTENT[start : hub.patience])
        hub.broken = hub.patience is not None

    def log_message(self, *words):
        pass


@pytest.fixture
def hub():
    pytest.importorskip('huggingface_hub')
    with Hub() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def fetch(hub, folder, size=SIZE):
    environment = {name: value for name, value in os.environ.items() if not name.lower().endswith('_proxy')}
    environment |= {
        'HF_ENDPOINT': f'http://127.0.0.1:{hub.server_address[1]}',
        'HF_HOME': str(folder / 'home'),
        'TQDM_POSITION': '-1',  # a progress bar without a terminal too
        'PYTHONPATH': os.pathsep.join([str(ROOT), *filter(None, [os.environ.get('PYTHONPATH')])]),
    }
    return subprocess.run(
        [sys.executable, '-c', CLIENT, folder, str(size)], env=environment, check=False, capture_output=True, text=True
    )


def test_a_download_goes_on_where_it_was_cut(hub, tmp_path):
    hub.patience = 22_000_000
    cut = fetch(hub, tmp_path)
    assert cut.returncode == 1 and 'goes on where it stopped' in cut.stderr.splitlines()[-1]
    assert 'Traceback' not in cut.stderr
    assert not list(tmp_path.rglob('model.safetensors'))
    (part,) = tmp_path.rglob('*.part')
    size = part.stat().st_size
    assert size > 0 and part.read_bytes() == CONTENT[:size]

    hub.patience, hub.broken, hub.asked = None, False, []
    whole = fetch(hub, tmp_path)
    assert whole.returncode == 0, whole.stderr
    assert 'CC BY-NC-SA 4.0' in whole.stdout and '100%' in whole.stderr
    assert hub.asked == [
        (f'/{I2P.repository}/resolve/main/model.safetensors', f'bytes={size}-'),
        (f'/{L2W.repository}/resolve/main/model.safetensors', None),
    ]
    for kind in (I2P, L2W):
        assert (tmp_path / kind.name / 'model.safetensors').read_bytes() == CONTENT
    assert not list(tmp_path.rglob('*.part'))

    hub.asked = []
    assert fetch(hub, tmp_path).returncode == 0 and not hub.asked  # what is there is not fetched again


def test_a_file_of_another_size_is_not_downloaded(hub, tmp_path):
    refused = fetch(hub, tmp_path, size=1000)
    assert refused.returncode == 1 and f'offers {SIZE} bytes, 1000 were published' in refused.stderr
    assert not hub.asked and not list(tmp_path.rglob('*.safetensors*'))


def test_a_hub_out_of_reach_is_named(hub, tmp_path):
    hub.server_address = ('127.0.0.1', 1)
    failed = fetch(hub, tmp_path)
    assert failed.returncode == 1 and 'Traceback' not in failed.stderr
    assert f'{I2P.repository} cannot be downloaded' in failed.stderr


def command(*words):
    parser = argparse.ArgumentParser()
    download.add_arguments(parser)
    return download.main(parser.parse_args(words))


@pytest.mark.parametrize('answer', ['', 'n', 'no', None])
def test_nothing_is_downloaded_without_consent(answer, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(download, '_fetch', lambda *args: pytest.fail('downloaded'))
    monkeypatch.setattr('sys.stdin.isatty', lambda: answer is not None, raising=False)
    monkeypatch.setattr('builtins.input', lambda prompt: answer)
    assert command('download', '--dir', str(tmp_path)) == 1
    printed = capsys.readouterr()
    assert 'CC BY-NC-SA 4.0' in printed.out and '--accept-license' in printed.err


@pytest.mark.parametrize('consent', ['y', 'Yes ', '--accept-license'])
def test_consent_is_given_by_word_or_by_option(consent, tmp_path, monkeypatch):
    fetched = []
    monkeypatch.setattr(download, '_fetch', lambda published, path: fetched.append((published, path)))
    monkeypatch.setattr('sys.stdin.isatty', lambda: True, raising=False)
    monkeypatch.setattr('builtins.input', lambda prompt: consent)
    download.download(tmp_path, accepted=consent.startswith('--'))
    assert fetched == [(kind, tmp_path / kind.name / 'model.safetensors') for kind in (I2P, L2W)]


def test_weights_are_found(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    assert not available()
    with pytest.raises(CheckpointError, match='slam3r weights download'):
        find(I2P)
    for place in ('slam3r_i2p/model.safetensors', 'slam3r_l2w.pth'):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / place).touch()
    assert find(I2P) == tmp_path / 'slam3r_i2p/model.safetensors' and find(L2W) == tmp_path / 'slam3r_l2w.pth'
    assert available() and not available(tmp_path / 'elsewhere')


def test_auto_without_weights_never_imports_torch(tmp_path):
    """Nor does the engine that it makes."""
    script = 'import sys; from slam3r_ros.engines import create_engine; ' \
        f'print(create_engine("auto", {str(tmp_path)!r}).name, "torch" in sys.modules)'  # fmt: skip
    pytest.importorskip('numba')
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get('PYTHONPATH')])])
    environment = os.environ | {'PYTHONPATH': path}
    printed = subprocess.run(
        [sys.executable, '-c', script], env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert printed.split() == ['geometric', 'False']


@pytest.fixture
def without_torch(monkeypatch):
    monkeypatch.setitem(sys.modules, 'torch', None)
    for name in ('engine', 'checkpoints'):
        monkeypatch.delitem(sys.modules, f'slam3r_ros.engines.slam3r.{name}', raising=False)


def test_auto_takes_what_the_packages_allow(without_torch, tmp_path, caplog):
    """Weights without torch give the geometric engine; asking for slam3r says what is missing."""
    pytest.importorskip('numba')
    for kind in (I2P, L2W):
        (tmp_path / f'{kind.name}.safetensors').touch()
    assert create_engine('auto', str(tmp_path)).name == 'geometric'
    assert 'torch' in caplog.text and 'taking geometric' in caplog.text
    with pytest.raises(EngineError, match=r'pip install slam3r_ros\[slam3r\]'):
        create_engine('slam3r', str(tmp_path))


def test_a_check_without_torch_says_so(without_torch, tmp_path, capsys):
    assert command('check', '--dir', str(tmp_path)) == 1
    assert 'pip install slam3r_ros[slam3r]' in capsys.readouterr().err
