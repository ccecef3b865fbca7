"""Which checkpoints of one experiment stay, and why?

Pure: it decides over records and touches no file. Each policy below names checkpoints that stay and says why; the first
reason given to a checkpoint is the one that is shown. The disk budget comes last and takes the least valuable away.

**Invariants**: nothing is let go, nor cut down to its weights, unless a newer checkpoint was verified, that is, read
back whole from the disk. A keyframe stays, and stays whole, as long as one stays that needs it. Deciding again over
what is left changes nothing, but for the budget after a cut: what a cut saves is known when it is done.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from milepost.core.config import bytes_of
from milepost.core.records import CheckpointInfo

__all__ = ["Decision", "RetentionRule", "best_of", "best_ones", "decide", "newest_first"]

_Policy = Callable[[Sequence[CheckpointInfo], "RetentionRule"], Iterable[tuple[CheckpointInfo, str]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionRule:
    """How an experiment's checkpoints are kept.

    Attributes:
        keep_newest: How many of the newest stay, beside the best and the pinned.
        best_metric: Metric that names the best one when nobody marked one; None: nobody guesses.
        best_mode: Whether a smaller or a larger ``best_metric`` is better.
        keep_best: How many of the best stay: the last ones marked, then those with the best ``best_metric``.
        every_steps: The last one of each such stretch of steps stays; None: none for that reason.
        every_seconds: The last one of each such stretch of time stays.
        max_bytes: What all together may take on the disk; the newest verified, the best, the pinned stay all the same.
        weights_only_after: All but this many of the newest keep only the model, except pinned ones and keyframes.
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
    """Whether one checkpoint stays, and the reason in words.

    Attributes:
        info: The checkpoint.
        keep: Whether it stays.
        reason: Why, or why not.
        weights_only: It stays, and all it holds beside the model is to go.
    """

    info: CheckpointInfo
    keep: bool
    reason: str
    weights_only: bool = False


def newest_first(infos: Sequence[CheckpointInfo]) -> list[CheckpointInfo]:
    """By the time of the snapshot: after a resume from an older checkpoint, a lower step may be the newer one."""
    return sorted(infos, key=lambda info: (info.timestamp, info.step, info.filename), reverse=True)


def best_of(
    infos: Sequence[CheckpointInfo], metric: str | None = None, mode: Literal["min", "max"] = "min"
) -> CheckpointInfo | None:
    """The last one marked best; if none is, the one with the best finite ``metric``; else None, never a guess."""
    return next(iter(best_ones(infos, metric, mode)), None)


def best_ones(
    infos: Sequence[CheckpointInfo], metric: str | None = None, mode: Literal["min", "max"] = "min"
) -> list[CheckpointInfo]:
    """Those marked best, the last one first, then those with a finite ``metric``, the best first."""
    ordered = newest_first(infos)
    marked = [info for info in ordered if info.is_best]
    if metric is None:
        return marked
    sign = 1.0 if mode == "min" else -1.0
    rated = [(value, info) for info in ordered if (value := _number(info.metrics.get(metric))) is not None]
    by_metric = [info for _, info in sorted(rated, key=lambda pair: sign * pair[0])]
    return marked + [info for info in by_metric if not info.is_best]


def _number(value: object) -> float | None:
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    return None


def decide(infos: Sequence[CheckpointInfo], rule: RetentionRule) -> list[Decision]:
    """One decision per checkpoint, the newest first. ``infos`` are those of one experiment."""
    ordered = newest_first(infos)
    reasons: dict[str, str] = {}
    for policy in _POLICIES:
        for info, reason in policy(ordered, rule):
            reasons.setdefault(info.filename, reason)
    cut = _to_cut(ordered, reasons, rule)
    spent = {} if cut else _over_budget(ordered, reasons, rule)
    keyframes = _keyframes(info for info in ordered if info.filename in reasons and info.filename not in cut)
    return [_decision(info, reasons, keyframes, cut, spent, rule) for info in ordered]


def _decision(
    info: CheckpointInfo,
    reasons: Mapping[str, str],
    keyframes: Mapping[str, str],
    cut: Collection[str],
    spent: Mapping[str, str],
    rule: RetentionRule,
) -> Decision:
    name = info.filename
    kept = reasons.get(name) or keyframes.get(name)
    if kept is None:
        return Decision(info=info, keep=False, reason=spent.get(name) or _unwanted(rule))
    if name in cut:
        kept += f"; its weights only, as it is not one of the newest {rule.weights_only_after}"
    return Decision(info=info, keep=True, reason=kept, weights_only=name in cut)


def _unwanted(rule: RetentionRule) -> str:
    stretched = rule.every_steps is not None or rule.every_seconds is not None
    last = ", nor the last of a stretch" if stretched else ""
    return f"not one of the newest {rule.keep_newest}, nor best, nor pinned{last}"


# ---------------------------------------------------------------- policies: who stays, and why


def _newest(ordered: Sequence[CheckpointInfo], rule: RetentionRule) -> Iterator[tuple[CheckpointInfo, str]]:
    for info in ordered[: rule.keep_newest]:
        yield info, f"one of the newest {rule.keep_newest}"


