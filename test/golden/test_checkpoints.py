# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Weights are loaded whole, from files of exactly the published sizes, or refused with a reason."""

import argparse
import hashlib
import json
import math
import os
import pickle
import struct

import pytest

torch = pytest.importorskip('torch', reason='the networks need torch')
from golden import SUBSET
from safetensors.torch import save_file

from slam3r_ros.engines.slam3r import checkpoints, download
from slam3r_ros.engines.slam3r.checkpoints import Report, load
from slam3r_ros.engines.slam3r.weights import I2P, L2W, CheckpointError

BOTH = pytest.mark.parametrize('published', [I2P, L2W], ids=lambda published: published.name)


@pytest.fixture
def weights(i2p, l2w):
    return {
        I2P: {key: value.clone() for key, value in i2p.state_dict().items()},
        L2W: {key: value.clone() for key, value in l2w.state_dict().items()},
    }


@pytest.fixture
def saved(tmp_path, weights):
    def save(published, changed=None, suffix='.safetensors'):
        path = tmp_path / f'{published.name}{suffix}'
        content = changed if changed is not None else weights[published]
        save_file(content, path) if suffix == '.safetensors' else torch.save({'model': content}, path)
        return path

    return save


@BOTH
@pytest.mark.parametrize('suffix', ['.safetensors', '.pth'])
def test_every_weight_arrives(published, suffix, saved, weights, config):
    path = saved(published, suffix=suffix)
    network, report = load(published, path, config)
    state = network.state_dict()
    assert state.keys() == weights[published].keys()
    assert all(torch.equal(state[key], value) for key, value in weights[published].items())
    assert report.size == path.stat().st_size
    assert report.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_encoder_of_local2world_is_left_out(saved, weights, config, l2w_encoder):
    extra = {key: value for key, value in l2w_encoder.state_dict().items() if key.startswith('enc_blocks.')}
    path = saved(L2W, {**weights[L2W], **{key: value.clone() for key, value in extra.items()}}, '.pth')
    assert load(L2W, path, config)[0].state_dict().keys() == weights[L2W].keys()


def test_arguments_beside_the_weights_do_no_harm(tmp_path, weights, config):
    path = tmp_path / 'slam3r_i2p.pth'
    torch.save({'model': weights[I2P], 'args': argparse.Namespace(epochs=3), 'epoch': 2}, path)
    load(I2P, path, config)


@pytest.mark.parametrize('change, reason', [
    (lambda w: w.pop('dec_norm.bias'), 'dec_norm.bias is missing'),
    (lambda w: w.update(surplus=torch.zeros(1)), 'surplus does not belong'),
    (lambda w: w.update({'dec_norm.bias': torch.zeros(1)}), r'dec_norm.bias is \(1,\) instead of'),
    (lambda w: w.update({'dec_norm.bias': w['dec_norm.bias'].half()}), 'dec_norm.bias is torch.float16 instead'),
])  # fmt: skip
@pytest.mark.parametrize('suffix', ['.safetensors', '.pth'])
def test_wrong_weights_are_refused(change, reason, suffix, saved, weights, config):
    change(weights[I2P])
    with pytest.raises(CheckpointError, match=reason) as error:
        load(I2P, saved(I2P, weights[I2P], suffix), config)
    assert 'slam3r_i2p' in str(error.value) and 'slam3r weights download' in str(error.value)


@BOTH
def test_files_that_were_mixed_up_are_named(published, saved, config):
    other = L2W if published is I2P else I2P
    with pytest.raises(CheckpointError, match=f'holds {other.name}, not {published.name}'):
        load(published, saved(other), config)


@pytest.mark.parametrize('suffix', ['.safetensors', '.pth'])
@pytest.mark.parametrize('share', [0, 0.001, 0.5, 0.999])
def test_truncated_files_are_refused(suffix, share, saved, config):
    path = saved(I2P, suffix=suffix)
    os.truncate(path, int(share * path.stat().st_size))
    with pytest.raises(CheckpointError, match=path.name):
        load(I2P, path, config)


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize('save', [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))])
def test_code_in_a_file_is_not_run(save, tmp_path, config):
    path, trace = tmp_path / 'slam3r_i2p.pth', tmp_path / 'was here'
    save({'model': {'x': Hostile(trace)}}, path)
    with pytest.raises(CheckpointError, match='slam3r_i2p.pth'):
        load(I2P, path, config)
    assert not trace.exists()


@pytest.mark.parametrize('content', [
    [1, 2], {'weights': {}}, {'model': {'x': 1}}, {'model': None}, {'model': {1: torch.zeros(1)}},
])  # fmt: skip
def test_other_checkpoints_are_refused(content, tmp_path, config):
    torch.save(content, tmp_path / 'slam3r_i2p.pth')
    with pytest.raises(CheckpointError, match="no weights under 'model'"):
        load(I2P, tmp_path / 'slam3r_i2p.pth', config)


def official_file(published, path):
    """Write a file of the official names and shapes, all zeros, that takes no room on the disk."""
    shapes = json.loads((SUBSET / f'full_{published.name[-3:]}_shapes.json').read_text())
    header, end = {}, 0
    for key in sorted(shapes):
        start, end = end, end + 4 * math.prod(shapes[key])
        header[key] = {'dtype': 'F32', 'shape': shapes[key], 'data_offsets': [start, end]}
    text = json.dumps(header, separators=(',', ':')).encode()
    text += b' ' * (-len(text) % 8)
    with path.open('wb') as file:
        file.write(struct.pack('<Q', len(text)) + text)
        file.truncate(file.tell() + end)
    return path


@BOTH
def test_files_of_the_published_size(published, tmp_path, monkeypatch, caplog):
    checksums = []
    monkeypatch.setattr(checkpoints, 'file_checksum', lambda path: checksums.append(path) or 64 * '0')  # 2 GB of zeros
    path = official_file(published, tmp_path / 'model.safetensors')
    assert path.stat().st_size == published.size
    network, report = load(published, path)
    assert sum(value.numel() for value in network.parameters()) == {I2P: 532_934_913, L2W: 230_624_000}[published]
    assert report.size == published.size and report.official is False and checksums == [path]
    assert published.sha256 in caplog.text  # another checksum warns
    del network
    os.truncate(path, published.size - 4)
    with pytest.raises(CheckpointError, match=f'has {published.size - 4} bytes, {published.name} has {published.size}'):
        load(published, path)


@pytest.mark.parametrize('official, verdict', [
    (True, 'as published'), (False, 'NOT the one'), (None, 'none is published'),
])  # fmt: skip
def test_the_command_reports_what_is_there(official, verdict, tmp_path, monkeypatch, capsys):
    for published in (I2P, L2W):
        (tmp_path / f'{published.name}.pth').touch()
    monkeypatch.setattr(checkpoints, 'load', lambda published, path: (None, Report(path, 12345, 'c0ffee', official)))
    download.check(tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert all(word in line for line in lines for word in ('slam3r_', '12345 bytes', 'c0ffee', verdict))


def test_the_command_refuses_what_is_not_official(tmp_path, capsys):
    (tmp_path / 'slam3r_i2p.safetensors').write_bytes(b'too short')
    arguments = argparse.Namespace(action='check', dir=str(tmp_path), accept_license=False)
    assert download.main(arguments) == 1
    assert 'slam3r_i2p.safetensors has 9 bytes, slam3r_i2p has 2131831108' in capsys.readouterr().err
