"""What may the metrics of a training be watched for, and what is to be done when it happens?

A rule is a plain value: it says what to look for and what to do. Judging is the companion's work
(:mod:`milepost.companion.episodes`), so a rule costs the training nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields
from fnmatch import fnmatchcase
from typing import Any, Literal, get_args

from milepost.core.errors import InvalidInputError
from milepost.core.events import AlertLevel

__all__ = [
    "Alert",
    "ExplodingGradients",
    "NoProgress",
    "NotFinite",
    "Plateau",
    "Rule",
    "Spike",
    "Threshold",
    "is_rule",
    "rule_from_dict",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """What a rule found; given to the function that the rule calls.

    Attributes:
        run: The run's id.
        rule: The rule, as one writes it.
        title: What happened.
        text: More about it.
        level: As the rule has it.
        step: Of the value that gave rise to it.
        metric: The metric; empty where no metric is the reason.
        value: Its value there.
        actions: What was done about it, in words.
    """

    run: str
    rule: str
    title: str
    text: str = ""
    level: AlertLevel = "warning"
    step: int | None = None
    metric: str = ""
    value: float | None = None
    actions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What all rules share: what to do, beside the alert that each of them gives once per episode.

    Attributes:
        level: How much it should alarm: ``"info"``, ``"warning"`` or ``"error"``.
        mark: A tag that the run gets.
        pin: Keep the newest checkpoint from before the step at which it happened, whatever retention says.
        call: Called with an :class:`Alert`, in the training process and in a thread of its own. What it raises becomes
            a notice.
        stop: Let ``should_stop`` turn true, on all ranks at one step. No checkpoint is asked for.
    """

    level: AlertLevel = "warning"
    mark: str | None = None
    pin: bool = False
    call: Callable[[Alert], object] | None = None
    stop: bool = False

    def __post_init__(self) -> None:
        if self.level not in get_args(AlertLevel):
            raise self._refused("level", f"give one of {', '.join(get_args(AlertLevel))}")
        if self.mark is not None and (not isinstance(self.mark, str) or not self.mark.strip()):
            raise self._refused("mark", "give a tag, or None")
        for name in ("pin", "stop"):
            if not isinstance(getattr(self, name), bool):
                raise self._refused(name, "give True or False")
        if self.call is not None and not callable(self.call):
            raise self._refused("call", "give a function that takes an Alert")
        self._check()

    def _check(self) -> None:
        """Refuse what else cannot be meant."""

    def _refused(self, name: str, cure: str) -> InvalidInputError:
        where = f"{name} of {type(self).__name__} is {getattr(self, name)!r:.80}"
        return InvalidInputError(where, cure=cure, kind="invalid-rule")

    def _check_number(self, name: str, *, above: float, optional: bool = False) -> None:
        value = getattr(self, name)
        if value is None and optional:
            return
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not above < value < math.inf:
            raise self._refused(name, f"give a number above {above:g}" if above > -math.inf else "give a number")

    def _check_metric(self) -> None:
        metric = getattr(self, "metric", None)
        if not isinstance(metric, str) or not metric:
            raise self._refused("metric", 'give the name of a metric, or a pattern like "val/*"')

    def _check_whole(self, name: str, least: int) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise self._refused(name, f"give a whole number of at least {least}")

    def watches(self, metric: str) -> bool:
        """Whether it judges the values of a metric; ``*`` in a rule's metric stands for any text."""
        pattern = getattr(self, "metric", "")
        return metric == pattern or fnmatchcase(metric, pattern)

    def __str__(self) -> str:
        """As one writes it, without what is to be done."""
        beside = {field.name for field in fields(Rule)}
        said = [
            f"{field.name}={getattr(self, field.name)!r}"
            for field in fields(self)
            if field.name not in beside and (getattr(self, field.name) != field.default or field.default is MISSING)
        ]
        return f"{type(self).__name__}({', '.join(said)})"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; of a function only whether there is one."""
        plain = {field.name: getattr(self, field.name) for field in fields(self)}
        return {"rule": type(self).__name__} | plain | {"call": self.call is not None}


@dataclass(frozen=True, slots=True)
class NotFinite(Rule):
    """A metric is NaN or infinite.

    Attributes:
        metric: Name, or a pattern.
    """

    metric: str = "*"

    def _check(self) -> None:
        self._check_metric()


@dataclass(frozen=True, slots=True)
class Spike(Rule):
    """A value lies far above the ones before it.

    Far is ``factor`` times their spread above their median; the spread is 1.4826 times the median absolute deviation,
    which for normal noise is its standard deviation, and no less than a hundredth of the median. Judged once half a
    window is there.

    Attributes:
        metric: Name, or a pattern.
        factor: In spreads.
        window: How many values before it count.
    """

    metric: str
    factor: float = 10.0
    window: int = 100

    def _check(self) -> None:
        self._check_metric()
        self._check_number("factor", above=0.0)
        self._check_whole("window", 4)


@dataclass(frozen=True, slots=True)
class Plateau(Rule):
    """The best value of a metric is old.

    Attributes:
        metric: Name, or a pattern.
        steps: So many steps without a better value.
        min_improvement: By how much a value must be better to count.
        mode: Whether smaller (``"min"``) or larger (``"max"``) is better.
    """

    metric: str
    steps: int
    min_improvement: float = 0.0
    mode: Literal["min", "max"] = "min"

    def _check(self) -> None:
        self._check_metric()
        self._check_whole("steps", 1)
        if self.min_improvement != 0:
            self._check_number("min_improvement", above=0.0)
        if self.mode not in {"min", "max"}:
            raise self._refused("mode", "give 'min' or 'max'")


@dataclass(frozen=True, slots=True)
class ExplodingGradients(Rule):
    """The norm of the gradients is far larger than it was.

    Attributes:
        metric: Name, or a pattern; the default is what ``run.watch`` logs.
        above: The largest norm that is fine; None: ``factor`` times the median of the ``window`` values before.
        factor: Judged once a fifth of a window is there.
        window: How many values before it count.
    """

    metric: str = "grad_norm*"
    above: float | None = None
    factor: float = 10.0
    window: int = 100

    def _check(self) -> None:
        self._check_metric()
        self._check_number("above", above=0.0, optional=True)
        self._check_number("factor", above=1.0)
        self._check_whole("window", 4)


@dataclass(frozen=True, slots=True)
class NoProgress(Rule):
    """Nothing was logged for a while, though the run lives and is not paused.

    Attributes:
        minutes: How long, by the companion's clock; looked at every ten seconds.
    """

    minutes: float = 30.0

    def _check(self) -> None:
        self._check_number("minutes", above=0.0)


@dataclass(frozen=True, slots=True)
class Threshold(Rule):
    """A value lies beyond a limit.

    Attributes:
        metric: Name, or a pattern.
        above: The largest value that is fine; None: any is.
        below: The smallest value that is fine; None: any is.
    """

    metric: str
    above: float | None = None
    below: float | None = None

    def _check(self) -> None:
        self._check_metric()
        for name in ("above", "below"):
            self._check_number(name, above=-math.inf, optional=True)
        if self.above is None and self.below is None:
            raise InvalidInputError("a Threshold has no limit", cure="give above=, below= or both", kind="invalid-rule")


_KINDS: dict[str, type[Rule]] = {
    kind.__name__: kind for kind in (NotFinite, Spike, Plateau, ExplodingGradients, NoProgress, Threshold)
}


def is_rule(value: object) -> bool:
    """Whether it is a rule that a companion can judge by."""
    return type(value) in _KINDS.values()


def rule_from_dict(plain: Mapping[str, Any]) -> Rule | None:
    """The rule that :meth:`Rule.to_dict` wrote, without its function; None if this version does not know it."""
    kind = _KINDS.get(str(plain.get("rule")))
    if kind is None:
        return None
    known = {field.name for field in fields(kind)} - {"call"}
    try:
        return kind(**{name: value for name, value in plain.items() if name in known})
    except (InvalidInputError, TypeError):
        return None
