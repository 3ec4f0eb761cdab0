# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
import json

import pytest

from slam3r_ros.bench.transport import PAYLOADS, ROWS, judge
from slam3r_ros.cli import main

GOOD = {
    'rclpy': 25.0,
    'hand_over': 0.03,
    'hand_over_p99': 0.3,
    'rclpy_apart': 35.0,
    'rclpy_apart_tuned': 12.0,
    'bus_apart_tuned': 14.0,
}


def test_the_command_measures_and_its_ratios_hold(tmp_path, capsys):
    """The hand-over has room to spare; what goes outside shares a loaded machine's memory, so the command judges it."""
    status = main(['bench', 'transport', '--quick', '--json', str(tmp_path / 'figures.json')])
    result = json.loads((tmp_path / 'figures.json').read_text())
    figures = {each['name']: each for each in result['figures']}
    assert len(figures) == 8
    assert status == int(not all(each['holds'] for each in figures.values()))
    assert [name for name, each in figures.items() if not each['holds'] and 'another process' not in name] == []
    assert result['milliseconds'].keys() == PAYLOADS.keys()
    for row in result['milliseconds'].values():
        assert row.keys() == ROWS.keys() and min(row.values()) > 0
        assert row['bus_apart_tuned'] < row['rclpy_apart']  # the profile and the malloc settings are in use
    printed = capsys.readouterr().out
    assert all(title in printed for title in ROWS.values())


@pytest.mark.parametrize(
    'row, milliseconds, missed',
    [
        ('hand_over', 0.11, 2),  # too slow itself, and no longer 500 times below rclpy
        ('hand_over_p99', 1.1, 1),
        ('rclpy', 14.0, 1),
        ('bus_apart_tuned', 16.0, 1),
    ],
)
def test_what_misses_a_limit_is_said(row, milliseconds, missed):
    table = {name: dict(GOOD) for name in PAYLOADS}
    assert all(each['holds'] for each in judge(table))
    table['2M points'][row] = milliseconds
    assert sum(not each['holds'] for each in judge(table)) == missed


def test_a_missed_limit_is_the_exit_status(monkeypatch, capsys):
    slow = GOOD | {'bus': 100.0, 'rclpy': 30.0}
    monkeypatch.setattr('slam3r_ros.bench.transport._run_part', lambda *_: {name: slow for name in PAYLOADS})
    assert main(['bench', 'transport']) == 1
    assert 'MISSED' in capsys.readouterr().out
