"""What happened in a run, told from all its logs as one story?

Logs of all attempts and ranks are read once and merged: values that came late are put in their places, what a resume
did again is hidden (and can be shown), what was mended is no longer complained about.

**Invariants**: the same logs always give the same story, whichever process reads them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from milepost.core.events import Noticed, StatusChanged
from milepost.runs.logged_media import MediaLog
from milepost.runs.scan import Damage
from milepost.runs.series import Points, Rewind, Series
from milepost.runs.system_samples import SystemSamples
from milepost.runs.told import Attempt, LoggedAlert, LoggedLine, LoggedText

__all__ = ["Attempt", "LoggedLine", "LoggedText", "RunHistory"]


@dataclass(slots=True)
class RunHistory:
    """Everything that the logs of a run say; made by :func:`milepost.runs.telling.read_history`.

    Attributes:
        attempts: In order.
        rewinds: One per resume.
        fields: What ``Described`` records said, the last word per field.
        status: The last stated change of state and its time, or None.
        checkpoints: By file name, the fields of ``CheckpointInfo`` of what is committed and not removed.
        notices: What is wrong and not cured.
        lines: The console.
        texts: Logged texts.
        media: Files to look at.
        samples: What machine and processes used.
        alerts: What a person was asked to look at.
        lost: Records that could not be kept.
        damage: What could not be read.
        points: Columns by rank and metric, superseded points included; :meth:`series` cuts them.
        attempt_of_log: Attempt of each log, by the numbers that points and rewinds use.
    """

    attempts: list[Attempt] = field(default_factory=list)
    rewinds: list[Rewind] = field(default_factory=list)
    fields: dict[str, Any] = field(default_factory=dict)
    status: tuple[StatusChanged, float] | None = None
    checkpoints: dict[str, dict[str, Any]] = field(default_factory=dict)
    notices: list[Noticed] = field(default_factory=list)
    lines: list[LoggedLine] = field(default_factory=list)
    texts: list[LoggedText] = field(default_factory=list)
    media: MediaLog = field(default_factory=MediaLog)
    samples: SystemSamples = field(default_factory=SystemSamples)
    alerts: list[LoggedAlert] = field(default_factory=list)
    lost: int = 0
    damage: list[Damage] = field(default_factory=list)
    points: dict[tuple[int, str], Points] = field(default_factory=dict)
    attempt_of_log: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))

    def metrics(self, rank: int = 0) -> list[str]:
        """Names of the metrics of a rank, in the order of their first appearance."""
        return [name for of_rank, name in self.points if of_rank == rank]

    def ranks(self) -> list[int]:
        """Ranks that logged metrics."""
        return sorted({rank for rank, _ in self.points})

    def series(self, metric: str, rank: int = 0, *, superseded: bool = False) -> Series:
        """The points of a metric; empty if there is none of that name.

        Args:
            metric: Full name; nested names are joined by ``/``.
            rank: Whose.
            superseded: Give the points that a resume did again instead of those that count.
        """
        points = self.points.get((rank, metric), Points())
        hidden = points.superseded(self.rewinds, self.attempt_of_log)
        return points.series(hidden if superseded else ~hidden)

    def system_series(self, name: str, rank: int = 0) -> Series:
        """Samples of what ``rank`` and its machine used, by time; empty if there is none of that name."""
        logged = [points for (of_rank, _), points in self.points.items() if of_rank == rank]
        return self.samples.series(name, rank, logged)

    @property
    def lost_steps(self) -> int:
        """Steps of rank 0 that were done and logged, and done again after a resume."""
        lost = 0
        columns = [points for (rank, _), points in self.points.items() if rank == 0]
        for rewind in self.rewinds:
            steps: set[int] = set()
            for points in columns:
                steps.update(np.frombuffer(points.step, np.int64)[self._hidden_first_by(points, rewind)].tolist())
            lost += len(steps)
        return lost

    def _hidden_first_by(self, points: Points, rewind: Rewind) -> NDArray[np.bool_]:
        earlier = self.rewinds[: self.rewinds.index(rewind)]
        return points.superseded([rewind], self.attempt_of_log) & ~points.superseded(earlier, self.attempt_of_log)
