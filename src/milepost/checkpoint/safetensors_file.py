"""What is in a ``.safetensors`` file, without the package of that name?

The format (huggingface/safetensors, README): eight bytes with the length of a JSON header, the header with name, dtype,
shape and offsets of each tensor and a map of texts, then the tensors, contiguous and without gaps.

The model's tensors keep their own names, so that any reader of the format finds the weights where it expects them;
tensors of other parts are called ``optimizer.state...``. milepost's tree is a text under the key ``milepost``.

**Invariant**: what the header declares is checked against the length of the file before memory is allocated for it: the
tensors cover the file without gap or overlap, no name stands twice.
"""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np

from milepost.checkpoint.codec import Bytes
from milepost.checkpoint.dtypes import DTYPES
from milepost.checkpoint.job import TensorEntry
from milepost.checkpoint.manifest import StoredTensor
from milepost.checkpoint.parallel import available_cores, share_out
from milepost.core.errors import CorruptDataError, InvalidInputError, NotFoundError
from milepost.io.direct import read_fully
from milepost.io.durable import storage_error

__all__ = ["SafetensorsFile", "write", "write_named"]

_LONGEST_HEADER = 100_000_000
_LARGEST = 1 << 62
_MOST_DIMENSIONS = 64
_PIECE = 4 << 20
_CODES = {
    "bool": "BOOL",
    "uint8": "U8",
    "int8": "I8",
    "uint16": "U16",
    "int16": "I16",
    "float16": "F16",
    "bfloat16": "BF16",
    "uint32": "U32",
    "int32": "I32",
    "float32": "F32",
    "uint64": "U64",
    "int64": "I64",
    "float64": "F64",
    "complex64": "C64",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "float8_e8m0fnu": "F8_E8M0",
}
_NAMES = {code: name for name, code in _CODES.items()}


def write(
    file: BinaryIO, entries: Sequence[TensorEntry], read: Callable[[TensorEntry], Bytes], own: dict[str, Any]
) -> None:
    """Write the tensors of a state and milepost's own texts.

    Args:
        file: Open for writing, at its beginning.
        entries: The tensors.
        read: Gives the bytes of one as they lie in memory; asked for one after the other.
        own: What milepost needs to restore exactly.

    Raises:
        InvalidInputError: The format has no word for a dtype.
    """
    names = _file_names(entries)
    texts = {"format": "pt", "milepost": json.dumps(own | {"order": names, "names": [entry.name for entry in entries]})}
    write_named(file, dict(zip(names, entries, strict=True)), read, texts)


def write_named(
    file: BinaryIO,
    tensors: Mapping[str, TensorEntry],
    read: Callable[[TensorEntry], Bytes],
    metadata: Mapping[str, str],
) -> None:
    """Write tensors under the names given, and texts. Raises as :func:`write` does."""
    file.write(_header_text({name: (entry.dtype, entry.shape) for name, entry in tensors.items()}, metadata))
    file.writelines(_contiguous(entry, read(entry)) for entry in tensors.values())


