"""What becomes of a training whose loss turns into nothing, if its user gave a rule?"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import milepost
from milepost.checkpoint.catalog import CATALOG, refresh
from milepost.companion.doctor import examine
from tests.contract.training_script import Script, run_script

pytestmark = pytest.mark.linux

HEAD = """
    import math, os, signal, sys, time
    import milepost
    from milepost.rules import ExplodingGradients, NotFinite, Plateau, Spike, Threshold

    def until(condition):
        deadline = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def told():
        return [alert.title for alert in milepost.open(".").runs()[0].alerts]

    def start(*rules, **settings):
        quiet = dict(tensorboard_dir=None, capture_code=False, capture_console=False, system_metrics_every=None)
        return milepost.start("ruled", rules=rules, **quiet, **settings)
"""


def only_run(folder: Path):
    (run,) = milepost.open(folder).runs()
    return run


def test_a_nan_gives_one_alert_at_its_step_a_tag_a_pinned_checkpoint_and_one_call(tmp_path):
    out, err, code = run_script(
        tmp_path,
        HEAD
        + """
    import torch
    def call(alert):
        print("called", alert.step, alert.metric, alert.value, alert.run == run.id, flush=True)

    model = torch.nn.Linear(4, 4)
    run = start(NotFinite("train/*", mark="diverged", pin=True, call=call), max_checkpoints=1, save_frequency=10)
    run.tag("mine")
    for step in range(1, 60):
        run.log({"train/loss": math.nan if 25 <= step < 50 else 1 / step, "other": math.inf}, step)
        if run.should_save(step):
            run.save_checkpoint(model, step=step)
            run.wait()
        if step == 25:
            until(lambda: told())
    until(lambda: "diverged" in run._resumption.tags)
    run.tag("later")
    run.end()
    """,
    )
    assert code == 0, err
    assert out.splitlines() == ["called 25 train/loss nan True"]
    assert err.count("milepost: warning: train/loss is nan") == 1
    run = only_run(tmp_path)
    (alert,) = run.alerts
    assert (alert.step, alert.title, alert.level) == (25, "train/loss is nan", "warning")
    assert alert.rule == "NotFinite(metric='train/*')"
    assert alert.actions == (
        "marked 'diverged'",
        "pinned the checkpoint of step 20",
        "told the training to call its function",
    )
    assert run.metadata["tags"] == ["mine", "diverged", "later"]
    assert [(info.step, info.pinned) for info in run.checkpoints] == [(20, True), (50, False)]
    folder = tmp_path / "checkpoints"
    listed = (folder / CATALOG).read_bytes()
    (folder / CATALOG).unlink()
    assert [(info.step, info.pinned) for info in refresh(folder).infos] == [(20, True), (50, False)]
    assert (folder / CATALOG).read_bytes() == listed
    assert examine(milepost.open(tmp_path), lambda _: None) == []


def test_a_companion_that_is_killed_neither_repeats_an_alert_nor_loses_one(tmp_path):
    out, err, code = run_script(
        tmp_path,
        HEAD
        + """
    run = start(NotFinite("loss", call=lambda alert: print("called", alert.step)), Threshold("loss", above=100))
    companion = run._companion
    cursor = run._layout.cursor("rules")
    def replaced(saved=None):
        before = companion.pid
        os.kill(before, signal.SIGSTOP)
        if saved is not None:
            cursor.write_bytes(saved)
        os.kill(before, signal.SIGKILL)
        until(lambda: companion.pid not in {before, None})
    run.log({"loss": 1.0}, 1)
    until(cursor.exists)
    saved = cursor.read_bytes()
    run.log({"loss": math.nan}, 2)
    until(told)
    replaced(saved)  # as if it had died before it had saved its cursor
    for step in range(3, 20):
        run.log({"loss": math.nan}, step)
    os.kill(companion.pid, signal.SIGSTOP)  # what comes now is judged by the next one
    run.log({"loss": 500.0}, 20)
    replaced()
    for step in range(21, 40):
        run.log({"loss": 1.0}, step)
    run.log({"loss": math.inf}, 40)
    run.end()
    """,
    )
    assert code == 0, err
    run = only_run(tmp_path)
    assert [(alert.step, alert.title) for alert in run.alerts] == [
        (2, "loss is nan"),
        (20, "loss is 500, above 100"),
        (40, "loss is inf"),
    ]
    assert out.split() == ["called", "2", "called", "40"]


def test_a_rule_stops_a_training_and_asks_for_no_checkpoint_of_what_went_wrong(tmp_path):
    out, err, code = run_script(
        tmp_path,
        HEAD
        + """
    run = start(NotFinite("loss", stop=True), save_frequency=1_000_000)
    deadline = time.monotonic() + 60
    step = 0
    while not run.should_stop:
        step += 1
        assert time.monotonic() < deadline
        run.log({"loss": 1.0 if step < 5 else math.nan}, step)
        assert not run.should_save(step)
        time.sleep(0.001)
    assert not run.should_save(step + 1)
    print("stopped")
    run.end()
    """,
    )
    assert code == 0, err
    assert out.split() == ["stopped"]
    run = only_run(tmp_path)
    assert [alert.step for alert in run.alerts] == [5]
    assert (run.status, run.state.reason) == ("stopped", "loss is nan")


def test_a_function_that_raises_is_one_notice_and_one_that_hangs_holds_up_no_log(tmp_path):
    _, err, code = run_script(
        tmp_path,
        HEAD
        + """
    def hang(alert):
        time.sleep(3600)

    run = start(NotFinite("a", call=lambda alert: 1 / 0), NotFinite("b", call=hang), exit_timeout=3.0)
    for step in range(3):
        for calm in range(12):
            run.log({"a": 1.0})
        run.log({"a": math.nan})
    until(lambda: len(told()) == 3)
    run.log({"b": math.nan})
    until(lambda: len(told()) == 4)
    for step in range(2000):
        run.log({"c": 1.0})
    until(lambda: milepost.open(".").runs()[0].notices)
    run.end()
    """,
    )
    assert code == 0, err
    run = only_run(tmp_path)
    assert err.count("raised ZeroDivisionError: division by zero (said once)") == 1
    assert err.count("function has not returned") == 1
    assert len(run.series("c").step) == 2000
    assert [notice.source for notice in run.notices] == ["rules"]
    assert run.status == "completed"


def test_a_resumed_run_judges_from_where_it_was_rewound_to(tmp_path):
    body = (
        HEAD
        + """
    import torch
    model, optimizer = torch.nn.Linear(2, 2), None
    run = milepost.start(
        "ruled", rules=[Spike("loss", window=20), NotFinite("loss", stop=True)], resume="auto", tensorboard_dir=None,
        capture_code=False, system_metrics_every=None, save_frequency=30,
    )
    point = run.resume(model)
    print("from", point.step, flush=True)
    for step in range(point.step, 60):
        run.log({"loss": 5000.0 if step == 40 else math.nan if step == 50 else 1.0 + step % 3 / 10}, step)
        if run.should_save(step):
            run.save_checkpoint(model, step=step)
            run.wait()
        if step == 50 and point.fresh:
            until(lambda: len(told()) == 2)
            os.kill(os.getpid(), signal.SIGKILL)
    assert run.attempt == 2
    run.end()
    """
    )
    first = Script(tmp_path, body)
    first.finish()
    out, err, code = run_script(tmp_path, body)
    assert (code, out.split()) == (0, ["from", "31"]), err
    steps = [(alert.step, alert.title) for alert in only_run(tmp_path).alerts]
    assert steps == [(40, "loss jumped to 5000"), (50, "loss is nan")] * 2


def test_rules_cost_a_run_without_any_nothing_and_are_written_down_without_their_functions(tmp_path):
    _, err, code = run_script(
        tmp_path,
        HEAD
        + "\n    run = start(NotFinite(call=print), Plateau('loss', steps=5)); run.log({'loss': 1.0}); run.end()\n",
    )
    assert code == 0, err
    run = only_run(tmp_path)
    metadata = json.loads((tmp_path / "experiments" / run.id / "metadata.json").read_text())
    assert [(rule["rule"], rule["call"]) for rule in metadata["settings"]["rules"]] == [
        ("NotFinite", True),
        ("Plateau", False),
    ]
    assert run.layout.cursor("rules").exists()
