"""A training with Lightning is a run: its numbers, its files, its end; and it goes on after whatever ended it."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from csv import DictReader
from pathlib import Path
from typing import Any

import lightning as L  # noqa: N812 - as everybody calls it
import pytest
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader, TensorDataset
from torture.framework_kills import metrics_of
from torture.framework_lightning import Regression, complaints

import milepost
from milepost.cli.demo import differences
from milepost.core.errors import CorruptDataError, InvalidInputError
from milepost.integrations.lightning import MilepostCheckpointIO, MilepostLogger

ROOT = Path(__file__).parents[2]

pytestmark = [
    # Lightning's advice about this machine and this tiny training, none of it about milepost
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    pytest.mark.filterwarnings("ignore:.*there is no last checkpoint available"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no"),
    pytest.mark.filterwarnings("ignore:Trying to infer the `batch_size`"),
]


class WithTest(Regression):
    def test_step(self, batch: Any, index: int) -> None:
        self.log("test/loss", self._loss(batch))


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    return tmp_path


def logger(**settings):
    quiet = {"tensorboard_dir": None, "capture_code": False, "capture_console": False, "system_metrics_every": None}
    return MilepostLogger(name="toy", **quiet | settings)


def trainer(own, *, max_epochs=2, files=None, checkpoint=None, more=()):
    checkpoint = checkpoint or ModelCheckpoint(dirpath="out", monitor="val/loss", save_top_k=2, save_last=True)
    return L.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=max_epochs,
        log_every_n_steps=1,
        logger=[own, *more],
        plugins=[files or MilepostCheckpointIO()],
        callbacks=[checkpoint],
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def loaders():
    data = TensorDataset(torch.randn(32, 4), torch.randn(32, 1))
    return DataLoader(data, batch_size=8), DataLoader(data, batch_size=16)


def flip_a_bit(path):
    status = path.stat()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def only_run(folder="."):
    (run,) = milepost.open(folder).runs()
    return run


def test_the_run_has_the_numbers_the_hyperparameters_and_the_files_of_the_fit():
    own, csv = logger(tags=["a"]), CSVLogger("csv")
    fit = trainer(own, more=[csv])
    fit.fit(Regression(learning_rate=0.02), *loaders())
    run = only_run()
    assert (run.status, run.tags, run.hyperparameters) == ("completed", ["a"], {"learning_rate": 0.02})
    lines = list(DictReader(Path(csv.experiment.metrics_file_path).read_text().splitlines()))
    expected = {
        name: {int(row["step"]): float(row[name]) for row in lines if row[name]} for name in ("train/loss", "val/loss")
    }
    assert differences(expected, metrics_of(Path())) == []
    assert run.series("train/loss").epoch.tolist() == [0.0] * 4 + [1.0] * 4
    assert fit.callback_metrics["val/loss"].item() == run.series("val/loss").value[-1]

    listed = {info.filename: info for info in own.run.checkpoints}
    assert set(listed) == {"epoch=0-step=4.ckpt", "epoch=1-step=8.ckpt", "last.ckpt"}
    best = listed[Path(fit.checkpoint_callback.best_model_path).name]
    assert (best.verified, len(best.digest), best.is_best) == (True, 32, True)
    assert best.metrics["val/loss"] == run.series("val/loss").value.min()
    assert {info.filename: info.digest for info in run.checkpoints} == {n: i.digest for n, i in listed.items()}
    assert listed["last.ckpt"].step == 7
    assert complaints(Path()) == []


def test_every_file_is_there_when_fit_returns_and_when_a_save_outside_of_it_does():
    fit = trainer(logger())
    fit.fit(Regression(), *loaders())
    Regression.load_from_checkpoint(fit.checkpoint_callback.best_model_path)
    fit.save_checkpoint("by hand.ckpt")
    assert torch.load("by hand.ckpt", weights_only=False)["global_step"] == 8
    fit.strategy.remove_checkpoint("by hand.ckpt")
    assert not list(Path().glob("*hand*"))
    assert fit.strategy.checkpoint_io.courier._carrier is None  # no process is left behind


def test_a_test_behind_the_fit_belongs_to_the_same_run_and_hides_nothing():
    own = logger()
    fit = trainer(own)
    module, (train, validation) = WithTest(), loaders()
    fit.fit(module, train, validation)
    fit.test(module, validation, ckpt_path="best")
    fit.validate(module, validation, ckpt_path=str(Path("out/epoch=0-step=4.ckpt")))
    run = only_run()
    assert run.status == "completed"
    assert len(run.series("train/loss").value) == 8
    assert len(run.series("test/loss").value) == 1


def test_a_failed_fit_is_a_failed_run_and_the_same_script_goes_on_in_it_from_the_last_file(capfd):
    class Failing(Regression):
        def on_train_batch_start(self, batch, index):
            if self.trainer.global_step == 6:
                raise ZeroDivisionError("as planned")

    train, validation = loaders()
    first = logger()
    with pytest.raises(ZeroDivisionError):
        trainer(first).fit(Failing(), train, validation)
    assert only_run().status == "failed"
    assert "as planned" in only_run().state.reason
    assert list(metrics_of(Path())["train/loss"]) == list(range(6))

    second = logger()
    fit = trainer(second)
    fit.fit(Regression(), train, validation, ckpt_path="last")
    run = only_run()
    assert (run.status, run.id, len(run.attempts)) == ("completed", first.run.id, 2)
    assert list(metrics_of(Path())["train/loss"]) == list(range(8))
    assert run.lost_steps == 2


def test_a_damaged_last_file_is_left_out_and_said_and_the_newest_sound_one_is_taken(capfd):
    train, validation = loaders()
    trainer(logger()).fit(Regression(), train, validation)
    flip_a_bit(Path("out/last.ckpt"))
    fit = trainer(logger(), max_epochs=3)
    fit.fit(Regression(), train, validation, ckpt_path="last")
    said = capfd.readouterr().err
    assert "last.ckpt is left out: its digest is not the one" in said
    assert "epoch=1-step=8.ckpt is taken instead" in said
    assert fit.global_step == 12

    for path in Path("out").glob("*.ckpt"):
        flip_a_bit(path)
    with pytest.raises(CorruptDataError, match="no sound checkpoint"):
        trainer(logger(), max_epochs=3).fit(Regression(), train, validation, ckpt_path="last")


def test_without_fallback_a_damaged_file_is_an_error():
    train, validation = loaders()
    trainer(logger()).fit(Regression(), train, validation)
    flip_a_bit(Path("out/last.ckpt"))
    with pytest.raises(CorruptDataError):
        trainer(logger(), files=MilepostCheckpointIO(fallback=False)).fit(
            Regression(), train, validation, ckpt_path="last"
        )


def test_a_link_to_the_last_file_never_points_to_one_that_is_not_there():
    seen = []

    class Looking(Regression):
        def on_validation_epoch_start(self):
            link = Path("out/last.ckpt")
            seen.append((link.is_symlink(), link.exists()))

    checkpoint = ModelCheckpoint(dirpath="out", monitor="val/loss", save_top_k=2, save_last="link")
    train, validation = loaders()
    fit = trainer(logger(), checkpoint=checkpoint)
    fit.fit(Looking(), train, validation)
    assert Path("out/last.ckpt").is_symlink()
    checkpoint = ModelCheckpoint(dirpath="out", monitor="val/loss", save_top_k=2, save_last="link")
    fit = trainer(logger(), max_epochs=3, checkpoint=checkpoint)
    fit.fit(Looking(), train, validation, ckpt_path="last")
    assert fit.global_step == 12
    assert all(there for is_link, there in seen if is_link)


def test_without_dirpath_the_files_lie_below_the_run_and_last_finds_those_of_the_same_run():
    train, validation = loaders()
    own = logger()
    fit = trainer(own, checkpoint=ModelCheckpoint(monitor="val/loss", save_last=True))
    fit.fit(Regression(), train, validation, ckpt_path="last")
    assert (
        Path(fit.checkpoint_callback.last_model_path).parent
        == Path("checkpoints/toy", own.version, "checkpoints").absolute()
    )
    assert own.version == own.run.id
    again = logger()
    trainer(again, checkpoint=ModelCheckpoint(monitor="val/loss", save_last=True)).fit(
        Regression(), train, validation, ckpt_path="last"
    )
    assert again.version != own.version  # a completed run is never continued


def test_lightnings_own_plugin_may_stay_then_files_are_listed_without_a_digest():
    own = logger()
    trainer(own, files=TorchCheckpointIO()).fit(Regression(), *loaders())
    listed = {info.filename: info for info in own.run.checkpoints}
    assert set(listed) == {"epoch=0-step=4.ckpt", "epoch=1-step=8.ckpt", "last.ckpt"}
    assert not any(info.verified or info.digest for info in listed.values())


def test_hyperparameters_may_be_a_namespace_and_secrets_stay_out():
    own = logger()
    own.log_hyperparams(argparse.Namespace(rate=0.1, model=torch.nn.Linear(1, 1), api_key="hf_" + "a1B2" * 9))
    own.finalize("success")
    kept = only_run().hyperparameters
    assert kept["rate"] == 0.1
    assert "Linear" in kept["model"]
    assert "a1B2" not in kept["api_key"]


def test_saving_on_signals_is_lightnings_own_business():
    with pytest.raises(InvalidInputError, match="signals are Lightning's"):
        MilepostLogger(name="toy", save_on_signal=("SIGUSR1",))


def test_a_disabled_run_changes_nothing_for_lightning(monkeypatch):
    monkeypatch.setenv("MILEPOST_MODE", "disabled")
    fit = trainer(logger())
    fit.fit(Regression(), *loaders())
    assert not Path("experiments").exists()
    Regression.load_from_checkpoint(fit.checkpoint_callback.best_model_path)


# -------------------------------------------------------------------- real processes, real signals


def start_training(folder, **environment):
    folder.mkdir(exist_ok=True)
    paths = {"PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "src"))), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "torture.framework_lightning", str(folder)],
        cwd=ROOT,
        env=os.environ | paths | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run_training(folder, **environment):
    process = start_training(folder, **environment)
    output, _ = process.communicate()
    return process.returncode, output


@pytest.mark.slow
@pytest.mark.linux
def test_a_fit_that_is_killed_at_file_events_of_its_saves_goes_on_with_the_losses_of_an_undisturbed_one(folder):
    paths = {"PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "src")))}
    done = subprocess.run(
        [sys.executable, "-m", "torture.framework_kills", "lightning", "--sample", "5", "--seed", str(os.getpid())],
        cwd=ROOT,
        env=os.environ | paths,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_two_processes_are_one_run_and_go_on_together_after_a_kill(folder):
    code, output = run_training(folder / "undisturbed", TORTURE_PROCESSES="2")
    assert code == 0, output
    code, output = run_training(folder / "killed", TORTURE_PROCESSES="2", TORTURE_KILL_STEP="5")
    assert code != 0, output
    assert complaints(folder / "killed") == []
    code, output = run_training(folder / "killed", TORTURE_PROCESSES="2")
    assert code == 0, output
    assert differences(metrics_of(folder / "undisturbed"), metrics_of(folder / "killed")) == []
    run = only_run(folder / "killed")
    assert (run.status, len(run.attempts)) == ("completed", 2)


def wait_for_training(process, folder):
    while process.poll() is None and not (folder / "waiting").exists():
        time.sleep(0.02)
    assert process.poll() is None, process.stdout.read()


@pytest.mark.slow
def test_a_requeue_of_slurm_is_lightnings_and_the_run_hears_of_it(folder):
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "toy", "SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
    job |= {"SLURM_NODEID": "0", "SLURM_JOB_NUM_NODES": "1", "SLURM_NTASKS_PER_NODE": "1"}
    tools = folder / "tools"
    tools.mkdir()
    scontrol = tools / "scontrol"
    scontrol.write_text(f'#!/bin/sh\necho "$@" > {folder}/requeued\n')
    scontrol.chmod(0o755)
    job |= {"PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"}
    process = start_training(folder / "job", **job, TORTURE_WAIT_STEP="6")
    wait_for_training(process, folder / "job")
    process.send_signal(signal.SIGUSR1)
    while not (folder / "requeued").exists():
        time.sleep(0.02)
    while not any("SIGUSR1 came" in notice.message for notice in only_run(folder / "job").notices):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)  # which Lightning passes over inside of a job
    process.kill()  # the end of the time that SLURM gives
    process.communicate()
    assert (folder / "requeued").read_text().split() == ["requeue", "7"]
    assert list((folder / "job").glob("hpc_ckpt_*.ckpt"))
    code, output = run_training(folder / "job", **job, SLURM_RESTART_COUNT="1", TORTURE_CKPT_PATH="hpc")
    assert code == 0, output
    run = only_run(folder / "job")
    assert (run.status, len(run.attempts)) == ("completed", 2)
    steps = list(metrics_of(folder / "job")["train/loss"])
    assert steps[:6] == list(range(6))
    assert len(steps) == 16  # Lightning calls the batch that the signal came in 7 when it does it again


@pytest.mark.slow
def test_sigterm_ends_the_fit_by_lightnings_rule_and_the_run_as_stopped(folder):
    process = start_training(folder / "job", TORTURE_WAIT_STEP="6")
    wait_for_training(process, folder / "job")
    process.send_signal(signal.SIGTERM)
    (folder / "job" / "go on").touch()
    process.communicate()
    run = only_run(folder / "job")
    assert (run.status, run.state.reason) == ("stopped", "SIGTERM came")
