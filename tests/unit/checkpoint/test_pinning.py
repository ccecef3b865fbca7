"""Does a checkpoint that is pinned later stay, wherever the folder goes?"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from torch import nn

from milepost.checkpoint.catalog import CATALOG, pin_mark_of, refresh, scan
from milepost.checkpoint.checkpointer import ModelCheckpointer
from milepost.checkpoint.pinning import pin_newest
from milepost.checkpoint.pruning import prune
from milepost.checkpoint.retention import RetentionRule
from milepost.core.config import ExperimentConfig


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    config = ExperimentConfig(root=str(tmp_path), max_checkpoints=10)
    checkpointer = ModelCheckpointer(config, experiment_id="run_1")
    for step in (10, 20, 30):
        checkpointer.save_checkpoint(nn.Linear(2, 2), step=step)
    checkpointer.wait()
    return Path(config.checkpoint_dir)


def steps(folder: Path) -> list[tuple[int, bool]]:
    return [(info.step, info.pinned) for info in scan(folder).infos]


def test_the_newest_before_a_step_is_pinned_once_and_outlives_retention(folder: Path) -> None:
    pinned = pin_newest(folder, "run_1", before=30)
    assert pinned is not None
    assert (pinned.step, pinned.pinned) == (20, True)
    assert pin_newest(folder, "run_1", before=30) == pinned
    refresh(folder, verified=[info.filename for info in scan(folder).infos])
    prune(folder, "run_1", RetentionRule(keep_newest=1), lambda change: None)
    assert steps(folder) == [(20, True), (30, False)]


def test_a_pin_needs_no_catalog_and_goes_where_the_folder_goes(folder: Path, tmp_path: Path) -> None:
    pin_newest(folder, "run_1", before=None)
    (folder / CATALOG).unlink()
    assert steps(folder) == [(10, False), (20, False), (30, True)]
    shutil.copytree(folder, tmp_path / "elsewhere")
    assert steps(tmp_path / "elsewhere") == steps(folder)


def test_other_experiments_and_later_steps_are_let_alone(folder: Path, tmp_path: Path) -> None:
    assert pin_newest(folder, "run_2", before=None) is None
    assert pin_newest(folder, "run_1", before=10) is None
    assert pin_newest(tmp_path / "nowhere", "run_1", before=None) is None
    assert [pinned for _, pinned in steps(folder)] == [False] * 3


def test_a_mark_without_its_checkpoint_means_nothing(folder: Path) -> None:
    pin_mark_of(folder / "checkpoint_gone.milepost").touch()
    assert steps(folder) == [(10, False), (20, False), (30, False)]


def test_who_removes_the_mark_lets_retention_decide_again(folder: Path) -> None:
    pinned = pin_newest(folder, "run_1", before=20)
    assert pinned is not None
    refresh(folder)
    pin_mark_of(pinned.path).unlink()
    assert steps(folder) == [(10, False), (20, False), (30, False)]
    refresh(folder)
    assert "pin_mark" not in (folder / CATALOG).read_text()
