"""What do several runs look like side by side, and which of them is the best?"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

from milepost.core.errors import InvalidInputError, MissingDependencyError, NotFoundError
from milepost.runs.nearest import did_you_mean

if TYPE_CHECKING:
    from milepost.runs.store import RunReader

__all__ = ["RunList"]

_MOST_ROWS = 20
_MOST_PARAMETERS = 4
_WIDEST = 40


class RunList(list["RunReader"]):
    """Runs, in the order in which they were asked for; printed it is a table of what differs."""

    def best(self, metric: str, mode: Literal["min", "max"] = "min") -> RunReader:
        """The run with the best value of a metric at any of its steps.

        Args:
            metric: Full name.
            mode: Whether smaller (``"min"``) or larger is better.

        Raises:
            NotFoundError: None of them has a number under that name.
            InvalidInputError: ``mode`` is another word.
        """
        judged = self._judged(metric, mode)
        return (min if mode == "min" else max)(judged, key=lambda pair: pair[0])[1]

    def worst(self, metric: str, mode: Literal["min", "max"] = "min") -> RunReader:
        """The run whose best value of a metric is the worst of all; see :meth:`best`."""
        judged = self._judged(metric, mode)
        return (max if mode == "min" else min)(judged, key=lambda pair: pair[0])[1]

    def _judged(self, metric: str, mode: str) -> list[tuple[float, RunReader]]:
        if mode not in {"min", "max"}:
            raise InvalidInputError(f"mode is {mode!r}", cure="give 'min' or 'max'")
        values = [(_value_of(run, metric, mode), run) for run in self]
        judged = [(value, run) for value, run in values if not math.isnan(value)]
        if not judged:
            known = [name for run in self for name in run.metrics()]
            raise NotFoundError(
                f"none of these {len(self)} runs has numbers of {metric!r}", cure=did_you_mean(metric, known)
            )
        return judged

    def to_pandas(self) -> Any:
        """A frame with one row a run: id, name, state, start, seconds, hyperparameters, and of each metric its range.

        Columns of hyperparameters are called ``hyperparameters.<name>``, those of metrics ``<name>.last``, ``.min`` and
        ``.max``.

        Raises:
            MissingDependencyError: pandas is absent.
        """
        try:
            pandas = import_module("pandas")
        except ImportError as error:
            raise MissingDependencyError(f"pandas not available ({error})", cure="pip install pandas") from error
        return pandas.DataFrame([_row(run) for run in self])

    def __repr__(self) -> str:
        if not self:
            return "<no runs>"
        shown = self[:_MOST_ROWS]
        columns = _columns(shown)
        rows = [list(columns), *[[_cell(tell(run)) for tell in columns.values()] for run in shown]]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        left = len(self) - len(shown)
        return "\n".join(lines + ([f"... and {left} more"] if left else []))


def _columns(runs: list[RunReader]) -> dict[str, Callable[[RunReader], Any]]:
    columns: dict[str, Callable[[RunReader], Any]] = {"state": lambda run: run.status, "run": lambda run: run.id}
    columns |= {name: partial(_parameter, name) for name in _that_differ(runs)}
    metric, mode = _metric_to_show(runs)
    if metric:
        columns[f"{mode} {metric}"] = lambda run: _value_of(run, metric, mode)
    return columns | {"time": lambda run: _duration(run.seconds)}


def _parameter(name: str, run: RunReader) -> Any:
    return run.hyperparameters.get(name, "")


def _that_differ(runs: list[RunReader]) -> list[str]:
    """Hyperparameters that are not the same in all of them."""
    names = dict.fromkeys(name for run in runs for name in run.hyperparameters)
    differ = [name for name in names if len({repr(run.hyperparameters.get(name)) for run in runs}) > 1]
    return differ[:_MOST_PARAMETERS]


def _metric_to_show(runs: list[RunReader]) -> tuple[str, str]:
    """The metric that the user configured as deciding; else the first of a validation, else the first; and its mode."""
    for run in runs:
        settings = run.metadata.get("settings")
        if isinstance(settings, Mapping) and settings.get("best_metric"):
            return str(settings["best_metric"]), str(settings.get("best_mode") or "min")
    names = [name for run in runs for name in run.metrics()]
    validation = [name for name in names if name.startswith(("val", "eval"))]
    return (validation or names or [""])[0], "min"


def _value_of(run: RunReader, metric: str, mode: str) -> float:
    """The smallest or largest value; NaN if there is none."""
    return float(run.summarize(metric).get(mode, math.nan)) if metric in run.metrics() else math.nan


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6g}"
    text = " ".join(str(value).split())
    return text if len(text) <= _WIDEST else f"{text[: _WIDEST - 1]}…"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h {minutes:02}m" if hours else f"{minutes}m {rest:02}s" if minutes else f"{rest}s"


def _row(run: RunReader) -> dict[str, Any]:
    row = {"id": run.id, "name": run.name, "state": run.status, "started": run.started, "seconds": run.seconds}
    row |= {f"hyperparameters.{name}": value for name, value in run.hyperparameters.items()}
    for metric in run.metrics():
        told = run.summarize(metric)
        row |= {f"{metric}.{name}": told.get(name) for name in ("last", "min", "max")}
    return row
