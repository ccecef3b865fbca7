"""How does a run follow a training that Trainer drives?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import Trainer, TrainerCallback, TrainingArguments

import milepost
from milepost.core.errors import InvalidCallError, InvalidInputError, MissingDependencyError
from milepost.integrations.huggingface import MilepostCallback, MilepostTrainerMixin, newest_checkpoint
from tests.contract.huggingface_training import samples, tiny_model

QUIET = {"tensorboard_dir": None, "capture_code": False, "capture_console": False}


def trainer_of(folder: Path, tracking: MilepostCallback, *more: TrainerCallback, **settings: Any) -> Trainer:
    args = TrainingArguments(
        str(folder / "out"),
        **{"max_steps": 3, "save_steps": 2, "logging_steps": 1, "report_to": "none", "use_cpu": True} | settings,
        disable_tqdm=True,
    )
    data = samples()
    return Trainer(tiny_model(), args, train_dataset=data, eval_dataset=data[:8], callbacks=[tracking, *more])


def test_what_is_evaluated_after_the_training_belongs_to_its_run_and_the_next_training_is_another(
    tmp_path: Path,
) -> None:
    tracking = MilepostCallback("twice", resume="never", root=str(tmp_path), **QUIET)
    trainer = trainer_of(tmp_path, tracking)
    trainer.train()
    first = tracking.run
    assert isinstance(first, milepost.Run)
    evaluated = trainer.evaluate()
    trainer.train()
    assert tracking.run is not first
    assert first.ended
    assert tracking.run is not None
    tracking.run.end()
    reader = milepost.open(tmp_path)[first.id]
    assert reader.status == "completed"
    assert reader.series("eval/loss").value.tolist() == [evaluated["eval_loss"]]
    assert reader.series("train_loss").step.tolist() == [3]


def test_a_training_that_begins_again_with_another_batch_size_is_the_same_run_from_its_start(tmp_path: Path) -> None:
    tracking = MilepostCallback("again", root=str(tmp_path), **QUIET)
    args = trainer_of(tmp_path, tracking).args

    class Failing(TrainerCallback):
        failed = False

        def on_step_end(self, args: Any, state: Any, control: Any, **objects: Any) -> None:
            if state.global_step == 2 and not Failing.failed:
                Failing.failed = True
                raise RuntimeError("CUDA out of memory.")

    assert args.max_steps == 3
    trainer_of(tmp_path, tracking, Failing(), auto_find_batch_size=True, save_strategy="no").train()
    assert tracking.run is not None
    tracking.run.end()
    (run,) = milepost.open(tmp_path).runs()
    assert run.series("train/loss").step.tolist() == [1, 2, 3]


def test_a_torn_folder_ahead_of_the_training_is_set_aside_with_all_its_content(tmp_path: Path) -> None:
    tracking = MilepostCallback("torn", root=str(tmp_path), **QUIET)
    torn = tmp_path / "out" / "checkpoint-7"
    torn.mkdir(parents=True)
    (torn / "model.safetensors").write_bytes(b"torn")
    trainer_of(tmp_path, tracking, save_total_limit=1).train(newest_checkpoint(tmp_path / "out"))
    assert tracking.run is not None
    tracking.run.end()
    assert (tmp_path / "out" / "torn-checkpoint-7" / "model.safetensors").read_bytes() == b"torn"
    assert newest_checkpoint(tmp_path / "out") == str(tmp_path / "out" / "checkpoint-3")


def test_wrong_settings_are_refused_when_the_callback_is_made() -> None:
    with pytest.raises(InvalidInputError, match="save_on_signal"):
        MilepostCallback("wrong", save_on_signal=("SIGWRONG",))
    with pytest.raises(InvalidCallError, match="wandb_project"):
        MilepostCallback("wrong", config=milepost.ExperimentConfig(), wandb_project="p")


def test_the_mixin_says_what_it_needs_to_stand_before() -> None:
    with pytest.raises(MissingDependencyError, match="class MyTrainer\\(MilepostTrainerMixin, Trainer\\)"):
        type("NoTrainer", (MilepostTrainerMixin,), {})()
