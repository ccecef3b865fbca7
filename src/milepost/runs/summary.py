"""Which few numbers stand for a run?

What ``end_experiment`` was given, and for each metric its last, smallest, largest and mean value. Everything comes from
the log; what a resume did again does not count.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

from milepost.core.errors import NotFoundError
from milepost.runs.nearest import did_you_mean

__all__ = ["MetricSummary", "RunSummary"]


class MetricSummary(float):
    """One metric in a few numbers. As a float it is the final value that was given, else the last one logged.

    Attributes:
        points: How many values count.
        last: The value logged last, and ``last_step`` its step.
        min: The smallest value that is not NaN, and ``min_step`` the step at which it came first.
        max: The largest likewise.
        mean: Of all values that are not NaN.

    NaN stands for a value that there is not, None for its step.
    """

    __slots__ = ("last", "last_step", "max", "max_step", "mean", "min", "min_step", "points")

    points: int
    last: float
    last_step: int | None
    min: float
    min_step: int | None
    max: float
    max_step: int | None
    mean: float

    def __new__(cls, told: Mapping[str, Any], final: float | None = None) -> Self:
        """From what :func:`milepost.runs.projections.summarize` says of a series."""
        made = super().__new__(cls, told.get("last", math.nan) if final is None else final)
        made.points = told.get("points", 0)
        for name in ("last", "min", "max"):
            setattr(made, name, told.get(name, math.nan))
            setattr(made, f"{name}_step", told.get(f"{name}_step"))
        made.mean = told.get("mean", math.nan)
        return made

    def __getnewargs__(self) -> tuple[dict[str, Any], float]:  # type: ignore[override]  # float has but a number
        return {name: getattr(self, name) for name in self.__slots__}, float(self)

    def __repr__(self) -> str:
        steps = {name: getattr(self, f"{name}_step") for name in ("last", "min", "max")}
        at = [f"{name}={getattr(self, name):.6g} at step {step}" for name, step in steps.items() if step is not None]
        return f"<{', '.join(at) or 'no values'}>"


class RunSummary(dict[str, Any]):
    """What ``end_experiment`` was given; it answers for every metric as well.

    As a mapping it holds the final values and nothing else. ``summary["val/loss"]`` is a :class:`MetricSummary` where
    there is a metric of that name; a final value of that name is then its value as a float.
    """

    def __init__(
        self,
        final: Mapping[str, Any],
        metrics: Sequence[str] = (),
        summarize: Callable[[str], Mapping[str, Any]] = lambda _: {},
    ) -> None:
        super().__init__(final)
        self._metrics = metrics
        self._summarize = summarize

    def __getitem__(self, name: str) -> Any:
        """The summary of the metric ``name``, else the final value of that name.

        Raises:
            NotFoundError: There is neither.
        """
        final = super().get(name)
        if name in self._metrics and isinstance(final, (int, float, type(None))):
            return MetricSummary(self._summarize(name), None if final is None else float(final))
        if super().__contains__(name):
            return final
        raise NotFoundError(f"no metric {name!r} to sum up", cure=did_you_mean(name, [*self._metrics, *self]))

    def __contains__(self, name: object) -> bool:
        return name in self._metrics or super().__contains__(name)

    def get(self, name: str, default: Any = None) -> Any:
        """As ``summary[name]``; ``default`` where that would raise."""
        try:
            return self[name]
        except NotFoundError:
            return default

    def __reduce__(self) -> tuple[Any, ...]:
        return RunSummary, (
            dict(self),
            list(self._metrics),
            _Known({name: self._summarize(name) for name in self._metrics}),
        )


class _Known(dict[str, Mapping[str, Any]]):
    """What was summed up, for a summary that travels to another process."""

    def __call__(self, name: str) -> Mapping[str, Any]:
        return self[name]
