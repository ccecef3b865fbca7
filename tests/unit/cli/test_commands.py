"""Unit tests of milepost.cli.commands, with their views and pages, on real stores."""

from __future__ import annotations

import json
import math
import os
import subprocess
from pathlib import Path

import pytest

from milepost.core.errors import InvalidInputError, NotFoundError
from milepost.core.events import Noticed, Rewound, StatusChanged
from milepost.environment.code import capture_code
from tests.unit.cli.stage import Stage, committed, described

LOSS = {"loss": lambda step: 1 / (step + 1)}


# ------------------------------------------------------------------------ what runs here


def test_a_live_run_is_shown_with_its_step(stage: Stage) -> None:
    stage.run("bert_1").train(range(41), **LOSS)
    (line,) = stage.ask_json()["going"]
    assert (line["id"], line["name"], line["status"], line["last_step"]) == ("bert_1", "bert", "running", 40)
    assert "● running" in stage.ask().stdout


def test_a_run_whose_process_is_gone_is_not_shown_as_running(stage: Stage) -> None:
    story = stage.run("bert_1").train(range(3), **LOSS)
    story.die()
    shown = stage.ask_json()
    assert shown["going"] == []
    assert shown["newest"]["status"] == "killed"
    assert "nothing is running" in stage.ask().stdout


def test_an_empty_store_says_that_nothing_runs(stage: Stage) -> None:
    assert stage.ask_json() == {"folder": str(stage.root), "going": [], "newest": None, "notices": {}, "alerts": {}}
    assert stage.ask().stdout == f"nothing is running in {stage.root}\n"


def test_what_the_companion_complains_about_stands_under_the_running_run(stage: Stage) -> None:
    stage.run("bert_1").train(range(3), **LOSS)
    stage.run("bert_1", role="companion").tell(
        Noticed(source="wandb", topic="network", message="W&B cannot be reached", cured=False),
        Noticed(source="wandb", topic="network", message="W&B is back", cured=True),
        Noticed(
            source="checkpoint", topic="unprotected", message="training is unprotected", cure="free disk", since_step=2
        ),
    )
    printed = stage.ask().stdout
    assert "! bert_1: checkpoint: training is unprotected (since step 2)\n  free disk\n" in printed
    assert "W&B" not in printed
    (notice,) = stage.ask_json()["notices"]["bert_1"]
    assert notice["cure"] == "free disk"


# ------------------------------------------------------------------------ runs


def test_runs_are_listed_newest_first_each_with_its_state(stage: Stage) -> None:
    stage.run("old_1").tell(StatusChanged(status="completed"))
    stage.run("bad_1").tell(StatusChanged(status="failed", traceback="Traceback: no"))
    new = stage.run("new_1", role="companion")
    new.tell(StatusChanged(status="killed", signal="SIGKILL", source="companion")).die()
    assert [line["id"] for line in stage.ask_json("runs")] == ["new_1", "bad_1", "old_1"]
    printed = stage.ask("runs").stdout.splitlines()
    assert printed[1].startswith("■ killed (SIGKILL)")
    assert printed[2].startswith("✗ failed")
    assert printed[3].startswith("✓ completed")


def test_options_before_the_command_are_meant_for_the_command(stage: Stage) -> None:
    stage.run("bert_1")
    done = stage.call("--dir", str(stage.root), "--json", "runs")
    assert [line["id"] for line in json.loads(done.stdout)] == ["bert_1"]


def test_a_run_that_is_over_while_its_companion_still_writes_says_so(stage: Stage) -> None:
    stage.run("bert_1").tell(StatusChanged(status="completed")).die()
    stage.run("bert_1", role="companion")
    (line,) = stage.ask_json("runs")
    assert (line["status"], line["finishing"]) == ("completed", True)
    assert "✓ completed (its companion is finishing)" in stage.ask("runs").stdout


def test_an_empty_list_prints_nothing(stage: Stage) -> None:
    assert stage.ask("runs").stdout == ""
    assert stage.ask_json("runs") == []


# ------------------------------------------------------------------------ show


