"""Every way a training can end or nearly end: is it told as it was, and does nothing raise where a loop runs?"""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

import milepost
from tests.contract.training_script import Script, run_script

HEAD = """
    import os, signal, sys
    import milepost
    quiet = dict(tensorboard_dir=None, capture_code=False)
"""


def only_run(folder: Path):
    (run,) = milepost.open(folder).runs()
    return run


@pytest.mark.parametrize(
    ("body", "code", "status", "reason"),
    [
        ("with milepost.start('e', **quiet): raise ValueError('no \\udcff')", 1, "failed", "ValueError: no ?"),
        ("with milepost.start('e', **quiet): sys.exit(3)", 3, "failed", "the script left with exit status 3"),
        ("with milepost.start('e', **quiet): sys.exit(0)", 0, "completed", ""),
        ("with milepost.start('e', **quiet): raise KeyboardInterrupt", -2, "stopped", "interrupted (Ctrl-C)"),
        ("run = milepost.start('e', **quiet); sys.exit(3)", 3, "failed", "the script left with exit status 3"),
        ("run = milepost.start('e', **quiet); sys.exit('word')", 1, "failed", "the script left with exit status 1"),
        ("run = milepost.start('e', **quiet); sys.exit()", 0, "completed", ""),
        ("run = milepost.start('e', **quiet)\n    raise KeyboardInterrupt", None, "stopped", "interrupted (Ctrl-C)"),
        ("run = milepost.start('e', **quiet); run.end(status='stopped', reason='pruned')", 0, "stopped", "pruned"),
        ("run = milepost.start('e', **quiet); raise ValueError(30_000 * '\U0001f600')", 1, "failed", "ValueError: "),
        ("milepost.start('e', capture_console=False, **quiet); import gc; gc.collect()", 0, "completed", ""),
    ],
)  # fmt: skip
def test_an_end_is_told_as_it_was(tmp_path, body, code, status, reason):
    _, err, exit_code = run_script(tmp_path, HEAD + "    " + body, MILEPOST_COMPANION="thread")
    run = only_run(tmp_path)
    assert exit_code == code or code is None, err
    assert run.status == status
    assert run.state.reason.startswith(reason)
    assert run.state.source == "trainer"
    if status == "failed":
        assert run.state.exit_code == code or run.state.traceback


def test_what_comes_after_the_end_never_raises_in_the_loop_and_is_said_once(tmp_path):
    out, err, code = run_script(
        tmp_path,
        HEAD
        + """
    import torch
    run = milepost.start("e", **quiet)
    run.log({"loss": 1.0}, 0)
    run.end({"final": 0.5})
    run.end({"final": 0.9}, status="failed")
    for step in range(5):
        run.log({"loss": 1.0}, step)
        run.log_text("note", "text")
        run.log_file("file", __file__)
    assert not run.should_save(5) and not run.should_stop and run.ended
    assert "completed" in repr(run)
    model = torch.nn.Linear(2, 2)
    tag, note = (lambda: run.tag("a")), (lambda: run.note("a"))
    for call in (lambda: run.save_checkpoint(model), lambda: run.resume(model), tag, note):
        try:
            call()
            print("accepted")
        except milepost.InvalidCallError as error:
            assert error.kind == "run-ended", error
    run.wait()
    assert run.checkpoints == []
    """,
    )
    assert (code, out) == (0, ""), err
    assert err.count("has ended: what is logged to it is lost (said once)") == 1
    run = only_run(tmp_path)
    assert run.status == "completed"
    assert list(run.series("loss").step) == [0]
    assert run.summary == {"final": 0.5}


def test_wrong_ends_are_refused_and_a_summary_of_any_size_does_not_cost_the_end(tmp_path):
    out, err, code = run_script(
        tmp_path,
        HEAD
        + """
    run = milepost.start("e", **quiet)
    wrongs = (("status", "done"), ("status", ""), ("final_metrics", "abc"), ("final_metrics", [1]), ("reason", 5))
    for wrong in ({name: value} for name, value in wrongs):
        try:
            run.end(**wrong)
            print("accepted", wrong)
        except (milepost.InvalidInputError, milepost.InvalidCallError) as error:
            assert error.cure
    assert not run.ended
    odd = {"big": 10**30, "list": [1, 2], "none": None, "nan": float("nan"), "bad\\udcff": 1, 5: 5}
    run.end(odd | {f"metric{i}": 1.0 for i in range(20_000)})
    """,
        MILEPOST_COMPANION="thread",
    )
    assert (code, out) == (0, ""), err
    assert "of the final metrics do not fit the summary" in err
    run = only_run(tmp_path)
    assert run.status == "completed"
    assert run.summary["big"] == str(10**30)
    assert run.summary["5"] == 5
    assert json.loads((tmp_path / "experiments" / run.id / "summary.json").read_text())


