"""A lock is held exactly as long as its owner lives, and asking about it never drops it."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from milepost.core.errors import GaveUpWaitingError, StorageError
from milepost.io.locks import OwnedLock, exclusive, is_held

HOLD = """
import sys
from milepost.io.locks import OwnedLock
lock = OwnedLock(sys.argv[1])
print("held" if lock.acquire() else "refused", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a.lock"


@pytest.fixture
def holder(path):
    """Another process that holds the lock."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout.readline() == b"held\n"
        yield child
        child.kill()


def seen_elsewhere(path):
    code = f"from milepost.io.locks import is_held; print(is_held({str(path)!r}))"
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout == b"True\n"


def test_a_lock_is_held_until_it_is_released(path):
    lock = OwnedLock(path)
    assert not is_held(path)
    assert lock.acquire()
    assert lock.held
    assert is_held(path)
    assert seen_elsewhere(path)
    lock.release()
    assert not is_held(path)
    assert not seen_elsewhere(path)


def test_a_second_owner_in_the_same_process_is_refused_and_drops_nothing(path):
    lock = OwnedLock(path)
    lock.acquire()
    assert not OwnedLock(path).acquire()
    assert is_held(path)
    assert seen_elsewhere(path)
    lock.release()


def test_a_lock_of_another_process_is_seen_and_ends_with_it_whatever_kills_it(path, holder):
    assert is_held(path)
    assert not OwnedLock(path).acquire()
    assert is_held(path)
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    assert not is_held(path)
    lock = OwnedLock(path)
    assert lock.acquire()
    lock.release()


def test_a_forked_child_neither_holds_nor_drops_its_parents_lock(path):
    lock = OwnedLock(path)
    lock.acquire()
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        lock.release(unlink=True)  # what a child's exit handlers may try
        os.write(theirs, b"1" if is_held(path) else b"0")
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(ours, 1) == b"1"
    assert path.exists()
    assert seen_elsewhere(path)
    os.close(ours)
    os.close(theirs)
    lock.release()


def test_a_surviving_child_does_not_keep_the_lock_of_a_dead_parent(path):
    code = f"""
import os, sys, time
from milepost.io.locks import OwnedLock
OwnedLock({str(path)!r}).acquire()
child = os.fork()
if child == 0:
    sys.stdin.read()
    os._exit(0)
print("forked", flush=True)
sys.stdin.read()
"""
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        parent.stdout.readline()
        assert is_held(path)
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
        assert not is_held(path)


def test_a_released_lock_may_remove_its_file_and_the_next_owner_holds_the_new_one(path):
    first, second = OwnedLock(path), OwnedLock(path)
    first.acquire()
    first.release(unlink=True)
    assert not path.exists()
    assert second.acquire()
    assert seen_elsewhere(path)
    second.release(unlink=True)


def test_touching_renews_the_heartbeat(path):
    lock = OwnedLock(path)
    lock.acquire()
    os.utime(path, (1, 1))
    lock.touch()
    assert path.stat().st_mtime > 1000
    lock.release()


def test_asking_about_what_is_not_there_makes_nothing(path):
    assert not is_held(path)
    assert not path.exists()


def test_a_lock_that_cannot_be_made_is_an_error(tmp_path):
    with pytest.raises(StorageError):
        OwnedLock(tmp_path / "absent" / "a.lock").acquire()


def test_a_critical_section_keeps_threads_apart(path):
    inside = []

    def work():
        with exclusive(path, 30):
            inside.append(1)
            assert len(inside) == 1
            inside.pop()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not is_held(path)


def test_a_critical_section_keeps_processes_apart(tmp_path, path):
    counter = tmp_path / "counter"
    counter.write_text("0")
    code = f"""
from pathlib import Path
from milepost.io.locks import exclusive
counter = Path({str(counter)!r})
for _ in range(50):
    with exclusive({str(path)!r}, 60):
        counter.write_text(str(int(counter.read_text()) + 1))
"""
    children = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(3)]
    assert [child.wait() for child in children] == [0, 0, 0]
    assert counter.read_text() == "150"


def test_waiting_has_an_end(path, holder):
    with pytest.raises(GaveUpWaitingError, match="still holds"), exclusive(path, 0.01):
        pass
    release = threading.Event()
    entered = threading.Event()

    def hold():
        with exclusive(path.with_name("b.lock"), 1):
            entered.set()
            release.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    entered.wait()
    begun = time.monotonic()
    with pytest.raises(GaveUpWaitingError), exclusive(path.with_name("b.lock"), 0.01):
        pass
    assert time.monotonic() - begun < 60
    release.set()
    thread.join()
