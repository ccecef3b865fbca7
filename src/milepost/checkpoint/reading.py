"""What is in a checkpoint, and can every byte of it be trusted?

Needs NumPy, zstandard and xxhash only; torch is not imported. Any tensor can be read alone, many are read by all cores,
and each is decoded straight into memory that the caller owns. A file is never mapped: one that is cut while it is read
gives an error, not a signal.

**Invariants**: a tensor is returned, or its buffer declared filled, only after the checksums of its blocks and its own
digest were found right. What the file declares is checked before memory is allocated for it.

**On crash**: nothing is written here.
"""

from __future__ import annotations

import os
import stat
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import xxhash

from milepost.checkpoint.block_reader import BlockReader, damaged
from milepost.checkpoint.codec import BLOCK_BYTES, Bytes
from milepost.checkpoint.container import SIDE_FILE
from milepost.checkpoint.dtypes import DTYPES
from milepost.checkpoint.envelope import FIRST_BLOCK, HEADER_BYTES, TRAILER_BYTES, Trailer, check_header
from milepost.checkpoint.manifest import Manifest, StoredTensor, parse_manifest
from milepost.checkpoint.parallel import available_cores, share_out
from milepost.checkpoint.plain_values import Node
from milepost.checkpoint.tree import decode_tree
from milepost.core.errors import CorruptDataError, InvalidInputError, NotFoundError
from milepost.core.records import CheckpointInfo
from milepost.io.direct import drop_from_cache, read_fully
from milepost.io.durable import storage_error

__all__ = ["CheckpointFile", "open_checkpoint"]


@dataclass(frozen=True, slots=True)
class _Part:
    """What one tensor takes from one block: its bytes from ``start`` on, into ``out``."""

    tensor: StoredTensor
    start: int
    out: Bytes


