"""A run that died is never shown as running, and what cannot be known is called unsure."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from milepost.core.events import StatusChanged
from milepost.io.locks import OwnedLock
from milepost.io.process import this_process
from milepost.runs import recording
from milepost.runs.ending import terminal_status
from milepost.runs.log import DirectLog, begin_log
from milepost.runs.segment import new_log_id
from milepost.runs.state import run_state


@pytest.fixture
def alive(layout, direct):
    """A log whose lock this process holds."""
    locks = []

    def make(**options):
        log = direct(**options)
        lock = OwnedLock(layout.log_lock(log.log_id))
        assert lock.acquire()
        locks.append(lock)
        return log, lock

    yield make
    for lock in locks:
        lock.release()


def test_a_run_without_a_record_is_killed_unless_somebody_just_begins(layout):
    assert run_state(layout).status == "killed"
    lock = OwnedLock(layout.log_lock(new_log_id()))
    lock.acquire()
    state = run_state(layout)
    assert (state.status, state.live) == ("running", True)
    lock.release()
    assert run_state(layout).status == "killed"


def test_a_live_process_is_running_and_names_itself(layout, alive):
    log, _ = alive()
    log.append(StatusChanged(status="running"))
    log.log({"loss": 1.0}, 12)
    state = run_state(layout)
    assert (state.status, state.live, state.attempt, state.last_step) == ("running", True, 1, 12)
    assert state.holder == f"trainer process {os.getpid()} on {this_process().host}"
    log.append(StatusChanged(status="paused"))
    assert run_state(layout).status == "paused"


def test_without_a_lock_and_without_an_end_it_was_killed(layout, alive):
    log, lock = alive()
    log.append(StatusChanged(status="running"))
    lock.release()
    state = run_state(layout)
    assert (state.status, state.source, state.live) == ("killed", "lock", False)
    assert state.since == pytest.approx(time.time(), abs=60)


def test_the_trainers_own_end_counts_most_then_the_companions(layout, direct):
    trainer, companion = direct(), direct(role="companion")
    companion.append(StatusChanged(status="killed", signal="SIGKILL", reason="killed by SIGKILL", source="companion"))
    state = run_state(layout)
    assert (state.status, state.signal, state.source) == ("killed", "SIGKILL", "companion")
    trainer.append(StatusChanged(status="failed", traceback="ValueError", reason="raised"))
    state = run_state(layout)
    assert (state.status, state.traceback, state.source) == ("failed", "ValueError", "trainer")


def test_an_end_of_an_earlier_attempt_says_nothing_about_the_latest(layout, direct, alive):
    direct(attempt=1).append(StatusChanged(status="failed"))
    _, lock = alive(attempt=2)
    assert run_state(layout).status == "running"
    assert run_state(layout).attempt == 2
    lock.release()
    assert run_state(layout).status == "killed"


def test_a_companion_that_still_works_keeps_the_run_live_but_not_running(layout, direct, alive):
    direct().append(StatusChanged(status="completed"))
    _, lock = alive(role="companion")
    state = run_state(layout)
    assert (state.status, state.live, state.finishing) == ("completed", True, True)
    lock.release()
    assert not run_state(layout).live


def test_a_dead_trainer_is_killed_while_its_companion_still_works(layout, direct, alive):
    direct().append(StatusChanged(status="running"))
    alive(role="companion")
    state = run_state(layout)
    assert (state.status, state.live, state.finishing) == ("killed", True, True)


def test_a_surviving_worker_does_not_make_a_dead_run_look_alive(layout, direct, alive):
    direct().log({"loss": 1.0})
    alive(role="worker")
    state = run_state(layout)
    assert (state.status, state.live) == ("killed", False)


def test_the_run_that_is_starting_again_is_running(layout, direct):
    direct().append(StatusChanged(status="failed"))
    lock = OwnedLock(layout.log_lock(new_log_id()))
    lock.acquire()
    assert run_state(layout).status == "running"
    lock.release()


def begin_elsewhere(layout, monkeypatch, **changes):
    elsewhere = replace(this_process(), host="node17", boot_id="another", **changes)
    log = DirectLog(layout, new_log_id())
    with monkeypatch.context() as patched:
        patched.setattr(recording, "this_process", lambda: elsewhere)
        begin_log(log, role="trainer", attempt=1)
    log.close()
    return log


def test_another_host_is_judged_by_its_heartbeat(layout, monkeypatch):
    log = begin_elsewhere(layout, monkeypatch)
    lock = layout.log_lock(log.log_id)
    lock.touch()
    state = run_state(layout)
    assert (state.status, state.source, state.live) == ("running", "heartbeat", True)
    late = time.time() - 600
    os.utime(lock, (late, late))
    state = run_state(layout)
    assert (state.status, state.live) == ("unsure", False)
    assert state.unsure_since == pytest.approx(late, abs=1)
    lock.unlink()
    assert run_state(layout).status == "killed"


def test_a_killed_process_of_this_machine_is_known_to_be_dead_at_once(layout):
    code = """
import sys, json
from milepost.runs.layout import RunLayout
from milepost.runs.log import DirectLog, begin_log
from milepost.runs.segment import new_log_id
from milepost.io.locks import OwnedLock
layout = RunLayout.from_dict(json.loads(sys.argv[1]))
log_id = new_log_id()
lock = OwnedLock(layout.log_lock(log_id))
assert lock.acquire()
log = DirectLog(layout, log_id)
begin_log(log, role="trainer", attempt=1)
print("ready", flush=True)
sys.stdin.read()
"""
    import json

    command = [sys.executable, "-c", code, json.dumps(layout.to_dict())]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout.readline() == b"ready\n"
        assert run_state(layout).status == "running"
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        assert run_state(layout).status == "killed"


def test_the_end_is_found_behind_a_long_log(layout, direct):
    log = direct()
    for step in range(20_000):
        log.log({"loss": 1.0, "accuracy": 0.5}, step)
    assert terminal_status(layout, log.log_id) is None
    log.append(StatusChanged(status="completed"))
    end = terminal_status(layout, log.log_id)
    assert end is not None
    assert end.status == "completed"
    assert run_state(layout).last_step == 19_999
    assert terminal_status(layout, new_log_id()) is None
