"""Unit tests of milepost.cli.words."""

from __future__ import annotations

import math
import unicodedata
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milepost.cli.words import age, count, number, plain, size, state_word, styled_state
from milepost.core.events import RunStatus


@given(st.text(st.characters()))
def test_no_name_can_move_the_cursor_or_reverse_the_line(name: str) -> None:
    shown = plain(name)
    assert not {unicodedata.category(character) for character in shown} & {"Cc", "Cs", "Zl", "Zp"}
    assert not any(
        unicodedata.bidirectional(character) in {"RLO", "LRO", "RLE", "LRE", "RLI", "LRI"} for character in shown
    )


def test_what_a_terminal_would_obey_is_written_out() -> None:
    assert plain("\x1b[31mred\x9b2J\n\ttab\u202e\udcff") == "\\x1b[31mred\\x9b2J\\n\\ttab\\u202e\\udcff"


def test_names_of_every_script_stay_as_they_are() -> None:
    assert plain("übung-模型-обучение [bold]") == "übung-模型-обучение [bold]"


@pytest.mark.parametrize("status", get_args(RunStatus))
def test_every_state_has_a_symbol_a_word_and_a_colour(status: str) -> None:
    symbol, word = state_word(status).split(" ", 1)
    assert len(symbol) == 1
    assert word == status
    assert styled_state(status)


def test_dead_and_living_states_do_not_share_a_symbol() -> None:
    symbols = {
        status: state_word(status)[0] for status in ("running", "completed", "failed", "killed", "paused", "unsure")
    }
    assert len(set(symbols.values())) == len(symbols)


def test_the_cause_of_a_state_stands_beside_it() -> None:
    assert state_word("killed", "SIGKILL") == "■ killed (SIGKILL)"


def test_a_state_of_a_later_version_is_shown_as_it_is() -> None:
    assert state_word("hibernating\x1b") == "? hibernating\\x1b"


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(-5, "0 s"), (2, "2 s"), (119, "119 s"), (180, "3 min"), (7200, "2 h"), (172_800, "2 d"), (8_640_000, "100 d")],
)
def test_ages(seconds: float, said: str) -> None:
    assert age(seconds) == said


@pytest.mark.parametrize(
    ("amount", "said"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (273_000_000, "273 MB"),
        (999_999_999, "1.0 GB"),
        (5 * 10**15, "5000.0 TB"),
    ],
)
def test_sizes(amount: int, said: str) -> None:
    assert size(amount) == said


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "-"),
        (math.nan, "NaN"),
        (math.inf, "inf"),
        (-math.inf, "-inf"),
        (2e-05, "2e-05"),
        (0.123456789, "0.123457"),
        (7, "7"),
    ],
)
def test_numbers(value: float | None, said: str) -> None:
    assert number(value) == said


def test_counts_have_separators_and_absence_a_dash() -> None:
    assert (count(41_000), count(None)) == ("41,000", "-")
