"""A file of differences gives exact numbers with its base; without it, or with another, an error that names it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from milepost.checkpoint.base import BaseRegions
from milepost.checkpoint.commit import verify
from milepost.checkpoint.reading import open_checkpoint
from milepost.core.errors import CorruptDataError, NotFoundError
from tests.unit.checkpoint import forged_files as forged
from tests.unit.checkpoint.container_samples import save

BEFORE = np.linspace(-3, 3, 5000, dtype=np.float32)
SCALE = np.float32(0.97)
NAME = "checkpoint_x_1.milepost"


def words(array: np.ndarray[Any, Any]) -> list[bytes]:
    """The two lanes of 16-bit words of numbers of 32 bits."""
    halves = array.view(np.uint16).reshape(-1, 2)
    return [halves[:, 0].tobytes(), halves[:, 1].tobytes()]


def folded(now: np.ndarray[Any, Any], before: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    difference = (now.view(np.uint32) - before.view(np.uint32)).view(np.int32)
    return ((difference << 1) ^ (difference >> 31)).view(np.uint32)


def differing(folder: Path, now: np.ndarray[Any, Any], encoding: str, **members: Any) -> Path:
    """A file of one tensor ``w`` that is stored as differences to the tensor ``w`` of the base."""
    base = folder / NAME
    if encoding == "=":
        row, stored = forged.block_row(0, "=", [])
    elif encoding == "dww":
        row, stored = forged.block_row(4096, "dww", words(folded(now, BEFORE)))
    else:
        row, stored = forged.block_row(4096, "sww", words(now.view(np.uint32) - (BEFORE * SCALE).view(np.uint32)))
    region = [now.nbytes, 4, [row], [0, f"{int(SCALE.view(np.uint32)):08x}"]]
    named = {"base": [NAME, forged.digest_of_manifest(base), 1]} | members
    content = forged.manifest(tensors=[forged.tensor_row("w", now, 0)], regions=[region], **named)
    return forged.write(folder / "checkpoint_x_2.milepost", content, stored)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return save(tmp_path / NAME, {"w": BEFORE}, compression=True, step=1)


@pytest.mark.parametrize("encoding", ["=", "dww", "sww"])
def test_differences_become_the_numbers_that_were_saved(base: Path, encoding: str) -> None:
    now = BEFORE.copy() if encoding == "=" else (BEFORE * 0.98).astype(np.float32)
    if encoding != "=":
        now[:4] = [np.nan, np.inf, -0.0, 1e-42]
    path = differing(base.parent, now, encoding)
    verify(path)
    with open_checkpoint(path) as file:
        assert file.info.base == NAME
        assert file["w"].numpy().tobytes() == now.tobytes()
        assert file["w"][100:200].tobytes() == now[100:200].tobytes()
        assert file.read_all()["w"].tobytes() == now.tobytes()
        assert file.base is not None
        assert file.base.path == base
        assert (file.base["w"].numpy() == BEFORE).all()


def test_a_missing_base_is_named_with_what_to_do_before_memory_is_written(base: Path) -> None:
    path = differing(base.parent, BEFORE, "=")
    base.unlink()
    target = np.full(BEFORE.shape, 7, np.float32)
    with open_checkpoint(path) as file:
        assert file.info.step == 7
        with pytest.raises(NotFoundError, match=rf"{re.escape(NAME)}.*put {re.escape(NAME)} back into"):
            file.read_into("w", target)
        with pytest.raises(NotFoundError, match=re.escape(NAME)):
            file["w"].numpy()
        with pytest.raises(NotFoundError, match=re.escape(NAME)):
            file.verify()
        with pytest.raises(NotFoundError, match=re.escape(NAME)):
            _ = file.base
    assert (target == 7).all()


def test_another_file_of_the_base_s_name_is_refused(base: Path) -> None:
    path = differing(base.parent, BEFORE, "=")
    base.unlink()
    save(base, {"w": BEFORE}, step=3)
    with open_checkpoint(path) as file, pytest.raises(CorruptDataError, match=rf"{NAME}.*is not the file that it was"):
        file["w"].numpy()


def test_damage_in_the_base_names_the_base_and_its_tensor(base: Path) -> None:
    path = differing(base.parent, BEFORE, "dww")
    with open_checkpoint(base) as file:
        offset = file.manifest.regions[0].blocks[0].offset
    content = bytearray(base.read_bytes())
    content[offset] ^= 1
    base.write_bytes(content)
    with open_checkpoint(path) as file, pytest.raises(CorruptDataError, match=rf"{NAME}: the tensor 'w' is damaged"):
        file["w"].numpy()


def test_a_base_that_has_a_base_is_refused(base: Path) -> None:
    path = differing(base.parent, BEFORE, "=")
    third = base.parent / "checkpoint_x_3.milepost"
    forged.change(
        path, lambda content: content.update(base=[path.name, forged.digest_of_manifest(path), 2]), target=third
    )
    with open_checkpoint(third) as file, pytest.raises(CorruptDataError, match="needs a base itself"):
        file["w"].numpy()


@pytest.mark.parametrize("region", [[19996, 4, 0], [20000, 2, 0], [20000, 4, 5]])
def test_a_base_whose_regions_are_others_is_refused(base: Path, region: list[int]) -> None:
    nbytes, width, index = region
    path = differing(base.parent, BEFORE, "=")

    def edit(content: dict[str, Any]) -> None:
        content["regions"][0] = [nbytes, width, content["regions"][0][2], [index, "00000000"]]
        content["tensors"][0][2], content["tensors"][0][6] = [4999], 19996

    forged.change(path, edit)
    with open_checkpoint(path) as file, pytest.raises(CorruptDataError, match=f"has no region {index}"):
        file["w"].numpy()


def test_regions_of_a_base_are_found_by_tensor_and_decoded_by_block(base: Path) -> None:
    with open_checkpoint(base) as file:
        regions = BaseRegions(file)
        region = regions.region_for("w")
        assert region is not None
        assert regions.region_for("v") is None
        assert regions.block(region, 0).tobytes() == BEFORE.tobytes()
