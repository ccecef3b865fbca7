"""What was handed over reaches the disk, in order, whoever dies."""

import os
import signal
import subprocess
import sys
import time

import pytest

from milepost.core.errors import GaveUpWaitingError
from milepost.integrations.file_courier import Courier
from milepost.integrations.sound_file import damage_of
from milepost.io.locks import wait_until_unused

HAND_OVER_AND_DIE = """
import os, signal, sys
from pathlib import Path
from milepost.integrations.file_courier import Courier
courier = Courier()
courier.save(Path(sys.argv[1]), lambda file: file.write(b"x" * 50_000_000), {})
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(params=["process", "thread"])
def courier(request, monkeypatch):
    monkeypatch.setenv("MILEPOST_COMPANION", request.param)
    courier = Courier()
    yield courier
    courier.close()


def content(data):
    return lambda file: file.write(data)


def test_files_are_written_in_order_and_what_became_of_them_is_told(courier, tmp_path):
    told = []
    for number in range(5):
        pending = courier.save(tmp_path / "new" / f"{number % 2}.ckpt", content(b"%d" % number), {"step": number})
        pending.then(lambda one: told.append((one.path.name, one.described["step"])))
    courier.wait()
    assert told == [("0.ckpt", 0), ("1.ckpt", 1), ("0.ckpt", 2), ("1.ckpt", 3), ("0.ckpt", 4)]
    assert (tmp_path / "new" / "0.ckpt").read_bytes() == b"4"
    assert damage_of(tmp_path / "new" / "0.ckpt") == ""
    pending.then(lambda one: told.append("at once"))
    assert told[-1] == "at once"


def test_a_file_is_removed_behind_the_saves_before_it_and_not_behind_one_that_failed(courier, tmp_path):
    old, new = tmp_path / "old.ckpt", tmp_path / "new.ckpt"
    courier.save(old, content(b"old"), {})
    new.mkdir()
    failed = courier.save(new, content(b"new"), {})
    kept = courier.remove(old)
    courier.wait()
    assert failed.error is not None
    assert "old.ckpt stays, because new.ckpt could not be written" in kept.error.what
    assert old.exists()
    new.rmdir()
    courier.save(new, content(b"new"), {})
    courier.remove(old)
    courier.wait()
    assert not old.exists()
    assert new.read_bytes() == b"new"


def test_after_close_the_next_save_begins_again(courier, tmp_path):
    for number in range(2):
        courier.save(tmp_path / "a.ckpt", content(b"%d" % number), {})
        courier.close()
    assert (tmp_path / "a.ckpt").read_bytes() == b"1"


def test_a_folder_that_cannot_be_made_raises_where_it_is_asked_for(courier, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        courier.save(tmp_path / "file" / "a.ckpt", content(b"x"), {})
    assert courier.pending == []


@pytest.mark.linux
def test_a_writer_that_is_killed_is_replaced_and_nothing_is_lost(tmp_path, monkeypatch):
    courier = Courier()
    courier.save(tmp_path / "first.ckpt", content(b"1"), {})
    courier.wait()
    os.kill(courier._carrier._process.pid, signal.SIGSTOP)
    courier.save(tmp_path / "second.ckpt", content(b"2"), {})
    courier.remove(tmp_path / "first.ckpt")
    with pytest.raises(GaveUpWaitingError, match=r"second\.ckpt"):
        courier.wait(0.01)
    os.kill(courier._carrier._process.pid, signal.SIGKILL)
    courier.close()
    assert [one.name for one in tmp_path.glob("*.ckpt")] == ["second.ckpt"]


@pytest.mark.linux
def test_what_was_handed_over_is_written_although_the_training_is_killed(tmp_path):
    path = tmp_path / "a.ckpt"
    done = subprocess.run([sys.executable, "-c", HAND_OVER_AND_DIE, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert wait_until_unused(tmp_path, 60)
    assert path.stat().st_size == 50_000_000
    assert damage_of(path) == ""


@pytest.mark.linux
def test_a_forked_child_does_not_keep_the_writer_alive(tmp_path):
    courier = Courier()
    courier.save(tmp_path / "a.ckpt", content(b"1"), {})
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
    courier.close()  # waits for the writer to leave
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
