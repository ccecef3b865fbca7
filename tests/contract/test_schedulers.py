"""A training inside a cluster's job: warned, preempted, requeued, and beside others who handle its signals."""

from __future__ import annotations

import os
import signal
import stat
import time
from pathlib import Path

import pytest

import milepost
from tests.contract.training_script import Script

HEAD = """
    import json, os, signal, sys, time
    import torch
    import milepost
    quiet = dict(tensorboard_dir=None, capture_code=False, capture_console=False, system_metrics_every=None)
    model = torch.nn.Linear(2, 2)
"""

TRAINING = (
    HEAD
    + """
    with milepost.start("job", resume="auto", save_on_signal=("SIGUSR1", "SIGTERM"), **quiet) as run:
        step = run.resume(model).step
        print("begins", run.id, run.attempt, step, flush=True)
        while step < 1_000_000:
            run.log({"loss": 1.0}, step)
            if run.should_save(step):
                run.save_checkpoint(step=step)
            if run.should_stop:
                break
            if os.environ.get("STEPS") and step >= int(os.environ["STEPS"]):
                break
            if step % 10 == 0:
                print("step", flush=True)
            time.sleep(0.005)
            step += 1
    print("stopped", step, flush=True)
    """
)
JOB = {"SLURM_JOB_ID": "17", "SLURM_CLUSTER_NAME": "big"}


@pytest.fixture(autouse=True)
def _outside_any_job(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)


def begin(folder: Path, body: str = TRAINING, **environment: str) -> tuple[Script, list[str]]:
    script = Script(folder, body, **environment)
    return script, script.wait_for_line("begins")[-1].split()[1:]


def last_line(script: Script) -> list[str]:
    out, err = script.finish()
    assert script.exit_code == 0, err
    return out.splitlines()[-1].split()


def runs(folder: Path):
    return milepost.open(folder).runs()


def fake_scontrol(folder: Path) -> str:
    """A ``scontrol`` that writes down what it was asked; the PATH that finds it."""
    program = folder / "bin" / "scontrol"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\necho "$@" >> "$(dirname "$0")/asked"\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return f"{program.parent}{os.pathsep}{os.environ['PATH']}"


def test_a_job_that_is_warned_saves_and_is_preempted_and_its_requeue_is_the_same_run(tmp_path):
    script, (run_id, attempt, first) = begin(tmp_path, **JOB)
    assert (attempt, first) == ("1", "0")
    script.wait_for_line("step")
    script.process.send_signal(signal.SIGUSR1)
    stopped = int(last_line(script)[1])
    (run,) = runs(tmp_path)
    assert (run.status, run.state.reason) == ("preempted", "SIGUSR1 came")
    assert run.checkpoints[-1].step == stopped

    again, (same_id, attempt, first) = begin(tmp_path, **JOB, SLURM_RESTART_COUNT="1", STEPS=str(stopped + 20))
    assert (same_id, attempt, int(first)) == (run_id, "2", stopped + 1)
    assert int(last_line(again)[1]) == stopped + 20
    (run,) = runs(tmp_path)
    assert run.status == "completed"
    assert list(run.series("loss").step) == list(range(stopped + 21))
    assert run.metadata["environment"]["times_requeued"] == 1


def test_tasks_of_an_array_are_runs_of_their_own(tmp_path):
    array = {"SLURM_ARRAY_JOB_ID": "17", "STEPS": "0"}
    for task in ("1", "2"):
        script, _ = begin(tmp_path, **array, SLURM_JOB_ID=f"2{task}", SLURM_ARRAY_TASK_ID=task)
        last_line(script)
    assert [run.status for run in runs(tmp_path)] == ["completed", "completed"]


def test_ahead_of_its_time_limit_a_job_saves_and_stops(tmp_path):
    body = TRAINING.replace('save_on_signal=("SIGUSR1", "SIGTERM")', "stop_before_limit=1")
    script, _ = begin(tmp_path, body, **JOB, SLURM_JOB_END_TIME=str(int(time.time()) + 62))
    stopped = int(last_line(script)[1])
    (run,) = runs(tmp_path)
    assert run.status == "preempted"
    assert run.state.reason == "1 minutes are left before the time limit of the job"
    assert run.checkpoints[-1].step == stopped


@pytest.mark.parametrize(
    ("environment", "status", "reason"),
    [
        (JOB, "preempted", "killed by SIGKILL after SIGUSR1"),
        ({}, "killed", "killed by SIGKILL"),
    ],
    ids=["in a job", "elsewhere"],
)
def test_a_job_that_was_warned_and_then_killed_was_preempted(tmp_path, environment, status, reason):
    body = (
        HEAD
        + """
    run = milepost.start("job", save_on_signal="SIGUSR1", **quiet)
    print("begins", flush=True)
    while not run.should_stop:
        run.log({"loss": 1.0})
        time.sleep(0.01)
    print("warned", flush=True)
    signal.pause()
    """
    )
    script = Script(tmp_path, body, **environment)
    script.wait_for_line("begins")
    script.process.send_signal(signal.SIGUSR1)
    script.wait_for_line("warned")
    script.kill()
    deadline = time.monotonic() + 60
    while (run := runs(tmp_path)[0]).status == "running" or run.state.source != "companion":
        assert time.monotonic() < deadline, run.state
        time.sleep(0.02)
    assert (run.status, run.state.reason) == (status, reason)


