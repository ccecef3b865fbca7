from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from milepost.checkpoint.backup import copy_checkpoint, remove_copy
from milepost.checkpoint.catalog import scan
from milepost.checkpoint.commit import commit
from milepost.checkpoint.finishing import finish_save
from milepost.checkpoint.retention import RetentionRule
from milepost.core.errors import StorageError
from milepost.core.events import CheckpointChanged
from milepost.core.records import CheckpointInfo
from tests.unit.companion.jobs import staged


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints"


@pytest.fixture
def backup(tmp_path: Path) -> Path:
    return tmp_path / "other disk" / "copies"


def saved(folder: Path, step: int, backup: Path | None = None) -> list[CheckpointChanged]:
    job, arena = staged(folder, step)
    changes: list[CheckpointChanged] = []
    finish_save(job, arena.view, RetentionRule(keep_newest=1), changes.append, backup=backup)
    return changes


def committed(folder: Path, step: int) -> CheckpointInfo:
    job, arena = staged(folder, step)
    return commit(job, arena.view)


def test_a_copy_is_the_same_bytes_and_is_listed_as_verified(folder: Path, backup: Path) -> None:
    info = committed(folder, 1)
    copy_checkpoint(info, backup)

    assert (backup / info.filename).read_bytes() == info.path.read_bytes()
    assert [(found.step, found.verified) for found in scan(backup).infos] == [(1, True)]
    assert os.listdir(backup) == [info.filename]


def test_the_keyframe_comes_with_what_needs_it(folder: Path, backup: Path) -> None:
    keyframe, info = committed(folder, 1), committed(folder, 2)
    needing = CheckpointInfo(**{name: info[name] for name in info} | {"base": keyframe.filename})
    copy_checkpoint(needing, backup)

    assert sorted(os.listdir(backup)) == [keyframe.filename, info.filename]


def test_what_is_there_already_is_not_copied_again_and_what_differs_is_replaced(folder: Path, backup: Path) -> None:
    info = committed(folder, 1)
    copy_checkpoint(info, backup)
    copy = backup / info.filename
    before = copy.stat().st_ino
    copy_checkpoint(info, backup)
    assert copy.stat().st_ino == before

    copy.write_bytes(b"an older state")
    copy_checkpoint(info, backup)
    assert copy.read_bytes() == info.path.read_bytes()


def test_a_copy_that_was_interrupted_is_cleared_away(folder: Path, backup: Path) -> None:
    info = committed(folder, 1)
    backup.mkdir(parents=True)
    (backup / f".{info.filename}.tmp").write_bytes(b"half of it")
    copy_checkpoint(info, backup)

    assert os.listdir(backup) == [info.filename]


def test_a_copy_that_is_not_there_needs_no_removing(backup: Path) -> None:
    remove_copy("checkpoint_1.milepost", backup)


def test_after_a_save_the_second_folder_holds_what_the_first_one_holds(folder: Path, backup: Path) -> None:
    saved(folder, 1, backup)
    changes = saved(folder, 2, backup)

    assert [change.action for change in changes] == ["committed", "verified", "removed"]
    assert [info.step for info in scan(backup).infos] == [2]


def test_a_second_folder_that_cannot_be_written_fails_no_save(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a file").touch()
    saved(folder, 1)
    changes = saved(folder, 2, tmp_path / "a file")

    assert [change.action for change in changes] == ["committed", "verified", "verified", "removed"]
    assert "there is no second copy of it" in changes[2].reason
    assert [info.step for info in scan(folder).infos] == [2]


def test_a_full_disk_is_named_and_leaves_nothing_behind(
    folder: Path, backup: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = committed(folder, 1)

    def full(fd: int, data: memoryview, offset: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("milepost.io.direct.write_all", full)
    with pytest.raises(StorageError, match="no space left on device") as caught:
        copy_checkpoint(info, backup)

    assert caught.value.kind == "disk-full"
    assert os.listdir(backup) == []
