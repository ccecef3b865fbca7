"""Which earlier checkpoint a save may lean on is decided from the list alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from milepost.checkpoint.job import SaveJob
from milepost.checkpoint.keyframes import choose, pays
from milepost.core.records import CheckpointInfo

FOLDER = Path("/c")


def info(step: int, **fields: Any) -> CheckpointInfo:
    given: dict[str, Any] = {"experiment_id": "bert", "timestamp": float(step), "verified": True}
    name = f"checkpoint_x_{step}.milepost"
    return CheckpointInfo(filename=name, path=FOLDER / name, step=step, **(given | fields))


def job(step: int, **fields: Any) -> SaveJob:
    given: dict[str, Any] = {"experiment_id": "bert", "timestamp": float(step), "delta": True}
    return SaveJob(
        path=f"/c/checkpoint_x_{step}.milepost", step=step, tree="null", tensors=[], arena_bytes=0, **(given | fields)
    )


KEYFRAME = info(100)
NAME = KEYFRAME.filename


def test_the_newest_that_stands_alone_is_the_keyframe() -> None:
    infos = [info(0), KEYFRAME, info(200, base=NAME), info(300, base=NAME)]
    assert choose(infos, job(400), 5) == KEYFRAME
    assert choose(infos[::-1], job(400), 5) == KEYFRAME


def test_a_checkpoint_that_was_cut_to_its_weights_is_no_keyframe() -> None:
    whole = ("model", "optimizer", "rng")
    infos = [info(100, contents=whole), info(200, contents=("model",))]
    assert choose(infos, job(300, contents=list(whole)), 5) == infos[0]
    assert choose(infos[1:], job(300, contents=list(whole)), 5) is None
    assert choose(infos, job(300, contents=["model", "rng"]), 5) == infos[1]


@pytest.mark.parametrize(
    "change",
    [{"delta": False}, {"standalone": True}, {"compression": False}, {"format": "pt"}],
)
def test_a_save_that_must_stand_alone_has_no_keyframe(change: dict[str, Any]) -> None:
    assert choose([KEYFRAME], job(200, **change), 5) is None


@pytest.mark.parametrize(
    "change",
    [
        {"verified": False},
        {"experiment_id": "gpt"},
        {"format": "safetensors"},
        {"include": "trainable"},
        {"lossy": "bf16"},
        {"base": "checkpoint_x_0.milepost"},
        {"timestamp": 1e9},
    ],
)
def test_what_was_not_read_back_or_holds_something_else_is_no_keyframe(change: dict[str, Any]) -> None:
    assert choose([replace(KEYFRAME, **change)], job(200), 5) is None


def test_who_keeps_one_checkpoint_gains_nothing_by_a_keyframe() -> None:
    assert choose([KEYFRAME], job(200), 1) is None
    assert choose([KEYFRAME], job(200), 2) == KEYFRAME


def test_a_keyframe_is_renewed_after_25_saves_though_most_of_them_are_gone() -> None:
    def left(step: int) -> list[CheckpointInfo]:
        return [KEYFRAME, *(info(earlier, base=NAME) for earlier in range(step - 500, step, 100))]

    assert choose(left(2500), job(2500), 5) == KEYFRAME
    assert choose(left(2600), job(2600), 5) is None


def test_a_best_one_takes_the_place_of_a_keyframe_five_saves_old() -> None:
    infos = [KEYFRAME, *(info(step, base=NAME) for step in range(200, 600, 100))]
    assert choose(infos[:-1], job(500, is_best=True), 5) == KEYFRAME
    assert choose(infos, job(600, is_best=True), 5) is None
    assert choose(infos, job(600), 5) == KEYFRAME


def test_a_young_keyframe_does_not_yield_to_a_best_one_that_had_to_stand_alone() -> None:
    young = [KEYFRAME, info(200, base=NAME), info(300, is_best=True)]
    assert choose(young, job(400), 5) == KEYFRAME
    old = [KEYFRAME, *(info(step, base=NAME) for step in range(200, 600, 100)), info(600, is_best=True)]
    assert choose(old, job(700), 5) == old[-1]
    gain_gone = [KEYFRAME, info(200, base=NAME), info(300)]
    assert choose(gain_gone, job(400), 5) == gain_gone[-1]


def test_steps_that_go_back_after_a_resume_are_counted_by_the_list() -> None:
    infos = [KEYFRAME, info(200, base=NAME), info(150, base=NAME, timestamp=300.0)]
    assert choose(infos, job(120, timestamp=400.0), 5) == KEYFRAME


@pytest.mark.parametrize(
    ("alone", "beside", "keep", "expected"),
    [
        (100, 57, 3, True),
        (100, 57, 2, False),
        (100, 75, 5, True),
        (100, 75, 4, False),
        (100, 95, 21, True),
        (100, 96, 1000, False),
    ],
)
def test_differences_must_save_more_than_their_keyframe_takes(
    alone: int, beside: int, keep: int, expected: bool
) -> None:
    assert pays(alone, beside, keep=keep) is expected
