"""A file that has its name is whole, and what is beside it tells whether it still is."""

import io
import json
import os
import zipfile

import pytest

from milepost.checkpoint.catalog import sidecar_of
from milepost.core.errors import StorageError
from milepost.integrations.sound_file import damage_of, description_of, remove_sound, write_sound


def zip_of(text):
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w") as archive:
        archive.writestr("archive/data.pkl", text)
    return memory.getvalue()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "epoch=0.ckpt"


def flip(path, place):
    """One changed bit, and the modification time of before: what a disk does, not a program."""
    status = path.stat()
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, (8 << 20) + 5])
def test_a_file_of_any_size_is_written_as_it_is_and_found_sound(path, size):
    content = os.urandom(size)
    described = write_sound(path, memoryview(content), {"step": 7})
    assert path.read_bytes() == content
    assert described["step"] == 7
    assert description_of(path) == described
    assert damage_of(path) == ""
    assert {one.name for one in path.parent.iterdir()} == {path.name, sidecar_of(path).name}


def test_a_changed_bit_is_noticed(path):
    write_sound(path, memoryview(zip_of("x" * 1000)), {})
    flip(path, 500)
    assert "digest" in damage_of(path)


def test_a_description_that_is_of_another_file_counts_as_none_and_the_zips_checksums_decide(path):
    write_sound(path, memoryview(zip_of("old")), {"step": 1})
    path.write_bytes(zip_of("x" * 1000))
    assert description_of(path) == {}
    assert damage_of(path) == ""
    flip(path, 500)
    assert "checksum" in damage_of(path)
    path.write_bytes(path.read_bytes()[:600])
    assert "broken" in damage_of(path)


def test_a_description_that_is_damaged_counts_as_none(path):
    write_sound(path, memoryview(zip_of("x")), {})
    sidecar_of(path).write_text(json.dumps([1]))
    assert description_of(path) == {}
    assert damage_of(path) == ""


def test_what_is_no_file_of_torch_is_damaged_and_a_bare_pickle_cannot_be_judged(path):
    path.write_bytes(bytes(100))
    assert "no file that torch wrote" in damage_of(path)
    path.write_bytes(b"\x80\x02anything")
    assert damage_of(path) == ""


def test_a_new_file_replaces_the_old_one_also_through_a_link(path):
    write_sound(path, memoryview(b"old"), {})
    link = path.with_name("last.ckpt")
    link.symlink_to(path.name)
    write_sound(link, memoryview(b"new"), {})
    assert (path.read_bytes(), link.read_bytes()) == (b"old", b"new")
    assert not link.is_symlink()


def test_what_the_disk_refuses_leaves_the_old_file_and_nothing_else(path, monkeypatch):
    write_sound(path, memoryview(b"old"), {})
    before = {one.name for one in path.parent.iterdir()}
    target = path.with_name("a-folder.ckpt")
    target.mkdir()
    with pytest.raises(StorageError, match="writing"):
        write_sound(target, memoryview(b"new"), {})
    assert {one.name for one in path.parent.iterdir()} == before | {"a-folder.ckpt"}


def test_a_temporary_of_a_dead_process_is_in_nobodys_way(path):
    path.with_name(f".{path.name}.tmp").write_bytes(b"half")
    write_sound(path, memoryview(b"whole"), {})
    assert path.read_bytes() == b"whole"


def test_removal_takes_the_description_along_and_twice_is_once(path):
    write_sound(path, memoryview(b"x"), {})
    remove_sound(path)
    remove_sound(path)
    assert list(path.parent.iterdir()) == []
