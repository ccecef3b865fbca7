"""How does a checkpoint that needs another file, or holds more than is wanted, become one that stands for itself?

It is written anew from its own tensors, one storage at a time, and takes the place of the old file by one rename. Torch
is not needed.

**Invariants**: the new file is synced, read back, and every tensor in it found to have the digest that it had before,
before it takes the name. Values, names, facts of the run and what shares memory stay.

**On crash**: the old file or the new one has the name; beside it a temporary ``.<name>.tmp`` may stay, which the next
save removes.
"""

from __future__ import annotations

import json
import os
from bisect import bisect_right
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from milepost.checkpoint.block_source import BlockSource
from milepost.checkpoint.codec import RAW, Bytes
from milepost.checkpoint.container import write_container
from milepost.checkpoint.job import SaveJob, TensorEntry
from milepost.checkpoint.listing import job_again
from milepost.checkpoint.manifest import StoredTensor
from milepost.checkpoint.parallel import available_cores
from milepost.checkpoint.plain_values import Node
from milepost.checkpoint.reading import CheckpointFile, open_checkpoint
from milepost.checkpoint.tensor_reader import TensorReader
from milepost.checkpoint.tree import decode_tree
from milepost.core.errors import ConflictError, CorruptDataError, InvalidInputError, StorageError
from milepost.core.records import CheckpointInfo
from milepost.io.direct import NewFile, remove_if_abandoned
from milepost.io.durable import fsync_directory, storage_error

__all__ = ["keep_weights_only", "rewrite_alone"]

_WEIGHTS = ("model", "facts")
_ANOTHER = "use another checkpoint"


def rewrite_alone(path: str | os.PathLike[str]) -> CheckpointInfo:
    """Replace a checkpoint by the same content without a base; one that loads alone is left as it is.

    It must not be the base of others: they know it by its digest.

    Raises:
        NotFoundError: It, or its base, is not there.
        CorruptDataError: It, or its base, is damaged.
        StorageError: The disk refuses. The old file is whole after every error.
        ConflictError: Another process is rewriting it.
    """
    with open_checkpoint(path) as file:
        return file.info if file.manifest.base is None else _rewrite(file, _Kept.everything(file))


def keep_weights_only(path: str | os.PathLike[str]) -> CheckpointInfo:
    """Replace a checkpoint by one that loads alone and holds only the model and the facts of its run.

    Raises:
        InvalidInputError: It holds no model.
        ConflictError, CorruptDataError, NotFoundError, StorageError: As :func:`rewrite_alone`.
    """
    with open_checkpoint(path) as file:
        if file.manifest.base is None and file.info.contents == ("model",) and not file.side_files:
            return file.info
        return _rewrite(file, _Kept.weights(file))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kept:
    """What of a file goes into the new one: tree, tensors in the order of its leaves, and what is said of them."""

    tree: Node
    tensors: tuple[StoredTensor, ...]
    contents: tuple[str, ...]
    side_files: tuple[str, ...] = ()

    @classmethod
    def everything(cls, file: CheckpointFile) -> _Kept:
        return cls(
            tree=file.tree,
            tensors=tuple(file.tensors.values()),
            contents=file.info.contents,
            side_files=file.side_files,
        )

    @classmethod
    def weights(cls, file: CheckpointFile) -> _Kept:
        indices: dict[int, int] = {}
        tree = _renumbered(_parts(file, _WEIGHTS), indices)
        if not all(0 <= index < len(file.names) for index in indices):
            raise CorruptDataError(f"{file.path} refers to tensors that it does not hold", cure=_ANOTHER)
        tensors = tuple(file.tensors[file.names[index]] for index in indices)
        return cls(tree=tree, tensors=tensors, contents=("model",))


def _parts(file: CheckpointFile, wanted: Collection[str]) -> Node:
    """The typed tree of a state with only some of its parts."""
    flat = file.tree.get("dict") if isinstance(file.tree, dict) else None
    if not isinstance(flat, list) or "model" not in flat[::2]:
        raise InvalidInputError(f"{file.path} holds no model", cure="cut down only checkpoints of a training")
    kept = [pair for pair in zip(flat[::2], flat[1::2], strict=True) if pair[0] in wanted]
    return {"dict": [node for pair in kept for node in pair]}


def _renumbered(node: Node, indices: dict[int, int]) -> Node:
    """The tree with its leaves counted from 0 on; ``indices`` gets the old ones in the new order."""
    if isinstance(node, list):
        return [_renumbered(part, indices) for part in node]
    if not isinstance(node, dict):
        return node
    return {
        tag: indices.setdefault(content, len(indices))
        if tag in {"leaf", "array_leaf"} and isinstance(content, int)
        else _renumbered(content, indices)
        for tag, content in node.items()
    }