def test_a_resumed_run_shows_its_attempts_and_the_lost_steps(stage: Stage) -> None:
    stage.run("bert_1").train(range(10), **LOSS).die()
    stage.run("bert_1", attempt=2).tell(Rewound(step=6)).train(range(7, 12), **LOSS)
    view = stage.ask_json("show", "bert")
    assert view["lost_steps"] == 3
    assert [(one["number"], one["status"], one["last_step"]) for one in view["attempts"]] == [
        (1, "killed", 9),
        (2, "running", 11),
    ]
    printed = stage.ask("show", "bert").stdout
    assert "3 steps done again after a resume" in printed
    assert "ATTEMPTS" in printed


def test_metrics_are_shown_with_last_and_extremes_and_nan_counts_to_none_of_them(stage: Stage) -> None:
    values = [3.0, 1.0, math.nan, 2.0, math.nan]
    stage.run("bert_1").train(range(5), loss=lambda step: values[step])
    (metric,) = stage.ask_json("show", "bert_1")["metrics"]
    assert metric == {
        "name": "loss",
        "points": 5,
        "nan": 2,
        "last": "NaN",
        "last_step": 4,
        "min": 1.0,
        "min_step": 1,
        "max": 3.0,
        "max_step": 0,
        "mean": 2.0,
    }
    assert "NaN @ 4" in stage.ask("show", "bert_1").stdout


def test_a_failed_run_shows_its_traceback_and_an_unsolved_notice_its_cure(stage: Stage) -> None:
    stage.run("bert_1").tell(
        Noticed(
            source="tensorboard", topic="absent", message="TensorBoard not available", cure="pip install tensorboard"
        ),
        StatusChanged(status="failed", reason="ValueError: no", traceback="Traceback\nValueError: no"),
    )
    printed = stage.ask("show", "bert_1").stdout
    assert "✗ failed" in printed
    assert "  ValueError: no" in printed
    assert "TensorBoard not available\n  pip install tensorboard" in printed


def test_settings_and_environment_come_from_the_log_as_well_as_from_the_start(stage: Stage) -> None:
    story = stage.run("bert_1", hyperparameters={"optimizer": {"lr": 2e-5}}, description="Fine-tune", tags=["nlp"])
    story.tell(
        described(environment={"python_version": "3.11.7", "packages": {"torch": "2.13.0"}}, tags=["nlp", "bert"])
    )
    view = stage.ask_json("show", "bert_1")
    assert view["tags"] == ["nlp", "bert"]
    assert view["environment"]["packages"] == {"torch": "2.13.0"}
    printed = stage.ask("show", "bert_1").stdout
    assert "optimizer.lr   2e-05" in printed
    assert "python_version   3.11.7" in printed
    assert "2.13.0" not in printed  # hundreds of packages are for programs


# ------------------------------------------------------------------------ checkpoints


def test_checkpoints_are_marked_best_latest_and_gone(stage: Stage) -> None:
    story = stage.run("bert_1")
    story.tell(
        committed(story.layout, 10, is_best=True, verified=True),
        committed(story.layout, 20, pinned=True),
        committed(story.layout, 30, present=False),
    )
    listed = {one["step"]: one for one in stage.ask_json("checkpoints", "list", "bert")}
    assert [step for step, one in listed.items() if one["is_best"]] == [10]
    assert [step for step, one in listed.items() if one["is_latest"]] == [20]
    assert [step for step, one in listed.items() if not one["present"]] == [30]
    rows = stage.ask("checkpoints", "list", "bert").stdout.splitlines()[1:]
    assert "★ best" in rows[0]
    assert "latest ⚑ pinned" in rows[1]
    assert "✗ gone" in rows[2]
    assert all("273 MB" in row and "18 ms" in row for row in rows)


