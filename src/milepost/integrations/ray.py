"""How does each trial of a Ray Tune experiment become a run?

::

    from milepost.integrations.ray import MilepostCallback

    tuner = tune.Tuner(train, run_config=tune.RunConfig(name="lr-sweep", callbacks=[MilepostCallback()]))

The experiment is the group, a trial a run of it. The callback lives in the driver, where Tune reports what trials say:
no trainable has to know of it, and a trial whose process, or whose machine, dies is still told to its end. What only
the trial's own process sees (its console, its code, its GPUs) is recorded by a run that the trial starts itself, with
:func:`milepost.start` and the same ``group``.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from milepost.core.errors import MissingDependencyError
from milepost.core.names import render_name
from milepost.core.records import CheckpointInfo
from milepost.run import DisabledRun, Run
from milepost.system.facade import start

try:
    from ray.tune import Callback
    from ray.tune.result import AUTO_RESULT_KEYS
except ImportError as error:
    raise MissingDependencyError(f"Ray Tune not available ({error})", cure='pip install "milepost[ray]"') from error

if TYPE_CHECKING:
    from ray.tune.experiment import Trial

__all__ = ["MilepostCallback"]

_ITERATION = "training_iteration"
_NOT_METRICS = {*AUTO_RESULT_KEYS, "done", "trial_id", "experiment_tag", "should_checkpoint"}
#: The driver's console, code and machine are not those of a trial.
_OF_THE_DRIVER: Mapping[str, Any] = {"capture_console": False, "system_metrics_every": None}


class MilepostCallback(Callback):
    """Records the trials of a Tune experiment.

    ``training_iteration`` is the step. A trial that Tune restores, in the same driver or after
    ``Tuner.restore``, goes on in its run, and what it does again supersedes what it had done. Checkpoints are listed
    where Tune keeps them; they are not copied.

    Args:
        name: Of the runs; a template over the trial's config, ``"bert-lr{learning_rate:.0e}"``. None:
            ``<experiment>-<trial id>``.
        group: Ties them together; None: the name of the experiment.
        tags: Short words for every run.
        **settings: Fields of :class:`milepost.ExperimentConfig`, for every run.
    """

    def __init__(
        self, name: str | None = None, *, group: str | None = None, tags: Sequence[str] = (), **settings: Any
    ) -> None:
        self._name = name
        self._group = group
        self._tags = list(tags)
        self._settings = dict(_OF_THE_DRIVER) | settings
        self._live: dict[str, Run | DisabledRun] = {}
        self._done: dict[str, int] = {}

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Begin the run of the trial, or go on with it; a trial may have been paused, or given another config."""
        del iteration, trials, info
        run = self._live.get(trial.trial_id)
        if run is None:
            run = self._live[trial.trial_id] = self._begin(trial)
        run.describe_hyperparameters(trial.config)

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """Log what the trial reported."""
        del iteration, trials, info
        run, step = self._live.get(trial.trial_id), int(result.get(_ITERATION, 0))
        if run is None:
            return
        if step <= self._done.get(trial.trial_id, step - 1):
            run.goes_on_after(step - 1)
        self._done[trial.trial_id] = step
        run.log(_metrics(result), step)

    def on_trial_save(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """List the checkpoint that Tune has just taken over from the trial."""
        del iteration, trials, info
        run, saved = self._live.get(trial.trial_id), trial.latest_checkpoint_result
        if run is None or saved is None or saved.checkpoint is None:
            return
        folder = Path(saved.checkpoint.path)
        if folder.is_dir():  # not in a bucket
            run.record_checkpoint("committed", _checkpoint(run.id, folder, saved.metrics or {}))

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """End the run as completed, also where a scheduler stopped the trial early: Tune does not say which."""
        del iteration, trials, info
        self._end(trial.trial_id, "completed")

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """End the run as failed."""
        del iteration, trials, info
        self._end(trial.trial_id, "failed", _last_error(trial))

    def on_experiment_end(self, trials: list[Trial], **info: Any) -> None:
        """End what Tune has left open: paused trials, or those of an experiment that ran out of time."""
        del trials, info
        for trial_id in list(self._live):
            self._end(trial_id, "stopped", "the experiment ended")

    def _begin(self, trial: Trial) -> Run | DisabledRun:
        experiment = str(trial.experiment_dir_name)
        name = f"{experiment}-{trial.trial_id}" if self._name is None else render_name(self._name, trial.config)
        run = start(
            name.replace("{", "{{").replace("}", "}}"),
            tags=self._tags,
            group=self._group or experiment,
            resume="auto",
            **self._settings | {"resume_key": f"{experiment}/{trial.trial_id}"},
        )
        if run.attempt > 1:
            self._done[trial.trial_id] = sys.maxsize  # where it goes on is known when it reports again
        return run

    def _end(self, trial_id: str, status: str, reason: str = "") -> None:
        run = self._live.pop(trial_id, None)
        self._done.pop(trial_id, None)
        if run is not None:
            run.end(status=status, reason=reason)


def _last_error(trial: Trial) -> str:
    """The last line of what the trial raised, from the file that the driver keeps; it reaches the storage later."""
    try:
        lines = Path(trial.error_file or "").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    return next((line.strip() for line in reversed(lines) if line.strip()), "the trial failed")


def _metrics(result: Mapping[str, Any]) -> dict[str, Any]:
    """What the trial itself reported, numbers only."""
    own = {name: value for name, value in result.items() if name not in _NOT_METRICS and not name.startswith("_")}
    return {name: value for name, value in own.items() if not isinstance(value, (str, bytes, list, tuple, type(None)))}


def _checkpoint(run_id: str, path: Path, metrics: Mapping[str, Any]) -> CheckpointInfo:
    return CheckpointInfo(
        filename=path.name,
        path=path,
        experiment_id=run_id,
        step=int(metrics.get(_ITERATION, 0)),
        metrics={name: value for name, value in _metrics(metrics).items() if isinstance(value, (int, float))},
        timestamp=time.time(),
        size=sum(file.stat().st_size for file in path.rglob("*") if file.is_file()),
        format="ray",
    )