def _best(ordered: Sequence[CheckpointInfo], rule: RetentionRule) -> Iterator[tuple[CheckpointInfo, str]]:
    for rank, info in enumerate(best_ones(ordered, rule.best_metric, rule.best_mode)[: rule.keep_best]):
        yield info, f"one of the best {rule.keep_best}" if rank else "best"


def _pinned(ordered: Sequence[CheckpointInfo], _: RetentionRule) -> Iterator[tuple[CheckpointInfo, str]]:
    for info in ordered:
        if info.pinned:
            yield info, "pinned"


def _last_of_steps(ordered: Sequence[CheckpointInfo], rule: RetentionRule) -> Iterator[tuple[CheckpointInfo, str]]:
    """A stretch ends with its multiple, so that step 1000 itself stands for the first thousand."""
    length = rule.every_steps
    if length is not None:
        for info in _first_of_each(ordered, lambda info: max(1, -(-info.step // length))):
            yield info, f"the last of its {length} steps"


def _last_of_time(ordered: Sequence[CheckpointInfo], rule: RetentionRule) -> Iterator[tuple[CheckpointInfo, str]]:
    length = rule.every_seconds
    if length is not None:
        for info in _first_of_each(ordered, lambda info: math.floor(info.timestamp / length)):
            yield info, f"the last of its {length / 60:g} minutes"


def _irreplaceable(ordered: Sequence[CheckpointInfo], _: RetentionRule) -> Iterator[tuple[CheckpointInfo, str]]:
    """Down to the newest verified one, itself included: no newer one was read back."""
    for info in ordered:
        yield info, "no newer one is verified yet"
        if info.verified:
            return


_POLICIES: tuple[_Policy, ...] = (_newest, _best, _pinned, _last_of_steps, _last_of_time, _irreplaceable)


def _first_of_each(
    infos: Iterable[CheckpointInfo], stretch: Callable[[CheckpointInfo], int]
) -> Iterator[CheckpointInfo]:
    seen: set[int] = set()
    for info in infos:
        number = stretch(info)
        if number not in seen:
            seen.add(number)
            yield info


# ---------------------------------------------------------------- keyframes, cuts, the budget


def _keyframes(kept: Iterable[CheckpointInfo]) -> dict[str, str]:
    """What the kept ones hold differences to, by name, and which is the newest that needs it."""
    needed: dict[str, str] = {}
    for info in kept:
        if info.base:
            needed.setdefault(info.base, f"keyframe of {info.filename}")
    return needed


def _to_cut(ordered: Sequence[CheckpointInfo], reasons: Mapping[str, str], rule: RetentionRule) -> set[str]:
    """Names of those that stay with their weights only."""
    if rule.weights_only_after is None:
        return set()
    kept = [info for info in ordered if info.filename in reasons]
    irreplaceable = {info.filename for info, _ in _irreplaceable(ordered, rule)}
    old = [info for info in kept[rule.weights_only_after :] if info.filename not in irreplaceable and _can_be_cut(info)]
    names = {info.filename for info in old}
    # a difference that is cut stands alone afterwards: its keyframe may be cut as well
    return names - set(_keyframes(info for info in kept if info.filename not in names))


def _can_be_cut(info: CheckpointInfo) -> bool:
    return (
        info.format == "milepost" and not info.pinned and "model" in info.contents and set(info.contents) != {"model"}
    )


def _over_budget(ordered: Sequence[CheckpointInfo], reasons: dict[str, str], rule: RetentionRule) -> dict[str, str]:
    """Take the least valuable out of ``reasons`` until the rest fits; returns them with the reason.

    One that turns out to be the keyframe of a kept one stays for that reason.
    """
    if rule.max_bytes is None:
        return {}
    spent: dict[str, str] = {}
    for info in _least_valuable_first(ordered, reasons, rule):
        total = _bytes_kept(ordered, reasons)
        if total <= rule.max_bytes:
            break
        del reasons[info.filename]
        spent[info.filename] = f"all together take {total:,} bytes, and max_disk is {rule.max_bytes:,}"
    return spent


def _least_valuable_first(
    ordered: Sequence[CheckpointInfo], reasons: Mapping[str, str], rule: RetentionRule
) -> list[CheckpointInfo]:
    """What the budget may take: those never read back, then the oldest."""
    untouchable = {info.filename for policy in (_irreplaceable, _pinned) for info, _ in policy(ordered, rule)}
    best = best_of(ordered, rule.best_metric, rule.best_mode)
    oldest_first = [
        info
        for info in reversed(ordered)
        if info.filename in reasons and info.filename not in untouchable and info is not best
    ]
    return sorted(oldest_first, key=lambda info: info.verified)


def _bytes_kept(ordered: Sequence[CheckpointInfo], reasons: Mapping[str, str]) -> int:
    keyframes = _keyframes(info for info in ordered if info.filename in reasons)
    return sum(info.size for info in ordered if info.filename in reasons or info.filename in keyframes)
