"""Two doors, one implementation: the signatures of the mission, and the calls of a run."""

from __future__ import annotations

import inspect

import pytest

import milepost
from milepost.run import Run


@pytest.fixture
def system(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MILEPOST_COMPANION", "thread")
    config = milepost.ExperimentConfig(tensorboard_dir=None, capture_console=False, capture_code=False)
    made = milepost.ExperimentTrackingSystem(config)
    yield made
    if made.tracker.has_run:
        made.end_experiment()


def positional(function) -> list[str]:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [p.name for p in inspect.signature(function).parameters.values() if p.kind in kinds and p.name != "self"]


def test_the_missions_signatures_can_be_called_by_position():
    system = milepost.ExperimentTrackingSystem
    described = ["name", "description", "hyperparameters", "model_config", "dataset_info", "tags"]
    assert positional(system.start_experiment) == described
    assert positional(system.log_metrics) == ["metrics", "step", "epoch"]
    saved = ["model", "optimizer", "scheduler", "epoch", "step", "metrics", "is_best"]
    assert positional(system.save_checkpoint) == positional(Run.save_checkpoint) == saved
    loaded = ["checkpoint_path", "model", "optimizer", "scheduler", "device"]
    assert positional(system.load_checkpoint) == positional(Run.load_checkpoint) == loaded
    assert positional(system.end_experiment)[0] == "final_metrics"


def test_without_an_experiment_calls_of_a_run_are_refused_and_checkpoints_are_not(system):
    for call in (
        lambda: system.log_metrics({"a": 1}),
        lambda: system.should_save(5),
        lambda: system.should_stop,
        lambda: system.save_checkpoint(None, step=1),
        system.end_experiment,
    ):
        with pytest.raises(milepost.InvalidCallError, match="call start_experiment"):
            call()
    assert system.checkpointer.list_checkpoints() == []
    assert system.checkpointer is system.checkpointer
    with pytest.raises(milepost.NotFoundError):
        system.load_checkpoint("best")
    system.wait()


def test_a_busy_system_refuses_and_names_what_is_live_and_an_ended_one_starts_anew(system):
    first = system.start_experiment("one")
    with pytest.raises(milepost.ConflictError, match=first):
        system.start_experiment("two")
    assert not system.run.ended
    system.end_experiment({"final": 1.0})
    second = system.start_experiment("two")
    assert next(run.id for run in system.tracker.list_experiments()) in {first, second}
    assert system.tracker.get_experiment("one").summary == {"final": 1.0}


def test_a_start_that_was_refused_leaves_the_system_free(system):
    with pytest.raises(milepost.InvalidInputError):
        system.start_experiment("{absent}")
    with pytest.raises(milepost.NotFoundError):
        system.start_experiment("one", resume="must")
    assert system.start_experiment("one")


def test_several_systems_live_beside_each_other(system, tmp_path):
    other = milepost.ExperimentTrackingSystem(system.config)
    ids = {system.start_experiment("same"), other.start_experiment("same")}
    assert len(ids) == 2
    other.end_experiment()
    assert not system.run.ended


def test_settings_beside_a_configuration_are_refused_instead_of_ignored(system):
    with pytest.raises(milepost.InvalidCallError, match="strict"):
        milepost.start("x", config=system.config, strict=True)
    with pytest.raises(milepost.InvalidInputError, match="'colour' is no setting"):
        milepost.start("x", colour="red")
