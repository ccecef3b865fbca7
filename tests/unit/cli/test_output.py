"""Unit tests of milepost.cli.output."""

from __future__ import annotations

import json
import math
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from milepost.cli.output import print_json, print_line, print_table, to_json


@dataclass(frozen=True)
class Pair:
    left: object
    right: object


def test_numbers_that_json_lacks_are_strings() -> None:
    assert to_json([math.nan, math.inf, -math.inf, 1.5]) == ["NaN", "Infinity", "-Infinity", 1.5]


def test_records_mappings_and_paths_become_plain_json() -> None:
    assert to_json(Pair(Path("/a"), {1: (True, None)})) == {"left": "/a", "right": {"1": [True, None]}}


def test_a_document_is_valid_json_whatever_is_in_it(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"name": "\x1b[2J\x9b\udcff", "value": math.nan, "big": 2**200})
    printed = capsys.readouterr().out
    assert printed.isascii()
    assert json.loads(printed) == {"name": "\x1b[2J\x9b\udcff", "value": "NaN", "big": 2**200}


def test_a_pipe_gets_whole_lines_without_colour(capsys: pytest.CaptureFixture[str]) -> None:
    long = "x" * 500
    print_table(["NAME", "STEP"], [[(long, "red"), "7"]], numbers=["STEP"])
    heading, row = capsys.readouterr().out.splitlines()
    assert heading.split() == ["NAME", "STEP"]
    assert row.split() == [long, "7"]


def test_markup_and_escapes_in_names_are_shown_and_not_obeyed(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(["NAME"], [["[red]a[/red]\x1b[31m :smile:"]])
    print_line("[bold]b", ("\x1b]0;title\x07", "red"))
    assert capsys.readouterr().out.splitlines()[1:] == ["[red]a[/red]\\x1b[31m :smile:", "[bold]b \\x1b]0;title\\x07"]


def on_a_terminal(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    for name, value in {"FORCE_COLOR": "1", "TERM": "xterm", "COLUMNS": str(width)}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)


def without_style(printed: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", printed)


@pytest.mark.parametrize(
    ("width", "shown"),
    [(80, ["RUN", "STEP", "SAVED", "BEST"]), (25, ["RUN", "STEP", "SAVED"]), (18, ["RUN", "STEP"]), (11, ["RUN"])],
)
def test_a_narrow_terminal_gets_fewer_columns_and_no_half_numbers(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int, shown: list[str]
) -> None:
    on_a_terminal(monkeypatch, width)
    print_table(["RUN", "STEP", "SAVED", "BEST"], [["bert_2026", "1,558", "5", "x" * 40]], whole=["RUN"])
    heading, row = without_style(capsys.readouterr().out).splitlines()
    assert heading.split() == shown
    assert row.split() == ["bert_2026", "1,558", "5", "x" * 40][: len(shown)]


def test_what_is_always_shown_is_folded_where_it_cannot_fit(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    on_a_terminal(monkeypatch, 10)
    print_table(["RUN"], [["bert_20261124-133155"]], whole=["RUN"])
    assert "".join(without_style(capsys.readouterr().out).split()) == "RUNbert_20261124-133155"


def test_a_table_without_rows_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(["NAME"], [])
    assert capsys.readouterr().out == ""
