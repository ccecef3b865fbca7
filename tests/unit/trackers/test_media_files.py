"""What of a logged file a guest gets to see."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milepost.core.errors import CorruptDataError, NotFoundError
from milepost.core.events import MediaAdded
from milepost.trackers.media_files import Attachment, Histogram, Page, Picture, Sound, Table, Words, read_media
from tests.unit.trackers.pictures import COUNTED, TABLE, kept, png, wav


def _read(folder: Path, form: str, content: Any, **fields: Any) -> Any:
    return read_media(kept(folder, form, "name", content, **fields), folder)


def test_each_form_is_read_for_what_it_is(tmp_path: Path):
    picture = _read(tmp_path, "image", png(3, 2))
    assert isinstance(picture, Picture)
    assert (picture.width, picture.height, picture.channels) == (3, 2, 1)
    sound = _read(tmp_path, "audio", wav(80, 8000))
    assert isinstance(sound, Sound)
    assert (sound.rate, sound.channels, sound.frames) == (8000, 1, 80)
    histogram = _read(tmp_path, "histogram", COUNTED)
    assert isinstance(histogram, Histogram)
    assert (histogram.counts, histogram.smallest, histogram.number) == (COUNTED["counts"], 0.5, 4)
    table = _read(tmp_path, "table", TABLE)
    assert isinstance(table, Table)
    assert (table.columns, table.rows) == (TABLE["columns"], TABLE["rows"])
    assert isinstance(_read(tmp_path, "html", "<p>"), Page)
    assert _read(tmp_path, "text", "Grüße") == Words(text="Grüße")
    assert isinstance(_read(tmp_path, "file", b"\0"), Attachment)


def test_a_form_of_a_later_version_is_a_file(tmp_path: Path):
    event = replace(kept(tmp_path, "file", "name", b"\0"), form="hologram")
    assert isinstance(read_media(event, tmp_path), Attachment)


def test_a_histogram_of_nothing_has_no_bins(tmp_path: Path):
    empty = COUNTED | {"bin_edges": [], "counts": [], "count": 0}
    assert _read(tmp_path, "histogram", empty).counts == []


def test_a_histogram_of_nothing_finite_and_one_whose_squares_are_too_large_are_read(tmp_path: Path):
    nothing = _read(tmp_path, "histogram", COUNTED | {"min": None, "max": None, "count": 0})
    assert (nothing.smallest, nothing.largest) == (0.0, 0.0)
    assert _read(tmp_path, "histogram", COUNTED | {"sum_squares": "Infinity"}).total_of_squares == float("inf")


@pytest.mark.parametrize(
    ("form", "content"),
    [
        ("histogram", COUNTED | {"counts": [1]}),
        ("histogram", "[]"),
        ("histogram", "[" * 100_000),
        ("table", {"columns": ["a"], "rows": [[1, 2]]}),
        ("table", {"columns": ["a"], "rows": 5}),
        ("image", png()[:-1]),
        ("image", b"\x89PNG"),
        ("audio", wav()[:20]),
    ],
)
def test_what_is_not_what_its_form_promises_is_damaged(tmp_path: Path, form: str, content: Any):
    with pytest.raises(CorruptDataError, match="is damaged"):
        _read(tmp_path, form, content)


def test_a_file_that_is_gone_or_has_another_length_is_said(tmp_path: Path):
    event = kept(tmp_path, "text", "name", "words")
    with pytest.raises(CorruptDataError, match="5 bytes instead of 6"):
        read_media(replace(event, size=6), tmp_path)
    (tmp_path / event.path).unlink()
    with pytest.raises(NotFoundError, match="is gone"):
        read_media(event, tmp_path)


@pytest.mark.parametrize("path", ["../secret", "/etc/passwd", "a/../../secret", "a\0b"])
def test_no_name_leaves_the_folder(tmp_path: Path, path: str):
    event = MediaAdded(step=0, name="n", path=path, media_type="text/plain", size=1)
    with pytest.raises(CorruptDataError):
        read_media(event, tmp_path)


@given(st.sampled_from(["image", "audio", "histogram", "table", "text"]), st.binary(max_size=200))
def test_whatever_stands_in_a_file_it_is_read_or_damaged(tmp_path_factory: Any, form: str, content: bytes):
    folder = tmp_path_factory.mktemp("media")
    event = kept(folder, form, "name", content)
    try:
        read_media(event, folder)
    except CorruptDataError as error:
        assert str(folder) in error.what  # noqa: PT017  both outcomes are right
