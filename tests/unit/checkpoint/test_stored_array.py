"""A tensor of a file behaves like an array, and reads no more than is asked for."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from milepost.checkpoint.codec import BLOCK_BYTES
from milepost.checkpoint.reading import open_checkpoint
from milepost.checkpoint.stored_array import StoredArray
from milepost.core.errors import CorruptDataError, InvalidInputError
from tests.unit.checkpoint import forged_files as forged
from tests.unit.checkpoint.container_samples import save

LARGE = np.random.default_rng(0).standard_normal((3000, 500), np.float32)
CUBE = np.arange(4 * 3 * 2, dtype=np.int16).reshape(4, 3, 2)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    arrays = {
        "large": LARGE,
        "cube": CUBE,
        "one": np.array(2.5),
        "none": np.zeros((0, 3)),
        "half": CUBE.view(np.uint16),
    }
    return save(tmp_path_factory.mktemp("stored") / "checkpoint_1.milepost", arrays, dtypes={"half": "bfloat16"})


def stored(path: Path, name: str) -> StoredArray:
    return open_checkpoint(path)[name]


def test_what_it_is_is_known_without_reading(path: Path) -> None:
    array = stored(path, "large")
    assert (array.shape, array.ndim, len(array), array.nbytes) == ((3000, 500), 2, 3000, LARGE.nbytes)
    assert (array.dtype, array.dtype_name) == (np.dtype(np.float32), "float32")
    assert repr(array) == "StoredArray('large', shape=(3000, 500), dtype_name='float32')"
    assert (stored(path, "half").dtype, stored(path, "half").dtype_name) == (np.dtype(np.uint16), "bfloat16")
    with pytest.raises(TypeError):
        len(stored(path, "one"))


@st.composite
def keys(draw: st.DrawFn) -> Any:
    part = st.one_of(
        st.integers(-6, 6), st.slices(8), st.none(), st.just(...), st.booleans(), st.just([0, 2]), st.just(np.int64(1))
    )
    return draw(st.one_of(part, st.lists(part, max_size=3).map(tuple)))


@given(keys())
@settings(max_examples=300, deadline=None)
@pytest.mark.parametrize("name", ["cube", "one", "none"])
def test_every_key_gives_what_numpy_gives(path: Path, name: str, key: Any) -> None:
    array = {"cube": CUBE, "one": np.array(2.5), "none": np.zeros((0, 3))}[name]
    try:
        wanted = array[key]
    except IndexError:
        with pytest.raises(IndexError):
            _ = stored(path, name)[key]
        return
    found = stored(path, name)[key]
    assert np.array_equal(found, wanted)
    assert (type(found), np.shape(found)) == (type(wanted), np.shape(wanted))


def test_numpy_takes_it_for_an_array(path: Path) -> None:
    array = stored(path, "cube")
    assert np.asarray(array).dtype == np.int16
    assert np.asarray(array, dtype=np.float64).dtype == np.float64
    assert (array == CUBE).all()
    assert (np.add(array, 1) == CUBE + 1).all()
    assert [row.tolist() for row in array] == CUBE.tolist()
    with pytest.raises(InvalidInputError, match="no memory to share"):
        array.__array__(copy=False)


def test_rows_are_read_without_the_blocks_of_others(path: Path, tmp_path: Path) -> None:
    """The last block is damaged, so whoever reads it would fail."""
    spoiled = tmp_path / path.name
    content = bytearray(path.read_bytes())
    with open_checkpoint(path) as file:
        block = file.manifest.regions[file.tensors["large"].region].blocks[-1]
    content[block.offset] ^= 1
    spoiled.write_bytes(content)
    rows = BLOCK_BYTES // 2000
    array = stored(spoiled, "large")
    assert (array[:rows] == LARGE[:rows]).all()
    assert (array[5] == LARGE[5]).all()
    assert array[1000:10:-70, 3].tolist() == LARGE[1000:10:-70, 3].tolist()
    for key in (-1, slice(rows, None), slice(None)):
        with pytest.raises(CorruptDataError, match=f"'large' is damaged at offset {block.offset}"):
            _ = array[key]


def test_raw_tensors_are_mapped_from_the_file_read_only(tmp_path: Path) -> None:
    path = save(
        tmp_path / "checkpoint_1.milepost", {"large": LARGE, "cube": CUBE, "none": LARGE[:0]}, compression=False
    )
    with open_checkpoint(path) as file:
        large, cube, none = (file.mapped(name) for name in ("large", "cube", "none"))
    assert (large == LARGE).all()
    assert (cube == CUBE).all()
    assert none.shape == (0, 500)
    assert not large.flags.writeable


def test_damage_is_found_before_a_map_is_returned(tmp_path: Path) -> None:
    path = save(tmp_path / "checkpoint_1.milepost", {"large": LARGE}, compression=False)
    with open_checkpoint(path) as file:
        offset = file.manifest.regions[0].blocks[1].offset
        with open(path, "r+b") as stream:
            stream.seek(offset + 9)
            stream.write(b"\xff")
        with pytest.raises(CorruptDataError, match=rf"{re.escape(str(path))}: the tensor 'large' is damaged"):
            file.mapped("large")


def test_what_cannot_be_mapped_is_said_with_the_cure(path: Path, tmp_path: Path) -> None:
    with open_checkpoint(path) as file, pytest.raises(InvalidInputError, match=r"compressed.*compression=False"):
        file.mapped("large")
    raw = save(tmp_path / "checkpoint_1.milepost", {"large": LARGE}, compression=False)

    def turn(content: dict[str, Any]) -> None:
        content["tensors"][0][2:4] = [[500, 3000], [1, 500]]

    turned = forged.change(raw, turn, tmp_path / "checkpoint_2.milepost")
    with open_checkpoint(turned) as file, pytest.raises(InvalidInputError, match=r"not in C order: read it instead"):
        file.mapped("large")


def test_blocks_that_are_not_side_by_side_are_not_mapped(tmp_path: Path) -> None:
    content = LARGE.tobytes()
    first, second = content[:BLOCK_BYTES], content[BLOCK_BYTES : 2 * BLOCK_BYTES]
    later, earlier = forged.block_row(4096 + BLOCK_BYTES, "raw", [first])[0], forged.block_row(4096, "raw", [second])[0]
    array = LARGE.ravel()[: 2 * BLOCK_BYTES // 4]
    described = forged.manifest(
        tensors=[forged.tensor_row("w", array, 0)], regions=[[array.nbytes, 4, [later, earlier], None]]
    )
    path = forged.write(tmp_path / "checkpoint_1.milepost", described, second + first)
    with open_checkpoint(path) as file:
        assert (file["w"].numpy() == array).all()
        with pytest.raises(InvalidInputError, match="not side by side: read it instead"):
            file.mapped("w")
