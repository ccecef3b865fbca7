from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from milepost.checkpoint.arena import Arena
from milepost.checkpoint.catalog import scan
from milepost.checkpoint.commit import commit
from milepost.checkpoint.finishing import finish_save
from milepost.checkpoint.job import SaveJob
from milepost.checkpoint.retention import RetentionRule
from milepost.checkpoint.snapshot import Stager, outline
from milepost.core.errors import ConflictError, CorruptDataError
from milepost.core.events import CheckpointChanged

RULE = RetentionRule(keep_newest=1)


def staged(folder: Path, step: int, *, timestamp: float = 1.5, **more: Any) -> tuple[SaveJob, Arena]:
    arena = Arena()
    snapshot = Stager().stage(outline({"model": {"weight": torch.full((5000,), float(step))}}), arena)
    job = SaveJob(
        path=str(folder / f"checkpoint_s_{step}.milepost"),
        experiment_id="run",
        step=step,
        timestamp=timestamp,
        tree=snapshot.tree,
        tensors=snapshot.tensors,
        arena_bytes=snapshot.nbytes,
        **more,
    )
    return job, arena


def finish(folder: Path, step: int, changes: list[CheckpointChanged], **more: Any) -> None:
    job, arena = staged(folder, step, **more)
    finish_save(job, arena.view, RULE, changes.append)


def test_a_save_is_committed_then_verified_then_older_ones_go(tmp_path: Path) -> None:
    changes: list[CheckpointChanged] = []
    finish(tmp_path, 1, changes)
    finish(tmp_path, 2, changes)

    assert [(change.action, change.step) for change in changes] == [
        ("committed", 1),
        ("verified", 1),
        ("committed", 2),
        ("verified", 2),
        ("removed", 1),
    ]
    assert changes[0].info["size"] == (tmp_path / "checkpoint_s_2.milepost").stat().st_size
    assert "not one of the newest 1" in changes[-1].reason
    assert [info.step for info in scan(tmp_path).infos] == [2]


def test_when_reading_back_fails_nothing_older_goes(tmp_path: Path) -> None:
    finish(tmp_path, 1, [])
    job, arena = staged(tmp_path, 2)
    changes: list[CheckpointChanged] = []

    def harm(change: CheckpointChanged) -> None:
        changes.append(change)
        path = Path(job.path)
        content = bytearray(path.read_bytes())
        content[4096] ^= 1
        path.write_bytes(content)

    with pytest.raises(CorruptDataError):
        finish_save(job, arena.view, RULE, harm)

    assert [change.action for change in changes] == ["committed"]
    assert {info.step: info.verified for info in scan(tmp_path).infos} == {1: True, 2: False}


def test_a_save_whose_writer_died_before_it_could_say_so_is_taken_as_committed(tmp_path: Path) -> None:
    job, arena = staged(tmp_path, 1)
    commit(job, arena.view)
    changes: list[CheckpointChanged] = []

    finish_save(job, arena.view, RULE, changes.append)

    assert [change.action for change in changes] == ["committed", "verified"]
    assert changes[0].info["size"] == Path(job.path).stat().st_size


def test_a_file_that_exists_is_never_replaced(tmp_path: Path) -> None:
    finish(tmp_path, 1, [])
    before = (tmp_path / "checkpoint_s_1.milepost").read_bytes()

    with pytest.raises(ConflictError):
        finish(tmp_path, 1, [], timestamp=2.5)
    assert (tmp_path / "checkpoint_s_1.milepost").read_bytes() == before


def test_ranks_whose_state_is_missing_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("milepost.checkpoint.finishing._RANKS_TIMEOUT", 0.01)
    side_files = [str(tmp_path / f".checkpoint_s_1.rank{rank}") for rank in (1, 2, 3)]
    Path(side_files[1]).write_text('{"dict": []}')
    changes: list[CheckpointChanged] = []

    finish(tmp_path, 1, changes, side_files=side_files)

    assert changes[0].reason == "random numbers and data position of rank 1, 3 are not in it"
    assert not Path(side_files[1]).exists()


def test_the_state_of_another_rank_is_one_small_file_that_nobody_lists(tmp_path: Path) -> None:
    path = tmp_path / ".checkpoint_s_1.rank1"
    changes: list[CheckpointChanged] = []
    job = SaveJob(
        path=str(path), format="rank", experiment_id="run", step=1, tree='{"dict":[]}', tensors=[], arena_bytes=0
    )

    info = finish_save(job, memoryview(b""), RULE, changes.append)

    assert path.read_text() == '{"dict":[]}'
    assert info.path == path
    assert changes == []
    assert scan(tmp_path).infos == ()


# ---------------------------------------------------------------- differences to a keyframe


def frozen(folder: Path, step: int, rule: RetentionRule, **more: Any) -> list[CheckpointChanged]:
    """Save a model of which a quarter changes from step to step."""
    tensors = {name: torch.rand(100_000, generator=torch.Generator().manual_seed(7)) for name in "abc"}
    tensors["learning"] = torch.rand(100_000, generator=torch.Generator().manual_seed(100 + step))
    arena = Arena()
    snapshot = Stager().stage(outline({"model": tensors}), arena)
    job = SaveJob(
        path=str(folder / f"checkpoint_s_{step}.milepost"),
        experiment_id="run",
        delta=True,
        step=step,
        timestamp=float(step),
        tree=snapshot.tree,
        tensors=snapshot.tensors,
        arena_bytes=snapshot.nbytes,
        **more,
    )
    changes: list[CheckpointChanged] = []
    finish_save(job, arena.view, rule, changes.append)
    return changes


def test_a_keyframe_is_shared_and_stays_until_the_last_that_needs_it_goes(tmp_path: Path) -> None:
    rule = RetentionRule(keep_newest=2)
    for step in (1, 2, 3, 4):
        frozen(tmp_path, step, rule)
    bases = {info.step: info.base for info in scan(tmp_path).infos}
    assert bases == {1: "", 3: "checkpoint_s_1.milepost", 4: "checkpoint_s_1.milepost"}

    frozen(tmp_path, 5, rule, standalone=True)
    gone = [change.step for change in frozen(tmp_path, 6, rule) if change.action == "removed"]

    assert gone == [4, 1]
    assert {info.step: info.base for info in scan(tmp_path).infos} == {5: "", 6: "checkpoint_s_5.milepost"}


def test_where_one_is_kept_every_checkpoint_stands_alone(tmp_path: Path) -> None:
    for step in (1, 2):
        frozen(tmp_path, step, RULE)

    assert [(info.step, info.base) for info in scan(tmp_path).infos] == [(2, "")]
