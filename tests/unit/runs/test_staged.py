from __future__ import annotations

import os
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milepost.core.errors import CorruptDataError
from milepost.runs.staged import Staged, read_staged, staged_by, staged_names, target_stem, torn_media, write_staged

PAGE = Staged(step=3, name="page", form="html", caption="c", facts={"shape": [1, 2]})


@given(st.binary(max_size=50), st.binary(max_size=50), st.text(max_size=20), st.integers(-5, 2**40))
def test_what_is_staged_is_read_as_it_was(tmp_path_factory, first, second, name, step):
    folder = tmp_path_factory.mktemp("staged") / ".staged"
    staged = Staged(step=step, name=name, form="html", facts={"a": [1, None]})
    (found,) = [write_staged(folder, 7, staged, [first, second])]
    assert staged_names(folder) == [found]
    assert staged_by(found) == 7
    again, data = read_staged(folder / found)
    assert (again, bytes(data)) == (staged, first + second)


def test_the_oldest_come_first_whatever_their_rank(tmp_path):
    names = [write_staged(tmp_path, rank, PAGE, [b""]) for rank in (10, 2, 1)]
    assert staged_names(tmp_path) == names
    assert staged_names(tmp_path / "absent") == []


def test_a_file_that_is_cut_short_anywhere_is_damage(tmp_path):
    name = write_staged(tmp_path, 0, PAGE, [b"0123456789"])
    whole = (tmp_path / name).read_bytes()
    for length in range(len(whole)):
        (tmp_path / name).write_bytes(whole[:length])
        with pytest.raises(CorruptDataError):
            read_staged(tmp_path / name)


@given(st.text(max_size=300))
def test_the_name_of_the_encoded_file_is_safe_whatever_a_user_calls_it(name):
    stem = target_stem(Staged(step=1, name=name, form="html"), "0-0123456789abcdef-01234567")
    assert stem.endswith("_1-cdef01234567")
    assert set(stem) <= set(string.ascii_letters + string.digits + "._-")
    assert not stem.startswith((".", "-"))
    assert ".." not in stem
    assert len(stem) < 150


@pytest.mark.linux
def test_a_disk_that_refuses_leaves_nothing_half_written(tmp_path):
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            write_staged(tmp_path, 0, PAGE, [bytes(3000), bytes(3000)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.listdir(tmp_path) == []


def test_half_written_files_are_known_by_their_names(layout):
    layout.staged_media.mkdir(parents=True)
    whole = write_staged(layout.staged_media, 0, PAGE, [b""])
    (layout.staged_media / f".{whole}").touch()
    (layout.media / ".page.html.7.tmp").touch()
    assert sorted(path.name for path in torn_media(layout)) == sorted([f".{whole}", ".page.html.7.tmp"])
