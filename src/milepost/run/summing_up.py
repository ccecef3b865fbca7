"""What do the numbers of a run that is alive come to so far?"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import partial
from typing import TYPE_CHECKING

from milepost.runs.layout import RunLayout
from milepost.runs.summary import RunSummary

if TYPE_CHECKING:
    from milepost.run.resuming import Resumption

__all__ = ["SumsUp"]


class SumsUp(ABC):
    """Sums up what it logged."""

    _layout: RunLayout
    _resumption: Resumption

    @abstractmethod
    def flush(self, timeout: float | None = None) -> bool:
        """Wait until the log is on disk."""

    @property
    def summary(self) -> RunSummary:
        """Each metric in a few numbers: ``run.summary["val/loss"].min``, ``.last``, ``.max``, ``.mean`` and steps.

        Read from the log on disk, and so waited for: not meant for every step of a training. What a resume did again
        does not count; earlier attempts do.
        """
        from milepost.runs.store import RunReader  # reading is not what a training starts for

        self.flush()
        reader, rank = RunReader(self._layout), self._resumption.rank
        return RunSummary(dict(reader.summary), reader.metrics(rank), partial(reader.summarize, rank=rank))
