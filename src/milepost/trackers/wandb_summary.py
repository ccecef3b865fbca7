"""Which numbers sum a run up at W&B, beside the last ones that it keeps by itself?"""

from __future__ import annotations

import math
from collections.abc import Mapping

from milepost.core.events import Number

__all__ = ["Extremes"]


class Extremes:
    """The smallest and the largest value of each metric, over everything that W&B shows of the run.

    Args:
        known: The :meth:`known` after the last record that was told.
    """

    def __init__(self, known: Mapping[str, list[float]]) -> None:
        self._known = {name: list(pair) for name, pair in known.items()}

    def known(self) -> dict[str, list[float]]:
        """Smallest and largest by name."""
        return {name: list(pair) for name, pair in self._known.items()}

    def take(self, values: Mapping[str, Number]) -> None:
        """Look at the values of one row; what is no finite number is passed over."""
        for name, value in values.items():
            if isinstance(value, bool) or not math.isfinite(value):
                continue
            pair = self._known.setdefault(name, [value, value])
            if value < pair[0]:
                pair[0] = value
            elif value > pair[1]:
                pair[1] = value

    def summary(self) -> dict[str, float]:
        """``min/loss`` and ``max/loss`` for each metric."""
        smallest = {f"min/{name}": pair[0] for name, pair in self._known.items()}
        return smallest | {f"max/{name}": pair[1] for name, pair in self._known.items()}