class _Storages:
    """The storages of an open file as memory with addresses, read when asked for.

    Attributes:
        entries: The tensors at their addresses.
        nbytes: Addresses in all.
    """

    def __init__(self, path: Path, tensors: Sequence[StoredTensor]) -> None:
        self._source = BlockSource(path)
        self._reader = TensorReader(self._source)
        self._starts: list[int] = []
        self._windows: list[StoredTensor] = []
        self.nbytes = 0
        entries: dict[str, TensorEntry] = {}
        for storage, inside in enumerate(_overlapping(tensors)):
            start = self._place(inside)
            for tensor in inside:
                entries[tensor.name] = _entry(tensor, start + tensor.offset - inside[0].offset, storage)
        self.entries = [entries[tensor.name] for tensor in tensors]

    def close(self) -> None:
        self._source.close()

    def bytes_of(self, start: int, end: int) -> Bytes:
        """The bytes between two addresses of one storage."""
        index = bisect_right(self._starts, start) - 1
        content = np.empty(end - start, np.uint8)
        self._reader.fill_part(self._windows[index], start - self._starts[index], content)
        return content

    def _place(self, inside: list[StoredTensor]) -> int:
        first, end = inside[0], max(tensor.offset + tensor.nbytes for tensor in inside)
        start = self.nbytes
        self._starts.append(start)
        self._windows.append(replace(first, nbytes=end - first.offset))
        self.nbytes += max(end - first.offset, 1)  # no two storages begin at one address
        return start


def _overlapping(tensors: Sequence[StoredTensor]) -> list[list[StoredTensor]]:
    """Tensors that share bytes of a region together, each group by offset."""
    groups: list[list[StoredTensor]] = []
    region, end = -1, 0
    for tensor in sorted(tensors, key=lambda t: (t.region, t.offset, -t.nbytes)):
        if groups and tensor.region == region and tensor.offset < end:
            groups[-1].append(tensor)
        else:
            groups.append([tensor])
            region, end = tensor.region, 0
        end = max(end, tensor.offset + tensor.nbytes)
    return groups


def _entry(tensor: StoredTensor, address: int, storage: int) -> TensorEntry:
    return TensorEntry(
        name=tensor.name,
        dtype=tensor.dtype,
        shape=tensor.shape,
        stride=tensor.stride,
        offset=address,
        nbytes=tensor.nbytes,
        storage=storage,
        original=tensor.original,
    )


def _rewrite(file: CheckpointFile, kept: _Kept) -> CheckpointInfo:
    """Write what is kept beside the file, compare, and let it take the name."""
    path = file.path
    temporary = path.with_name(f".{path.name}.tmp")
    remove_if_abandoned(str(temporary))
    storages = _Storages(path, kept.tensors)
    try:
        with TemporaryDirectory() as folder, NewFile(str(temporary)) as new:
            job = _job(file, kept, storages, _extracted(file, kept.side_files, Path(folder)))
            written = write_container(new, job, storages, threads=available_cores())
            new.finish(written.size)
            info = _compared(temporary, file)
            os.replace(temporary, path)
    except FileExistsError:
        raise ConflictError(f"{path} is being rewritten", cure="wait until that has ended") from None
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError) and not isinstance(error, StorageError):
            raise storage_error(error, "rewriting", path) from error
        raise
    finally:
        storages.close()
    fsync_directory(path.parent)
    return replace(info, filename=path.name, path=path)


def _job(file: CheckpointFile, kept: _Kept, storages: _Storages, side_files: list[str]) -> SaveJob:
    info = file.info
    blocks = (block for region in file.manifest.regions for block in region.blocks)
    return replace(
        job_again(info, kept.contents),
        path=str(file.path),
        compression=any(block.encoded.encoding != RAW for block in blocks),
        tree=json.dumps(kept.tree),
        tensors=storages.entries,
        arena_bytes=storages.nbytes,
        side_files=side_files,
        attempt=int(decode_tree(file.manifest.run, leaf=lambda index: index).get("attempt", 1)),
    )


def _extracted(file: CheckpointFile, names: Collection[str], folder: Path) -> list[str]:
    """Embedded files as files, because that is how they are embedded."""
    paths = []
    for name in names:
        if Path(name).name != name or "\\" in name:
            raise CorruptDataError(f"{file.path} embeds a file called {name!r}, which is no plain name", cure=_ANOTHER)
        (folder / name).write_bytes(file.read_side_file(name))
        paths.append(str(folder / name))
    return paths


def _compared(temporary: Path, original: CheckpointFile) -> CheckpointInfo:
    """Read the new file from the disk; its tensors must be those of the original."""
    with open_checkpoint(temporary) as new:
        new.forget_cached()
        new.verify()
        before = {tensor.name: (tensor.digest, tensor.shape) for tensor in original.manifest.tensors}
        for tensor in new.manifest.tensors:
            if before.get(tensor.name) != (tensor.digest, tensor.shape):
                what = f"{original.path}: the tensor {tensor.name!r} was read differently from what was saved"
                raise CorruptDataError(what, cure="check the memory of this machine; the file was left as it is")
        return new.info
