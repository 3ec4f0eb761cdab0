# Copyright 2026 the slam3r_ros authors
# SPDX-License-Identifier: Apache-2.0
import threading
import time

import numpy as np
import pytest

from slam3r_ros.transport import inbox as inbox_module
from slam3r_ros.transport import worker as worker_module
from slam3r_ros.transport.worker import Worker, WorkerError


def wait_until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, 'waited in vain'
        time.sleep(0.005)


@pytest.fixture
def make_worker():
    workers = []

    def make(report=lambda text: None):
        workers.append(Worker(f'worker {len(workers)}', report))
        return workers[-1]

    yield make
    for worker in workers:
        assert worker.close(60.0)


def block(worker):
    """Occupy a worker; return the event that frees it."""
    started, gate = threading.Event(), threading.Event()

    def hold(_):
        started.set()
        gate.wait(60)

    worker.inbox(hold, 1).put(None)
    assert started.wait(60)
    return gate


def test_callbacks_run_in_the_order_of_arrival_over_all_inboxes(make_worker):
    worker, seen = make_worker(), []
    gate = block(worker)
    first = worker.inbox(lambda value: seen.append(('first', value)), 10)
    second = worker.inbox(lambda value: seen.append(('second', value)), 10)
    for inbox, value in ((first, 1), (second, 2), (first, 3), (second, 4)):
        inbox.put(value)
    gate.set()
    worker.call(lambda: seen.append('call'))
    assert seen == [('first', 1), ('second', 2), ('first', 3), ('second', 4), 'call']


