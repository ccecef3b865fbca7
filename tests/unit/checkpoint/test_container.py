"""What goes into a file comes out of it, and it is laid out as docs/format.md says."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from milepost.checkpoint.codec import BLOCK_BYTES, RAW
from milepost.checkpoint.commit import commit, verify
from milepost.checkpoint.dtypes import DTYPES
from milepost.checkpoint.job import TensorEntry
from milepost.checkpoint.reading import open_checkpoint
from milepost.checkpoint.tree import decode_tree
from milepost.core.errors import InvalidInputError
from tests.unit.checkpoint.container_samples import make_job, save, stage

LARGE_SHAPE = (3, 700_001)


def normal(shape: tuple[int, ...], seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "checkpoint_x_1.milepost"


@pytest.mark.parametrize("compression", [True, False])
def test_tensors_of_every_size_come_back(path: Path, compression: bool) -> None:
    arrays = {
        "large": normal(LARGE_SHAPE),
        "exactly one block": normal((BLOCK_BYTES // 4,)),
        "small": normal((17,)),
        "scalar": np.array(3.5),
        "empty": np.zeros((0, 4), np.float32),
        "zeros": np.zeros((1 << 20,), np.int64),
        "flags": np.arange(100_000) % 3 == 0,
    } | {f"bias {i}": normal((999,), i) for i in range(300)}
    save(path, arrays, compression=compression)
    with open_checkpoint(path) as file:
        assert list(file.names) == list(arrays)
        everything = file.read_all()
        for name, array in arrays.items():
            for found in (everything[name], file[name].numpy()):
                assert found.dtype == array.dtype
                assert found.shape == array.shape
                assert found.tobytes() == array.tobytes()
    verify(path)


@pytest.mark.parametrize("name", sorted(DTYPES))
@pytest.mark.parametrize("compression", [True, False])
def test_every_dtype_keeps_its_bytes_and_its_name(path: Path, name: str, compression: bool) -> None:
    element = DTYPES[name]
    content = np.random.default_rng(0).integers(0, 2, 3 * 40_000 * element.itemsize, np.uint8)
    array = content.view(element.numpy).reshape(3, 40_000)
    save(path, {"t": array}, dtypes={"t": name}, compression=compression)
    with open_checkpoint(path) as file:
        assert file.tensors["t"].dtype == name
        assert file["t"].dtype_name == name
        assert file["t"].numpy().tobytes() == array.tobytes()
        assert file["t"].dtype.itemsize == element.itemsize


def test_torch_has_the_dtypes_that_can_be_stored_with_these_widths() -> None:
    torch = pytest.importorskip("torch")
    known = {name: getattr(torch, name) for name in DTYPES if hasattr(torch, name)}
    assert {name: dtype.itemsize for name, dtype in known.items()} == {name: DTYPES[name].itemsize for name in known}
    assert {"bfloat16", "float8_e4m3fn", "complex32", "bool"} <= known.keys()


@given(
    st.lists(st.tuples(st.sampled_from(["float32", "float16", "int64", "bool", "complex64"]), st.integers(0, 40_000))),
    st.booleans(),
)
@settings(max_examples=25, deadline=None)
def test_any_mixture_of_tensors_comes_back(
    tmp_path_factory: pytest.TempPathFactory, shapes: Any, compression: bool
) -> None:
    generator = np.random.default_rng(len(shapes))
    arrays = {
        f"t{i}": np.frombuffer(generator.bytes(n * np.dtype(dtype).itemsize), np.uint8).view(dtype)
        if dtype != "bool"
        else generator.integers(0, 2, n).astype(bool)
        for i, (dtype, n) in enumerate(shapes)
    }
    path = save(tmp_path_factory.mktemp("c") / "checkpoint_1.milepost", arrays, compression=compression)
    with open_checkpoint(path) as file:
        found = file.read_all()
    assert {name: array.tobytes() for name, array in found.items()} == {n: a.tobytes() for n, a in arrays.items()}


def test_tensors_that_share_memory_are_stored_once(path: Path) -> None:
    weights = normal((512, 512))
    [entry], arena = stage({"encoder": weights})
    tied = replace(entry, name="decoder")
    row = replace(entry, name="row", shape=(512,), offset=entry.offset + 2048, nbytes=2048)
    turned = replace(entry, name="turned", stride=(1, 512))
    info = commit(make_job(path, [entry, tied, row, turned], arena, compression=False), arena)
    assert info.state_bytes == weights.nbytes
    assert info.size < 1.1 * weights.nbytes
    with open_checkpoint(path) as file:
        assert (file["decoder"] == weights).all()
        assert (file["row"] == weights[1]).all()
        assert (file["turned"] == weights.T).all()
        assert file.info.state_bytes == weights.nbytes


def test_small_tensors_share_blocks_by_dtype_and_a_block_never_crosses_a_tensor(path: Path) -> None:
    arrays = {f"b{i}": normal((16_000,), i) for i in range(100)} | {f"s{i}": np.array(i) for i in range(100)}
    save(path, arrays | {"large": normal(LARGE_SHAPE)})
    with open_checkpoint(path) as file:
        regions = file.manifest.regions
        assert len(regions) < 10
        for region in regions[:-1]:
            assert len(region.blocks) == 1
        shared = {t.region for t in file.tensors.values() if t.dtype == "float32" and t.name != "large"}
        assert shared.isdisjoint({t.region for t in file.tensors.values() if t.dtype == "int64"})


def test_raw_blocks_begin_at_page_boundaries_and_hold_the_numbers_as_they_are(path: Path) -> None:
    array = normal(LARGE_SHAPE)
    save(path, {"w": array, "b": normal((5,))}, compression=False)
    content = path.read_bytes()
    with open_checkpoint(path) as file:
        blocks = [block for region in file.manifest.regions for block in region.blocks]
        assert {block.encoded.encoding for block in blocks} == {RAW}
        assert all(block.offset % 4096 == 0 for block in blocks)
        first = file.manifest.regions[file.tensors["w"].region].blocks[0]
    assert content[first.offset : first.offset + BLOCK_BYTES] == array.tobytes()[:BLOCK_BYTES]


def test_weights_get_smaller_without_loss(path: Path) -> None:
    array = normal((1 << 20,)) * 0.02
    save(path, {"w": array})
    assert path.stat().st_size < 0.86 * array.nbytes


def test_the_facts_of_the_run_and_the_tree_come_back(path: Path) -> None:
    entries, arena = stage({"w": normal((4,))})
    tree = json.dumps({"dict": ["w", {"leaf": 0}, "step", 700]})
    facts = {"epoch": 2.5, "metrics": {"loss": float("inf"), 3: (1, 2)}, "is_best": True, "pinned": True}
    job = make_job(path, entries, arena, tree=tree, timestamp=12.25, stall_ms=1.5, contents=["model"], **facts)
    info = commit(job, arena)
    with open_checkpoint(path) as file:
        assert file.info == info
        state = decode_tree(file.tree, leaf=lambda index: file[file.names[index]].numpy())
    assert (state["w"] == normal((4,))).all()
    assert state["step"] == 700
    assert info["epoch"] == 2.5
    assert info["metrics"] == {"loss": float("inf"), 3: (1, 2)}


def test_files_of_other_ranks_are_embedded_apart_from_the_tensors(path: Path, tmp_path: Path) -> None:
    (tmp_path / "rank1.state").write_bytes(b"one" * 1000)
    (tmp_path / "rank2.state").write_bytes(b"")
    files = [str(tmp_path / name) for name in ("rank1.state", "rank2.state")]
    save(path, {"w": normal((4,))}, side_files=files)
    verify(path)
    with open_checkpoint(path) as file:
        assert list(file.tensors) == ["w"]
        assert file.side_files == ("rank1.state", "rank2.state")
        assert file.read_side_file("rank1.state") == b"one" * 1000
        assert file.read_side_file("rank2.state") == b""


def test_a_checkpoint_without_tensors_is_a_checkpoint(path: Path) -> None:
    info = commit(make_job(path, [], memoryview(b"")), memoryview(b""))
    verify(path)
    assert info.state_bytes == 0
    assert info.size == os.path.getsize(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": "float4"}, "dtype float4"),
        ({"nbytes": 12}, "12 bytes for shape"),
        ({"stride": (0,), "shape": (1 << 40,), "nbytes": 4}, "4 bytes for shape"),
        ({"stride": (-1,)}, "strides"),
        ({"offset": 1 << 20}, "outside"),
        ({"offset": -16}, "outside"),
        ({"name": "b"}, "twice"),
    ],
)
def test_a_job_that_no_reader_would_accept_is_refused(path: Path, change: dict[str, Any], message: str) -> None:
    entries, arena = stage({"a": normal((4,)), "b": normal((4,))})
    broken: list[TensorEntry] = [replace(entries[0], **change), entries[1]]
    with pytest.raises(InvalidInputError, match=message):
        commit(make_job(path, broken, arena), arena)
    assert list(path.parent.iterdir()) == []


def test_a_job_whose_tree_is_no_json_is_refused(path: Path) -> None:
    with pytest.raises(InvalidInputError, match="no JSON"):
        commit(make_job(path, [], memoryview(b""), tree="{"), memoryview(b""))
