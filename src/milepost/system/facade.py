"""What does a user hold in the hand? One object for tracking, checkpoints, TensorBoard and W&B.

Each method is a call of the live :class:`milepost.Run`: two doors, one implementation.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from milepost.core.config import ExperimentConfig, one_config
from milepost.core.records import LoadReport, ResumePoint
from milepost.run import DisabledRun, Run
from milepost.run.alerting import GivesAlerts
from milepost.run.logging_media import LogsMedia
from milepost.run.media import MediaDesk
from milepost.system.tracker import ExperimentTracker

if TYPE_CHECKING:
    from milepost.checkpoint.checkpointer import ModelCheckpointer

__all__ = ["ExperimentTrackingSystem", "start"]


def start(
    name: str,
    *,
    hyperparameters: Any = None,
    description: str = "",
    model_config: Any = None,
    dataset_info: Any = None,
    tags: Iterable[str] = (),
    resume: str = "never",
    group: str | None = None,
    force: bool = False,
    config: ExperimentConfig | None = None,
    **settings: Any,
) -> Run | DisabledRun:
    """Begin a run, or go on with one; use it in a ``with`` block, or call ``end()``.

    Args:
        name: May be a template over the hyperparameters.
        hyperparameters: A mapping, a dataclass or an argparse namespace; so are ``model_config`` and ``dataset_info``.
        description: One or more sentences.
        model_config: What the model is.
        dataset_info: What it is trained on.
        tags: Short words.
        resume: ``"never"``, ``"auto"``, ``"must"``, or the id of a run.
        group: Ties runs together.
        force: Go on although the hyperparameters differ.
        config: Settings; instead of ``settings``.
        **settings: Fields of :class:`milepost.ExperimentConfig`; ``MILEPOST_*`` variables fill what is not given.

    Raises:
        InvalidCallError: Both ``config`` and ``settings`` are given.
        ConflictError: The run is live elsewhere, or a run of this notebook's cell cannot be ended.
        InvalidInputError: A value cannot be meant.
        NotFoundError: ``resume`` names nothing.
    """
    tracker = _notebook_tracker(one_config("start", config, settings))
    return tracker.start_experiment(
        name,
        description,
        hyperparameters,
        model_config,
        dataset_info,
        tags,
        resume=resume,
        group=group,
        force=force,
    )


_last_in_notebook: list[ExperimentTracker] = []


def _notebook_tracker(config: ExperimentConfig) -> ExperimentTracker:
    """A tracker of its own for each start; in a notebook a cell run twice ends its first run."""
    from milepost.runs.endings import in_notebook

    tracker = ExperimentTracker(config)
    if in_notebook():
        for earlier in _last_in_notebook:
            earlier.make_room()
        _last_in_notebook[:] = [tracker]
    return tracker


class ExperimentTrackingSystem(LogsMedia, GivesAlerts):
    """Tracks experiments and checkpoints models.

    Attributes:
        config: Its settings.
        tracker: The :class:`ExperimentTracker`.
    """

    def __init__(self, config: ExperimentConfig | None = None) -> None:
        self.config = config or ExperimentConfig()
        self.tracker = ExperimentTracker(self.config)
        self._idle_checkpointer: ModelCheckpointer | None = None

    @property
    def run(self) -> Run | DisabledRun:
        """The live run."""
        return self.tracker.run

    @property
    def checkpointer(self) -> ModelCheckpointer:
        """The live run's checkpointer; without a run, one that lists, loads and saves by itself."""
        if self.tracker.has_run and isinstance(self.tracker.run, Run):
            return self.tracker.run.checkpointer
        if self._idle_checkpointer is None:
            from milepost.checkpoint.checkpointer import ModelCheckpointer

            self._idle_checkpointer = ModelCheckpointer(self.config)
        return self._idle_checkpointer

    def start_experiment(
        self,
        name: str,
        description: str = "",
        hyperparameters: Any = None,
        model_config: Any = None,
        dataset_info: Any = None,
        tags: Iterable[str] | None = None,
        *,
        resume: str = "never",
        group: str | None = None,
        force: bool = False,
    ) -> str:
        """Begin an experiment; see :meth:`ExperimentTracker.start_experiment`.

        Returns:
            Its id: the name of its folder below ``experiment_dir``.
        """
        return self.tracker.start_experiment(
            name,
            description,
            hyperparameters,
            model_config,
            dataset_info,
            tags,
            resume=resume,
            group=group,
            force=force,
        ).id

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None, epoch: float | None = None) -> None:
        """As :meth:`milepost.Run.log`."""
        self.tracker.run.log(metrics, step, epoch)

    @property
    def media_desk(self) -> MediaDesk | None:
        """That of the live run: all that can be logged beside metrics is logged as there."""
        return self.tracker.run.media_desk

    def resume(
        self,
        model: Any,
        optimizer: Any = None,
        scheduler: Any = None,
        *,
        scaler: Any = None,
        loader: Any = None,
        extra: Mapping[str, Any] | None = None,
    ) -> ResumePoint:
        """As :meth:`milepost.Run.resume`."""
        return self.tracker.run.resume(model, optimizer, scheduler, scaler=scaler, loader=loader, extra=extra)

    def watch(self, model: Any, optimizer: Any = None, *, every: int = 10, layers: bool = False) -> None:
        """As :meth:`milepost.Run.watch`."""
        self.tracker.run.watch(model, optimizer, every=every, layers=layers)

    def should_save(self, step: int) -> bool:
        """As :meth:`milepost.Run.should_save`."""
        return self.tracker.run.should_save(step)

    @property
    def should_stop(self) -> bool:
        """As :attr:`milepost.Run.should_stop`."""
        return self.tracker.run.should_stop

    def save_checkpoint(
        self,
        model: Any = None,
        optimizer: Any = None,
        scheduler: Any = None,
        epoch: float | None = None,
        step: int | None = None,
        metrics: Mapping[str, Any] | None = None,
        is_best: bool = False,
        **more: Any,
    ) -> Path | None:
        """As :meth:`milepost.Run.save_checkpoint`."""
        return self.tracker.run.save_checkpoint(model, optimizer, scheduler, epoch, step, metrics, is_best, **more)

    def load_checkpoint(
        self,
        checkpoint_path: Any,
        model: Any = None,
        optimizer: Any = None,
        scheduler: Any = None,
        device: Any = None,
        **options: Any,
    ) -> LoadReport:
        """As :meth:`milepost.ModelCheckpointer.load_checkpoint`; needs no running experiment."""
        return self.checkpointer.load_checkpoint(checkpoint_path, model, optimizer, scheduler, device, **options)

    def wait(self, timeout: float | None = None) -> None:
        """As :meth:`milepost.Run.wait`."""
        self.checkpointer.wait(timeout)

    def end_experiment(
        self, final_metrics: Mapping[str, Any] | None = None, status: str | None = None, reason: str = ""
    ) -> None:
        """As :meth:`milepost.Run.end`."""
        self.tracker.end_experiment(final_metrics, status, reason)
