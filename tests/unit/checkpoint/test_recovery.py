"""What is damaged or missing is found before it does harm, taken from a copy, or the newest sound one is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from milepost.checkpoint.checkpointer import ModelCheckpointer
from milepost.checkpoint.loading import open_checkpoint
from milepost.core.config import ExperimentConfig
from milepost.core.errors import CorruptDataError


def saver_of(folder: Path, **settings: str | int) -> ModelCheckpointer:
    return ModelCheckpointer(ExperimentConfig(root=str(folder), **settings))  # type: ignore[arg-type]


def saved(saver: ModelCheckpointer, model: nn.Module, steps: int) -> list[Path]:
    paths = []
    for step in range(steps):
        nn.init.constant_(model.head.weight, float(step))  # type: ignore[arg-type, union-attr]
        paths.append(Path(str(saver.save_checkpoint(model, step=step))))
        saver.wait()
    return paths


def model() -> nn.Module:
    return nn.ModuleDict({"trunk": nn.Linear(400, 400), "head": nn.Linear(100, 100)})


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[4096 + 50_000] ^= 1
    path.write_bytes(content)


def test_a_missing_keyframe_leaves_the_model_untouched_and_a_sound_one_can_be_taken(tmp_path: Path) -> None:
    saver = saver_of(tmp_path, compression="delta")
    live = model()
    paths = saved(saver, live, 3)
    with open_checkpoint(paths[2]) as file:
        base = file.info.base
    assert base == paths[0].name
    paths[0].unlink()
    nn.init.constant_(live.head.weight, 9.0)
    alone = Path(str(saver.save_checkpoint(live, step=9)))
    saver.wait()
    nn.init.constant_(live.head.weight, 8.0)

    with pytest.raises(CorruptDataError) as caught:
        saver.load_checkpoint(paths[2], live)
    assert paths[0].name in str(caught.value)
    assert bool((live.head.weight == 8.0).all())

    report = saver.load_checkpoint(paths[2], live, fallback=True)
    assert report.info.filename == alone.name
    assert bool((live.head.weight == 9.0).all())


def test_damaged_blocks_are_taken_from_the_second_copy_and_that_is_said(tmp_path: Path) -> None:
    backup = tmp_path / "elsewhere"
    saver = saver_of(tmp_path, backup_dir=str(backup))
    live = model()
    [path] = saved(saver, live, 1)
    wanted = live.trunk.weight.detach().clone()
    damage(path)
    nn.init.zeros_(live.trunk.weight)

    report = saver.load_checkpoint(path, live)

    assert torch.equal(live.trunk.weight, wanted)
    assert any(path.name in note for note in report.notes)


def test_the_newest_sound_one_is_loaded_over_what_a_damaged_one_left(tmp_path: Path) -> None:
    saver = saver_of(tmp_path)
    live = model()
    paths = saved(saver, live, 3)
    damage(paths[2])

    report = saver.load_checkpoint("latest", live, fallback=True)

    assert report.step == 1
    assert bool((live.head.weight == 1.0).all())
    assert paths[2].name in report.notes[0]
    assert report.notes[1] == f"{paths[1].name} was loaded instead"
