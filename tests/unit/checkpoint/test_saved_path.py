from __future__ import annotations

import copy
import os
import pickle
import threading
from pathlib import Path

import pytest

from milepost.checkpoint.saved_path import SavedPath
from milepost.checkpoint.writer import PendingSave
from milepost.core.errors import GaveUpWaitingError, StorageError
from milepost.core.records import CheckpointInfo


def committed(path: Path) -> CheckpointInfo:
    return CheckpointInfo(filename=path.name, path=path, experiment_id="a", step=1)


def test_printing_deriving_and_comparing_do_not_wait(tmp_path: Path) -> None:
    pending = PendingSave(tmp_path / "a.milepost", 1)
    path = SavedPath.of(pending)

    assert str(path) == f"{path}" == str(tmp_path / "a.milepost")
    assert "a.milepost" in repr(path)
    assert path == pending.path
    assert hash(path) == hash(pending.path)
    assert (path.name, path.suffix, path.stem) == ("a.milepost", ".milepost", "a")
    assert type(path.parent) is type(path / "b") is type(path.with_suffix(".b")) is type(Path())
    assert os.fspath(path.parent) == str(tmp_path)


def test_opening_waits_for_the_commit(tmp_path: Path) -> None:
    pending = PendingSave(tmp_path / "a.milepost", 1)
    path = SavedPath.of(pending)

    def commit() -> None:
        pending.path.write_text("whole")
        pending.commit(committed(pending.path))

    thread = threading.Timer(0.05, commit)
    thread.start()
    assert path.read_text() == "whole"
    assert os.fspath(path) == str(pending.path)
    assert type(path.wait()) is type(Path())
    thread.join()


def test_opening_raises_the_error_of_this_save(tmp_path: Path) -> None:
    pending = PendingSave(tmp_path / "a.milepost", 1)
    pending.fail(StorageError("no space left on device", cure="free disk space"))

    with pytest.raises(StorageError, match="no space left on device: free disk space"):
        open(SavedPath.of(pending))  # noqa: SIM115
    pending.commit(committed(pending.path))
    with pytest.raises(StorageError):
        pending.wait()


def test_waiting_has_an_end(tmp_path: Path) -> None:
    with pytest.raises(GaveUpWaitingError, match=r"step 7 was not committed within 0\.01 seconds"):
        SavedPath.of(PendingSave(tmp_path / "a.milepost", 7)).wait(0.01)


def test_copies_and_pickles_are_plain_paths(tmp_path: Path) -> None:
    path = SavedPath.of(PendingSave(tmp_path / "a.milepost", 1))

    for plain in (pickle.loads(pickle.dumps(path)), copy.deepcopy(path), copy.copy(path)):
        assert type(plain) is type(Path())
        assert plain == path
