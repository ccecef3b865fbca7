"""What did machine and processes use while a run trained, as columns over time?"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from milepost.runs.series import Points, Series

__all__ = ["SystemSamples"]


_GPU = "system/gpu[0-9]+/utilization_percent"


@dataclass(slots=True)
class _Column:
    wall_ns: array[int] = field(default_factory=lambda: array("q"))
    value: array[float] = field(default_factory=lambda: array("d"))


@dataclass(slots=True)
class SystemSamples:
    """Samples of every host by the rank of the process whose companion took them."""

    columns: dict[tuple[int, str], _Column] = field(default_factory=dict)

    def add(self, rank: int, wall_ns: int, values: Mapping[str, float]) -> None:
        """Take one sample."""
        for name, value in values.items():
            column = self.columns.setdefault((rank, name), _Column())
            column.wall_ns.append(wall_ns)
            column.value.append(value)

    def names(self, rank: int) -> tuple[str, ...]:
        """What was sampled beside ``rank``."""
        return tuple(name for of_rank, name in self.columns if of_rank == rank)

    def at_a_glance(self, rank: int = 0) -> dict[str, float]:
        """Largest memory of the training's processes, and means of processor and GPUs; what was not sampled is absent.

        Keys: ``process_memory_bytes``, ``cpu_percent``, ``gpu_percent``.
        """
        shown: dict[str, float] = {}
        memory = self.columns.get((rank, "system/process_memory_bytes"))
        if memory is not None:
            shown["process_memory_bytes"] = max(memory.value)
        for key, names in (("cpu_percent", "system/cpu_percent"), ("gpu_percent", _GPU)):
            found = [
                column.value for (of, name), column in self.columns.items() if of == rank and re.fullmatch(names, name)
            ]
            if found:
                shown[key] = float(np.mean(np.concatenate(found)))
        return shown

    def series(self, name: str, rank: int, logged: Iterable[Points]) -> Series:
        """One of them by time; ``step`` is the last one that ``logged`` knows at that time, -1 before the first."""
        column = self.columns.get((rank, name), _Column())
        time = np.frombuffer(column.wall_ns, np.int64)
        order = np.argsort(time, kind="stable")
        time = time[order]
        return Series(
            step=_steps_at(time, logged),
            epoch=np.full(len(time), np.nan),
            time=time / 1e9,
            value=np.frombuffer(column.value, np.float64)[order],
        )


def _steps_at(time: NDArray[np.int64], logged: Iterable[Points]) -> NDArray[np.int64]:
    columns = [(np.frombuffer(one.wall_ns, np.int64), np.frombuffer(one.step, np.int64)) for one in logged]
    if not columns:
        return np.full(len(time), -1, np.int64)
    wall = np.concatenate([column[0] for column in columns])
    step = np.concatenate([column[1] for column in columns])
    order = np.argsort(wall, kind="stable")
    before = np.searchsorted(wall[order], time, side="right") - 1
    return np.where(before >= 0, step[order][before], np.int64(-1))
