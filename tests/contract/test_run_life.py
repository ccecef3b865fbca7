"""A run, from its start to every end it can come to."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

import milepost
from tests.contract.training_script import Script, run_script

LOGS_FOR_EVER = """
    import milepost
    run = milepost.start("life", tensorboard_dir=None)
    step = 0
    while True:
        run.log({"loss": 1.0 / (step + 1)}, step)
        print(step)
        step += 1
"""


def only_run(folder: Path):
    runs = milepost.open(folder).runs()
    assert len(runs) == 1
    return runs[0]


def wait_until_idle(folder: Path) -> None:
    deadline = time.monotonic() + 60
    while only_run(folder).state.live:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_finished_run_leaves_metadata_metrics_summary_and_console(tmp_path):
    _, err, code = run_script(
        tmp_path,
        """
        import milepost
        with milepost.start("life", hyperparameters={"lr": 0.1}, tags=["a"], tensorboard_dir=None) as run:
            print("hello from the script")
            for step in range(10):
                run.log({"loss": 1.0 / (step + 1), "nested": {"x": step}}, step, epoch=0)
            run.tag("b")
            run.note("a note")
            run.end({"final": 0.5})
        """,
    )
    assert code == 0, err
    run = only_run(tmp_path)
    assert run.status == "completed"
    metadata = json.loads((tmp_path / "experiments" / run.id / "metadata.json").read_text())
    assert metadata["status"] == "completed"
    assert metadata["tags"] == ["a", "b"]
    assert metadata["notes"] == "a note"
    assert metadata["environment"]["python_version"]
    assert list(run.series("loss").step) == list(range(10))
    assert list(run.series("nested/x").value) == list(range(10))
    summary = json.loads((tmp_path / "experiments" / run.id / "summary.json").read_text())
    assert "final" in json.dumps(summary)
    assert "hello from the script" in (tmp_path / "experiments" / run.id / "experiment.log").read_text()
    assert not list((tmp_path / "metrics" / run.id).glob("*.lock"))


def test_every_metric_that_was_acknowledged_survives_kill_9(tmp_path):
    script = Script(tmp_path, LOGS_FOR_EVER)
    acknowledged = int(script.wait_for_line("2000")[-1])
    script.process.send_signal(signal.SIGKILL)
    rest, _ = script.finish()
    printed = [int(line) for line in rest.splitlines() if line.strip().isdigit() and rest.endswith("\n")]
    acknowledged = max([acknowledged, *printed[:-1]])
    wait_until_idle(tmp_path)
    run = only_run(tmp_path)
    assert run.status == "killed"
    steps = list(run.series("loss").step)
    assert steps == list(range(len(steps)))
    assert steps[-1] >= acknowledged
    assert [float(v) for v in run.series("loss").value] == [1.0 / (step + 1) for step in steps]


@pytest.mark.parametrize(
    ("number", "status", "word"),
    [
        (signal.SIGKILL, "killed", "SIGKILL"),
        (signal.SIGTERM, "killed", "SIGTERM"),
        (signal.SIGINT, "stopped", "Ctrl-C"),
    ],
)
def test_the_signal_that_ended_a_run_is_named(tmp_path, number, status, word):
    script = Script(tmp_path, LOGS_FOR_EVER)
    script.wait_for_line("10")
    script.kill(number)
    wait_until_idle(tmp_path)
    run = only_run(tmp_path)
    assert run.status == status
    assert word in run.state.reason


def test_an_exception_ends_a_run_as_failed_with_its_traceback(tmp_path):
    _, err, code = run_script(
        tmp_path,
        """
        import milepost
        run = milepost.start("life", tensorboard_dir=None)
        run.log({"loss": 1.0}, 0)
        raise ValueError("the cat sat on the keyboard")
        """,
    )
    assert code == 1
    assert "the cat sat" in err
    run = only_run(tmp_path)
    assert run.status == "failed"
    assert "ValueError: the cat sat on the keyboard" in run.state.reason


def test_a_script_that_ends_without_a_word_is_completed(tmp_path):
    run_script(
        tmp_path,
        """
        import milepost
        run = milepost.start("life", tensorboard_dir=None)
        run.log({"loss": 1.0}, 0)
        """,
    )
    assert only_run(tmp_path).status == "completed"


def test_the_same_command_goes_on_in_the_same_run_after_a_kill(tmp_path):
    body = """
        import milepost, os, sys
        with milepost.start("life", hyperparameters={"lr": 1}, resume="auto", tensorboard_dir=None) as run:
            print("run", run.id, run.attempt, flush=True)
            run.log({"loss": float(run.attempt)}, run.attempt)
            if run.attempt < 3:
                os.kill(os.getpid(), 9)
    """
    for _ in range(3):
        run_script(tmp_path, body)
    run = only_run(tmp_path)
    assert run.status == "completed"
    assert len(run.attempts) == 3
    assert [float(v) for v in run.series("loss").value] == [1.0, 2.0, 3.0]


def test_a_run_that_died_before_its_first_checkpoint_shows_no_step_twice(tmp_path):
    body = """
        import milepost, os, torch
        with milepost.start("life", resume="auto", tensorboard_dir=None) as run:
            point = run.resume(torch.nn.Linear(2, 2))
            print("resumed", point.step, point.lost_steps, flush=True)
            for step in range(point.step, 3):
                run.log({"loss": float(run.attempt)}, step)
            if run.attempt < 2:
                os.kill(os.getpid(), 9)
    """
    for _ in range(2):
        printed, said, _ = run_script(tmp_path, body)
    assert "resumed 0 3" in printed
    assert "goes on at step 0 (attempt 2, 3 steps are done again)" in said
    run = only_run(tmp_path)
    assert run.series("loss").step.tolist() == [0, 1, 2]
    assert run.series("loss").value.tolist() == [2.0, 2.0, 2.0]
    assert run.lost_steps == 3


def test_a_completed_run_is_not_continued(tmp_path):
    body = """
        import milepost
        with milepost.start("life", resume="auto", tensorboard_dir=None) as run:
            run.log({"loss": 1.0}, 0)
    """
    run_script(tmp_path, body)
    run_script(tmp_path, body)
    assert len(milepost.open(tmp_path).runs()) == 2


def test_the_death_of_the_companion_costs_nothing(tmp_path):
    script = Script(
        tmp_path,
        """
        import milepost, sys
        run = milepost.start("life", tensorboard_dir=None)
        for step in range(1000):
            run.log({"loss": float(step)}, step)
        print("companion", run._companion.pid, flush=True)
        sys.stdin.readline() if False else None
        import time
        before = run._companion.pid
        while run._companion.pid == before:
            time.sleep(0.01)
        for step in range(1000, 2000):
            run.log({"loss": float(step)}, step)
        run.end()
        """,
    )
    line = script.wait_for_line("companion")[-1]
    os.kill(int(line.split()[1]), signal.SIGKILL)
    _, err = script.finish()
    assert script.exit_code == 0, err
    run = only_run(tmp_path)
    assert run.status == "completed"
    assert list(run.series("loss").step) == list(range(2000))


def test_a_forked_child_logs_beside_its_parent(tmp_path):
    _, err, code = run_script(
        tmp_path,
        """
        import milepost, os
        run = milepost.start("life", tensorboard_dir=None)
        run.log({"parent": 0.0}, 0)
        child = os.fork()
        if child == 0:
            run.log({"child": 1.0}, 5)
            os._exit(0)
        os.waitpid(child, 0)
        run.log({"parent": 1.0}, 1)
        run.end()
        """,
    )
    assert code == 0, err
    run = only_run(tmp_path)
    assert run.status == "completed"
    assert list(run.series("parent").step) == [0, 1]
    assert list(run.series("child").step) == [5]


def test_without_shared_memory_the_same_calls_keep_the_same_record(tmp_path):
    _, err, code = run_script(
        tmp_path,
        """
        import milepost
        with milepost.start("life", tensorboard_dir=None) as run:
            for step in range(100):
                run.log({"loss": float(step)}, step)
        """,
        MILEPOST_COMPANION="thread",
    )
    assert code == 0, err
    run = only_run(tmp_path)
    assert run.status == "completed"
    assert list(run.series("loss").step) == list(range(100))


def test_disabled_mode_leaves_nothing(tmp_path):
    _, err, code = run_script(
        tmp_path,
        """
        import milepost
        with milepost.start("life") as run:
            run.log({"loss": 1.0}, 0)
            assert not run.should_save(5000)
            str(run.save_checkpoint(None, step=1))
        """,
        MILEPOST_MODE="disabled",
    )
    assert (code, err) == (0, "")
    assert os.listdir(tmp_path) == ["train.py"]


def test_a_busy_system_names_the_experiment_that_is_live(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = milepost.ExperimentConfig(tensorboard_dir=None, capture_console=False)
    system = milepost.ExperimentTrackingSystem(config)
    first = system.start_experiment("one")
    with pytest.raises(milepost.ConflictError, match=first):
        system.start_experiment("two")
    system.end_experiment()
