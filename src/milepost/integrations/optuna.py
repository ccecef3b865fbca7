"""How does each trial of an Optuna study become a run?

The study is the group, a trial a run of it, its parameters the hyperparameters. Two ways, in Optuna's own style::

    tracking = MilepostCallback()
    study.optimize(objective, n_trials=20, callbacks=[tracking])    # what Optuna knows of each trial, afterwards


    @tracking.track_in_milepost()
    def objective(trial):
        learning_rate = trial.suggest_float("learning_rate", 1e-6, 1e-3, log=True)
        run = tracking.run(trial)                                   # alive from here on, until the objective is over
        ...

A pruned trial is a run that was stopped. A trial that Optuna retries (``RetryHeartbeatStaleTrialCallback``) goes on in
the run of the trial that died, with its checkpoints.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from milepost.core.errors import MissingDependencyError
from milepost.run import DisabledRun, Run
from milepost.runs.endings import status_of_exception
from milepost.system.facade import start

try:
    import optuna
except ImportError as error:
    raise MissingDependencyError(f"Optuna not available ({error})", cure='pip install "milepost[optuna]"') from error

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial, Trial

__all__ = ["MilepostCallback"]

Objective = Callable[["Trial"], float | Sequence[float]]


class MilepostCallback:
    """Records the trials of a study.

    Args:
        name: Of the runs; a template over the parameters, ``"bert-lr{learning_rate:.0e}"``. None:
            ``<study>-trial<number>``.
        group: Ties them together; None: the name of the study.
        metric_name: What the objective's value is called, or its values.
        tags: Short words for every run.
        **settings: Fields of :class:`milepost.ExperimentConfig`, for every run.
    """

    def __init__(
        self,
        name: str | None = None,
        *,
        group: str | None = None,
        metric_name: str | Sequence[str] = "value",
        tags: Sequence[str] = (),
        **settings: Any,
    ) -> None:
        self._name = name
        self._group = group
        self._metric_name = metric_name
        self._tags = list(tags)
        self._settings = settings
        self._lock = threading.Lock()
        self._live: dict[int, Run | DisabledRun] = {}
        self._tracked: set[int] = set()

    def track_in_milepost(self) -> Callable[[Objective], Objective]:
        """A decorator of the objective: its run ends as the trial does, and is begun if nobody asked for it."""

        def decorate(objective: Objective) -> Objective:
            @functools.wraps(objective)
            def tracked(trial: Trial) -> float | Sequence[float]:
                with self._lock:
                    self._tracked.add(trial.number)
                try:
                    value = objective(trial)
                except optuna.TrialPruned:
                    self._end(trial, status="stopped", reason="pruned")
                    raise
                except BaseException as error:
                    end = status_of_exception(error)
                    self._end(trial, status=end.status, reason=end.reason)
                    raise
                self._end(trial, self._named(value))
                return value

            return tracked

        return decorate

    def run(self, trial: Trial) -> Run | DisabledRun:
        """The run of a trial, begun at the first call: call it when the parameters are suggested.

        Raises:
            InvalidInputError: The name asks for a parameter that is not suggested yet.
        """
        return self._run(trial, self._name)

    def _run(self, trial: Trial, name: str | None) -> Run | DisabledRun:
        with self._lock:
            known = self._live.get(trial.number)
        if known is not None:
            return known
        frozen = trial.study.get_trials(deepcopy=False)[trial.number]
        begun = self._begin(trial.study.study_name, frozen, trial.params, name)
        with self._lock:
            self._live[trial.number] = begun
        return begun

    def __call__(self, study: Study, trial: FrozenTrial) -> None:
        """Record a trial that is over, unless its objective was tracked; called by ``study.optimize``."""
        with self._lock:
            if trial.number in self._tracked:
                self._tracked.discard(trial.number)
                return
        run = self._begin(study.study_name, trial, trial.params, self._name)
        for step, value in sorted(trial.intermediate_values.items()):
            run.log({self._names(1)[0]: value}, step)
        if trial.state == optuna.trial.TrialState.PRUNED:
            run.end(status="stopped", reason="pruned")
        elif trial.state == optuna.trial.TrialState.COMPLETE:
            run.end(self._named(trial.values))
        else:
            run.end(status="failed", reason=str(trial.system_attrs.get("fail_reason", "")))

    def _begin(self, study: str, trial: FrozenTrial, params: Mapping[str, Any], name: str | None) -> Run | DisabledRun:
        died = trial.system_attrs.get("failed_trial", trial.user_attrs.get("failed_trial"))
        number = trial.number if died is None else died
        return start(
            name or f"{study}-trial{number}",
            hyperparameters=dict(params),
            tags=self._tags,
            group=self._group or study,
            resume="never" if died is None else "auto",
            **self._settings | {"resume_key": f"{study}/{number}"},
        )

    def _end(
        self, trial: Trial, final: Mapping[str, Any] | None = None, *, status: str = "completed", reason: str = ""
    ) -> None:
        # An objective that failed before it had suggested anything gives a template nothing to fill it with.
        run = self._run(trial, self._name if status == "completed" else None)
        with self._lock:
            del self._live[trial.number]
        run.describe_hyperparameters(trial.params)  # some may be suggested only in the course of a trial
        run.end(final, status=status, reason=reason)

    def _named(self, value: float | Sequence[float]) -> dict[str, float]:
        values = list(value) if isinstance(value, Sequence) else [value]
        return dict(zip(self._names(len(values)), values, strict=False))

    def _names(self, count: int) -> list[str]:
        if not isinstance(self._metric_name, str):
            return list(self._metric_name)
        return [self._metric_name] if count == 1 else [f"{self._metric_name}_{number}" for number in range(count)]