# ------------------------------------------------------------------------ code


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "code"
    folder.mkdir()
    environment = os.environ | {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}

    def git(*words: str) -> None:
        who = ("-c", "user.name=somebody", "-c", "user.email=somebody@example.org")
        subprocess.run(["git", *who, *words], cwd=folder, env=environment, check=True, capture_output=True)

    git("init", "--quiet")
    (folder / "train.py").write_text("rate = 1\n")
    git("add", "train.py")
    git("commit", "--quiet", "--message", "first")
    (folder / "train.py").write_text("rate = 2\n")
    (folder / "new.py").write_text("print()\n")
    return folder


def captured(stage: Stage, repository: Path) -> str:
    story = stage.run("bert_1")
    record = capture_code(str(repository), story.layout.code, script=str(repository / "train.py"))
    story.tell(described(code=record.to_dict()))
    return record.commit


def test_the_code_of_a_run_is_shown_with_its_difference(stage: Stage, repository: Path) -> None:
    commit = captured(stage, repository)
    view = stage.ask_json("show", "bert_1", "--code")
    assert view["record"]["commit"] == commit
    assert "+rate = 2" in view["patch"]
    printed = stage.ask("show", "bert_1", "--code").stdout
    assert f"commit    {commit}" in printed
    assert "untracked new.py" in printed
    assert "+rate = 2" in printed


def test_the_code_of_a_run_is_checked_out_with_what_was_not_committed(stage: Stage, repository: Path) -> None:
    captured(stage, repository)
    target = stage.root / "as-it-was"
    assert "is the code of bert_1" in stage.ask("checkout", "bert_1", str(target)).stdout
    assert (target / "train.py").read_text() == "rate = 2\n"
    assert (target / "new.py").read_text() == "print()\n"


def test_code_is_never_checked_out_over_something(stage: Stage, repository: Path) -> None:
    captured(stage, repository)
    assert isinstance(stage.ask("checkout", "bert_1", str(repository)).exception, InvalidInputError)


def test_a_run_without_code_says_so(stage: Stage) -> None:
    stage.run("bert_1")
    assert isinstance(stage.ask("show", "bert_1", "--code").exception, NotFoundError)


# ------------------------------------------------------------------------ doctor


def test_the_doctor_finishes_a_dead_run_once(stage: Stage) -> None:
    story = stage.run("bert_1", settings={"tensorboard": False, "wandb_project": None})
    story.train(range(3), **LOSS).die()
    found = stage.ask("doctor", "--dry-run")
    assert found.exit_code == 1
    assert not story.layout.summary.exists()
    first = stage.ask("doctor")
    assert first.exit_code == 0, first.output
    assert "✓ bert_1 died at step 2" in first.stdout
    assert story.layout.summary.exists()
    second = stage.ask("doctor")
    assert (second.exit_code, second.stdout) == (0, "nothing was left to do\n")


# ------------------------------------------------------------------------ hostile names


def test_names_from_a_store_of_somebody_else_move_no_cursor(stage: Stage) -> None:
    evil = "\x1b[2J\x9b31m[red]x[/red]\r\n\u202e"
    story = stage.run("bert_1", name=evil, hyperparameters={evil: evil}, tags=[evil], description=evil, notes=evil)
    story.log.log({evil: 1.0}, 0)
    story.tell(Noticed(source=evil, topic="t", message=evil, cure=evil))
    story.tell(
        committed(story.layout, 1, metrics={evil: 1.0}), StatusChanged(status="failed", reason=evil, traceback=evil)
    )
    for words in ((), ("runs",), ("show", "bert_1"), ("checkpoints", "list", "bert_1")):
        printed = stage.ask(*words).stdout
        assert not {"\x1b", "\x9b", "\r", "\u202e"} & set(printed), words
    assert "[red]x[/red]" in stage.ask("show", "bert_1").stdout


def test_a_query_shows_only_the_runs_that_it_asks_for(stage: Stage) -> None:
    stage.run("bert_1").train(range(3), **LOSS)
    stage.run("gpt_1").train(range(9), **LOSS)
    assert [line["id"] for line in stage.ask_json("runs", "best(loss)<0.2")] == ["gpt_1"]
    assert len(stage.ask_json("runs")) == 2
    refused = stage.ask("runs", "grup:x")
    assert refused.exit_code != 0
