"""Which checkpoints of one experiment stay, and why?

Pure: it decides over records and touches no file. Kept are the newest, the best, and the pinned ones.

**Invariant**: nothing is let go unless a newer checkpoint was verified, that is, read back whole from the disk.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from milepost.core.config import bytes_of
from milepost.core.records import CheckpointInfo

__all__ = ["Decision", "RetentionRule", "best_of", "decide", "newest_first"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionRule:
    """How an experiment's checkpoints are kept.

    Attributes:
        keep_newest: How many of the newest stay, beside the best and the pinned.
        best_metric: Metric that names the best one when nobody marked one; None: nobody guesses.
        best_mode: Whether a smaller or a larger ``best_metric`` is better.
        keep_best: How many of the best by ``best_metric`` stay.
        every_steps: One for each such stretch of steps stays; None: none for that reason.
        every_seconds: One for each such stretch of time stays.
        max_bytes: What all together may take on the disk.
        weights_only_after: All but this many of the newest keep only the model.
    """

    keep_newest: int
    best_metric: str | None = None
    best_mode: Literal["min", "max"] = "min"
    keep_best: int = 1
    every_steps: int | None = None
    every_seconds: float | None = None
    max_bytes: int | None = None
    weights_only_after: int | None = None

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> RetentionRule:
        """The rule that the settings of a run (the fields of an ``ExperimentConfig``) ask for."""
        minutes, disk = settings.get("keep_every_minutes"), settings.get("max_disk")
        return cls(
            keep_newest=settings["max_checkpoints"],
            best_metric=settings["best_metric"],
            best_mode=settings["best_mode"],
            keep_best=settings.get("keep_best", 1),
            every_steps=settings.get("keep_every_steps"),
            every_seconds=None if minutes is None else 60.0 * minutes,
            max_bytes=None if disk is None else bytes_of(disk),
            weights_only_after=settings.get("weights_only_after"),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """Whether one checkpoint stays, and the reason in words."""

    info: CheckpointInfo
    keep: bool
    reason: str


def newest_first(infos: Sequence[CheckpointInfo]) -> list[CheckpointInfo]:
    """By the time of the snapshot: after a resume from an older checkpoint, a lower step may be the newer one."""
    return sorted(infos, key=lambda info: (info.timestamp, info.step, info.filename), reverse=True)


def best_of(
    infos: Sequence[CheckpointInfo], metric: str | None = None, mode: Literal["min", "max"] = "min"
) -> CheckpointInfo | None:
    """The last one marked best; if none is, the one with the best finite ``metric``; else None, never a guess."""
    ordered = newest_first(infos)
    marked = next((info for info in ordered if info.is_best), None)
    if marked is not None or metric is None:
        return marked
    rated = [(value, info) for info in ordered if (value := _number(info.metrics.get(metric))) is not None]
    if not rated:
        return None
    sign = 1.0 if mode == "min" else -1.0
    return min(rated, key=lambda pair: sign * pair[0])[1]


def _number(value: object) -> float | None:
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    return None


def decide(infos: Sequence[CheckpointInfo], rule: RetentionRule) -> list[Decision]:
    """One decision per checkpoint, the newest first. ``infos`` are those of one experiment."""
    best = best_of(infos, rule.best_metric, rule.best_mode)
    decisions = []
    verified_newer = False
    for rank, info in enumerate(newest_first(infos)):
        if rank < rule.keep_newest:
            keep, reason = True, f"one of the newest {rule.keep_newest}"
        elif info is best:
            keep, reason = True, "best"
        elif info.pinned:
            keep, reason = True, "pinned"
        elif not verified_newer:
            keep, reason = True, "no newer one is verified yet"
        else:
            keep, reason = False, f"not one of the newest {rule.keep_newest}, nor best, nor pinned"
        decisions.append(Decision(info=info, keep=keep, reason=reason))
        verified_newer = verified_newer or info.verified
    return decisions
