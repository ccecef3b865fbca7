"""Unit tests of milepost.cli.checkpoints: real checkpoints, read, compared, pruned, as a person and a program ask."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from milepost.checkpoint.catalog import scan
from milepost.checkpoint.finishing import finish_save
from milepost.checkpoint.retention import RetentionRule
from milepost.core.errors import ConflictError, InvalidCallError, MilepostError, NotFoundError
from milepost.core.events import StatusChanged
from tests.unit.cli.stage import Stage, Story
from tests.unit.companion.jobs import staged

RUN = "run_20261124-133155"
EVERYTHING = RetentionRule(keep_newest=99)


def saved(story: Story, *steps: int, **more: Any) -> None:
    """As a companion does it."""
    for step in steps:
        job, arena = staged(story.layout.checkpoints, step, **more)
        finish_save(job, arena.view, EVERYTHING, lambda change: story.tell(change) and None)


@pytest.fixture
def story(stage: Stage) -> Story:
    settings = {"max_checkpoints": 2, "best_metric": None, "best_mode": "min"}
    made = stage.run(RUN, settings=settings)
    saved(made, 10, 20)
    saved(made, 30, metrics={"val/loss": 0.25}, contents=["model"])
    return made


def path_of(story: Story, step: int) -> Path:
    return next(info.path for info in scan(story.layout.checkpoints).infos if info.step == step)


def harm(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[4096] ^= 1
    path.write_bytes(content)


# ---------------------------------------------------------------- list


def test_without_a_run_the_newest_one_is_listed(stage: Stage, story: Story) -> None:
    assert [one["step"] for one in stage.ask_json("checkpoints")] == [10, 20, 30]
    assert stage.ask("checkpoints").stdout.splitlines()[0] == RUN
    assert stage.ask("checkpoints", "list", "run").stdout.splitlines()[0].startswith("STEP")


def test_options_before_a_command_are_meant_for_it(stage: Stage, story: Story) -> None:
    done = stage.call("--json", "checkpoints", "list", "run")
    assert [one["step"] for one in json.loads(done.stdout)] == [10, 20, 30]


# ---------------------------------------------------------------- show


def test_what_is_in_a_checkpoint_is_shown(stage: Stage, story: Story) -> None:
    view = stage.ask_json("checkpoints", "show", "run@30")

    assert (view["step"], view["metrics"], view["verified"]) == (30, {"val/loss": 0.25}, True)
    assert view["parts"] == [{"name": "model", "tensors": 1, "nbytes": 2000}]
    assert view["dtypes"] == [{"name": "float32", "tensors": 1, "nbytes": 2000}]
    assert sum(view["encodings"].values()) == 2000
    assert view["tensors"] == []
    printed = stage.ask("checkpoints", "show", "run@30").stdout
    assert "val/loss   0.25" in printed
    assert "read back and decoded after its commit" in printed


def test_its_tensors_are_listed_by_pattern(stage: Stage, story: Story) -> None:
    (tensor,) = stage.ask_json("checkpoints", "show", "run@30", "--tensors", "model.*")["tensors"]

    assert (tensor["name"], tensor["shape"], tensor["dtype"]) == ("model.weight", [500], "float32")
    assert stage.ask_json("checkpoints", "show", "run@30", "--tensors", "optimizer.*")["tensors"] == []


@pytest.mark.parametrize("name", ["run@10", f"{RUN}@10"])
def test_a_checkpoint_is_named_by_run_and_step(stage: Stage, story: Story, name: str) -> None:
    assert stage.ask_json("checkpoints", "show", name)["step"] == 10


def test_a_checkpoint_is_named_by_path_file_name_best_and_latest(stage: Stage, story: Story) -> None:
    saved(story, 40, is_best=True)
    path = path_of(story, 20)

    steps = [
        stage.ask_json("checkpoints", "show", name)["step"] for name in (str(path), path.name, "run@best", "run@latest")
    ]
    assert steps == [20, 20, 40, 40]


@pytest.mark.parametrize("name", ["run@11", "run@best", "nothing", "other@10", "run@newest"])
def test_a_checkpoint_that_is_not_there_is_an_error_with_its_cure(stage: Stage, story: Story, name: str) -> None:
    error = stage.ask("checkpoints", "show", name).exception

    assert isinstance(error, NotFoundError)
    assert error.cure


# ---------------------------------------------------------------- verify


def test_sound_checkpoints_give_0_and_a_damaged_one_1_by_name(stage: Stage, story: Story) -> None:
    assert [view["sound"] for view in stage.ask_json("checkpoints", "verify")] == [True] * 3
    harm(path_of(story, 20))
    done = stage.ask("checkpoints", "verify", "run")

    assert done.exit_code == 1
    assert "the tensor 'model.weight' is damaged at offset 4096" in done.stdout
    assert "2 of 3 are sound" in done.stdout
    assert stage.ask("checkpoints", "verify", "run@10", "run@30").exit_code == 0


def test_a_file_that_is_no_checkpoint_any_more_is_reported_and_not_skipped(stage: Stage, story: Story) -> None:
    path_of(story, 20).write_bytes(b"")
    views = json.loads(stage.ask("checkpoints", "verify", "run", "--json").stdout)

    assert [view["sound"] for view in views] == [True, False, True]


def test_a_damaged_checkpoint_is_mended_from_its_copy(stage: Stage, story: Story) -> None:
    path = path_of(story, 20)
    copies = stage.root / "copies"
    copies.mkdir()
    (copies / path.name).write_bytes(path.read_bytes())
    harm(path)
    done = stage.ask("checkpoints", "verify", "run@20", "--heal", str(copies))

    assert done.exit_code == 0, done.stdout
    assert "made good from the second copy" in done.stdout
    assert stage.ask("checkpoints", "verify", "run").exit_code == 0


# ---------------------------------------------------------------- diff


def test_two_checkpoints_are_compared_tensor_by_tensor(stage: Stage, story: Story) -> None:
    (found,) = stage.ask_json("checkpoints", "diff", "run@10", "run@20")

    assert (found["change"], found["changed"], found["max_abs"], found["relative_l2"]) == ("values", 1.0, 10.0, 1.0)
    printed = stage.ask("checkpoints", "diff", "run@10", "run@20").stdout
    assert "model.weight   values" in printed
    assert "tensors that differ: 1; equal ones: 0" in printed


def test_a_difference_is_an_exit_code_only_on_request(stage: Stage, story: Story) -> None:
    assert stage.ask("checkpoints", "diff", "run@10", "run@20").exit_code == 0
    assert stage.ask("checkpoints", "diff", "run@10", "run@20", "--exit-code").exit_code == 1
    assert stage.ask("checkpoints", "diff", "run@10", "run@10", "--exit-code").exit_code == 0
    assert stage.ask_json("checkpoints", "diff", "run@10", "run@20", "--only", "other.*") == []


# ---------------------------------------------------------------- prune


def test_what_would_go_is_said_with_its_reason_and_nothing_goes(stage: Stage, story: Story) -> None:
    story.die()
    for words in ((), ("--dry-run",), ("--dry-run", "--yes")):
        printed = stage.ask("checkpoints", "prune", "run", *words).stdout
        assert "not one of the newest 2, nor best, nor pinned" in printed
    assert [one["step"] for one in stage.ask_json("checkpoints", "list", "run")] == [10, 20, 30]
    assert len(scan(story.layout.checkpoints).infos) == 3


def test_with_yes_it_goes_and_the_run_knows(stage: Stage, story: Story) -> None:
    story.tell(StatusChanged(status="completed")).die()
    answer = stage.ask_json("checkpoints", "prune", "run", "--yes")

    assert {one["step"]: one["action"] for one in answer["decisions"]} == {30: "keep", 20: "keep", 10: "remove"}
    assert [info.step for info in scan(story.layout.checkpoints).infos] == [20, 30]
    assert [one["step"] for one in stage.ask_json("checkpoints", "list", "run")] == [20, 30]
    assert stage.ask_json("runs")[0]["status"] == "completed"


def test_a_run_that_is_going_prunes_itself(stage: Stage, story: Story) -> None:
    assert isinstance(stage.ask("checkpoints", "prune", "run", "--yes").exception, ConflictError)
    assert len(scan(story.layout.checkpoints).infos) == 3


# ---------------------------------------------------------------- export


def test_a_name_that_says_no_format_is_refused_before_anything_is_written(stage: Stage, story: Story) -> None:
    target = stage.root / "weights"
    error = stage.ask("checkpoints", "export", "run@10", str(target)).exception

    assert isinstance(error, InvalidCallError)
    assert not target.exists()


def test_a_checkpoint_is_written_in_the_format_that_the_name_says(stage: Stage, story: Story) -> None:
    target = stage.root / "weights.safetensors"
    done = stage.ask("checkpoints", "export", "run@10", str(target), "--only", "model.*")

    assert done.exit_code == 0, done.output
    assert done.stdout.startswith(f"{target} is written (")
    assert b'"weight":{"dtype":"F32","shape":[500]' in target.read_bytes()


def test_nothing_that_is_there_is_written_over(stage: Stage, story: Story) -> None:
    target = stage.root / "weights.milepost"
    target.write_text("mine")
    done = stage.ask("checkpoints", "export", "run@10", str(target))

    assert isinstance(done.exception, MilepostError)
    assert target.read_text() == "mine"
