"""What does ``MILEPOST_MODE=disabled`` leave? The same calls, typed alike, doing nothing."""
# ruff: noqa: ARG002 - nothing is done with any argument; that is the point

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from milepost.core.config import ExperimentConfig
from milepost.core.records import CheckpointInfo, LoadReport, ResumePoint
from milepost.run.alerting import GivesAlerts
from milepost.run.logging_media import LogsMedia
from milepost.runs.summary import RunSummary

if TYPE_CHECKING:
    from milepost.checkpoint.checkpointer import ModelCheckpointer

__all__ = ["DisabledRun"]


class _EveryName(tuple[str, ...]):
    """Holds every name: a sweep that is switched off still asks for the numbers of its objective."""

    __slots__ = ()

    def __contains__(self, name: object) -> bool:
        return True


class DisabledRun(LogsMedia, GivesAlerts):
    """A run that records nothing, saves nothing and never asks to stop."""

    id = "disabled"
    name = "disabled"
    attempt = 1
    best = None
    should_stop = False
    ended = False

    def log(self, metrics: Mapping[str, Any], step: int | None = None, epoch: float | None = None) -> None:
        """Nothing."""

    @property
    def media_desk(self) -> None:
        """None: what is logged goes nowhere."""

    def tag(self, *tags: str) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""

    def pause(self, reason: str = "") -> None:
        """Nothing."""

    def unpause(self) -> None:
        """Nothing."""

    def watch(self, model: Any, optimizer: Any = None, *, every: int = 10, layers: bool = False) -> None:
        """Nothing."""

    def resume(self, *objects: Any, **named: Any) -> ResumePoint:
        """Fresh, step 0."""
        return ResumePoint(step=0, epoch=0, fresh=True)

    def goes_on_after(self, step: int) -> None:
        """Nothing."""

    def describe_hyperparameters(self, values: Mapping[str, Any]) -> None:
        """Nothing."""

    def record_checkpoint(self, action: str, info: CheckpointInfo, *, reason: str = "") -> None:
        """Nothing."""

    def ask_to_stop(self, reason: str) -> None:
        """Nothing; it never stops."""

    def should_save(self, step: int) -> bool:
        """Never."""
        return False

    def save_checkpoint(self, *objects: Any, **named: Any) -> Path:
        """Nothing; the path of the null device."""
        return Path(os.devnull)

    def load_checkpoint(self, checkpoint_path: Any, *objects: Any, **named: Any) -> LoadReport:
        """Nothing; a report that says so."""
        info = CheckpointInfo(filename=os.devnull, path=Path(os.devnull), experiment_id=self.id, step=0)
        return LoadReport(info=info, step=0, epoch=None, metrics={}, notes=("MILEPOST_MODE=disabled: nothing loaded",))

    @property
    def checkpoints(self) -> list[CheckpointInfo]:
        """None."""
        return []

    @property
    def checkpointer(self) -> ModelCheckpointer:
        """One that saves nothing either."""
        from milepost.checkpoint.checkpointer import ModelCheckpointer

        return ModelCheckpointer(ExperimentConfig())

    @property
    def summary(self) -> RunSummary:
        """NaN of every metric."""
        return RunSummary({}, _EveryName())

    def wait(self, timeout: float | None = None) -> None:
        """Nothing to wait for."""

    def end(
        self, final_metrics: Mapping[str, Any] | None = None, *, status: str | None = None, reason: str = ""
    ) -> None:
        """Nothing."""
        self.ended = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.ended = True
