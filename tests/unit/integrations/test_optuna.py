"""A study is a group, a trial a run of it: how it ended, what it was tried with, and that a retried one goes on."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest

import milepost
from milepost.integrations.optuna import MilepostCallback
from tests.contract.training_script import run_script

QUICK = {"tensorboard_dir": None, "capture_code": False, "capture_console": False, "system_metrics_every": None}


@pytest.fixture(autouse=True)
def _quiet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    yield
    optuna.logging.set_verbosity(optuna.logging.INFO)


def runs_of(folder: Path, query: str) -> dict[str, Any]:
    return {run.name: run for run in milepost.open(folder).runs(query)}


def test_a_tracked_trial_is_a_run_while_it_goes_on_and_ends_as_the_trial_does(tmp_path: Path):
    tracking = MilepostCallback("lr{lr}", metric_name="loss", tags=["sweep"], **QUICK)

    @tracking.track_in_milepost()
    def objective(trial: optuna.Trial) -> float:
        lr = trial.suggest_categorical("lr", [1, 2, 3])
        run = tracking.run(trial)
        assert tracking.run(trial) is run
        run.log({"loss": 1.0 / lr}, 0)
        trial.suggest_categorical("late", [True])
        if lr == 2:
            raise optuna.TrialPruned
        if lr == 3:
            raise ValueError("broken")
        return run.summary["loss"].min

    study = optuna.create_study(
        study_name="mine", sampler=optuna.samplers.GridSampler({"lr": [1, 2, 3], "late": [True]}, seed=1)
    )
    study.optimize(objective, 3, catch=ValueError, callbacks=[tracking])
    runs = runs_of(tmp_path, "group:mine tag:sweep")
    assert sorted(runs) == ["lr1", "lr2", "lr3"]
    assert (runs["lr1"].status, runs["lr1"].summary) == ("completed", {"loss": 1.0})
    assert (runs["lr2"].status, runs["lr2"].state.reason) == ("stopped", "pruned")
    assert (runs["lr3"].status, runs["lr3"].state.reason) == ("failed", "ValueError: broken")
    assert runs["lr3"].hyperparameters == {"lr": 3, "late": True}


def test_a_callback_alone_records_what_optuna_knows(tmp_path: Path):
    def objective(trial: optuna.Trial) -> float:
        x = trial.suggest_categorical("x", [1, 2])
        trial.report(5.0, 0)
        trial.report(4.0, 7)
        if x == 2:
            raise optuna.TrialPruned
        return 0.25

    study = optuna.create_study(study_name="s", sampler=optuna.samplers.GridSampler({"x": [1, 2]}, seed=1))
    study.optimize(objective, 2, callbacks=[MilepostCallback(group="g", **QUICK)])
    runs = runs_of(tmp_path, "group:g")
    assert sorted(runs) == ["s-trial0", "s-trial1"]
    by_x = {run.hyperparameters["x"]: run for run in runs.values()}
    assert by_x[1].summary == {"value": 0.25}
    assert by_x[2].state.reason == "pruned"
    assert by_x[2].series("value").step.tolist() == [0, 7]


def test_several_values_have_a_name_each(tmp_path: Path):
    study = optuna.create_study(study_name="two", directions=["minimize", "maximize"])
    study.optimize(lambda trial: (trial.suggest_float("x", 0, 1), 1.0), 1, callbacks=[MilepostCallback(**QUICK)])
    (run,) = runs_of(tmp_path, "group:two").values()
    assert set(run.summary) == {"value_0", "value_1"}


SWEEP = """
    import os, signal
    import optuna
    from milepost.integrations.optuna import MilepostCallback
    tracking = MilepostCallback(tensorboard_dir=None, capture_code=False)

    @tracking.track_in_milepost()
    def objective(trial):
        x = trial.suggest_float("x", 0, 1)
        run = tracking.run(trial)
        run.log({"loss": x}, run.attempt)
        if run.attempt == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return x

    study = optuna.create_study(storage="sqlite:///study.db", study_name="retried", load_if_exists=True)
    died = study.trials[0] if study.trials else None
    if died is not None:
        study.add_trial(optuna.create_trial(
            state=optuna.trial.TrialState.WAITING, params=died.params, distributions=died.distributions,
            system_attrs={"failed_trial": died.number, "retry_history": [died.number]}))
    study.optimize(objective, 1)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_a_trial_that_was_killed_goes_on_in_its_run_when_optuna_retries_it(tmp_path: Path):
    _, err, code = run_script(tmp_path, SWEEP)
    assert code == -signal.SIGKILL, err
    _, err, code = run_script(tmp_path, SWEEP)
    assert code == 0, err
    (run,) = milepost.open(tmp_path).runs("group:retried")
    assert (run.name, run.status, len(run.attempts)) == ("retried-trial0", "completed", 2)
    assert run.series("loss").step.tolist() == [1, 2]
