from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from milepost.checkpoint.arena import Arena
from milepost.checkpoint.backup import copy_checkpoint
from milepost.checkpoint.catalog import refresh, scan
from milepost.checkpoint.commit import commit
from milepost.checkpoint.job import SaveJob
from milepost.checkpoint.pruning import prune
from milepost.checkpoint.reading import open_checkpoint
from milepost.checkpoint.retention import RetentionRule, decide
from milepost.checkpoint.snapshot import Stager, outline
from milepost.core.events import CheckpointChanged
from milepost.core.records import CheckpointInfo

FROZEN = torch.rand(200_000, generator=torch.Generator().manual_seed(1))


def saved(folder: Path, step: int, *, base: Path | None = None, pinned: bool = False) -> CheckpointInfo:
    """A checkpoint of a model and its optimizer, verified."""
    state = {"model": {"weight": FROZEN, "step": torch.full((500,), float(step))}, "optimizer": {"moment": FROZEN + 1}}
    arena = Arena()
    snapshot = Stager().stage(outline(state), arena)
    job = SaveJob(
        path=str(folder / f"checkpoint_s_{step}.milepost"),
        experiment_id="run",
        step=step,
        timestamp=float(step),
        pinned=pinned,
        tree=snapshot.tree,
        tensors=snapshot.tensors,
        arena_bytes=snapshot.nbytes,
        contents=list(state),
        delta=base is not None,
    )
    info = commit(job, arena.view, base=base, keep=9)
    refresh(folder, verified={info.filename})
    return replace(info, verified=True)


def pruned(folder: Path, rule: RetentionRule, *, backup: Path | None = None) -> list[tuple[str, int | None]]:
    changes: list[CheckpointChanged] = []
    prune(folder, "run", rule, changes.append, backup=backup, verified=set(os.listdir(folder)))
    assert all(change.reason for change in changes)
    return [(change.action, change.step) for change in changes]


def holds(folder: Path) -> dict[int, tuple[str, ...]]:
    return {info.step: info.contents for info in scan(folder).infos}


def test_old_ones_are_cut_down_to_their_weights_and_stay_verified(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        saved(tmp_path, step)
    before = {info.step: info.size for info in scan(tmp_path).infos}

    assert pruned(tmp_path, RetentionRule(keep_newest=9, weights_only_after=1)) == [("demoted", 2), ("demoted", 1)]
    found = {info.step: info for info in scan(tmp_path).infos}
    assert holds(tmp_path) == {1: ("model",), 2: ("model",), 3: ("model", "optimizer")}
    assert all(info.verified for info in found.values())
    assert found[1].size < 0.6 * before[1]
    with open_checkpoint(found[1].path) as file:
        assert torch.equal(torch.from_numpy(file["model.weight"].numpy()), FROZEN)
    assert pruned(tmp_path, RetentionRule(keep_newest=9, weights_only_after=1)) == []


def test_a_difference_that_is_cut_stands_alone_and_its_keyframe_goes(tmp_path: Path) -> None:
    keyframe = saved(tmp_path, 1)
    for step in (2, 3):
        assert saved(tmp_path, step, base=keyframe.path).base == keyframe.filename
    saved(tmp_path, 4)

    changes = pruned(tmp_path, RetentionRule(keep_newest=3, weights_only_after=1))

    assert changes == [("demoted", 3), ("demoted", 2), ("removed", 1)]
    assert {info.step: info.base for info in scan(tmp_path).infos} == {2: "", 3: "", 4: ""}
    for info in scan(tmp_path).infos:
        with open_checkpoint(info.path) as file:
            file.verify()


def test_what_a_cut_saves_counts_for_the_budget(tmp_path: Path) -> None:
    infos = [saved(tmp_path, step) for step in (1, 2, 3)]
    room = int(2.5 * infos[0].size)

    changes = pruned(tmp_path, RetentionRule(keep_newest=9, weights_only_after=1, max_bytes=room))
    assert changes == [("demoted", 2), ("demoted", 1)]
    assert pruned(tmp_path, RetentionRule(keep_newest=9, max_bytes=int(1.7 * infos[0].size))) == [("removed", 1)]


def test_what_the_disk_refuses_to_remove_stays_with_the_keyframe_that_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keyframe = saved(tmp_path, 1)
    refused = saved(tmp_path, 2, base=keyframe.path)
    saved(tmp_path, 3)
    unlink = Path.unlink

    def refuse(path: Path, missing_ok: bool = False) -> None:
        if path == refused.path:
            raise PermissionError(13, "Permission denied", str(path))
        unlink(path, missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refuse)
        assert pruned(tmp_path, RetentionRule(keep_newest=1)) == []
    assert pruned(tmp_path, RetentionRule(keep_newest=1)) == [("removed", 2), ("removed", 1)]


def test_a_damaged_one_is_not_cut_and_its_keyframe_stays(tmp_path: Path) -> None:
    keyframe = saved(tmp_path, 1)
    info = saved(tmp_path, 2, base=keyframe.path)
    saved(tmp_path, 3)
    content = bytearray(info.path.read_bytes())
    content[4096] ^= 1
    info.path.write_bytes(content)

    assert pruned(tmp_path, RetentionRule(keep_newest=2, weights_only_after=1)) == []
    assert set(holds(tmp_path)) == {1, 2, 3}


def test_second_copies_follow(tmp_path: Path) -> None:
    folder, backup = tmp_path / "checkpoints", tmp_path / "copies"
    folder.mkdir()
    for step in (1, 2, 3):
        copy_checkpoint(saved(folder, step), backup)

    pruned(folder, RetentionRule(keep_newest=2, weights_only_after=1), backup=backup)

    assert holds(backup) == holds(folder) == {2: ("model",), 3: ("model", "optimizer")}


def test_a_dry_run_says_what_is_done(tmp_path: Path) -> None:
    for step in range(1, 7):
        saved(tmp_path, step, pinned=step == 1)
    rule = RetentionRule(keep_newest=2, every_steps=3)
    gone = [("removed", decision.info.step) for decision in decide(scan(tmp_path).infos, rule) if not decision.keep]

    assert pruned(tmp_path, rule) == gone == [("removed", 4), ("removed", 2)]


def test_checkpoints_of_others_are_left_alone(tmp_path: Path) -> None:
    for step in (1, 2):
        saved(tmp_path, step)
    changes: list[CheckpointChanged] = []
    prune(tmp_path, "another run", RetentionRule(keep_newest=1), changes.append)

    assert changes == []
    assert set(holds(tmp_path)) == {1, 2}
