from __future__ import annotations

import json
import math
import os
from dataclasses import replace
from pathlib import Path

import pytest
from torch import nn

from milepost.checkpoint.catalog import CATALOG, refresh, scan
from milepost.checkpoint.checkpointer import ModelCheckpointer
from milepost.checkpoint.commit import commit
from milepost.core.config import ExperimentConfig
from milepost.core.records import CheckpointInfo
from tests.unit.companion.jobs import staged


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = nn.Linear(20, 20)
    for kind in ("milepost", "pt"):
        config = ExperimentConfig(root=str(tmp_path), checkpoint_format=kind)  # type: ignore[arg-type]
        saver = ModelCheckpointer(config, experiment_id="run")
        saver.save_checkpoint(model, epoch=0.5, step=3, metrics={"loss": math.nan, "top": math.inf, "name": "x"})
        saver.save_checkpoint(model, step=4, is_best=True, pin=True)
        saver.wait()
    return saver.folder


def plain(folder: Path) -> list[dict[str, object]]:
    return [{**info.to_fields(), "metrics": repr(info.metrics)} for info in scan(folder).infos]


@pytest.mark.parametrize("harm", ["deleted", "empty", "cut", "other", "list"])
def test_a_lost_or_damaged_catalog_is_rebuilt_to_the_same_content(folder: Path, harm: str) -> None:
    catalog = folder / CATALOG
    before, listed = catalog.read_bytes(), plain(folder)
    if harm == "deleted":
        catalog.unlink()
    else:
        catalog.write_bytes({"empty": b"", "cut": before[:100], "other": b'{"a": 1}', "list": b"[1]"}[harm])

    assert plain(folder) == listed
    refresh(folder)

    assert catalog.read_bytes() == before


def test_the_catalog_is_json_that_every_program_reads(folder: Path) -> None:
    def refuse(word: str) -> None:
        raise AssertionError(word)

    content = json.loads((folder / CATALOG).read_text(), parse_constant=refuse)

    assert content["checkpoints"][0]["metrics"] == {"loss": "NaN", "top": "Infinity", "name": "x"}
    assert {entry["format"] for entry in content["checkpoints"]} == {"milepost", "pt"}
    assert math.isnan(scan(folder).infos[0].metrics["loss"])


def test_scanning_writes_nothing(folder: Path) -> None:
    (folder / CATALOG).unlink()
    names = sorted(os.listdir(folder))

    scan(folder)

    assert sorted(os.listdir(folder)) == names


def test_a_file_that_changed_is_looked_at_again_and_no_longer_verified(folder: Path) -> None:
    path = next(info.path for info in scan(folder).infos if info.format == "milepost")
    assert all(info.verified for info in scan(folder).infos)
    os.utime(path, ns=(1, 1))
    refresh(folder)

    changed = [info.path for info in scan(folder).infos if not info.verified]
    assert changed == [path]


def test_a_copied_folder_is_listed_where_it_is(folder: Path, tmp_path: Path) -> None:
    moved = folder.rename(tmp_path / "moved")

    assert {info.path.parent for info in scan(moved).infos} == {moved}
    assert {info.step for info in scan(moved).infos} == {3, 4}


def test_a_damaged_file_is_told_apart_with_what_was_known_of_it(folder: Path) -> None:
    info = scan(folder).infos[0]
    info.path.write_bytes(b"nothing")
    (folder / "checkpoint_unknown.milepost").write_bytes(b"")
    found = scan(folder)

    assert info.path not in [other.path for other in found.infos]
    known = {file.path.name: file.info.step if file.info else None for file in found.damaged}
    assert known == {info.filename: info.step, "checkpoint_unknown.milepost": None}


def test_strangers_and_hidden_files_are_not_checkpoints(folder: Path) -> None:
    count = len(scan(folder).infos)
    for name in ("theirs.pt", ".checkpoint_x.milepost", "notes.txt"):
        (folder / name).write_bytes(b"x")

    assert len(scan(folder).infos) == count
    assert scan(folder).damaged == ()
    assert scan(folder / "not there").infos == ()


def test_a_record_survives_as_fields(folder: Path) -> None:
    info = scan(folder).infos[1]

    assert CheckpointInfo.from_fields(info.to_fields() | {"field of a later version": 1}) == info


def test_what_a_checkpoint_needs_and_lacks_is_listed_and_found_again_without_the_catalog(tmp_path: Path) -> None:
    job, arena = staged(tmp_path, 1)
    keyframe = commit(job, arena.view)
    again = replace(job, path=str(tmp_path / "checkpoint_s_2.milepost"), step=2, delta=True)
    again = replace(again, include="trainable", lossy="bf16-moments", wait_ms=3.5)
    commit(again, arena.view, base=keyframe.path, keep=9)
    listed = refresh(tmp_path).infos[1]
    assert (listed.base, listed.include, listed.lossy, listed.wait_ms) == (
        keyframe.filename,
        "trainable",
        "bf16-moments",
        3.5,
    )
    assert scan(tmp_path).infos[1] == listed
    (tmp_path / CATALOG).unlink()

    assert scan(tmp_path).infos[1] == listed


def test_a_folder_that_is_listed_is_not_opened_file_by_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = plain(folder)

    def opened(path: Path) -> None:
        raise AssertionError(path)

    monkeypatch.setattr("milepost.checkpoint.catalog.open_checkpoint", opened)
    assert plain(folder) == listed
