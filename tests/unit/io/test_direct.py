"""Large new files are written past the cache where that works, and are never mistaken for old ones."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from milepost.io.direct import (
    ALIGNMENT,
    NewFile,
    _link_without_replacing,
    aligned_buffer,
    drop_from_cache,
    read_fully,
    remove_if_abandoned,
    rename_without_replacing,
)


def test_pieces_written_anywhere_make_the_file_and_it_is_cut_to_its_length(tmp_path: Path) -> None:
    path = str(tmp_path / "new")
    buffer = aligned_buffer(2 * ALIGNMENT)
    buffer[:] = b"a" * ALIGNMENT + b"b" * ALIGNMENT
    with NewFile(path) as file:
        file.preallocate(64 * ALIGNMENT)
        file.write(buffer[ALIGNMENT:], ALIGNMENT)
        file.write(buffer[:ALIGNMENT], 0)
        file.finish(ALIGNMENT + 10)
    assert Path(path).read_bytes() == b"a" * ALIGNMENT + b"b" * 10


def test_where_the_kernel_refuses_direct_writes_the_cache_is_used(tmp_path: Path) -> None:
    path = str(tmp_path / "new")
    with NewFile(path) as file:
        file.write(memoryview(b"unaligned"), 3)  # refused by O_DIRECT on most file systems
        file.finish(12)
    assert Path(path).read_bytes() == b"\0\0\0unaligned"


def test_an_existing_file_is_not_opened(tmp_path: Path) -> None:
    (tmp_path / "old").write_bytes(b"precious")
    with pytest.raises(FileExistsError):
        NewFile(str(tmp_path / "old"))
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileExistsError):
        NewFile(str(tmp_path / "link"))
    assert not (tmp_path / "nowhere").exists()


def test_more_room_than_the_disk_has_is_not_reserved(tmp_path: Path) -> None:
    with NewFile(str(tmp_path / "new")) as file:
        file.preallocate(1 << 60)
        file.finish(0)
    assert (tmp_path / "new").stat().st_size == 0


@pytest.mark.parametrize("rename", [rename_without_replacing, _link_without_replacing])
def test_a_name_that_is_taken_is_not_taken_over(tmp_path: Path, rename: object) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(b"new")
    rename(str(source), str(target))
    assert target.read_bytes() == b"new"
    assert not source.exists()
    source.write_bytes(b"newer")
    with pytest.raises(FileExistsError):
        rename(str(source), str(target))
    assert target.read_bytes() == b"new"
    assert source.read_bytes() == b"newer"
    with pytest.raises(FileNotFoundError):
        rename(str(tmp_path / "none"), str(tmp_path / "other"))


def test_only_what_nobody_writes_is_abandoned(tmp_path: Path) -> None:
    path = tmp_path / "new"
    with NewFile(str(path)):
        assert not remove_if_abandoned(str(path))
    assert remove_if_abandoned(str(path))
    assert not path.exists()
    assert not remove_if_abandoned(str(path))
    path.symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").write_bytes(b"precious")
    assert not remove_if_abandoned(str(path))
    assert (tmp_path / "elsewhere").exists()


def test_a_short_file_is_read_to_its_end(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"0123456789")
    fd = os.open(tmp_path / "file", os.O_RDONLY)
    try:
        drop_from_cache(fd)
        buffer = bytearray(8)
        assert read_fully(fd, memoryview(buffer), 1) == 8
        assert buffer == b"12345678"
        assert read_fully(fd, memoryview(buffer), 7) == 3
        assert read_fully(fd, memoryview(buffer), 70) == 0
    finally:
        os.close(fd)