def test_a_run_that_is_preempted_prints_the_command_that_goes_on(tmp_path):
    _, err, _ = run_script(
        tmp_path,
        HEAD + "    run = milepost.start('e', **quiet); run.log({'a': 1}, 7); run.end(status='preempted')",
        MILEPOST_COMPANION="thread",
    )
    run = only_run(tmp_path)
    assert run.status == "preempted"
    assert f"{run.id} is preempted at step 7; the same command goes on: python" in err
    assert "train.py" in err


def test_pause_is_shown_and_unpause_too_and_a_paused_run_whose_process_left_stays_paused(tmp_path):
    script = Script(
        tmp_path,
        HEAD
        + """
    run = milepost.start("e", **quiet)
    run.pause("coffee"); run.log({"a": 1.0}); print("paused"); sys.stdin.readline()
    run.unpause(); run.log({"a": 1.0}); print("running"); sys.stdin.readline()
    run.end(status="paused", reason="for the night")
    """,
        stdin=True,
    )
    for status in ("paused", "running"):
        script.wait_for_line(status)
        wait_for_status(tmp_path, status)
        assert only_run(tmp_path).state.live
        script.tell("\n")
    script.finish()
    assert only_run(tmp_path).status == "paused"
    assert only_run(tmp_path).state.reason == "for the night"
    assert not only_run(tmp_path).state.live


def wait_for_status(folder: Path, status: str) -> None:
    import time

    deadline = time.monotonic() + 60
    while only_run(folder).status != status:
        assert time.monotonic() < deadline, only_run(folder).state
        time.sleep(0.02)


WATCHES = (
    HEAD
    + """
    import torch
    before = []
    signal.signal(signal.SIGTERM, lambda number, frame: before.append(number))
    model = torch.nn.Linear(2, 2)
    run = milepost.start("e", save_on_signal=("SIGTERM", "SIGUSR1"), resume="auto", **quiet)
    run.resume(model)
    assert not run.should_save(1) and not run.should_stop
    print("ready", flush=True)
    sys.stdin.readline()
    step = 5
    run.log({"loss": 1.0}, step)
    while not run.should_save(step): pass
    assert not run.should_save(step), "twice"
    path = run.save_checkpoint(step=step)
    assert run.should_stop and run.should_stop and not run.should_save(step + 1)
    print("chained", before, flush=True)
    run.end(status="preempted")
    os.stat(path)
    """
)


@pytest.mark.parametrize(
    ("number", "chained"), [(signal.SIGTERM, [int(signal.SIGTERM)]), (signal.SIGUSR1, [])], ids=["TERM", "USR1"]
)
def test_a_signal_to_save_on_saves_once_asks_to_stop_and_chains_to_the_handler_before(tmp_path, number, chained):
    script = Script(tmp_path, WATCHES, stdin=True)
    script.wait_for_line("ready")
    script.process.send_signal(number)
    script.tell("\n")
    assert script.wait_for_line("chained")[-1] == f"chained {chained}"
    _, err = script.finish()
    assert script.exit_code == 0, err
    run = only_run(tmp_path)
    assert run.status == "preempted"
    assert [info.step for info in run.checkpoints] == [5]
    assert run.notices == []


def test_a_signal_that_is_not_watched_meets_the_handler_that_was_there(tmp_path):
    script = Script(
        tmp_path,
        HEAD
        + """
    def leave(number, frame): raise SystemExit(9)
    signal.signal(signal.SIGTERM, leave)
    with milepost.start("e", **quiet) as run:
        print("ready", flush=True)
        sys.stdin.readline()
    """,
        stdin=True,
    )
    script.wait_for_line("ready")
    script.process.send_signal(signal.SIGTERM)
    _, err = script.finish()
    assert script.exit_code == 9, err
    assert only_run(tmp_path).status == "failed"
    assert only_run(tmp_path).state.exit_code == 9