def test_callbacks_never_overlap(make_worker):
    worker, running, most = make_worker(), [], []

    def callback(_):
        running.append(1)
        time.sleep(0.002)
        most.append(len(running))
        running.pop()

    inboxes = [worker.inbox(callback, 100) for _ in range(3)]
    threads = [threading.Thread(target=lambda i=inbox: [i.put(None) for _ in range(10)]) for inbox in inboxes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    worker.call(lambda: None)
    assert most == [1] * 30


def test_a_full_inbox_drops_the_oldest_and_counts(make_worker):
    worker, seen = make_worker(), []
    gate = block(worker)
    inbox = worker.inbox(seen.append, 2)
    for value in range(5):
        assert inbox.put(value)
    gate.set()
    worker.call(lambda: None)
    assert seen == [3, 4]
    assert inbox.dropped == 3


def test_a_full_lossless_inbox_makes_the_publisher_wait(make_worker):
    worker, seen = make_worker(), []
    gate = block(worker)
    inbox = worker.inbox(seen.append, 2, lossless=True)
    publisher = threading.Thread(target=lambda: [inbox.put(value) for value in range(6)])
    publisher.start()
    wait_until(lambda: len(inbox) == 2)
    time.sleep(0.05)
    assert publisher.is_alive() and len(inbox) == 2
    gate.set()
    publisher.join(60)
    worker.call(lambda: None)
    assert seen == list(range(6))
    assert inbox.dropped == 0


def test_a_worker_does_not_wait_for_itself(make_worker):
    worker, seen = make_worker(), []

    def callback(value):
        seen.append(value)
        if value < 3:
            inbox.put(value + 1)
            inbox.put(10)

    inbox = worker.inbox(callback, 1, lossless=True)
    inbox.put(0)
    wait_until(lambda: len(seen) >= 7)
    assert sorted(seen) == [0, 1, 2, 3, 10, 10, 10]


@pytest.mark.parametrize('who', ['reader', 'inbox', 'writer'])
def test_waiting_for_room_ends_when_one_side_closes(make_worker, who):
    reader, writer, results = make_worker(), make_worker(), []
    gate = block(reader)
    inbox = reader.inbox(lambda value: None, 1, lossless=True)
    inbox.put(0)
    writer.inbox(lambda value: results.append(inbox.put(value)), 1).put(1)
    wait_until(lambda: writer._waits)
    assert not results
    {'reader': reader.stop, 'inbox': inbox.close, 'writer': writer.stop}[who]()
    wait_until(lambda: results)
    assert results == [False]
    gate.set()


def test_who_waits_for_room_waits_all_the_time(make_worker, monkeypatch):
    """Else it looks busy for moments, and who asks it for something then is told so."""
    monkeypatch.setattr(inbox_module, '_POLL', 1e-3)
    reader, writer = make_worker(), make_worker()
    gate = block(reader)
    inbox = reader.inbox(lambda value: None, 1, lossless=True)
    inbox.put(0)
    writer.inbox(inbox.put, 1).put(1)
    wait_until(lambda: writer._waits)
    since = writer._since  # when it was busy last
    time.sleep(0.05)
    assert writer._waits and writer._since == since
    gate.set()


def test_an_exception_is_reported_and_the_next_callback_runs(make_worker):
    reports, seen = [], []
    worker = make_worker(reports.append)

    def callback(value):
        if value == 0:
            raise ValueError('broken value')
        seen.append(value)

    inbox = worker.inbox(callback, 5)
    inbox.put(0)
    inbox.put(1)
    worker.call(lambda: None)
    assert seen == [1]
    assert worker.last_error == 'ValueError: broken value'
    assert 'Traceback' in reports[0]


def test_call_returns_the_result_and_raises_the_exception(make_worker):
    worker = make_worker()
    assert worker.call(lambda a, b: a + b, 1, 2) == 3
    with pytest.raises(ZeroDivisionError):
        worker.call(lambda: 1 / 0)
    assert worker.call(lambda: worker.call(lambda: 'nested')) == 'nested'


def test_calls_that_wait_fail_when_the_worker_closes(make_worker):
    worker, errors = make_worker(), []
    gate = block(worker)

    def call():
        try:
            worker.call(lambda: None)
        except WorkerError as error:
            errors.append(str(error))

    thread = threading.Thread(target=call)
    thread.start()
    wait_until(lambda: worker._pending)
    worker.stop()
    thread.join(50)  # the gate is still shut
    gate.set()
    assert errors == ['the node is shutting down']
    with pytest.raises(WorkerError):
        worker.call(lambda: None)


def test_a_call_has_patience(make_worker):
    worker, ran = make_worker(), []
    gate = block(worker)
    with pytest.raises(WorkerError, match='busy for more than 0 s'):
        worker.call(ran.append, 1, patience=0.2)
    threading.Timer(0.2, worker.stop).start()
    with pytest.raises(WorkerError, match='shutting down'):  # not 'busy'
        worker.call(ran.append, 2, patience=40.0)
    gate.set()
    worker.close()
    assert not ran


def test_a_call_that_has_begun_is_waited_for(make_worker, monkeypatch):
    began, wait = threading.Event(), worker_module.wait
    monkeypatch.setattr(worker_module, 'wait', lambda *arguments: began.wait(60) and wait(*arguments))
    assert make_worker().call(lambda: began.set() or time.sleep(0.3) or 7, patience=0.1) == 7


@pytest.mark.parametrize('hold', [True, False])
def test_paused_amid_waiting_a_callback_stays_there_or_ends(make_worker, hold):
    reader, writer, done = make_worker(), make_worker(), []
    gate, full = block(reader), reader.inbox(lambda value: None, 1, lossless=True)
    full.put(0)
    writer.inbox(lambda value: done.append(full.put(value)), 2).put(1)
    later = writer.inbox(lambda value: done.append(value), 2)
    always = writer.inbox(lambda value: done.append(value), 2, always=True)
    later.put('later')
    always.put('always')
    wait_until(lambda: writer._waits)
    assert writer.pause(60.0, hold=hold)
    gate.set()
    reader.call(lambda: None)
    if hold:
        with pytest.raises(WorkerError, match='deactivated while others did not take'):
            writer.call(lambda: None, patience=20.0)
        assert not done
    else:
        writer.call(lambda: None)
        assert done == [True, 'always']
    writer.resume()
    writer.call(lambda: None)
    assert sorted(map(str, done)) == ['True', 'always', 'later']


def test_timers_come_between_values(make_worker):
    worker, ticks = make_worker(), []
    worker.every(0.02, lambda: ticks.append(worker._since))
    inbox = worker.inbox(lambda value: time.sleep(0.005), 100)
    for value in range(40):
        inbox.put(value)
    worker.call(lambda: None)
    assert len(ticks) >= 4
    assert min(np.diff(ticks)) >= 0.02 - 1e-9
