"""Makes the files of ``tests/golden/v1``: ``python -m tests.golden.make FOLDER``.

They are made once for a format version and never again: every later milepost must read the files that are there. With
the same versions of the libraries the same bytes come out.
"""

from __future__ import annotations

import base64
import hashlib
import json
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from milepost.checkpoint.commit import commit
from milepost.checkpoint.dtypes import DTYPES
from milepost.checkpoint.job import TensorEntry
from milepost.checkpoint.reading import open_checkpoint
from milepost.checkpoint.tree import encode_tree
from tests.unit.checkpoint.container_samples import make_job, stage

EXPECTED = "expected.json"
Arrays = dict[str, np.ndarray[Any, Any]]


class Leaf:
    """Stands for a tensor of the file."""


def make(folder: Path) -> None:
    """Write all files and what they hold."""
    folder.mkdir(parents=True, exist_ok=True)
    one_block = {name: array for name, array in _weights(0).items() if name != "index"}
    _write(folder, "raw", one_block, compression=False)
    _write(folder, "alone", _weights(0))
    _write(folder, "small", {f"layer.{i}.bias": np.arange(i, dtype=np.float32) for i in range(40)})
    _write(folder, "empty", {"none": np.zeros((0, 3), np.float16), "scalar": np.array(-0.0)})
    _write(folder, "nothing", {})
    _every_dtype(folder)
    _shared(folder)
    _write(
        folder, "lossy", {"moment": np.arange(9, dtype=np.uint16)}, dtypes={"moment": "bfloat16"}, lossy="bf16-moments"
    )
    with tempfile.TemporaryDirectory() as side:
        (Path(side) / "rank1").write_bytes(b'{"dict":[]}')
        _write(folder, "side_file", {"w": np.ones(3, np.float32)}, side_files=[str(Path(side) / "rank1")])
    _write(folder, "keyframe", _weights(0), step=1)
    _write(folder, "differences", _weights(1), step=2, base="keyframe", delta=True)
    names = sorted(folder.glob("*.milepost"))
    (folder / EXPECTED).write_text(json.dumps({path.name: contents(path) for path in names}, indent=1) + "\n")


def contents(path: Path) -> dict[str, Any]:
    """What a file holds, by milepost's own reader, as JSON."""
    with open_checkpoint(path) as file:
        return {
            "tensors": {name: described(file.tensors[name].dtype, value) for name, value in file.read_all().items()},
            "original": {name: tensor.original for name, tensor in file.tensors.items()},
            "side_files": {n: base64.b64encode(file.read_side_file(n)).decode() for n in file.side_files},
            "run": file.manifest.run,
            "tree": file.tree,
            "base": file.info.base,
        }


def described(dtype: str, value: np.ndarray[Any, Any]) -> list[Any]:
    """dtype, shape, and a digest of the elements in C order."""
    return [dtype, list(value.shape), hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()]


def _weights(step: int) -> Arrays:
    """A tensor of several blocks, one of one block, and a decaying one; each a little further at each step."""
    generator = np.random.default_rng(7)
    weight = generator.standard_normal((130, 256), np.float32) * np.float32(0.02)
    moved = weight + np.float32(step) * generator.standard_normal(weight.shape, np.float32) * np.float32(1e-7)
    second = generator.random((130, 256), np.float32) * np.float32(1e-6)
    return {
        "weight": moved,
        "second": second * np.float32(0.97) ** np.float32(step),
        "index": np.arange(300_000, dtype=np.int64) % 7,
        "bias": np.linspace(-1, 1, 11, dtype=np.float32) + np.float32(step),
    }


def _every_dtype(folder: Path) -> None:
    generator = np.random.default_rng(3)
    arrays = {
        name: generator.integers(0, 2, 24 * element.itemsize, np.uint8).view(element.numpy).reshape(2, 3, 4)
        for name, element in DTYPES.items()
    }
    arrays["float32"].reshape(-1)[:4] = [np.nan, np.inf, -np.inf, -0.0]
    _write(folder, "dtypes", arrays, dtypes={name: name for name in DTYPES})


def _shared(folder: Path) -> None:
    """Tied weights, a view, a turned one and one with gaps, all of one storage."""
    [entry], arena = stage({"embedding": np.arange(20_000, dtype=np.float32).reshape(200, 100)})
    views = [
        entry,
        replace(entry, name="head"),
        replace(entry, name="row", shape=(100,), offset=entry.offset + 400, nbytes=400),
        replace(entry, name="turned", shape=(100, 200), stride=(1, 100)),
        replace(entry, name="every second", shape=(200, 50), stride=(100, 2), nbytes=79_996),
    ]
    _commit(folder, "shared", views, arena, {})


def _write(folder: Path, name: str, arrays: Arrays, dtypes: Mapping[str, str] | None = None, **fields: Any) -> None:
    entries, arena = stage(arrays, dict(dtypes or {}))
    if name == "lossy":
        entries = [replace(entry, original="float32") for entry in entries]
    _commit(folder, name, entries, arena, fields)


def _commit(folder: Path, name: str, entries: list[TensorEntry], arena: Any, fields: dict[str, Any]) -> None:
    leaves = {entry.name: Leaf() for entry in entries}
    indices = {id(leaf): index for index, leaf in enumerate(leaves.values())}
    state = {
        "model": leaves,
        "extra": {"step": 1 << 70, "rate": 0.1, 3: (None, True), "text": "\u00e9", "raw": b"\0\xff"},
    }
    tree = json.dumps(encode_tree(state, leaf=lambda value: indices.get(id(value))))
    base = fields.pop("base", None)
    given = {"timestamp": 1.5, "epoch": 0.25, "contents": ["model", "extra"], "tree": tree} | fields
    job = make_job(folder / f"{name}.milepost", entries, arena, **given)
    path = folder / f"{base}.milepost" if base else None
    commit(job, arena, threads=1, base=path, keep=1000)


if __name__ == "__main__":
    make(Path(sys.argv[1]))
