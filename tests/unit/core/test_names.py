"""A name that a person chose becomes an id that every file system accepts and no folder lets out."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milepost.core.config import ExperimentConfig
from milepost.core.errors import InvalidInputError
from milepost.core.names import is_safe_id, render_name, safe_name, timestamp
from milepost.runs.layout import RunLayout

HOSTILE = [
    "../../x", "a../b", "v1..2", "..", ".", "~", "-rf", "--help", "con", "CON", "aux.txt", "lpt9", "nul", "a/b\\c",
    "a\0b", "x" * 10_240, "\u202egnp.exe", "\U0001f600", "bad\udcff", " ", "\n", "%00", "$(rm -rf /)", "a:b",
    "C:\\x", "é", "..-..", "." * 200, "x" * 79 + "..y", "_", "a.", "a ", "con.", "e\u0301",
]  # fmt: skip

any_text = st.text(st.characters(), max_size=300) | st.text(st.sampled_from("./\\-_ :conaux\0\u202e"), max_size=200)


def is_accepted_everywhere(name: str) -> bool:
    """By ext4, NTFS, APFS, exFAT and a shell: plain letters, no device of Windows, no dot or dash at the front."""
    stem = name.split(".")[0].lower()
    devices = {"con", "prn", "aux", "nul", *(f"{d}{n}" for d in ("com", "lpt") for n in range(10))}
    return (
        re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", name) is not None
        and not name.endswith(".")
        and ".." not in name
        and stem not in devices
        and len(name) <= 120
    )


@given(any_text)
def test_any_text_gives_a_name_that_every_file_system_accepts(text):
    assert is_accepted_everywhere(safe_name(text))


@given(any_text)
def test_any_text_gives_the_id_of_a_run_whose_folders_stay_in_theirs(text):
    experiment_id = f"{safe_name(text)}_{timestamp(0)}-12"
    assert is_safe_id(experiment_id)
    layout = RunLayout.from_config(ExperimentConfig(root="/store"), experiment_id)
    for path in (layout.experiment, layout.log, layout.tensorboard, layout.metadata, layout.cursor(text)):
        assert os.path.normpath(path) == str(path)
        assert str(path).startswith("/store/")


@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
def test_hostile_names_make_a_folder_inside_theirs(name, tmp_path):
    made = tmp_path / f"{safe_name(name)}_{timestamp()}"
    made.mkdir()
    assert os.listdir(tmp_path) == [made.name]
    assert is_accepted_everywhere(made.name)


@given(st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,70}[A-Za-z0-9_]", fullmatch=True))
def test_a_plain_name_stays_as_it_is(name):
    assert safe_name(name) in {name, f"run-{name}"}
    assert safe_name(safe_name(name)) == safe_name(name)


@pytest.mark.parametrize("text", ["", "../x", "a/b", ".hidden", "-x", "a..b", "con", "x" * 121, "a\n", "a b", "é"])
def test_what_could_leave_its_folder_is_no_id(text):
    assert not is_safe_id(text)


def test_a_template_is_filled_from_the_hyperparameters():
    given_values = {"learning_rate": 2e-5, "model": "bert"}
    assert render_name("{model}-lr{learning_rate:.0e}", given_values) == "bert-lr2e-05"
    assert render_name("{{literal}}", {}) == "{literal}"
    assert render_name("{model!r:>8}", given_values) == "  'bert'"


class Holder:
    secret = "hunter2"

    def __str__(self) -> str:
        return "holder"


@pytest.mark.parametrize(
    "template",
    ["{h.secret}", "{h.__class__}", "{h[0]}", "{h.__init__.__globals__}", "{0}", "{}", "{absent}", "{h:{h.secret}}"],
)
def test_a_template_cannot_reach_into_objects(template):
    with pytest.raises(InvalidInputError) as raised:
        render_name(template, {"h": Holder()})
    assert "hunter2" not in str(raised.value)
    assert raised.value.cure


@pytest.mark.parametrize(
    "template", ["", "  ", "{", "}", "{a", "{a:d}", "{a!z}", "{big:c}", "{a:>99999999999999999999}"]
)
def test_a_template_that_cannot_be_meant_is_refused_with_a_cure(template):
    with pytest.raises(InvalidInputError) as raised:
        render_name(template, {"a": "text", "big": 10**10})
    assert raised.value.cure


@given(st.text(max_size=40))
def test_no_template_raises_anything_else(template):
    with contextlib.suppress(InvalidInputError):
        assert isinstance(render_name(template, {"a": 1.5, "b": "x"}), str)


def test_timestamps_sort_by_time():
    stamps = [timestamp(seconds) for seconds in range(0, 10**9, 10**7 + 1)]
    assert stamps == sorted(stamps)
    assert all(re.fullmatch(r"\d{8}-\d{6}", stamp) for stamp in stamps)
    assert Path(stamps[0]).name == stamps[0]
