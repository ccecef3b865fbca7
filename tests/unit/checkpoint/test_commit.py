"""A checkpoint is there whole or not at all, whatever the disk does."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from milepost.checkpoint.commit import commit, remove_stale_temporaries, verify
from milepost.checkpoint.reading import open_checkpoint
from milepost.core.errors import ConflictError, StorageError
from milepost.io.direct import NewFile
from tests.unit.checkpoint.container_samples import make_job, run_python, save, stage

ARRAYS = {"w": np.arange(300_000, dtype=np.float32)}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "checkpoint_x_1.milepost"


class FailingCall:
    """Stands in front of a call of the operating system and lets the first ``count`` calls fail."""

    def __init__(self, call: Any, code: int, count: int) -> None:
        self.call = call
        self.code = code
        self.left = count
        self.refused: list[Any] = []

    def __call__(self, *arguments: Any) -> Any:
        if self.left > 0:
            self.left -= 1
            self.refused.append(os.fstat(arguments[0]).st_ino)
            raise OSError(self.code, os.strerror(self.code))
        if os.fstat(arguments[0]).st_ino in self.refused and self.call is os_fsync:
            pytest.fail("a file was synced again after its sync had failed")
        return self.call(*arguments)


os_fsync, os_pwrite = os.fsync, os.pwrite


def test_an_existing_file_is_never_replaced(path: Path) -> None:
    path.write_bytes(b"precious")
    with pytest.raises(ConflictError, match="exists already"):
        save(path, ARRAYS)
    assert path.read_bytes() == b"precious"
    assert list(path.parent.iterdir()) == [path]


def test_a_file_that_appears_while_we_write_is_not_replaced(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync_late(fd: int) -> None:
        path.write_bytes(b"precious")
        os_fsync(fd)

    monkeypatch.setattr(os, "fsync", fsync_late)
    with pytest.raises(ConflictError, match="exists already"):
        save(path, ARRAYS)
    assert path.read_bytes() == b"precious"
    assert list(path.parent.iterdir()) == [path]


def test_after_a_failed_sync_a_fresh_file_is_written(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing = FailingCall(os_fsync, errno.EIO, 1)
    held = []  # keeps the first file's inode from being used again
    monkeypatch.setattr(os, "fsync", lambda fd: (held.append(os.dup(fd)), failing(fd)))
    save(path, ARRAYS)
    for fd in held:
        os.close(fd)
    assert failing.refused
    assert path.stat().st_ino not in failing.refused
    verify(path)
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("call", ["fsync", "pwrite"])
def test_what_cannot_be_written_twice_leaves_nothing_and_says_the_cure(
    path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    older = save(path.with_name("checkpoint_x_0.milepost"), ARRAYS)
    monkeypatch.setattr(os, call, FailingCall(getattr(os, call), errno.ENOSPC, 1000))
    with pytest.raises(StorageError) as caught:
        save(path, ARRAYS)
    assert "no space left on device" in str(caught.value)
    assert "enable compression, lower max_checkpoints or free disk space" in str(caught.value)
    assert str(path) in str(caught.value)
    assert caught.value.kind == "disk-full"
    monkeypatch.undo()
    assert list(path.parent.iterdir()) == [older]
    verify(older)


def test_a_file_whose_name_could_not_be_made_durable_is_not_left(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def only_files(fd: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{fd}"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        os_fsync(fd)

    monkeypatch.setattr(os, "fsync", only_files)
    with pytest.raises(StorageError, match="syncing the folder"):
        save(path, ARRAYS)
    assert list(path.parent.iterdir()) == []


@pytest.mark.linux
@pytest.mark.parametrize("limit", [5_000, 500_000])
def test_a_limit_of_the_file_size_is_an_error_like_any_other(path: Path, limit: int) -> None:
    code = (
        "import sys, resource; from pathlib import Path\n"
        "import numpy as np; from tests.unit.checkpoint.container_samples import save\n"
        "from milepost.core.errors import StorageError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)\n"
        "try: save(Path(sys.argv[1]), {'w': np.random.default_rng(0).random(300_000)})\n"
        "except StorageError as error: print(error); sys.exit(7)"
    )
    ended = run_python(code, str(path), str(limit))
    assert ended.returncode == 7, ended.stderr
    assert "file too large" in ended.stdout
    assert list(path.parent.iterdir()) == []


def test_a_disk_with_too_little_room_is_known_before_anything_is_written(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = shutil.disk_usage(path.parent)._replace(free=100_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: room)
    written: list[int] = []
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: written.append(offset) or os_pwrite(fd, data, offset))
    with pytest.raises(
        StorageError, match=r"takes about 1\d{6} bytes, and 100000 are free: .*free disk space"
    ) as caught:
        save(path, ARRAYS, compression=False)
    assert caught.value.kind == "no-space"
    assert written == []
    assert list(path.parent.iterdir()) == []
    save(path, {"w": np.zeros(300_000, np.float32)})  # compressed it fits


def test_from_the_moment_that_it_hurries_blocks_are_stored_raw(path: Path) -> None:
    entries, arena = stage({"w": np.zeros(4 << 20, np.float32)})
    asked: list[int] = []

    def after_three() -> bool:
        asked.append(1)
        return len(asked) > 3

    commit(make_job(path, entries, arena), arena, threads=1, hurry=after_three)
    verify(path)
    with open_checkpoint(path) as file:
        encodings = [block.encoded.encoding for block in file.manifest.regions[0].blocks]
    assert sorted(encodings) == ["raw"] * 5 + ["zzzz"] * 3


CAN_MOUNT = shutil.which("unshare") and not subprocess.run(["unshare", "-rm", "true"], check=False).returncode


@pytest.mark.linux
@pytest.mark.skipif(not CAN_MOUNT, reason="may not mount a small disk here")
def test_on_a_full_disk_the_older_checkpoint_stays_whole(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path\n"
        "import numpy as np; from tests.unit.checkpoint.container_samples import save\n"
        "from milepost.checkpoint.commit import verify; from milepost.core.errors import StorageError\n"
        "noise = np.random.default_rng(0).integers(0, 256, 1_000_000, np.uint8)\n"
        "disk = Path(sys.argv[1]); save(disk / 'checkpoint_1.milepost', {'w': noise})\n"
        "for compression in (True, False):\n"
        "    try: save(disk / 'checkpoint_2.milepost', {'w': noise}, compression=compression)\n"
        "    except StorageError as error: print(error)\n"
        "verify(disk / 'checkpoint_1.milepost'); print(os.listdir(disk))"
    )
    mount = 'mount -t tmpfs -o size=1536k none "$3" && exec "$0" "$@"'
    ended = run_python(code, str(tmp_path), launcher=("unshare", "-rm", "sh", "-c", mount))
    assert ended.stdout.count("no space left on device") == 2
    assert ended.stdout.endswith("['checkpoint_1.milepost']\n")


def test_the_mode_of_the_file_follows_the_umask(path: Path) -> None:
    before = os.umask(0o027)
    try:
        save(path, ARRAYS)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o640


def test_missing_folders_are_made(tmp_path: Path) -> None:
    verify(save(tmp_path / "a" / "b" / "checkpoint_1.milepost", ARRAYS))


def test_abandoned_temporaries_are_removed_and_those_in_work_are_not(tmp_path: Path) -> None:
    abandoned = tmp_path / ".checkpoint_a_1.milepost.tmp"
    abandoned.write_bytes(b"half")
    others = [tmp_path / "checkpoint_a_1.tmp", tmp_path / ".other.tmp"]
    for other in others:
        other.write_bytes(b"not ours")
    working = tmp_path / ".checkpoint_b_1.milepost.tmp"
    with NewFile(str(working)):
        assert remove_stale_temporaries(tmp_path) == [abandoned.name]
        assert working.exists()
    assert all(other.exists() for other in others)
    assert remove_stale_temporaries(tmp_path / "nowhere") == []


def test_a_temporary_left_by_a_crash_is_not_in_the_way(path: Path) -> None:
    path.with_name(f".{path.name}.tmp").write_bytes(b"half")
    verify(save(path, ARRAYS))
    assert list(path.parent.iterdir()) == [path]


def test_two_writers_of_one_name_make_one_file(path: Path) -> None:
    with NewFile(str(path.with_name(f".{path.name}.tmp"))), pytest.raises(ConflictError, match="exists already"):
        save(path, ARRAYS)


def test_a_job_is_refused_without_leaving_a_temporary(path: Path) -> None:
    entries, arena = stage(ARRAYS)
    with pytest.raises(ValueError, match="no JSON"):
        commit(make_job(path, entries, arena, tree="nonsense"), arena)
    assert list(path.parent.iterdir()) == []
