"""What leans on a keyframe, and whether that pays, is told from samples and digests, never from names."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from milepost.checkpoint.commit import commit, verify
from milepost.checkpoint.habits import Habits
from milepost.checkpoint.reading import open_checkpoint
from milepost.core.records import CheckpointInfo
from tests.unit.checkpoint.container_samples import make_job, stage

Arrays = dict[str, np.ndarray[Any, Any]]

COUNT = 700_000


def trained(seed: int = 0) -> Arrays:
    """Weights, a first and a second moment, and a frozen tensor."""
    generator = np.random.default_rng(seed)
    return {
        "w": (generator.standard_normal(COUNT) * 0.02).astype(np.float32),
        "m": (generator.standard_normal(COUNT) * 1e-4).astype(np.float32),
        "v": np.square(generator.standard_normal(COUNT) * 1e-4).astype(np.float32),
        "frozen": generator.standard_normal(COUNT).astype(np.float32),
        "bias": generator.standard_normal(30).astype(np.float32),
        "step": np.array(7.0, np.float32),
    }


def later(before: Arrays) -> Arrays:
    """The same after a few steps: weights moved a little, the second moment decayed, the first one is another."""
    generator = np.random.default_rng(99)
    noise = generator.random(COUNT).astype(np.float32)
    after = dict(before)
    after["w"] = (before["w"] * (1 + 1e-5 * noise)).astype(np.float32)
    after["m"] = (generator.standard_normal(COUNT) * 1e-4).astype(np.float32)
    after["v"] = (before["v"] * np.float32(0.9) * (1 + 1e-4 * noise)).astype(np.float32)
    after["step"] = np.array(17.0, np.float32)
    return after


def save(path: Path, arrays: Arrays, base: Path | None = None, keep: int = 5, **ways: Any) -> CheckpointInfo:
    entries, arena = stage(arrays, ways.pop("dtypes", None))
    return commit(make_job(path, entries, arena, delta=True), arena, base=base, keep=keep, **ways)


def encodings(path: Path, name: str) -> Counter[str]:
    with open_checkpoint(path) as file:
        region = file.manifest.regions[file.tensors[name].region]
        return Counter(block.encoded.encoding for block in region.blocks)


def content(path: Path) -> dict[str, bytes]:
    with open_checkpoint(path) as file:
        return {name: array.tobytes() for name, array in file.read_all().items()}


def bytes_of(arrays: Arrays) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in arrays.items()}


def test_each_tensor_takes_the_way_that_its_numbers_ask_for(tmp_path: Path) -> None:
    first = trained()
    save(tmp_path / "checkpoint_1.milepost", first)
    path = tmp_path / "checkpoint_2.milepost"
    info = save(path, later(first), tmp_path / "checkpoint_1.milepost")
    assert info.base == "checkpoint_1.milepost"
    assert encodings(path, "frozen").keys() == {"="}
    assert {encoding[0] for encoding in encodings(path, "w")} == {"d"}
    assert {encoding[0] for encoding in encodings(path, "v")} == {"s"}
    assert {encoding[0] for encoding in encodings(path, "m")}.isdisjoint("ds=")
    assert content(path) == bytes_of(later(first))
    verify(path)
    assert info.size < 0.6 * (tmp_path / "checkpoint_1.milepost").stat().st_size


def test_a_few_changed_numbers_that_no_sample_shows_cost_a_few_bytes(tmp_path: Path) -> None:
    before = {"embedding": trained()["frozen"], "other": trained()["m"]}
    after = {name: values.copy() for name, values in before.items()}
    after["embedding"][[3, COUNT - 5]] += 1
    save(tmp_path / "0.milepost", before)
    info = save(tmp_path / "1.milepost", after, base=tmp_path / "0.milepost")
    assert info.base == "0.milepost"
    assert info.size < 64 << 10
    with open_checkpoint(tmp_path / "1.milepost") as file:
        np.testing.assert_array_equal(file["embedding"].numpy(), after["embedding"])


def test_a_block_that_tells_no_constant_stands_alone_and_leaves_it_to_the_next(tmp_path: Path) -> None:
    first = {"v": np.square(np.random.default_rng(0).standard_normal(2 * COUNT)).astype(np.float32)}
    first["v"][: COUNT // 2].reshape(-1, 4)[:, 1:] = 0  # rows that were seldom used
    second = {"v": first["v"] * np.float32(0.9)}
    base = save(tmp_path / "checkpoint_1.milepost", first).path
    info = save(tmp_path / "checkpoint_2.milepost", second, base, keep=50)
    assert encodings(info.path, "v").total() == 3
    assert 0 < sum(count for encoding, count in encodings(info.path, "v").items() if encoding[0] == "s") < 3
    assert content(info.path) == bytes_of(second)


def test_the_base_is_not_even_read_where_the_digests_are_equal(tmp_path: Path) -> None:
    first = trained()
    base = tmp_path / "checkpoint_1.milepost"
    save(base, first)
    with open_checkpoint(base) as file:
        block = file.manifest.regions[file.tensors["frozen"].region].blocks[0]
    damaged = bytearray(base.read_bytes())
    damaged[block.offset + 100] ^= 1
    base.write_bytes(damaged)
    info = save(tmp_path / "checkpoint_2.milepost", later(first), base)
    assert info.base == base.name


def test_differences_that_do_not_repay_their_keyframe_are_not_made(tmp_path: Path) -> None:
    first = trained()
    base = tmp_path / "checkpoint_1.milepost"
    save(base, first)
    info = save(tmp_path / "checkpoint_2.milepost", later(first), base, keep=1)
    assert info.base == ""
    shutil.move(base, tmp_path / "gone")
    assert content(tmp_path / "checkpoint_2.milepost") == bytes_of(later(first))
    unrelated = trained(seed=5)
    assert save(tmp_path / "checkpoint_3.milepost", unrelated, tmp_path / "gone", keep=1000).base == ""


def test_what_is_frozen_repays_a_keyframe_though_nothing_else_does(tmp_path: Path) -> None:
    base = tmp_path / "checkpoint_1.milepost"
    save(base, trained())
    arrays = trained(seed=5) | {"frozen": trained()["frozen"]}
    info = save(tmp_path / "checkpoint_2.milepost", arrays, base, keep=10)
    assert info.base == base.name
    assert encodings(info.path, "frozen").keys() == {"="}
    assert content(info.path) == bytes_of(arrays)
    assert save(tmp_path / "checkpoint_3.milepost", arrays, base, keep=2).base == ""


def test_a_base_of_another_shape_or_dtype_is_not_used(tmp_path: Path) -> None:
    base = tmp_path / "checkpoint_1.milepost"
    first = trained()
    save(base, first)
    changed = later(first) | {"w": np.append(first["w"], np.float32(1)), "v": first["v"].view(np.uint16)}
    info = save(tmp_path / "checkpoint_2.milepost", changed, base, keep=50)
    assert info.base == base.name
    assert {encoding[0] for name in ("w", "v") for encoding in encodings(info.path, name)}.isdisjoint("ds=")
    assert content(info.path) == bytes_of(changed)


def test_a_damaged_base_is_noticed_and_the_checkpoint_stands_alone(tmp_path: Path) -> None:
    first = trained()
    base = tmp_path / "checkpoint_1.milepost"
    save(base, first)
    with open_checkpoint(base) as file:
        block = file.manifest.regions[file.tensors["w"].region].blocks[0]
    damaged = bytearray(base.read_bytes())
    damaged[block.offset + 100] ^= 1
    base.write_bytes(damaged)
    info = save(tmp_path / "checkpoint_2.milepost", later(first), base)
    assert info.base == ""
    base.unlink()
    assert content(info.path) == bytes_of(later(first))


@pytest.mark.parametrize("why", ["missing", "elsewhere", "leans itself"])
def test_what_may_not_be_a_base_is_not_used(tmp_path: Path, why: str) -> None:
    first = trained()
    folder = tmp_path / "other" if why == "elsewhere" else tmp_path
    base = folder / "checkpoint_1.milepost"
    if why != "missing":
        save(base, first)
    if why == "leans itself":
        base = save(tmp_path / "checkpoint_2.milepost", later(first), base).path
    info = save(tmp_path / "checkpoint_3.milepost", later(first), base)
    assert info.base == ""
    verify(info.path)


@given(st.data())
@settings(max_examples=15, deadline=None)
def test_any_state_comes_back_beside_any_earlier_one(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("c")
    kinds = st.tuples(st.sampled_from(["float32", "float16", "int64", "uint8"]), st.integers(0, 40_000))
    shapes = data.draw(st.lists(kinds, min_size=1, max_size=5))
    generator = np.random.default_rng(data.draw(st.integers(0, 99)))

    def state() -> Arrays:
        return {
            f"t{i}": np.frombuffer(generator.bytes(n * np.dtype(dtype).itemsize), np.uint8).view(dtype)
            for i, (dtype, n) in enumerate(shapes)
        }

    first = state()
    kept = {name: data.draw(st.booleans()) for name in first}
    second = {name: first[name] if kept[name] else array for name, array in state().items()}
    save(folder / "checkpoint_1.milepost", first)
    info = save(folder / "checkpoint_2.milepost", second, folder / "checkpoint_1.milepost", keep=10**9, habits=Habits())
    assert content(info.path) == bytes_of(second)