def test_after_the_end_a_watched_signal_does_again_what_it_did_without_us(tmp_path):
    script = Script(
        tmp_path,
        HEAD
        + """
    milepost.start("e", save_on_signal="SIGTERM", **quiet).end()
    print("ready", flush=True)
    sys.stdin.readline()
    """,
        stdin=True,
        MILEPOST_COMPANION="thread",
    )
    script.wait_for_line("ready")
    script.kill(signal.SIGTERM)
    assert script.exit_code == -signal.SIGTERM
    assert only_run(tmp_path).status == "completed"


def test_secrets_in_an_exception_and_in_a_description_reach_no_file(tmp_path):
    token = "gh" + "p_" + "aB3" * 12
    run_script(
        tmp_path,
        HEAD
        + f"""
    with milepost.start("e", description="with {token}", capture_console=False, **quiet) as run:
        run.note("{token}")
        raise ValueError("refused: {token}")
    """,
        MILEPOST_COMPANION="thread",
    )
    assert only_run(tmp_path).status == "failed"
    (tmp_path / "train.py").unlink()
    leaks = [path for path in tmp_path.rglob("*") if path.is_file() and token.encode() in path.read_bytes()]
    assert leaks == []


def test_disabled_mode_answers_every_call_with_the_same_types(tmp_path):
    out, err, code = run_script(
        tmp_path,
        """
        import inspect, milepost, os, pathlib
        from milepost.run import DisabledRun, Run
        system = milepost.ExperimentTrackingSystem()
        assert isinstance(system.start_experiment("x", hyperparameters={"a": 1}), str)
        system.log_metrics({"a": 1}, 1)
        assert system.should_save(10**6) is False and system.should_stop is False
        point = system.resume(None)
        assert isinstance(point, milepost.ResumePoint) and point.step == 0 and point.fresh
        assert isinstance(system.save_checkpoint(None, step=1), pathlib.Path)
        system.wait()
        system.end_experiment({"a": 1})
        system.start_experiment("again")
        run = milepost.start("y")
        assert isinstance(run.load_checkpoint("best"), milepost.LoadReport)
        assert run.checkpoints == [] and run.best is None
        assert isinstance(run.checkpointer, milepost.ModelCheckpointer)
        hooks = {"cell_failed", "end_at_exit", "in_forked_child", "signal_came"}
        public = {name for name in dir(Run) if not name.startswith("_")} - hooks
        assert not {name for name in public if not hasattr(run, name)}
        for name in public:
            ours, theirs = getattr(Run, name), getattr(DisabledRun, name)
            if inspect.isfunction(ours) and name not in {"resume", "save_checkpoint", "load_checkpoint"}:
                assert list(inspect.signature(ours).parameters) == list(inspect.signature(theirs).parameters), name
        run.end()
        assert run.ended
        """,
        MILEPOST_MODE="disabled",
    )
    assert (code, out, err) == (0, "", "")
    assert [path.name for path in tmp_path.iterdir()] == ["train.py"]


def test_calls_that_cannot_be_meant_raise_at_once_and_name_the_cure(tmp_path, monkeypatch):
    import torch

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MILEPOST_COMPANION", "thread")
    system = milepost.ExperimentTrackingSystem(
        milepost.ExperimentConfig(tensorboard_dir=None, capture_console=False, capture_code=False)
    )
    with pytest.raises(milepost.InvalidCallError, match="start_experiment"):
        system.log_metrics({"a": 1})
    system.start_experiment("one")
    run = system.run
    model = torch.nn.Linear(2, 2)
    calls = [
        lambda: run.log("x"),
        lambda: run.log(None),
        lambda: run.log({"a": 1}, "a"),
        lambda: run.log({"a": 1}, 1.5),
        lambda: run.log({"a": 1}, step=True),
        lambda: run.log({"a": 1}, 0, "epoch"),
        lambda: run.log_text("a", 5),
        lambda: run.note(5),
        lambda: run.save_checkpoint(step=1),
        lambda: run.save_checkpoint(model, step="a"),
        lambda: run.save_checkpoint(object(), step=1),
        lambda: milepost.start("x", config=system.config, strict=True),
    ]
    for call in calls:
        with pytest.raises(milepost.InvalidCallError) as raised:
            call()
        assert raised.value.cure
    with pytest.raises(milepost.InvalidInputError, match="a tag is ''"):
        run.tag("")
    with pytest.raises(milepost.InvalidInputError, match="no file"):
        run.log_file("a", "absent")
    path = run.save_checkpoint(model)  # nothing was logged yet: step 0
    system.end_experiment()
    assert path.exists()
    assert [info.step for info in run.checkpoints] == [0]
