"""Has what a rule looks for begun, does it go on, or is it over?

Pure: what is remembered of a metric, and its next value, give what is to be remembered then, and perhaps a finding. An
*episode* begins with the value that the rule finds bad, which is the finding, and goes on without another one until
``CALM`` values in a row are fine (a plateau ends with the first better value). Values that are not finite are
:class:`~milepost.core.rules.NotFinite`'s business; the other rules pass over them.

**Invariants**: what is remembered of a metric is bounded by the rule's window, and is plain JSON.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any

from milepost.core.rules import ExplodingGradients, NotFinite, Plateau, Rule, Spike, Threshold

__all__ = ["CALM", "Finding", "Memory", "take"]

#: So many fine values in a row end an episode.
CALM = 10

_DEVIATION_OF_NORMAL_NOISE = 1.4826
_LEAST_SPREAD = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What a rule found: a line, and the numbers behind it."""

    title: str
    text: str = ""
    step: int | None = None
    metric: str = ""
    value: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """What one rule remembers of one metric.

    Attributes:
        recent: The last values with their steps, the newest last.
        best: Step and value since which nothing was better.
        began: The step at which the present episode began, None outside of one.
        calm: How many fine values in a row the present episode has seen.
    """

    recent: tuple[tuple[int, float], ...] = ()
    best: tuple[int, float] | None = None
    began: int | None = None
    calm: int = 0

    def rewound(self, step: int) -> Memory:
        """Without what came after ``step``, which the training will do again."""
        return Memory(
            recent=tuple(point for point in self.recent if point[0] <= step),
            best=self.best if self.best is not None and self.best[0] <= step else None,
            began=self.began if self.began is not None and self.began <= step else None,
            calm=self.calm,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> Memory:
        """The inverse of :meth:`to_dict`, also of what went through JSON."""
        best = plain["best"]
        return cls(
            recent=tuple((step, value) for step, value in plain["recent"]),
            best=None if best is None else (best[0], best[1]),
            began=plain["began"],
            calm=plain["calm"],
        )


def take(rule: Rule, memory: Memory, metric: str, step: int, value: float) -> tuple[Memory, Finding | None]:
    """Judge the next value of a metric.

    Args:
        rule: One that judges metrics.
        memory: What it remembers of this metric.
        metric: Full name.
        step: Of the value.
        value: The value.

    Returns:
        What it remembers from now on, and what it found if an episode begins here.
    """
    if not isinstance(rule, NotFinite) and not math.isfinite(value):
        return memory, None
    if isinstance(rule, Plateau):
        return _plateau(rule, memory, metric, step, value)
    finding = _judge(rule, memory, metric, step, value)
    if isinstance(rule, (Spike, ExplodingGradients)):
        memory = replace(memory, recent=(*memory.recent, (step, value))[-rule.window :])
    return _episode(memory, finding, step)


def _episode(memory: Memory, finding: Finding | None, step: int) -> tuple[Memory, Finding | None]:
    if finding is not None:
        begins = memory.began is None
        return replace(memory, began=step if begins else memory.began, calm=0), finding if begins else None
    if memory.began is None:
        return memory, None
    if memory.calm + 1 >= CALM:
        return replace(memory, began=None, calm=0), None
    return replace(memory, calm=memory.calm + 1), None


def _judge(rule: Rule, memory: Memory, metric: str, step: int, value: float) -> Finding | None:
    found: tuple[str, str] | None = None
    match rule:
        case NotFinite() if not math.isfinite(value):
            found = f"{metric} is {value}", ""
        case Threshold(above=above) if above is not None and value > above:
            found = f"{metric} is {value:.6g}, above {above:g}", ""
        case Threshold(below=below) if below is not None and value < below:
            found = f"{metric} is {value:.6g}, below {below:g}", ""
        case Spike():
            found = _spike(rule, [past for _, past in memory.recent], metric, value)
        case ExplodingGradients():
            found = _explosion(rule, [past for _, past in memory.recent], metric, value)
        case _:
            pass
    if found is None:
        return None
    return Finding(title=found[0], text=found[1], step=step, metric=metric, value=value)


def _spike(rule: Spike, past: Sequence[float], metric: str, value: float) -> tuple[str, str] | None:
    if len(past) < rule.window / 2:
        return None
    middle = median(past)
    if value <= middle:
        return None
    spread = _DEVIATION_OF_NORMAL_NOISE * median(abs(one - middle) for one in past)
    spread = max(spread, _LEAST_SPREAD * abs(middle))
    if value <= middle + rule.factor * spread:
        return None
    return (
        f"{metric} jumped to {value:.6g}",
        f"the median of the {len(past)} values before it is {middle:.6g}, their spread {spread:.3g}",
    )


def _explosion(rule: ExplodingGradients, past: Sequence[float], metric: str, value: float) -> tuple[str, str] | None:
    title = f"{metric} rose to {value:.6g}"
    if rule.above is not None:
        return (title, f"the limit is {rule.above:g}") if value > rule.above else None
    if len(past) < rule.window / 5:
        return None
    middle = median(past)
    if not value > rule.factor * middle:
        return None
    return title, f"the median of the {len(past)} values before it is {middle:.6g}"


def _plateau(rule: Plateau, memory: Memory, metric: str, step: int, value: float) -> tuple[Memory, Finding | None]:
    best = memory.best
    gain = 0.0 if best is None else (best[1] - value if rule.mode == "min" else value - best[1])
    if best is None or gain > rule.min_improvement:
        return Memory(best=(step, value)), None
    if memory.began is not None or step - best[0] < rule.steps:
        return memory, None
    finding = Finding(
        title=f"{metric} has not improved for {step - best[0]} steps",
        text=f"its best value is {best[1]:.6g}, of step {best[0]}",
        step=step,
        metric=metric,
        value=value,
    )
    return replace(memory, began=step), finding