class CheckpointFile:
    """An open checkpoint whose manifest was found sound. Close it, or use it in a ``with`` block.

    Attributes:
        path: The file.
        info: The checkpoint as listed.
        tensors: What it holds, by name: dtype, shape, stride.
        tree: The typed tree of its state; :func:`milepost.checkpoint.tree.decode_tree` turns it into values.
        names: Names of the tensors by the index that the tree uses.
        manifest: All that it says about itself.
    """

    def __init__(self, path: Path, fd: int, manifest: Manifest, size: int) -> None:
        self.path = path
        self.manifest = manifest
        self.info = _info(path, manifest, size)
        state = manifest.tensors[: len(manifest.tensors) - len(manifest.side_files)]
        self.tensors: Mapping[str, StoredTensor] = {tensor.name: tensor for tensor in state}
        self.names = tuple(self.tensors)
        self.tree: Node = manifest.tree
        self._fd = fd
        self._close = weakref.finalize(self, os.close, fd)

    def close(self) -> None:
        """Close the file; nothing can be read from it any more."""
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        """One tensor, as its dtype, or as unsigned integers of its width where NumPy has no such dtype.

        Raises:
            NotFoundError: There is no such tensor.
            CorruptDataError: It is damaged; the message names file, tensor and offset.
        """
        tensor = self._tensor(name)
        content = np.empty(tensor.nbytes, np.uint8)
        self._read({name: content}, threads=available_cores())
        return _shaped(tensor, content)

    def read_into(self, name: str, buffer: Any) -> None:
        """Read one tensor into memory.

        Args:
            name: Of the tensor.
            buffer: Writable contiguous memory of exactly the tensor's ``nbytes``; undefined after an error.

        Raises:
            NotFoundError: There is no such tensor.
            InvalidInputError: The memory does not fit.
            CorruptDataError: The tensor is damaged; the message names file, tensor and offset.
        """
        self.read_many_into({name: buffer})

    def read_many_into(self, buffers: Mapping[str, Any], *, threads: int | None = None) -> None:
        """Read tensors into memory, by all cores unless told otherwise. Raises as :meth:`read_into` does."""
        targets = {name: _writable(self._tensor(name), buffer) for name, buffer in buffers.items()}
        self._read(targets, threads=threads or available_cores())

    def read_all(self, *, threads: int | None = None) -> dict[str, npt.NDArray[Any]]:
        """All tensors. Raises as :meth:`__getitem__` does."""
        contents = {name: np.empty(tensor.nbytes, np.uint8) for name, tensor in self.tensors.items()}
        self._read(contents, threads=threads or available_cores())
        return {name: _shaped(self.tensors[name], content) for name, content in contents.items()}

    @property
    def side_files(self) -> tuple[str, ...]:
        """Names of the files embedded in it."""
        return tuple(name.removeprefix(SIDE_FILE) for name in self.manifest.side_files)

    def read_side_file(self, name: str) -> bytes:
        """The content of an embedded file. Raises as :meth:`__getitem__` does."""
        return self[SIDE_FILE + name].tobytes()

    def forget_cached(self) -> None:
        """Make what is read next come from the disk instead of the page cache, where the system can."""
        drop_from_cache(self._fd)

    def verify(self, *, threads: int | None = None) -> None:
        """Read and decode everything, in constant memory.

        Raises:
            CorruptDataError: Something is damaged; the message names file, tensor and offset.
            StorageError: The disk refuses.
        """
        windows: dict[int, list[StoredTensor]] = {}
        for tensor in self.manifest.tensors:
            windows.setdefault(tensor.region, []).append(tensor)

        def verify_shares(shares: Iterator[tuple[int, list[StoredTensor]]]) -> None:
            reader = BlockReader(self._fd, str(self.path))
            for region, tensors in shares:
                self._verify_region(reader, region, tensors)

        share_out(list(windows.items()), verify_shares, threads=threads or available_cores())

    def _verify_region(self, reader: BlockReader, index: int, tensors: list[StoredTensor]) -> None:
        region = self.manifest.regions[index]
        hashers = [xxhash.xxh3_128() for _ in tensors]
        for block in range(len(region.blocks)):
            start = block * BLOCK_BYTES
            owner = next((t.name for t in tensors if t.offset + t.nbytes > start), tensors[0].name)
            content = reader.read(region, block, owner)
            for tensor, hasher in zip(tensors, hashers, strict=True):
                first, last = max(tensor.offset - start, 0), tensor.offset + tensor.nbytes - start
                if last > first:
                    hasher.update(content[first:last].data)
        for tensor, hasher in zip(tensors, hashers, strict=True):
            self._check_digest(tensor, hasher.intdigest())

    def _check_digest(self, tensor: StoredTensor, digest: int) -> None:
        if digest != tensor.digest:
            blocks = self.manifest.regions[tensor.region].blocks
            offset = blocks[tensor.offset // BLOCK_BYTES].offset if tensor.nbytes else 0
            raise damaged(str(self.path), tensor.name, offset, "its digest is wrong")

    def _tensor(self, name: str) -> StoredTensor:
        tensor = self.tensors.get(name)
        if tensor is None:
            tensor = next((t for t in self.manifest.tensors if t.name == name), None)
        if tensor is None:
            raise NotFoundError(f"no tensor {name!r} in {self.path}", cure="its names are the keys of .tensors")
        return tensor

    def _read(self, targets: Mapping[str, Bytes], *, threads: int) -> None:
        """Fill ``targets``. A block that several tensors share is decoded once."""
        pairs = [(self._tensor(name), out) for name, out in targets.items()]
        parts: dict[tuple[int, int], list[_Part]] = {}
        for tensor, out in pairs:
            for index, part in _parts_of(tensor, out):
                parts.setdefault((tensor.region, index), []).append(part)
        regions = self.manifest.regions
        in_file_order = sorted(parts.items(), key=lambda item: regions[item[0][0]].blocks[item[0][1]].offset)
        share_out(in_file_order, self._read_shares, threads=threads)

        def check_shares(shares: Iterator[tuple[StoredTensor, Bytes]]) -> None:
            for tensor, out in shares:
                self._check_digest(tensor, xxhash.xxh3_128_intdigest(out.data))

        share_out(pairs, check_shares, threads=threads)

    def _read_shares(self, shares: Iterator[tuple[tuple[int, int], list[_Part]]]) -> None:
        reader = BlockReader(self._fd, str(self.path))
        for (region_index, index), parts in shares:
            region = self.manifest.regions[region_index]
            first = parts[0]
            if len(parts) == 1 and len(first.out) == region.block_bytes(index):
                reader.read_into(region, index, first.tensor.name, first.out)
                continue
            content = reader.read(region, index, first.tensor.name)
            for part in parts:
                np.copyto(part.out, content[part.start : part.start + len(part.out)])


def _parts_of(tensor: StoredTensor, out: Bytes) -> Iterator[tuple[int, _Part]]:
    position, end = tensor.offset, tensor.offset + tensor.nbytes
    while position < end:
        index, start = divmod(position, BLOCK_BYTES)
        length = min(BLOCK_BYTES - start, end - position)
        done = position - tensor.offset
        yield index, _Part(tensor, start, out[done : done + length])
        position += length


def _shaped(tensor: StoredTensor, content: Bytes) -> npt.NDArray[Any]:
    values = content.view(DTYPES[tensor.dtype].numpy)
    if tensor.stride is None or not values.size:
        return values.reshape(tensor.shape)
    strides = tuple(step * values.itemsize for step in tensor.stride)
    return np.lib.stride_tricks.as_strided(values, tensor.shape, strides)


def _writable(tensor: StoredTensor, buffer: Any) -> Bytes:
    memory = memoryview(buffer)
    if memory.readonly or not memory.contiguous or memory.nbytes != tensor.nbytes:
        what = f"the tensor {tensor.name!r} needs {tensor.nbytes} bytes of writable contiguous memory"
        raise InvalidInputError(f"{what}, not {memory.nbytes}", cure="pass a buffer of that size")
    return np.frombuffer(memory, np.uint8) if memory.nbytes else np.empty(0, np.uint8)


def open_checkpoint(path: str | os.PathLike[str]) -> CheckpointFile:
    """Open a checkpoint of milepost's own format.

    Raises:
        NotFoundError: There is no such file.
        CorruptDataError: It is no checkpoint, a later version (``kind`` is ``"unknown-version"``), or damaged.
        StorageError: The disk refuses.
    """
    path = Path(path).absolute()
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise CorruptDataError(f"{path}: it is no file", cure="name a checkpoint file")
        fd = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    except FileNotFoundError:
        raise NotFoundError(f"no checkpoint {str(path)!r}", cure="check the path") from None
    except OSError as error:
        raise storage_error(error, "opening", path) from error
    try:
        size = os.fstat(fd).st_size
        return CheckpointFile(path, fd, _read_manifest(fd, size), size)
    except CorruptDataError as error:
        os.close(fd)
        raise CorruptDataError(f"{path}: {error.what}", cure=error.cure, kind=error.kind) from None
    except OSError as error:
        os.close(fd)
        raise storage_error(error, "reading", path) from error


def _read_manifest(fd: int, size: int) -> Manifest:
    if size < FIRST_BLOCK + TRAILER_BYTES:
        raise CorruptDataError(f"{size} bytes are too few for a checkpoint", cure="load another checkpoint")
    check_header(_read_at(fd, 0, HEADER_BYTES))
    trailer = Trailer.unpack(_read_at(fd, size - TRAILER_BYTES, TRAILER_BYTES), size)
    text = _read_at(fd, trailer.manifest_offset, trailer.manifest_bytes)
    if xxhash.xxh3_128_digest(text) != trailer.manifest_digest:
        offset = trailer.manifest_offset
        raise CorruptDataError(f"the manifest is damaged at offset {offset}", cure="load another checkpoint")
    return parse_manifest(text, first=FIRST_BLOCK, end=trailer.manifest_offset)


def _read_at(fd: int, offset: int, length: int) -> bytes:
    buffer = bytearray(length)
    with memoryview(buffer) as view:
        return bytes(buffer[: read_fully(fd, view, offset)])


def _info(path: Path, manifest: Manifest, size: int) -> CheckpointInfo:
    facts = decode_tree(manifest.run, leaf=lambda index: index)
    count = len(manifest.tensors) - len(manifest.side_files)
    regions = {tensor.region for tensor in manifest.tensors[:count]}
    try:
        return CheckpointInfo(
            filename=path.name,
            path=path,
            experiment_id=str(facts["experiment_id"]),
            step=int(facts["step"]),
            epoch=facts["epoch"],
            metrics=dict(facts["metrics"]),
            is_best=bool(facts["is_best"]),
            timestamp=float(facts["timestamp"]),
            size=size,
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
