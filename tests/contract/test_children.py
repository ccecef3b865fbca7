"""Children of a training: each logs beside its parent, none keeps a dead run alive."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

import milepost
from tests.contract.training_script import Script, run_script

HEAD = """
    import multiprocessing, os, signal, sys
    import milepost
    quiet = dict(tensorboard_dir=None, capture_code=False)
"""


def only_run(folder: Path):
    (run,) = milepost.open(folder).runs()
    return run


def test_forked_workers_and_their_own_children_log_each_to_a_log_of_its_own(tmp_path):
    _, err, code = run_script(
        tmp_path,
        HEAD
        + """
    def work(number):
        for step in range(50):
            run.log({f"worker{number}": float(step)}, step)
        if os.fork() == 0:
            for step in range(50):
                run.log({f"grandchild{number}": float(step)}, step)
            os._exit(0)
        for step in range(50, 100):
            run.log({f"worker{number}": float(step)}, step)
        run.log_text("note", f"from {number}")
        os.wait()

    run = milepost.start("children", **quiet)
    run.log({"parent": 0.0}, 0)
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=work, args=(number,)) for number in range(3)]
    for worker in workers: worker.start()
    for worker in workers: worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    run.log({"parent": 1.0}, 1)
    run.end()
    """,
    )
    assert code == 0, err
    run = only_run(tmp_path)
    assert run.status == "completed"
    for number in range(3):
        assert list(run.series(f"worker{number}").step) == list(range(100))
        assert list(run.series(f"grandchild{number}").step) == list(range(50))
    assert list(run.series("parent").step) == [0, 1]
    assert sorted(text.text for text in run.texts) == ["from 0", "from 1", "from 2"]
    assert run.history.damage == []


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_pickled_run_logs_in_another_process_and_in_what_that_forks(tmp_path, method):
    _, err, code = run_script(
        tmp_path,
        HEAD
        + f"""
    def work(run):
        run.log({{"worker": 0.0}}, 0)
        if os.fork() == 0:
            run.log({{"grandchild": 1.0}}, 1)
            os._exit(0)
        os.wait()
        run.log({{"worker": 2.0}}, 2)
        run.log_text("note", "text")

    if __name__ == "__main__":
        run = milepost.start("children", **quiet)
        worker = multiprocessing.get_context({method!r}).Process(target=work, args=(run,))
        worker.start(); worker.join()
        assert worker.exitcode == 0
        run.end()
    """,
    )
    assert code == 0, err
    run = only_run(tmp_path)
    assert list(run.series("worker").step) == [0, 2]
    assert list(run.series("grandchild").step) == [1]
    assert run.history.damage == []


def test_a_forked_child_can_neither_save_nor_resume_nor_end_the_run(tmp_path):
    out, err, code = run_script(
        tmp_path,
        HEAD
        + """
    import torch
    model = torch.nn.Linear(2, 2)
    run = milepost.start("children", **quiet)
    run.save_checkpoint(model, step=1)
    if os.fork() == 0:
        for call in (lambda: run.save_checkpoint(model, step=2), lambda: run.resume(model), run.wait):
            try:
                call()
                print("accepted", flush=True)
            except milepost.InvalidCallError as error:
                assert error.kind == "forked-child"
        run.end()
        raise SystemExit(5)  # an exit like any other, not os._exit
    assert os.waitstatus_to_exitcode(os.wait()[1]) == 5
    run.log({"loss": 1.0}, 3)
    run.wait()
    run.end()
    """,
    )
    assert (code, out) == (0, ""), err
    run = only_run(tmp_path)
    assert run.status == "completed"
    assert list(run.series("loss").step) == [3]
    assert [info.step for info in run.checkpoints] == [1]


def test_a_child_that_outlives_its_killed_parent_does_not_keep_the_run_alive_and_still_logs(tmp_path):
    script = Script(
        tmp_path,
        HEAD
        + """
    run = milepost.start("children", **quiet)
    run.log({"parent": 0.0}, 0)
    child = os.fork()
    if child == 0:
        os.setsid()
        gate = os.open("gate", os.O_RDONLY)
        run.log({"child": 1.0}, 5)
        os.close(os.open("done", os.O_CREAT | os.O_WRONLY))
        os._exit(0)
    print("child", child, flush=True)
    signal.pause()
    """,
    )
    os.mkfifo(tmp_path / "gate")
    child = int(script.wait_for_line("child")[-1].split()[1])
    script.process.send_signal(signal.SIGKILL)
    script.process.wait(60)
    try:
        until(lambda: only_run(tmp_path).state.source == "companion" and not only_run(tmp_path).state.live)
        run = only_run(tmp_path)
        assert (run.status, run.state.reason) == ("killed", "killed by SIGKILL")
        os.kill(child, 0)  # it is still there
    finally:
        with (tmp_path / "gate").open("w"):
            until((tmp_path / "done").exists)
    assert list(only_run(tmp_path).series("child").step) == [5]
    assert only_run(tmp_path).status == "killed"


def until(condition) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
