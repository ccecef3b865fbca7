"""Snapshots as the trainer would stage them, made from NumPy arrays."""

from __future__ import annotations

import json
import mmap
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from milepost.checkpoint.commit import commit
from milepost.checkpoint.job import SaveJob, TensorEntry
from milepost.checkpoint.tree import encode_tree

LARGE = 64 << 10


def stage(
    arrays: dict[str, np.ndarray[Any, Any]], dtypes: dict[str, str] | None = None
) -> tuple[list[TensorEntry], Any]:
    """Entries and arena of contiguous arrays; ``dtypes`` names those that are not NumPy's own."""
    entries, offset = [], 0
    for storage, (name, array) in enumerate(arrays.items()):
        alignment = 4096 if array.nbytes >= LARGE else 64
        offset = -(-offset // alignment) * alignment
        dtype = (dtypes or {}).get(name, array.dtype.name)
        entry = TensorEntry(
            name=name, dtype=dtype, shape=array.shape, offset=offset, nbytes=array.nbytes, storage=storage
        )
        entries.append(entry)
        offset += array.nbytes
    arena = memoryview(mmap.mmap(-1, max(offset, 1)))
    for entry, array in zip(entries, arrays.values(), strict=True):
        arena[entry.offset : entry.offset + entry.nbytes] = array.tobytes()
    return entries, arena


def make_job(path: Path, entries: list[TensorEntry], arena: Any, **fields: Any) -> SaveJob:
    """A job for these entries with an otherwise small content."""
    given: dict[str, Any] = {
        "experiment_id": "bert-1",
        "step": 700,
        "tree": json.dumps(encode_tree({"weights": list(range(len(entries)))}, leaf=lambda _: None)),
        "metrics": {"loss": 0.5},
    }
    return SaveJob(path=str(path), tensors=entries, arena_bytes=len(arena), **(given | fields))


def save(path: Path, arrays: dict[str, np.ndarray[Any, Any]], **fields: Any) -> Path:
    """Commit a checkpoint of ``arrays`` and return its path."""
    entries, arena = stage(arrays, fields.pop("dtypes", None))
    commit(make_job(path, entries, arena, **fields), arena)
    return path


def run_python(code: str, *arguments: str, launcher: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter that imports from where this one does."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[3]), *sys.path])}
    command = [*launcher, sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
