"""A rewritten checkpoint holds what it held, needs no other file, and takes the name only when it is whole."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from milepost.checkpoint import standalone
from milepost.checkpoint.commit import commit, verify
from milepost.checkpoint.reading import open_checkpoint
from milepost.checkpoint.standalone import keep_weights_only, rewrite_alone
from milepost.checkpoint.tree import decode_tree
from milepost.core.errors import CorruptDataError, InvalidInputError
from tests.unit.checkpoint.container_samples import make_job, stage

BASE, NAME = "checkpoint_x_1.milepost", "checkpoint_x_2.milepost"
TREE = {
    "dict": [
        *("optimizer", {"dict": ["exp_avg", {"leaf": 1}]}),
        *("model", {"OrderedDict": ["w", {"leaf": 0}, "tied", {"leaf": 2}, "b", {"leaf": 3}, "e", {"leaf": 4}]}),
        *("facts", {"dict": ["threads", 2]}),
    ]
}


def arrays(step: int) -> dict[str, np.ndarray[Any, Any]]:
    start = np.random.default_rng(0).standard_normal((900, 1000), np.float32)
    return {
        "w": (start * (1 + step * 1e-5)).astype(np.float32),
        "exp_avg": start[:300] * step,
        "b": np.arange(10.0) + step,
        "e": np.zeros((0, 3), np.float32),
    }


def save(folder: Path, step: int, **fields: Any) -> Path:
    """One checkpoint of two with tied weights, differences to the first where there is one, and a side file."""
    entries, arena = stage(arrays(step))
    entries.insert(2, replace(entries[0], name="tied", stride=(1, 1000), shape=(1000, 900)))
    (folder / "rank1").write_bytes(b"ranks")
    path = folder / f"checkpoint_x_{step}.milepost"
    given: dict[str, Any] = {
        "tree": json.dumps(TREE),
        "contents": ["model", "optimizer"],
        "metrics": {"loss": float("nan"), "table": (1, 2)},
        "step": step,
        "attempt": 3,
        "side_files": [str(folder / "rank1")],
        "delta": True,
    }
    base = folder / BASE if step > 1 else None
    commit(make_job(path, entries, arena, **(given | fields)), arena, base=base, keep=1000)
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    save(tmp_path, 1)
    path = save(tmp_path, 2)
    with open_checkpoint(path) as file:
        assert file.info.base == BASE
    return path


def contents(path: Path) -> tuple[dict[str, bytes], Any, Any]:
    with open_checkpoint(path) as file:
        values = {name: value.tobytes() for name, value in file.read_all().items()}
        return values, decode_tree(file.manifest.run, leaf=lambda index: index), file.tree


def test_a_file_of_differences_becomes_one_that_loads_alone(path: Path) -> None:
    before = contents(path)
    info = rewrite_alone(path)
    (path.parent / BASE).unlink()
    verify(path)
    after = contents(path)
    assert after[0] == before[0]
    assert repr(after[1]) == repr(before[1])
    assert after[2] == before[2]
    with open_checkpoint(path) as file:
        assert file.manifest.base is None
        assert repr(file.info) == repr(info)
        assert file.read_side_file("rank1") == b"ranks"
        assert file.tensors["tied"].region == file.tensors["w"].region
        assert file.tensors["tied"].stride == (1, 1000)
        assert info.state_bytes == sum(array.nbytes for array in arrays(2).values())
    assert sorted(os.listdir(path.parent)) == [path.name, "rank1"]


def test_a_file_that_loads_alone_is_left_as_it_is(path: Path) -> None:
    base = path.parent / BASE
    before = base.stat().st_ino, base.read_bytes()
    assert rewrite_alone(base).filename == BASE
    assert (base.stat().st_ino, base.read_bytes()) == before


def test_only_model_and_facts_are_kept(path: Path) -> None:
    values = contents(path)[0]
    size = path.stat().st_size
    info = keep_weights_only(path)
    assert info.contents == ("model",)
    assert info.base == ""
    assert info.step == 2
    assert info.path == path
    (path.parent / BASE).unlink()
    verify(path)
    with open_checkpoint(path) as file:
        assert set(file.tensors) == {"w", "tied", "b", "e"}
        assert file.side_files == ()
        state = decode_tree(file.tree, leaf=lambda index: file[file.names[index]].numpy().tobytes())
    assert state == {"model": {name: values[name] for name in ("w", "tied", "b", "e")}, "facts": {"threads": 2}}
    assert info.size > 0
    assert size > 0
    unchanged = path.read_bytes()
    assert keep_weights_only(path).contents == ("model",)
    assert path.read_bytes() == unchanged


def test_a_checkpoint_without_a_model_is_not_cut(tmp_path: Path) -> None:
    path = save(tmp_path, 1, tree=json.dumps({"dict": []}))
    with pytest.raises(InvalidInputError, match="holds no model"):
        keep_weights_only(path)


@pytest.mark.parametrize("rewrite", [rewrite_alone, keep_weights_only])
def test_a_damaged_file_is_left_as_it_is(path: Path, rewrite: Any) -> None:
    with open_checkpoint(path) as file:
        block = file.manifest.regions[file.tensors["b"].region].blocks[0]
    content = bytearray(path.read_bytes())
    content[block.offset] ^= 1
    path.write_bytes(content)
    names = sorted(os.listdir(path.parent))
    with pytest.raises(CorruptDataError, match="'b' is damaged"):
        rewrite(path)
    assert path.read_bytes() == content
    assert sorted(os.listdir(path.parent)) == names


def test_what_was_read_wrongly_never_takes_the_name(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if memory had changed a bit between reading and writing."""
    honest = standalone._Storages.bytes_of

    def dishonest(self: Any, start: int, end: int) -> Any:
        content = honest(self, start, end)
        content[0] ^= 1
        return content

    monkeypatch.setattr(standalone._Storages, "bytes_of", dishonest)
    before = path.read_bytes()
    with pytest.raises(CorruptDataError, match="was read differently from what was saved"):
        rewrite_alone(path)
    assert path.read_bytes() == before
    assert sorted(os.listdir(path.parent)) == [BASE, path.name, "rank1"]


def test_raw_files_stay_raw(tmp_path: Path) -> None:
    path = save(tmp_path, 1, compression=False)
    keep_weights_only(path)
    with open_checkpoint(path) as file:
        assert (file.mapped("w") == arrays(1)["w"]).all()
