"""Which checkpoints does a run have by its own log, and which is the best?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from milepost.core.records import CheckpointInfo
from milepost.runs.layout import RunLayout

__all__ = ["best_of", "listed_checkpoints"]

_FIELDS = {field.name for field in fields(CheckpointInfo)}


def listed_checkpoints(layout: RunLayout, known: Mapping[str, Mapping[str, Any]]) -> list[CheckpointInfo]:
    """Checkpoints by step, then age; a record that lacks what a checkpoint must have is left out.

    Args:
        layout: Of the run; a checkpoint is looked for in its folder of checkpoints, wherever that has been moved.
        known: By file name, the fields of ``CheckpointInfo`` as they were recorded.
    """
    listed = [info for name, values in known.items() if (info := _info(layout, name, values)) is not None]
    return sorted(listed, key=lambda info: (info.step, info.timestamp))


def _info(layout: RunLayout, filename: str, values: Mapping[str, Any]) -> CheckpointInfo | None:
    if "/" in filename or "\\" in filename or filename in {"", ".", ".."}:
        return None  # a name that leaves the folder is nobody's checkpoint
    kept = {name: value for name, value in values.items() if name in _FIELDS}
    recorded = kept.pop("path", None)
    path = layout.checkpoints / filename
    if not path.exists() and isinstance(recorded, str) and Path(recorded).name == filename:
        path = Path(recorded)
    kept |= {"filename": filename, "path": path, "contents": tuple(kept.get("contents") or ())}
    kept.setdefault("experiment_id", layout.experiment_id)
    if not isinstance(kept.get("step"), int):
        return None
    return CheckpointInfo(**kept)


def best_of(checkpoints: Sequence[CheckpointInfo], settings: Mapping[str, Any]) -> CheckpointInfo | None:
    """The last one marked best; else the best by ``best_metric`` and ``best_mode``; else None, never a guess."""
    there = [info for info in checkpoints if info.path.exists()]
    marked = [info for info in there if info.is_best]
    if marked:
        return max(marked, key=lambda info: info.timestamp)
    metric = settings.get("best_metric")
    judged = [(info.metrics[metric], info) for info in there if _is_number(info.metrics.get(metric))] if metric else []
    if not judged:
        return None
    choose = max if settings.get("best_mode") == "max" else min
    return choose(judged, key=lambda pair: pair[0])[1]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and value == value  # noqa: PLR0124 - NaN is better than nothing, never best
