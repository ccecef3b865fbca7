"""A file is replaced whole or not at all, and every refusal of the system names path and cure."""

import errno
import os
import stat

import pytest

from milepost.core.errors import StorageError
from milepost.io import durable
from milepost.io.durable import fsync_directory, replace_file, storage_error, write_all


def test_a_file_is_replaced_and_leaves_no_temporary(tmp_path):
    path = tmp_path / "metadata.json"
    replace_file(path, b"old")
    replace_file(path, b"new")
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["metadata.json"]


def test_the_mode_is_as_asked(tmp_path):
    path = tmp_path / "secret"
    replace_file(path, b"x", mode=0o600)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("call", ["fsync", "rename"])
def test_a_disk_that_refuses_leaves_the_old_content(tmp_path, monkeypatch, call):
    path = tmp_path / "metadata.json"
    replace_file(path, b"old")

    def fails(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, {"fsync": "fsync", "rename": "replace"}[call], fails)
    with pytest.raises(StorageError) as caught:
        replace_file(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["metadata.json"]
    assert str(caught.value) == (
        f"no space left on device while writing {str(path)!r}: "
        "enable compression, lower max_checkpoints or free disk space"
    )
    assert (caught.value.kind, caught.value.errno) == ("disk-full", errno.ENOSPC)


def test_the_order_is_write_sync_rename_sync_folder(tmp_path, monkeypatch):
    calls = []
    for name in ("write", "fsync", "replace"):
        real = getattr(os, name)

        def noting(*arguments, name=name, real=real):
            calls.append(name)
            return real(*arguments)

        monkeypatch.setattr(os, name, noting)
    replace_file(tmp_path / "file", b"content")
    assert calls == ["write", "fsync", "replace", "fsync"]


def test_a_temporary_never_follows_a_planted_link(tmp_path):
    victim = tmp_path / "victim"
    victim.write_bytes(b"mine")
    (tmp_path / f".file.{os.getpid()}.tmp").symlink_to(victim)
    with pytest.raises(StorageError):
        replace_file(tmp_path / "file", b"content")
    assert victim.read_bytes() == b"mine"


@pytest.mark.parametrize("offset", [None, 5])
def test_short_writes_are_continued(tmp_path, monkeypatch, offset):
    pwrite, write = os.pwrite, os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:3]))
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: pwrite(fd, data[:3], at))
    path = tmp_path / "file"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    write_all(fd, b"0123456789", offset)
    os.close(fd)
    assert path.read_bytes() == bytes(offset or 0) + b"0123456789"


def test_a_folder_that_is_not_there_is_an_error(tmp_path):
    fsync_directory(tmp_path)
    with pytest.raises(StorageError, match="check that the folder still exists"):
        fsync_directory(tmp_path / "absent")


@pytest.mark.parametrize("code", sorted(durable._CURES))
def test_every_refusal_has_a_cure(code):
    error = storage_error(OSError(code, "x"), "writing", "/a/b")
    assert "'/a/b'" in error.what
    assert error.cure
    assert isinstance(error, OSError)


def test_an_error_without_a_number_keeps_its_words():
    assert "strange" in str(storage_error(OSError("strange"), "writing", "x"))
