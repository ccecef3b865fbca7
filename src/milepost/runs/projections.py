"""Which files of a run can be made again from its log at any time?

``metadata.json``, ``metrics.json`` and ``summary.json`` are for people and other programs; nothing reads them back to
learn about numbers.

**Invariants**: replaced whole, never edited in place. Strictly standard JSON: a number that is not finite is the text
``"NaN"``, ``"Infinity"`` or ``"-Infinity"``. The same log gives the same content.

**On crash**: the old content, or the new.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from milepost.io.durable import replace_file
from milepost.runs.ending import STILL_GOING
from milepost.runs.history import RunHistory
from milepost.runs.layout import RunLayout
from milepost.runs.metadata import as_json, read_metadata, write_metadata
from milepost.runs.series import Series
from milepost.runs.telling import read_history
from milepost.runs.told import Attempt, newest_alerts

__all__ = [
    "fold_metadata",
    "summarize",
    "write_metrics_json",
    "write_projections",
    "write_summary",
]

#: Metrics of more points stand in ``metrics.json`` as buckets; their points stand in the run log.
_MOST_POINTS = 100_000
_BUCKETS = 2_000


def write_projections(layout: RunLayout) -> None:
    """Make all three files from the log. What only the start of the run knew and never logged is kept.

    Raises:
        StorageError: What was written before is whole.
    """
    history = read_history(layout, live=True)
    write_metadata(layout, read_metadata(layout) | fold_metadata(history))
    write_metrics_json(layout, history)
    write_summary(layout, history)


def fold_metadata(history: RunHistory) -> dict[str, Any]:
    """``metadata.json`` as the log tells it: what was described, how it stands, when it was, which attempts it took."""
    fields = dict(history.fields)
    if history.status is not None:
        event, when = history.status
        fields["status"] = event.status
        fields["status_reason"] = event.reason
        fields["end_time"] = None if event.status in STILL_GOING else when
    if history.attempts:
        fields.setdefault("start_time", history.attempts[0].started)
    code = fields.get("code")
    if isinstance(code, Mapping):
        fields["git_commit"] = code.get("commit")
    if history.alerts:
        fields["alerts"] = newest_alerts(history.alerts)
    fields["attempts"] = [_plain_attempt(attempt) for attempt in history.attempts]
    return fields


def _plain_attempt(attempt: Attempt) -> dict[str, Any]:
    return asdict(attempt) | {
        "log_ids": [log_id.hex() for log_id in attempt.log_ids],
        "rank_logs": {str(rank): log_id.hex() for rank, log_id in attempt.rank_logs},
    }


def write_metrics_json(layout: RunLayout, history: RunHistory) -> None:
    """Make ``metrics.json`` hold the history by metric, in columns.

    Raises:
        StorageError: The old content is untouched.
    """
    metrics = {name: _columns(history.series(name), layout) for name in history.metrics()}
    content = {"experiment_id": layout.experiment_id, "lost_steps": history.lost_steps, "metrics": metrics}
    replace_file(layout.metrics_json, as_json(content))


def _columns(series: Series, layout: RunLayout) -> dict[str, Any]:
    if len(series) > _MOST_POINTS:
        return _buckets(series) | {"points": len(series), "all_points_in": str(layout.log)}
    return {
        "step": series.step.tolist(),
        "epoch": [None if math.isnan(epoch) else epoch for epoch in series.epoch.tolist()],
        "time": series.time.tolist(),
        "value": series.value.tolist(),
    }


def _buckets(series: Series) -> dict[str, Any]:
    """Runs of neighbouring points, each by what can be seen of it at a distance; a spike of one step stays visible."""
    edges = np.linspace(0, len(series), _BUCKETS + 1).astype(np.int64)
    starts, ends = edges[:-1], edges[1:]
    value = series.value.astype(np.float64)
    nan = np.isnan(value)
    counts = ends - starts
    nans = np.add.reduceat(nan, starts)
    with np.errstate(all="ignore"):
        means = np.add.reduceat(np.where(nan, 0.0, value), starts) / (counts - nans)
    return {
        "first_step": series.step[starts].tolist(),
        "last_step": series.step[ends - 1].tolist(),
        "min": np.fmin.reduceat(value, starts).tolist(),
        "max": np.fmax.reduceat(value, starts).tolist(),
        "first": value[starts].tolist(),
        "last": value[ends - 1].tolist(),
        "mean": means.tolist(),
        "count": counts.tolist(),
        "nan": nans.tolist(),
    }


def write_summary(layout: RunLayout, history: RunHistory) -> None:
    """Make ``summary.json`` hold what ``end_experiment`` was given, and each metric's range.

    Raises:
        StorageError: The old content is untouched.
    """
    event = history.status[0] if history.status is not None else None
    settings = history.fields.get("settings")
    settings = settings if isinstance(settings, Mapping) else {}
    content = {
        "experiment_id": layout.experiment_id,
        "status": event.status if event is not None else "running",
        "final_metrics": event.summary if event is not None else {},
        "lost_steps": history.lost_steps,
        "metrics": {name: summarize(history.series(name), _mode(name, settings)) for name in history.metrics()},
    }
    replace_file(layout.summary, as_json(content, indent=2))


def _mode(metric: str, settings: Mapping[str, Any]) -> str | None:
    """Whether smaller or larger is better, where the user has said so; never a guess."""
    return str(settings.get("best_mode")) if settings.get("best_metric") == metric else None


def summarize(series: Series, best_mode: str | None = None) -> dict[str, Any]:
    """Last, smallest, largest and mean value with their steps; NaN counts to none but ``last`` and ``nan``."""
    value = series.value.astype(np.float64)
    finite = ~np.isnan(value)
    summary: dict[str, Any] = {"points": len(series), "nan": int((~finite).sum())}
    if len(series):
        summary |= {"last": series.value[-1].item(), "last_step": int(series.step[-1])}
    if finite.any():
        smallest = int(np.nanargmin(value))
        largest = int(np.nanargmax(value))
        summary |= _at(series, "min", smallest) | _at(series, "max", largest)
        with np.errstate(all="ignore"):
            summary["mean"] = float(_mean(value[finite]))
        if best_mode in {"min", "max"}:
            summary |= _at(series, "best", smallest if best_mode == "min" else largest)
    return summary


def _mean(value: NDArray[np.float64]) -> float:
    return float(np.mean(value))


def _at(series: Series, name: str, index: int) -> dict[str, Any]:
    return {name: series.value[index].item(), f"{name}_step": int(series.step[index])}
