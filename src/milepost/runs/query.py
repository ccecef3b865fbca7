"""Which runs does a person ask for in a line like ``group:lr-sweep best(val/loss)<0.3 since:2d``?

All terms must hold. They are read here into frozen records, each with a predicate; nothing is ever evaluated.

======================== =================================================================================
``group:NAME``           in the group
``tag:NAME``             with the tag
``name:NAME``            of that name; ``*`` and ``?`` stand for other characters
``state:WORD``           in the state: ``running``, ``completed``, ``killed``, ...
``since:2d``             begun in the last 2 days (``m``, ``h``, ``d``, ``w``)
``best(METRIC)<0.3``     with a value below; the smallest counts for ``<`` and ``<=``, the largest for ``>`` and ``>=``
======================== =================================================================================

A value with a blank in it stands in double quotes: ``group:"my sweep"``.
"""

from __future__ import annotations

import fnmatch
import operator
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, get_args

from milepost.core.errors import InvalidInputError
from milepost.core.events import RunStatus
from milepost.runs.nearest import did_you_mean

__all__ = ["Queried", "Query", "parse_query"]

_TERM = re.compile(r'(?P<word>[A-Za-z_]+):(?P<value>"[^"]*"|\S*)')
_COMPARED = re.compile(
    r"(?P<word>[A-Za-z_]+)\((?P<metric>[^()]+(?:\([^()]*\)[^()]*)*)\)(?P<sign>[<>]=?)(?P<number>\S+)"
)
_AGE = re.compile(r"(\d+(?:\.\d+)?)([mhdw])")
_SECONDS = {"m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_SIGNS: Mapping[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_STATES = get_args(RunStatus)
_FORMS = ("group:NAME", "tag:NAME", "name:NAME", "state:WORD", "since:2d", "best(METRIC)<NUMBER")


class Queried(Protocol):
    """What a query wants to know of a run."""

    @property
    def name(self) -> str:
        """As the user called it."""

    @property
    def group(self) -> str | None:
        """What ties it to others."""

    @property
    def tags(self) -> Sequence[str]:
        """Its tags."""

    @property
    def status(self) -> str:
        """Its state."""

    @property
    def started(self) -> float | None:
        """Seconds since 1970."""

    def metrics(self) -> Sequence[str]:
        """Names of its metrics."""

    def summarize(self, metric: str) -> Mapping[str, Any]:
        """With ``min`` and ``max``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Word:
    """``word:value``."""

    word: str
    value: str

    def holds(self, run: Queried) -> bool:
        match self.word:
            case "group":
                return run.group == self.value
            case "tag":
                return self.value in run.tags
            case "state":
                return run.status == self.value
            case _:
                return fnmatch.fnmatchcase(run.name, self.value)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Since:
    """Begun at ``earliest`` (seconds since 1970) or later."""

    earliest: float

    def holds(self, run: Queried) -> bool:
        return run.started is not None and run.started >= self.earliest


@dataclass(frozen=True, slots=True, kw_only=True)
class _Best:
    """The best value of a metric compared with a number."""

    metric: str
    sign: str
    number: float

    def holds(self, run: Queried) -> bool:
        if self.metric not in run.metrics():
            return False
        best = run.summarize(self.metric).get("min" if self.sign.startswith("<") else "max")
        return best is not None and _SIGNS[self.sign](best, self.number)


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """Terms that must all hold; those that need the whole log of a run stand last."""

    terms: tuple[_Word | _Since | _Best, ...] = ()

    def holds(self, run: Queried) -> bool:
        """Whether ``run`` is asked for."""
        return all(term.holds(run) for term in self.terms)


def parse_query(text: str, now: float | None = None) -> Query:
    """The query that ``text`` asks; an empty one asks for every run.

    Args:
        text: Terms with blanks between them.
        now: Seconds since 1970 that ``since:`` counts back from; None: now.

    Raises:
        InvalidInputError: A term is none; the message gives its position.
    """
    now = time.time() if now is None else now
    terms: list[_Word | _Since | _Best] = []
    position = 0
    while position < len(text):
        if text[position].isspace():
            position += 1
            continue
        term, position = _term(text, position, now)
        terms.append(term)
    return Query(terms=tuple(sorted(terms, key=lambda term: isinstance(term, _Best))))


def _term(text: str, position: int, now: float) -> tuple[_Word | _Since | _Best, int]:
    """The term that begins at ``position``, and where it ends."""
    for pattern, read in ((_COMPARED, _compared), (_TERM, _worded)):
        match = pattern.match(text, position)
        if match is not None:
            end = match.end()
            if end < len(text) and not text[end].isspace():
                raise _refused(text, end, "put a blank between two terms")
            return read(text, match, now), end
    raise _refused(text, position, f"a term is one of {', '.join(_FORMS)}")


def _worded(text: str, match: re.Match[str], now: float) -> _Word | _Since:
    word, value = match["word"], match["value"].strip('"')
    if word not in {"group", "tag", "name", "state", "since"}:
        known = did_you_mean(f"{word}:", [form.partition(":")[0] + ":" for form in _FORMS[:5]])
        raise _refused(text, match.start(), known)
    if not value:
        raise _refused(text, match.start("value"), f"write what {word} is to be")
    if word == "state" and value not in _STATES:
        raise _refused(text, match.start("value"), did_you_mean(value, _STATES))
    if word != "since":
        return _Word(word=word, value=value)
    age = _AGE.fullmatch(value)
    if age is None:
        raise _refused(text, match.start("value"), "write 30m, 12h, 2d or 1w")
    return _Since(earliest=now - float(age[1]) * _SECONDS[age[2]])


def _compared(text: str, match: re.Match[str], now: float) -> _Best:
    del now
    if match["word"] != "best":
        raise _refused(text, match.start(), "write best(METRIC)")
    try:
        number = float(match["number"])
    except ValueError:
        raise _refused(text, match.start("number"), "write a number, for example 0.3") from None
    return _Best(metric=match["metric"].strip(), sign=match["sign"], number=number)


def _refused(text: str, position: int, cure: str) -> InvalidInputError:
    there = text[position:].split(maxsplit=1)
    what = f"{there[0]!r} at position {position + 1}" if there else f"the end, position {position + 1},"
    return InvalidInputError(f"the query {text!r} is not understood: {what}", cure=cure, kind="invalid-query")
