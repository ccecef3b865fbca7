"""What is in a checkpoint, and can every byte of it be trusted?

Needs NumPy, zstandard and xxhash only; torch is not imported. Any tensor can be read alone, part of it alone, and many
by all cores, each decoded straight into memory that the caller owns. No file is mapped unless asked for by name: one
that is cut while it is read gives an error, not a signal.

**Invariants**: a tensor is returned, or its buffer declared filled, only after the checksums of its blocks and its own
digest were found right (for a part of one: the checksums). What the file declares is checked before memory is allocated
for it, and the file it holds differences to before memory is written.

**On crash**: nothing is written here, not even what a copy could mend.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import xxhash

from milepost.checkpoint.block_reader import BlockReader
from milepost.checkpoint.block_source import BlockSource
from milepost.checkpoint.codec import BLOCK_BYTES, RAW, Bytes
from milepost.checkpoint.container import SIDE_FILE
from milepost.checkpoint.dtypes import DTYPES
from milepost.checkpoint.manifest import StoredTensor
from milepost.checkpoint.parallel import available_cores
from milepost.checkpoint.plain_values import Node
from milepost.checkpoint.stored_array import StoredArray, shaped
from milepost.checkpoint.tensor_reader import TensorReader
from milepost.checkpoint.tree import decode_tree
from milepost.core.errors import CorruptDataError, InvalidInputError, NotFoundError
from milepost.core.records import CheckpointInfo
from milepost.io.direct import drop_from_cache
from milepost.io.durable import storage_error

__all__ = ["CheckpointFile", "open_checkpoint"]


class CheckpointFile:
    """An open checkpoint whose manifest was found sound. Close it, or use it in a ``with`` block.

    Attributes:
        path: The file.
        info: The checkpoint as listed.
        tensors: What it holds, by name: dtype, shape, stride.
        tree: The typed tree of its state; :func:`milepost.checkpoint.tree.decode_tree` turns it into values.
        names: Names of the tensors by the index that the tree uses.
        manifest: All that it says about itself.
        manifest_digest: xxh3_128 of the manifest's text: what a file of differences knows its base by.
        mended: Damage that copies made good so far, one sentence each.
    """

    def __init__(self, source: BlockSource) -> None:
        manifest = source.manifest
        self.path = source.path
        self.manifest = manifest
        self.manifest_digest = source.manifest_digest
        self.info = _info(source)
        state = manifest.tensors[: len(manifest.tensors) - len(manifest.side_files)]
        self.tensors: Mapping[str, StoredTensor] = {tensor.name: tensor for tensor in state}
        self.names = tuple(self.tensors)
        self.tree: Node = manifest.tree
        self.mended = source.mended
        self._source = source
        self._tensors = TensorReader(source)

    def close(self) -> None:
        """Close the file; nothing can be read from it any more."""
        self._source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    def __getitem__(self, name: str) -> StoredArray:
        """One tensor, not read yet: ``file[name][:10]`` reads what it needs, ``file[name].numpy()`` all of it.

        Raises:
            NotFoundError: There is no such tensor.
        """
        return StoredArray(self._tensor(name), self._read_part)

    def read_into(self, name: str, buffer: Any) -> None:
        """Read one tensor into memory.

        Args:
            name: Of the tensor.
            buffer: Writable contiguous memory of exactly the tensor's ``nbytes``; undefined after an error.

        Raises:
            NotFoundError: There is no such tensor, or no such file as it is stored as differences to.
            InvalidInputError: The memory does not fit.
            CorruptDataError: The tensor is damaged; the message names file, tensor and offset.
        """
        self.read_many_into({name: buffer})

    def read_many_into(self, buffers: Mapping[str, Any], *, threads: int | None = None) -> None:
        """Read tensors into memory, by all cores unless told otherwise. Raises as :meth:`read_into` does.

        Everything that can be known without decoding (names, lengths, the base) is checked before memory is written.
        """
        tensors = [self._tensor(name) for name in buffers]
        targets = [(tensor, _writable(tensor, buffers[tensor.name])) for tensor in tensors]
        self._source.open_base_of(tensors)
        self._tensors.fill(targets, threads=threads or available_cores())

    def read_all(self, *, threads: int | None = None) -> dict[str, npt.NDArray[Any]]:
        """All tensors. Raises as :meth:`read_into` does."""
        self._source.open_base_of(self.tensors.values())
        targets = [(tensor, np.empty(tensor.nbytes, np.uint8)) for tensor in self.tensors.values()]
        self._tensors.fill(targets, threads=threads or available_cores())
        return {tensor.name: shaped(tensor, content) for tensor, content in targets}

    def mapped(self, name: str) -> npt.NDArray[Any]:
        """A read-only view of a tensor in the file itself, its digest checked now: no memory of its own.

        The file must stay as it is while the array is in use: reading from a file that was cut ends the process.

        Raises:
            NotFoundError: There is no such tensor.
            InvalidInputError: It does not lie in the file as one piece; the message says why, and what to do.
            CorruptDataError: It is damaged; the message names file, tensor and offset.
        """
        tensor = self._tensor(name)
        start = self._place_in_file(tensor)
        if not tensor.nbytes:
            return np.empty(tensor.shape, DTYPES[tensor.dtype].numpy)
        page = start - start % mmap.ALLOCATIONGRANULARITY
        file = self._source.files[0]
        try:
            # private: who gets around the flag below writes to memory, neither to the file nor into a signal
            memory = mmap.mmap(file.fd, start - page + tensor.nbytes, access=mmap.ACCESS_COPY, offset=page)
        except OSError as error:
            raise storage_error(error, "mapping", file.path) from error
        content = np.frombuffer(memory, np.uint8, tensor.nbytes, start - page)
        content.flags.writeable = False
        self._tensors.check_digest(tensor, xxhash.xxh3_128_intdigest(content.data))
        return shaped(tensor, content)

    @property
    def base(self) -> CheckpointFile | None:
        """The file beside it that it holds differences to, opened and checked; None if it loads alone.

        Raises:
            NotFoundError: It is not there.
            CorruptDataError: It is damaged, or not the file that it was.
            StorageError: The disk refuses.
        """
        return CheckpointFile(self._source.base()) if self.manifest.base is not None else None

    @property
    def side_files(self) -> tuple[str, ...]:
        """Names of the files embedded in it."""
        return tuple(name.removeprefix(SIDE_FILE) for name in self.manifest.side_files)

    def read_side_file(self, name: str) -> bytes:
        """The content of an embedded file. Raises as :meth:`read_into` does."""
        return self[SIDE_FILE + name].numpy().tobytes()

    def reader(self) -> BlockReader:
        """A reader of single blocks, for one thread."""
        return self._source.reader()

    def forget_cached(self) -> None:
        """Make what is read next come from the disk instead of the page cache, where the system can."""
        for file in self._source.files:
            drop_from_cache(file.fd)

    def verify(self, *, threads: int | None = None) -> None:
        """Read and decode everything, in constant memory.

        Raises:
            CorruptDataError: Something is damaged; the message names file, tensor and offset.
            NotFoundError: The file that it holds differences to is not there.
            StorageError: The disk refuses.
        """
        self._source.open_base_of(self.manifest.tensors)
        self._tensors.verify(self.manifest.tensors, threads=threads or available_cores())

    def _tensor(self, name: str) -> StoredTensor:
        tensor = self.tensors.get(name)
        if tensor is None:
            tensor = next((t for t in self.manifest.tensors if t.name == name), None)
        if tensor is None:
            raise NotFoundError(f"no tensor {name!r} in {self.path}", cure="its names are the keys of .tensors")
        return tensor

    def _read_part(self, tensor: StoredTensor, start: int, out: Bytes) -> None:
        if len(out) == tensor.nbytes:
            self._tensors.fill([(tensor, out)], threads=available_cores())
        else:
            self._tensors.fill_part(tensor, start, out)

    def _place_in_file(self, tensor: StoredTensor) -> int:
        """Offset in the file of a tensor whose bytes lie there as they are, in order and without a gap."""
        blocks = self._source.blocks_of(tensor)
        what = f"the tensor {tensor.name!r} of {self.path} cannot be mapped"
        if tensor.stride is not None:
            raise InvalidInputError(f"{what}: its elements are not in C order", cure="read it instead")
        if any(block.encoded.encoding != RAW for block in blocks):
            cure = "read it instead, or save with compression=False what is to be mapped"
            raise InvalidInputError(f"{what}: it is compressed", cure=cure)
        if any(block.end != after.offset for block, after in pairwise(blocks)):
            raise InvalidInputError(f"{what}: its blocks are not side by side", cure="read it instead")
        return blocks[0].offset + tensor.offset % BLOCK_BYTES if blocks else 0


def _writable(tensor: StoredTensor, buffer: Any) -> Bytes:
    memory = memoryview(buffer)
    if memory.readonly or not memory.contiguous or memory.nbytes != tensor.nbytes:
        what = f"the tensor {tensor.name!r} needs {tensor.nbytes} bytes of writable contiguous memory"
        raise InvalidInputError(f"{what}, not {memory.nbytes}", cure="pass a buffer of that size")
    return np.frombuffer(memory, np.uint8) if memory.nbytes else np.empty(0, np.uint8)


def open_checkpoint(path: str | os.PathLike[str], *, copies: Sequence[str | os.PathLike[str]] = ()) -> CheckpointFile:
    """Open a checkpoint of milepost's own format.

    Args:
        path: The file.
        copies: Folders with a second copy of it (and of the file it holds differences to), under the same name. What is
            damaged or missing is taken from there, and said in ``mended``; nothing is written.

    Raises:
        NotFoundError: There is no such file.
        CorruptDataError: It is no checkpoint, a later version (``kind`` is ``"unknown-version"``), or damaged.
        StorageError: The disk refuses.
    """
    source = BlockSource(Path(path).absolute(), [Path(folder).absolute() for folder in copies])
    try:
        return CheckpointFile(source)
    except CorruptDataError as error:
        source.close()
        raise CorruptDataError(f"{source.path}: {error.what}", cure=error.cure, kind=error.kind) from None


def _info(source: BlockSource) -> CheckpointInfo:
    manifest = source.manifest
    facts = decode_tree(manifest.run, leaf=lambda index: index)
    count = len(manifest.tensors) - len(manifest.side_files)
    regions = {tensor.region for tensor in manifest.tensors[:count]}
    try:
        return CheckpointInfo(
            filename=source.path.name,
            path=source.path,
            experiment_id=str(facts["experiment_id"]),
            step=int(facts["step"]),
            epoch=facts["epoch"],
            metrics=dict(facts["metrics"]),
            is_best=bool(facts["is_best"]),
            timestamp=float(facts["timestamp"]),
            size=source.size,
            state_bytes=sum(manifest.regions[index].nbytes for index in regions),
            pinned=bool(facts["pinned"]),
            stall_ms=float(facts["stall_ms"]),
            wait_ms=float(facts["wait_ms"]),
            contents=tuple(facts["contents"]),
            base=manifest.base.filename if manifest.base is not None else "",
            include=str(facts["include"]),
            lossy=str(facts["lossy"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptDataError(
            f"the facts of the run are incomplete ({error})", cure="load another checkpoint"
        ) from None
