"""What can be asked of a store in one line, and what is refused."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milepost.core.errors import InvalidInputError
from milepost.runs.query import parse_query

NOW = 1_000_000.0


@dataclass
class Asked:
    """A run as a query sees it."""

    name: str = "bert-lr1"
    group: str | None = "my sweep"
    tags: tuple[str, ...] = ("bert", "nlp")
    status: str = "completed"
    started: float | None = NOW - 3600
    numbers: dict[str, dict[str, Any]] = field(default_factory=dict)

    def metrics(self) -> list[str]:
        return list(self.numbers)

    def summarize(self, metric: str) -> dict[str, Any]:
        return self.numbers[metric]


def holds(text: str, **fields: Any) -> bool:
    return parse_query(text, NOW).holds(Asked(**fields))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", True),
        ("  ", True),
        ('group:"my sweep"', True),
        ("group:my", False),
        ("tag:nlp", True),
        ("tag:nlp tag:bert", True),
        ("tag:nlp tag:other", False),
        ("name:bert-lr1", True),
        ("name:bert-*", True),
        ("name:bert", False),
        ("state:completed", True),
        ("state:killed", False),
        ("since:2h", True),
        ("since:30m", False),
        ("since:0.5d", True),
        ("since:1w", True),
    ],
)
def test_each_term_asks_one_thing_and_all_must_hold(text: str, expected: bool):
    assert holds(text) is expected


def test_the_best_value_is_the_smallest_for_less_and_the_largest_for_more():
    numbers = {"val/loss": {"min": 0.2, "max": 0.9}, "acc (top 1)": {"min": 0.1, "max": 0.8}, "empty": {"nan": 3}}
    assert holds("best(val/loss)<0.3", numbers=numbers)
    assert not holds("best(val/loss)<0.2", numbers=numbers)
    assert holds("best(val/loss)<=0.2", numbers=numbers)
    assert holds("best(acc (top 1))>0.7 tag:bert", numbers=numbers)
    assert not holds("best(acc (top 1))>=1e0", numbers=numbers)
    assert not holds("best(empty)<9", numbers=numbers)
    assert not holds("best(absent)<9", numbers=numbers)


def test_a_run_of_which_nobody_knows_when_it_began_is_not_recent():
    assert not holds("since:2d", started=None)


@pytest.mark.parametrize(
    ("text", "position", "cure"),
    [
        ("grup:x", 1, "group:"),
        ("tag:a  lr-sweep", 8, "group:NAME"),
        ("state:complete", 7, "completed"),
        ("since:yesterday", 7, "2d"),
        ("group:", 7, "group is to be"),
        ("best(loss)<small", 12, "0.3"),
        ("worst(loss)<1", 1, "best(METRIC)"),
        ("best(loss)=1", 1, "best(METRIC)<NUMBER"),
        ('group:"a"tag:b', 10, "a blank"),
        ("__import__('os')", 1, "group:NAME"),
    ],
)
def test_what_is_no_term_is_refused_with_its_place_and_cure(text: str, position: int, cure: str):
    with pytest.raises(InvalidInputError, match=f"position {position}\\b") as caught:
        parse_query(text)
    assert cure in caught.value.cure


@given(st.text(max_size=60))
def test_any_text_is_a_query_or_an_error_that_says_where(text: str):
    refused = None
    try:
        parse_query(text, NOW).holds(Asked())
    except InvalidInputError as error:
        refused = error
    assert refused is None or ("position" in refused.what and refused.cure)
