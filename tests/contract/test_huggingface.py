"""A training with Hugging Face's Trainer: is it followed number by number, and does it survive what it may meet?"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import BertForSequenceClassification

import milepost
from milepost.integrations.huggingface_folders import newest_checkpoint

ROOT = Path(__file__).parents[2]
SCRIPT = str(Path(__file__).with_name("huggingface_training.py"))
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
SPEED = ("runtime", "samples_per_second", "steps_per_second")


def train(folder: Path, *arguments: str, command: tuple[str, ...] = ()) -> tuple[int, str]:
    folder.mkdir(exist_ok=True)
    environment = {"PYTHONPATH": os.pathsep.join((str(ROOT / "src"), str(ROOT))), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *command, SCRIPT, "out", *arguments],
        cwd=folder,
        env=os.environ | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


def only_run(folder: Path) -> Any:
    (run,) = milepost.open(folder).runs()
    return run


def logged(folder: Path) -> dict[str, list[tuple[int, float]]]:
    run = only_run(folder)
    names = [name for name in run.metrics() if "/" in name and not name.endswith(SPEED)]
    series = {name: run.series(name) for name in names}
    return {name: list(zip(one.step.tolist(), one.value.tolist(), strict=True)) for name, one in series.items()}


def history(folder: Path, key: str) -> list[tuple[int, float]]:
    entries = json.loads((folder / "history.json").read_text())
    return [(entry["step"], entry[key]) for entry in entries if key in entry]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    code, output = train(folder)
    assert code == 0, output
    return folder


@pytest.mark.slow
def test_the_run_holds_what_trainer_logged_number_by_number_and_the_folders_it_wrote(undisturbed: Path) -> None:
    found = logged(undisturbed)
    names = {"loss": "train/loss", "grad_norm": "train/grad_norm", "eval_loss": "eval/loss"}
    assert {name: found[name] for name in names.values()} == {
        name: history(undisturbed, key) for key, name in names.items()
    }
    run = only_run(undisturbed)
    assert run.status == "completed"
    assert run.name == "bert-lr5e-05"
    assert run.metadata["hyperparameters"]["learning_rate"] == 5e-05
    assert run.metadata["model_config"]["class"] == "BertForSequenceClassification"
    assert run.metadata["dataset_info"] == {"train_samples": 64}
    there = [info for info in run.checkpoints if info.path.exists()]
    assert [info.step for info in there][-1] == 12
    assert all(info.verified and info.format == "huggingface" for info in there)
    assert run.best.path == Path(run.best.path).parent / f"checkpoint-{run.best.step}"
    assert run.best.metrics == {"eval/loss": min(value for _, value in found["eval/loss"])}


@pytest.mark.slow
def test_a_killed_training_goes_on_by_the_same_command_as_if_nothing_had_happened(
    undisturbed: Path, tmp_path: Path
) -> None:
    code, output = train(tmp_path, "--kill", "10")
    assert code == -signal.SIGKILL, output
    assert only_run(tmp_path).status == "killed"
    code, output = train(tmp_path)
    assert code == 0, output

    assert logged(tmp_path) == logged(undisturbed)
    run = only_run(tmp_path)
    assert (run.status, len(run.attempts), run.lost_steps) == ("completed", 2, 1)


@pytest.mark.slow
def test_after_a_signal_two_ranks_save_after_the_same_step_and_the_same_command_goes_on(tmp_path: Path) -> None:
    steps = ("--steps", "240", "--save", "40")
    code, output = train(tmp_path / "undisturbed", *steps, command=TORCHRUN)
    assert code == 0, output
    code, output = train(tmp_path / "signalled", *steps, "--usr1", "6", command=TORCHRUN)
    assert code == 0, output
    run = only_run(tmp_path / "signalled")
    assert run.status == "preempted", output
    stopped = max(step for step, _ in logged(tmp_path / "signalled")["train/loss"])
    assert stopped < 240
    newest = newest_checkpoint(tmp_path / "signalled" / "out")
    assert newest is not None
    assert newest.endswith(f"checkpoint-{stopped}")
    code, output = train(tmp_path / "signalled", *steps, command=TORCHRUN)
    assert code == 0, output

    expected, found = logged(tmp_path / "undisturbed"), logged(tmp_path / "signalled")
    assert found["train/loss"] == expected["train/loss"]
    assert found["eval/loss"] == expected["eval/loss"]
    assert only_run(tmp_path / "signalled").status == "completed"


@pytest.mark.slow
def test_folders_of_the_mixin_hold_one_checked_file_and_go_on_to_the_bit_on_two_ranks(tmp_path: Path) -> None:
    code, output = train(tmp_path / "undisturbed", "--fast", command=TORCHRUN)
    assert code == 0, output
    killed = tmp_path / "killed"
    code, output = train(killed, "--fast", "--kill", "10", command=TORCHRUN)
    assert code != 0, output
    assert sorted(path.name for path in (killed / "out" / "checkpoint-8").iterdir() if path.suffix == ".milepost") == [
        "trainer-rank1.milepost",
        "trainer.milepost",
    ]
    assert not (killed / "out" / "checkpoint-8" / "optimizer.pt").exists()
    code, output = train(killed, "--fast", command=TORCHRUN)
    assert code == 0, output

    assert logged(killed) == logged(tmp_path / "undisturbed")
    best = only_run(killed).best
    assert json.loads((best.path / "trainer_state.json").read_text())["best_model_checkpoint"] == f"out/{best.filename}"
    BertForSequenceClassification.from_pretrained(best.path)


@pytest.mark.slow
def test_the_mixin_goes_on_from_a_folder_of_a_plain_trainer(undisturbed: Path, tmp_path: Path) -> None:
    code, output = train(tmp_path, "--kill", "10")
    assert code == -signal.SIGKILL, output
    code, output = train(tmp_path, "--fast")
    assert code == 0, output
    assert logged(tmp_path) == logged(undisturbed)