def test_a_signal_to_one_of_two_tasks_of_srun_stops_both_at_the_same_step(tmp_path):
    step = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NUM_NODES": "1", "MASTER_ADDR": "localhost"}
    ranks = [
        Script(tmp_path, TRAINING, **JOB, **step, SLURM_PROCID=str(rank), SLURM_LOCALID=str(rank)) for rank in range(2)
    ]
    ids = [rank.wait_for_line("begins")[-1].split()[1] for rank in ranks]
    assert ids[0] == ids[1]
    for rank in ranks:
        rank.wait_for_line("step")
    ranks[1].process.send_signal(signal.SIGUSR1)
    stopped = {int(last_line(rank)[1]) for rank in ranks}
    assert len(stopped) == 1
    (run,) = runs(tmp_path)
    assert run.checkpoints[-1].step in stopped
    assert run.status in {"preempted", "stopped"}  # who was not warned cannot know that it was the scheduler


SUBMITIT = (
    HEAD
    + """
    import submitit
    from submitit.core.utils import DelayedSubmission, JobPaths
    from submitit.slurm.slurm import SlurmJobEnvironment

    class Job:
        def __call__(self): ...
        def checkpoint(self):
            print("checkpoint() was called", flush=True)
            return DelayedSubmission(str, "again")

    def submitits_handlers():
        environment = SlurmJobEnvironment()
        delayed = DelayedSubmission(Job())
        delayed.set_timeout(timeout_min=60, max_num_timeout=3)
        environment._handle_signals(JobPaths("jobs", job_id=environment.job_id), delayed)

    os.makedirs("jobs", exist_ok=True)
    first = sys.stdin.readline().strip()
    if first == "submitit":
        submitits_handlers()
    with milepost.start("job", resume="auto", save_on_signal=("SIGUSR2", "SIGTERM"), **quiet) as run:
        run.resume(model)
        if first == "milepost":
            submitits_handlers()
        for step in range(1_000_000):
            run.log({"loss": 1.0}, step)
            if run.should_save(step):
                run.save_checkpoint(step=step)
                print("saved", flush=True)
            if step == 50:  # a quarter of a second: time enough to see who handles signals now
                print("begins", flush=True)
            time.sleep(0.005)
    """
)


@pytest.mark.parametrize("first", ["submitit", "milepost"])
def test_submitit_requeues_and_milepost_hears_it_whoever_came_first(tmp_path, first):
    script = Script(tmp_path, SUBMITIT, stdin=True, **JOB, PATH=fake_scontrol(tmp_path))
    script.tell(f"{first}\n")
    script.wait_for_line("begins")
    script.process.send_signal(signal.SIGTERM)  # submitit passes it over, milepost saves
    script.wait_for_line("saved")
    script.process.send_signal(signal.SIGUSR2)
    out, err = script.finish()
    assert script.exit_code == 255, err
    assert "checkpoint() was called" in out
    assert (tmp_path / "bin" / "asked").read_text() == "requeue 17\n"
    (run,) = runs(tmp_path)
    assert run.status == "preempted", run.state
    assert run.state.reason.startswith("SIGTERM came")
    assert len(run.checkpoints) == 1


LIGHTNING = (
    HEAD
    + """
    import warnings
    warnings.filterwarnings("ignore")
    import lightning.pytorch as pl
    from lightning.pytorch.plugins.environments import SLURMEnvironment
    from lightning.pytorch.utilities.exceptions import SIGTERMException

    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = torch.nn.Linear(2, 1)
        def training_step(self, batch, index):
            return self.model(batch).mean()
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    class Watch(pl.Callback):
        run = None
        def start(self):
            self.run = milepost.start("fit", save_on_signal=("SIGUSR1", "SIGTERM"), **quiet)
        def on_train_start(self, trainer, module):
            if self.run is None:
                self.start()
        def on_train_batch_end(self, trainer, module, outputs, batch, index):
            self.run.log({"loss": float(outputs["loss"])}, trainer.global_step)
            if self.run.should_save(trainer.global_step):
                print("asked", flush=True)
            if trainer.global_step == 3:
                print("begins", flush=True)
            time.sleep(0.01)

    watch = Watch()
    if sys.stdin.readline().strip() == "milepost":
        watch.start()
    data = torch.utils.data.DataLoader(torch.zeros(1_000_000, 2), batch_size=1)
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[watch], plugins=[SLURMEnvironment()],
    )
    try:
        trainer.fit(Module(), data)
    except SIGTERMException:
        print("left", flush=True)
    print("sigterm", trainer.received_sigterm, "should_stop", watch.run.should_stop, flush=True)
    """
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "signals", "requeued"),
    [("lightning", ("SIGUSR1", "SIGTERM"), True), ("milepost", ("SIGTERM",), False)],
)
def test_lightnings_handlers_and_ours_both_work_whoever_came_first(tmp_path, first, signals, requeued):
    environment = JOB | {"SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
    script = Script(tmp_path, LIGHTNING, stdin=True, **environment, PATH=fake_scontrol(tmp_path))
    script.tell(f"{first}\n")
    script.wait_for_line("begins")
    for name in signals:
        script.process.send_signal(getattr(signal, name))
        if name == "SIGUSR1":
            script.wait_for_line("asked")
    out, err = script.finish()
    assert "sigterm True should_stop True" in out, err
    asked = tmp_path / "bin" / "asked"
    assert (asked.read_text() if asked.exists() else "") == ("requeue 17\n" if requeued else "")