def _header_text(tensors: Mapping[str, tuple[str, Sequence[int]]], metadata: Mapping[str, str]) -> bytes:
    """What stands before the tensors of a file, which follow in this order without gaps.

    Args:
        tensors: dtype and shape by name.
        metadata: Texts.

    Raises:
        InvalidInputError: The format has no word for a dtype.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, (dtype, shape) in tensors.items():
        if dtype not in _CODES:
            raise InvalidInputError(
                f"{name}: safetensors cannot hold a tensor of {dtype}", cure='use the format "milepost" or "pt"'
            )
        start, end = end, end + math.prod(shape) * DTYPES[dtype].itemsize
        header[name] = {"dtype": _CODES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _file_names(entries: Sequence[TensorEntry]) -> list[str]:
    taken: set[str] = set()
    names = []
    for entry in entries:
        name = entry.name.removeprefix("model.")
        if name in taken or name == "__metadata__":
            name = entry.name
        taken.add(name)
        names.append(name)
    return names


def _contiguous(entry: TensorEntry, content: Bytes) -> memoryview | bytes:
    if entry.stride is None or not entry.nbytes:
        return content.data
    dtype = DTYPES[entry.dtype].numpy
    strides = tuple(step * dtype.itemsize for step in entry.stride)
    return np.ndarray(entry.shape, dtype, buffer=content, strides=strides).tobytes()


class SafetensorsFile:
    """One file, or the shards of one model, opened; its tensors are read by all cores into memory of the caller.

    Attributes:
        path: The file, or the first shard.
        tensors: Descriptions by the names in the file; ``region`` counts the shard, ``offset`` is that in its file.
        metadata: The texts in the headers.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.path = paths[0]
        self.tensors: dict[str, StoredTensor] = {}
        self.metadata: dict[str, str] = {}
        self._paths = tuple(paths)
        self._fds: list[int] = []
        self._undo = ExitStack()
        try:
            for shard, path in enumerate(paths):
                self._open(shard, path)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the files."""
        self._undo.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    def _open(self, shard: int, path: Path) -> None:
        try:
            file = self._undo.enter_context(open(path, "rb"))  # noqa: SIM115  # closed with the others
            self._fds.append(file.fileno())
            header, first = _header(file)
            self.metadata |= _metadata(header.pop("__metadata__", {}))
            tensors = _tensors(header, shard, first, os.fstat(file.fileno()).st_size)
        except FileNotFoundError:
            raise NotFoundError(f"no file {str(path)!r}", cure="check the path") from None
        except OSError as error:
            raise storage_error(error, "reading", path) from error
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise _damaged(path, str(error)) from None
        if tensors.keys() & self.tensors.keys():
            raise _damaged(path, f"the tensor {min(tensors.keys() & self.tensors.keys())!r} is in another shard too")
        self.tensors |= tensors

    def rename(self, names: Sequence[str], stored: Sequence[str], original: Mapping[str, str]) -> None:
        """Describe the tensors ``names`` of the file as ``stored``, in this order; others are left out.

        Args:
            names: In the file.
            stored: As in a checkpoint.
            original: The dtype that some had before a lossy setting, by their number in the order.

        Raises:
            CorruptDataError: There is no such tensor.
        """
        try:
            if not all(dtype in DTYPES for dtype in original.values()):
                raise ValueError("a dtype is unknown")  # noqa: TRY301  # damage like the others
            self.tensors = {
                new: replace(self.tensors[name], name=new, original=original.get(str(number)))
                for number, (name, new) in enumerate(zip(names, stored, strict=True))
            }
        except (KeyError, ValueError) as error:
            raise _damaged(self.path, f"what milepost wrote about it does not fit ({error})") from None

    def read_many_into(self, buffers: Mapping[str, Any]) -> None:
        """Fill each buffer, writable and of exactly the tensor's length, with the tensor of its name.

        Raises:
            CorruptDataError: A file was cut.
            StorageError: The disk refuses.
        """
        pieces = [
            (self.tensors[name], start, memory[start : start + _PIECE])
            for name, buffer in buffers.items()
            for memory in [memoryview(buffer).cast("B")]
            for start in range(0, memory.nbytes, _PIECE)
        ]
        share_out(pieces, self._read_shares, threads=available_cores())

    def _read_shares(self, shares: Iterator[tuple[StoredTensor, int, memoryview]]) -> None:
        for tensor, start, memory in shares:
            path = self._paths[tensor.region]
            try:
                done = read_fully(self._fds[tensor.region], memory, tensor.offset + start)
            except OSError as error:
                raise storage_error(error, "reading", path) from error
            if done != memory.nbytes:
                raise _damaged(path, f"it ends inside of the tensor {tensor.name!r}")


def _header(file: io.BufferedReader) -> tuple[dict[str, Any], int]:
    length = int.from_bytes(file.read(8), "little")
    size = os.fstat(file.fileno()).st_size
    if not 2 <= length <= min(_LONGEST_HEADER, size - 8):
        raise ValueError(f"a header of {length} bytes in a file of {size}")
    text = file.read(length)
    if text[:1] != b"{":
        raise ValueError("the header is no table")
    header = json.loads(text, object_pairs_hook=_without_repetition)
    return header, 8 + length


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a name stands twice in its header")
    return table


def _metadata(content: Any) -> dict[str, str]:
    if not isinstance(content, dict) or not all(isinstance(text, str) for text in content.values()):
        raise TypeError("its metadata are no texts")
    return content


def _tensors(header: dict[str, Any], shard: int, first: int, size: int) -> dict[str, StoredTensor]:
    """The tensors of one file, which cover it from the header to the end without gap or overlap."""
    found = {name: _described(name, content, shard, first) for name, content in header.items()}
    end = first
    for tensor in sorted(found.values(), key=lambda tensor: (tensor.offset, tensor.nbytes)):
        if tensor.offset != end:
            raise ValueError(f"the tensor {tensor.name!r} lies at {tensor.offset}, the one before it ends at {end}")
        end += tensor.nbytes
    if end != size:
        raise ValueError(f"its tensors end at {end}, the file at {size}")
    return found


def _described(name: str, content: Any, shard: int, first: int) -> StoredTensor:
    if not isinstance(content, dict) or content.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"the tensor {name!r} is described by {content!r:.80}")
    shape, (start, end) = content["shape"], content["data_offsets"]
    if not all(type(number) is int and 0 <= number < _LARGEST for number in (*shape, start, end)):
        raise ValueError(f"the tensor {name!r} has impossible numbers")
    if content["dtype"] not in _NAMES or len(shape) > _MOST_DIMENSIONS:
        raise ValueError(f"the tensor {name!r} has the dtype {content['dtype']!r:.40} and {len(shape)} dimensions")
    element = DTYPES[_NAMES[content["dtype"]]]
    if math.prod(shape) * element.itemsize != end - start:
        raise ValueError(f"the tensor {name!r} of shape {shape} lies in {end - start} bytes")
    return StoredTensor(
        name=name,
        dtype=element.name,
        shape=tuple(shape),
        stride=None,
        region=shard,
        offset=first + start,
        nbytes=end - start,
        digest=0,
    )


def _damaged(path: Path, what: str) -> CorruptDataError:
    return CorruptDataError(f"{path} is damaged: {what}", cure="use another checkpoint")
