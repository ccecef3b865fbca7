"""Which points does a metric have, when a resumed run has done some steps twice?

Points are collected in flat columns, with where each stands in the log. A rewind to step k hides every later step that
is older than the rewind: it was done again, or will be.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from milepost.core.events import Number

__all__ = ["Points", "Rewind", "Series"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One metric over a run, in the order it was logged.

    Attributes:
        step: int64.
        epoch: float64; NaN where none was given.
        time: float64, seconds since 1970.
        value: float64; int64 or bool where every value is.
    """

    step: NDArray[np.int64]
    epoch: NDArray[np.float64]
    time: NDArray[np.float64]
    value: NDArray[np.float64] | NDArray[np.int64] | NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.step)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rewind:
    """A resume: steps after ``step`` that were logged before ``wall_ns`` are superseded.

    ``log`` and ``sequence`` say where it stands, ``attempt`` whose it is; within its own log the sequence decides,
    between attempts the attempt, and only between the processes of one attempt the clock.
    """

    step: int
    attempt: int
    log: int
    sequence: int
    wall_ns: int
    checkpoint: str = ""


@dataclass(slots=True)
class Points:
    """The columns of one metric of one rank, while a log is read."""

    step: array[int] = field(default_factory=lambda: array("q"))
    epoch: array[float] = field(default_factory=lambda: array("d"))
    wall_ns: array[int] = field(default_factory=lambda: array("q"))
    log: array[int] = field(default_factory=lambda: array("i"))
    sequence: array[int] = field(default_factory=lambda: array("q"))
    value: list[Number] = field(default_factory=list)

    def add(self, place: tuple[int, int], step: int, epoch: float | None, wall_ns: int, value: Number) -> None:
        """Add a point that stands at ``place`` (number of the log, sequence)."""
        self.step.append(step)
        self.epoch.append(float("nan") if epoch is None else epoch)
        self.wall_ns.append(wall_ns)
        self.log.append(place[0])
        self.sequence.append(place[1])
        self.value.append(value)

    def superseded(self, rewinds: Sequence[Rewind], attempts: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which points a rewind hides; ``attempts`` gives the attempt of each log."""
        step = np.frombuffer(self.step, np.int64)
        wall = np.frombuffer(self.wall_ns, np.int64)
        log = np.frombuffer(self.log, np.int32)
        sequence = np.frombuffer(self.sequence, np.int64)
        attempt = attempts[log]
        hidden = np.zeros(len(step), bool)
        for rewind in rewinds:
            same_log = (log == rewind.log) & (sequence < rewind.sequence)
            beside = (attempt == rewind.attempt) & (log != rewind.log) & (wall < rewind.wall_ns)
            hidden |= (step > rewind.step) & ((attempt < rewind.attempt) | same_log | beside)
        return hidden

    def series(self, keep: NDArray[np.bool_]) -> Series:
        """The points that ``keep`` marks, in the order of the logs."""
        # Values from a device come in after their record: they belong where the record stands.
        order = np.lexsort((np.frombuffer(self.sequence, np.int64), np.frombuffer(self.log, np.int32)))
        order = order[keep[order]]
        return Series(
            step=np.frombuffer(self.step, np.int64)[order],
            epoch=np.frombuffer(self.epoch, np.float64)[order],
            time=np.frombuffer(self.wall_ns, np.int64)[order] / 1e9,
            value=_values(self.value)[order],
        )


def _values(values: list[Number]) -> NDArray[np.float64] | NDArray[np.int64] | NDArray[np.bool_]:
    kinds = set(map(type, values))
    if kinds == {bool}:
        return np.array(values, np.bool_)
    if kinds == {int}:
        try:
            return np.array(values, np.int64)
        except OverflowError:
            pass
    return np.array([_float(value) for value in values], np.float64)


def _float(value: Number) -> float:
    try:
        return float(value)
    except OverflowError:  # an integer beyond every float
        return float("inf") if value > 0 else float("-inf")
