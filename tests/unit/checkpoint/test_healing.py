"""A second copy makes damage good: while reading without a trace, or for good, and never with other bytes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from milepost.checkpoint.commit import verify
from milepost.checkpoint.healing import heal
from milepost.checkpoint.reading import CheckpointFile, open_checkpoint
from milepost.core.errors import CorruptDataError, InvalidInputError, NotFoundError
from tests.unit.checkpoint.container_samples import save
from tests.unit.checkpoint.test_base import BEFORE, NAME, differing

ARRAYS: dict[str, np.ndarray[Any, Any]] = {
    "large": np.random.default_rng(0).standard_normal((700_000,), np.float32),
    "small": np.arange(7.0),
}

Damage = Callable[[bytearray, CheckpointFile], None]


def in_header(content: bytearray, _: CheckpointFile) -> None:
    content[9] ^= 1


def in_trailer(content: bytearray, _: CheckpointFile) -> None:
    content[-9] ^= 1


def in_manifest(content: bytearray, _: CheckpointFile) -> None:
    content[content.index(b'{"format"') + 20] ^= 1


def in_block(content: bytearray, file: CheckpointFile) -> None:
    content[file.manifest.regions[file.tensors["large"].region].blocks[1].offset + 5] ^= 1


def cut(content: bytearray, _: CheckpointFile) -> None:
    del content[5000:]


DAMAGES = [in_header, in_trailer, in_manifest, in_block, cut]


@pytest.fixture
def copies(tmp_path: Path) -> Path:
    """The folder of copies; ``copies.parent / NAME`` is the file."""
    path = save(tmp_path / NAME, ARRAYS)
    copies = tmp_path / "copies"
    copies.mkdir()
    shutil.copy(path, copies)
    return copies


def spoil(path: Path, damage: Damage) -> bytes:
    content = bytearray(path.read_bytes())
    with open_checkpoint(path) as file:
        damage(content, file)
    path.write_bytes(content)
    return bytes(content)


@pytest.mark.parametrize("damage", DAMAGES)
def test_whatever_is_damaged_is_read_from_the_copy_and_said(copies: Path, damage: Damage) -> None:
    path = copies.parent / NAME
    spoiled = spoil(path, damage)
    with pytest.raises(CorruptDataError), open_checkpoint(path) as file:
        file.read_all()
    with open_checkpoint(path, copies=[copies]) as file:
        found = file.read_all()
        file.verify()
        assert len(file.mended) == 1
        assert str(path) in file.mended[0]
        assert str(copies / NAME) in file.mended[0]
        assert file.info.path == path
    assert all((found[name] == array).all() for name, array in ARRAYS.items())
    assert path.read_bytes() == spoiled


def test_a_whole_file_needs_no_mending_and_no_copy(copies: Path) -> None:
    with open_checkpoint(copies.parent / NAME, copies=[copies, copies / "none"]) as file:
        file.read_all()
        assert file.mended == []


def test_two_files_damaged_in_different_places_give_a_whole_checkpoint(copies: Path) -> None:
    path = copies.parent / NAME
    spoil(path, in_block)
    spoil(copies / NAME, lambda content, file: content.__setitem__(file.manifest.regions[0].blocks[0].offset, 0xFF))
    spoil(copies / NAME, in_trailer)
    with open_checkpoint(path) as file, pytest.raises(CorruptDataError):
        file.read_all()
    with open_checkpoint(path, copies=[copies]) as file:
        assert (file.read_all()["large"] == ARRAYS["large"]).all()


def test_another_checkpoint_is_never_taken_for_a_copy(copies: Path) -> None:
    path = copies.parent / NAME
    (copies / NAME).unlink()
    save(copies / NAME, {name: array + 1 for name, array in ARRAYS.items()})
    spoil(path, in_block)
    with open_checkpoint(path, copies=[copies]) as file:
        assert (file["small"].numpy() == ARRAYS["small"]).all()
        with pytest.raises(CorruptDataError, match="'large' is damaged"):
            file["large"].numpy()
    with pytest.raises(InvalidInputError, match="another checkpoint"):
        heal(path, copies)


def test_a_base_is_taken_from_the_copies_too(tmp_path: Path) -> None:
    base = save(tmp_path / NAME, {"w": BEFORE}, step=1)
    path = differing(tmp_path, BEFORE, "dww")
    copies = tmp_path / "copies"
    copies.mkdir()
    shutil.move(base, copies)
    with open_checkpoint(path, copies=[copies]) as file:
        assert file["w"].numpy().tobytes() == BEFORE.tobytes()
        assert [NAME in sentence for sentence in file.mended] == [True]
    save(base, {"w": BEFORE + 1}, step=1)
    with open_checkpoint(path, copies=[copies]) as file:
        assert file["w"].numpy().tobytes() == BEFORE.tobytes()


@pytest.mark.parametrize("damage", DAMAGES)
def test_healing_makes_the_file_what_it_was(copies: Path, damage: Damage) -> None:
    path = copies.parent / NAME
    whole = path.read_bytes()
    spoil(path, damage)
    assert [str(path) in sentence for sentence in heal(path, copies)] == [True]
    assert path.read_bytes() == whole
    verify(path)
    assert heal(path, copies) == []
    assert sorted(os.listdir(copies.parent)) == sorted([NAME, "copies"])


def test_a_missing_file_is_brought_back(copies: Path) -> None:
    path = copies.parent / NAME
    path.unlink()
    assert len(heal(path, copies)) == 1
    verify(path)


def test_a_damaged_copy_heals_nothing(copies: Path) -> None:
    path = copies.parent / NAME
    spoiled = spoil(path, in_header)
    spoil(copies / NAME, in_block)
    with pytest.raises(CorruptDataError, match="'large' is damaged"):
        heal(path, copies)
    assert path.read_bytes() == spoiled
    shutil.rmtree(copies)
    with pytest.raises(NotFoundError):
        heal(path, copies)
    assert path.read_bytes() == spoiled


def test_every_damaged_block_is_said_once(copies: Path) -> None:
    path = copies.parent / NAME
    spoil(path, in_block)
    spoil(path, lambda content, file: content.__setitem__(file.manifest.regions[0].blocks[0].offset, 0xFF))
    assert len(heal(path, copies)) == 2
