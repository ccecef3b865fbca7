"""A training with Accelerate is a run, and its state is whole or not there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration

import milepost
from milepost.core.errors import InvalidInputError
from milepost.integrations.accelerate import MilepostTracker, load_state, save_state

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def prepared(tracked=True):
    quiet = {"tensorboard_dir": None, "capture_code": False, "capture_console": False, "system_metrics_every": None}
    accelerator = Accelerator(cpu=True, log_with=MilepostTracker("toy", **quiet) if tracked else None)
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 1)
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters()))
    if tracked:
        accelerator.init_trackers("unused", config={"learning_rate": 0.1, "note": "short"})
    return accelerator, model, optimizer


def train(accelerator, model, optimizer, steps):
    for step in steps:
        loss = model(torch.ones(2, 4)).square().mean()
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        accelerator.log({"loss": loss.item(), "phase": "warm"}, step=step)
        save_state(accelerator, "states", step=step, keep=2)


def names(folder="states"):
    return sorted(one.name for one in Path(folder).iterdir())


def test_the_run_has_the_numbers_the_texts_the_hyperparameters_and_the_states():
    accelerator, model, optimizer = prepared()
    assert load_state(accelerator, "states") == 0
    train(accelerator, model, optimizer, range(4))
    tracker = accelerator.get_tracker("milepost")
    listed = tracker.tracker.checkpoints
    accelerator.end_training()
    (run,) = milepost.open(".").runs()
    assert run.status == "completed"
    assert run.hyperparameters == {"learning_rate": 0.1, "note": "short"}
    assert run.series("loss").step.tolist() == [0, 1, 2, 3]
    assert {text.text for text in run.texts} == {"warm"}
    assert [(info.filename, info.step) for info in listed] == [("step-2", 2), ("step-3", 3)]
    assert names() == ["step-2", "step-3"]


def test_the_accelerator_reads_a_state_by_itself_and_the_next_run_goes_on_behind_the_newest(capfd):
    accelerator, model, optimizer = prepared()
    train(accelerator, model, optimizer, range(3))
    weight = model.weight.clone()
    accelerator.get_tracker("milepost").tracker.end(status="stopped")

    alone, model, _ = prepared(tracked=False)
    alone.load_state("states/step-2")
    assert torch.equal(model.weight, weight)

    (Path("states") / ".step-3.tmp").mkdir()  # what a kill leaves
    again, model, optimizer = prepared()
    assert load_state(again, "states") == 3
    assert torch.equal(model.weight, weight)
    train(again, model, optimizer, range(3, 5))
    again.end_training()
    (run,) = milepost.open(".").runs()
    assert (run.status, len(run.attempts)) == ("completed", 2)
    assert run.series("loss").step.tolist() == [0, 1, 2, 3, 4]
    assert names() == ["step-3", "step-4"]


def test_a_damaged_state_is_left_out_and_said_and_the_history_goes_back_with_the_weights(capfd):
    accelerator, model, optimizer = prepared()
    train(accelerator, model, optimizer, range(3))
    accelerator.get_tracker("milepost").tracker.end(status="failed")
    weights = Path("states/step-2/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1] + b"\xff")
    again, model, optimizer = prepared()
    assert load_state(again, "states") == 2
    assert "step-2 is left out: model.safetensors is not what was written" in capfd.readouterr().err
    train(again, model, optimizer, range(2, 3))
    again.end_training()
    (run,) = milepost.open(".").runs()
    assert run.lost_steps == 1
    assert run.series("loss").step.tolist() == [0, 1, 2]
    assert load_state(prepared(tracked=False)[0], "states") == 3


@pytest.mark.parametrize("wrong", [{"step": -1}, {"step": True}, {"step": 1, "keep": 0}])
def test_a_step_that_cannot_be_meant_is_refused(wrong):
    with pytest.raises(InvalidInputError, match="whole number"):
        save_state(prepared(tracked=False)[0], "states", **wrong)


def test_folders_that_accelerate_names_itself_are_refused():
    accelerator = Accelerator(cpu=True, project_config=ProjectConfiguration("p", automatic_checkpoint_naming=True))
    with pytest.raises(InvalidInputError, match="automatic_checkpoint_naming"):
        save_state(accelerator, "states", step=1)


@pytest.mark.slow
@pytest.mark.linux
def test_a_training_that_is_killed_at_file_events_of_its_saves_goes_on_with_the_losses_of_an_undisturbed_one():
    paths = {"PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "src")))}
    done = subprocess.run(
        [sys.executable, "-m", "torture.framework_kills", "accelerate", "--sample", "5", "--seed", str(os.getpid())],
        cwd=ROOT,
        env=os.environ | paths,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
