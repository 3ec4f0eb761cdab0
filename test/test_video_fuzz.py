# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`slam3r bench fuzz`, a few of its streams; and that it sees what it looks for."""

import argparse
import os
import time

import pytest

from slam3r_ros.bench import fuzz


def test_a_few_hundred_streams_and_messages_do_no_harm(monkeypatch, capsys):
    monkeypatch.setattr(fuzz, 'LIMIT', 20.0)  # what hangs does so for ever, a busy machine for a while
    parser = argparse.ArgumentParser()
    fuzz.add_arguments(parser)
    assert fuzz.main(parser.parse_args(['--count', '300', '--seed', '7'])) == 0
    text = capsys.readouterr().out
    assert text.count('300 of 300: 0 crashes, 0 hangs, 0 exceptions') == 2


def _work(pipe, harm):
    pipe.send(None)
    while (number := pipe.recv()) is not None:
        error = harm() if number == 3 else ''
        pipe.send((number, error, 1, 0, 0))


def crash(pipe, seed):
    _work(pipe, os.abort)


def hang(pipe, seed):
    _work(pipe, lambda: time.sleep(60))


def fail(pipe, seed):
    _work(pipe, lambda: 'Traceback: ...')


@pytest.mark.parametrize('work, fault', [(crash, 'crashes'), (hang, 'hangs'), (fail, 'exceptions')])
def test_harm_is_seen_and_the_rest_goes_on(work, fault, monkeypatch):
    monkeypatch.setattr(fuzz, 'LIMIT', 2.0 if fault == 'hangs' else 20.0)
    counts = fuzz._fuzz_streams(6, 0, 1, work)
    assert {name: counts[name] for name in ('crashes', 'hangs', 'exceptions')} == {
        'crashes': 0, 'hangs': 0, 'exceptions': 0} | {fault: 1}  # fmt: skip
    assert counts['done'] == (6 if fault == 'exceptions' else 5)
