"""What of a checkpoint goes into an export, and how is it read when it is wanted?

From milepost's own format tensor by tensor, without torch, each verified by its digest. A state of a foreign format is
there as a whole before anything can be chosen from it.
"""

from __future__ import annotations

import json
import mmap
from bisect import bisect_right
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from milepost.checkpoint.codec import Bytes
from milepost.checkpoint.foreign import foreign_format
from milepost.checkpoint.job import SaveJob, TensorEntry
from milepost.checkpoint.listing import job_again
from milepost.checkpoint.naming import map_leaves
from milepost.checkpoint.plain_values import Node
from milepost.checkpoint.reading import CheckpointFile, open_checkpoint
from milepost.checkpoint.tree import decode_tree, encode_tree
from milepost.core.errors import CorruptDataError, NotFoundError

__all__ = ["ExportContent", "content_of"]

_LEFT_OUT = object()


class ExportContent:
    """What goes into the export: a job whose tensors are read when they are asked for.

    Attributes:
        job: Plain values, and tensors at addresses that only :meth:`bytes_of` understands.
    """

    def __init__(self, job: SaveJob, memory: CheckpointFile | memoryview) -> None:
        self.job = job
        self._memory = memory
        self._starts = [entry.offset for entry in job.tensors]

    def read(self, entry: TensorEntry) -> Bytes:
        """The bytes of a tensor as they lie in memory, verified."""
        if isinstance(self._memory, memoryview):
            return np.frombuffer(self._memory, np.uint8)[entry.offset : entry.offset + entry.nbytes]
        content = np.empty(entry.nbytes, np.uint8)
        self._memory.read_into(entry.name, content)
        return content

    def bytes_of(self, start: int, end: int) -> Bytes:
        """The bytes between two addresses, for the writer of milepost's own format."""
        if isinstance(self._memory, memoryview):
            return np.frombuffer(self._memory, np.uint8)[start:end]
        entry = self.job.tensors[bisect_right(self._starts, start) - 1]
        return self.read(entry)[start - entry.offset : end - entry.offset]


@contextmanager
def content_of(path: Path, patterns: Collection[str] | None, folder: Path) -> Iterator[ExportContent]:
    """The state in ``path``, or what of it matches ``patterns``; ``folder`` takes what is embedded in files."""
    if foreign_format(path) is not None:
        yield _of_foreign(path, patterns, folder)
        return
    with open_checkpoint(path) as file:
        tree, names = (file.tree, file.names) if patterns is None else _selected(file, patterns)
        job = replace(
            job_again(file.info, _parts_of(tree)),
            tree=json.dumps(tree, separators=(",", ":")),
            tensors=_entries(file, names),
            attempt=int(decode_tree(file.manifest.run, leaf=lambda index: index).get("attempt", 1)),
            side_files=_extracted(file, folder) if patterns is None else [],
        )
        yield ExportContent(replace(job, arena_bytes=sum(entry.nbytes for entry in job.tensors)), file)


def _parts_of(tree: Node) -> list[str]:
    flat = tree.get("dict", []) if isinstance(tree, dict) else []
    return [str(name) for name in flat[::2]]


def _entries(file: CheckpointFile, names: Sequence[str]) -> list[TensorEntry]:
    entries: list[TensorEntry] = []
    address = 0
    for storage, name in enumerate(names):
        stored = file.tensors[name]
        entry = TensorEntry(
            name=name,
            dtype=stored.dtype,
            shape=stored.shape,
            stride=stored.stride,
            offset=address,
            nbytes=stored.nbytes,
            storage=storage,
            original=stored.original,
        )
        entries.append(entry)
        address += max(stored.nbytes, 1)  # no two tensors begin at one address
    return entries


@dataclass(frozen=True, slots=True)
class _Leaf:
    """Stands for a tensor while it is decided which ones to take."""

    name: str


def _selected(file: CheckpointFile, patterns: Collection[str]) -> tuple[Node, list[str]]:
    """The part of the tree that matches, and the names of its tensors in the order of its leaves."""
    state = _decoded(file)
    kept = map_leaves(
        state,
        lambda name, leaf: leaf if any(fnmatchcase(name, pattern) for pattern in patterns) else _LEFT_OUT,
        without=_LEFT_OUT,
    )
    if kept is _LEFT_OUT:
        raise NotFoundError(f"nothing in {file.path} is called {' or '.join(patterns)}", cure="see the names in it")
    if "facts" in state:
        kept |= {"facts": state["facts"]}
    indices: dict[str, int] = {}

    def index(value: Any) -> int | None:
        inside = value.item() if isinstance(value, np.ndarray) and value.dtype.hasobject else value
        return indices.setdefault(inside.name, len(indices)) if isinstance(inside, _Leaf) else None

    return encode_tree(kept, leaf=index), list(indices)


def _decoded(file: CheckpointFile) -> dict[str, Any]:
    def leaf(index: int) -> _Leaf:
        if not 0 <= index < len(file.names):
            raise CorruptDataError(f"{file.path} refers to tensor {index}", cure="use another checkpoint")
        return _Leaf(file.names[index])

    state: dict[str, Any] = decode_tree(file.tree, leaf=leaf)
    return state


def _extracted(file: CheckpointFile, folder: Path) -> list[str]:
    """What other ranks had for themselves, as files, because that is how they are embedded."""
    paths = []
    for name in file.side_files:
        if Path(name).name != name or "\\" in name:
            raise CorruptDataError(f"{file.path} embeds a file called {name!r}", cure="use another checkpoint")
        (folder / name).write_bytes(file.read_side_file(name))
        paths.append(str(folder / name))
    return paths


def _of_foreign(path: Path, patterns: Collection[str] | None, folder: Path) -> ExportContent:
    """A state that torch gave as a whole, copied into one piece of memory."""
    from milepost.checkpoint.loading import load_state
    from milepost.checkpoint.snapshot import text_of

    loaded = load_state(path, patterns=patterns)
    if not loaded.state:
        raise NotFoundError(f"nothing in {path} is called {' or '.join(patterns or ())}", cure="see the names in it")
    ranks: Mapping[int, Any] = loaded.state.pop("ranks", {})
    side_files = []
    for rank, state in ranks.items():
        side = folder / f"export.rank{rank}"
        side.write_text(text_of(state), "utf-8", "surrogatepass")
        side_files.append(str(side))
    tree, entries, memory = _gathered(loaded.state)
    job = replace(
        job_again(loaded.info, list(loaded.state)),
        tree=tree,
        tensors=entries,
        arena_bytes=len(memory),
        side_files=side_files,
    )
    return ExportContent(job, memory)


def _gathered(state: dict[str, Any]) -> tuple[str, list[TensorEntry], memoryview]:
    """Tree, tensors and memory of a state whose tensors are there."""
    import torch

    from milepost.checkpoint.copying import Transfer, route
    from milepost.checkpoint.snapshot import outline

    outlined = outline(state)
    memory = mmap.mmap(-1, max(outlined.nbytes, 1))
    whole = torch.frombuffer(memory, dtype=torch.uint8)
    Transfer([route(piece, outlined.tensors, whole) for piece in outlined.pieces]).run(outlined.tensors)
    return outlined.tree, outlined.entries, memoryview(memory)
