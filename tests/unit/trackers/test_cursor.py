"""The file that says up to where a guest has taken a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from milepost.trackers.cursor import Cursor, load_cursor, save_cursor


def test_a_cursor_comes_back_as_it_was_saved(tmp_path: Path):
    path = tmp_path / "deep" / "guest-x.json"
    cursor = Cursor(position={"logs": {"00": 64}}, guest={"rows": 3}, closed=True, records=5)
    save_cursor(path, cursor)
    assert load_cursor(path) == cursor
    assert [p.name for p in path.parent.iterdir()] == ["guest-x.json"]


@pytest.mark.parametrize(
    "content", [b"", b"\0" * 100, b'{"position"', b"[]", b"3", b'{"position": 1, "guest": {}}', b"\xff\xfe"]
)
def test_a_damaged_cursor_tells_the_run_from_its_beginning(tmp_path: Path, content: bytes):
    (tmp_path / "guest-x.json").write_bytes(content)
    assert load_cursor(tmp_path / "guest-x.json") == Cursor()


def test_without_a_file_there_is_an_empty_cursor(tmp_path: Path):
    assert load_cursor(tmp_path / "guest-x.json") == Cursor()
