"""What is in a ``.safetensors`` file, without the package of that name?

The format (huggingface/safetensors, README): eight bytes with the length of a JSON header, the header with name, dtype,
shape and offsets of each tensor and a map of texts, then the tensors, contiguous and without gaps.

The model's tensors keep their own names, so that any reader of the format finds the weights where it expects them;
tensors of other parts are called ``optimizer.state...``. milepost's tree is a text under the key ``milepost``.

**Invariant**: what the header declares is checked against the length of the file before memory is allocated for it.
"""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from milepost.checkpoint.dtypes import DTYPES
from milepost.checkpoint.job import TensorEntry
from milepost.core.errors import CorruptDataError, InvalidInputError

__all__ = ["read", "write"]

_LONGEST_HEADER = 100_000_000
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


def write(file: Any, entries: Sequence[TensorEntry], arena: memoryview, own: dict[str, Any]) -> None:
    """Write the tensors of ``arena`` and milepost's own texts.

    Raises:
        InvalidInputError: The format has no word for a dtype.
    """
    names = _file_names(entries)
    header: dict[str, Any] = {"__metadata__": {"format": "pt", "milepost": json.dumps(own | {"order": names})}}
    end = 0
    for name, entry in zip(names, entries, strict=True):
        if entry.dtype not in _CODES:
            raise InvalidInputError(
                f"{entry.name}: safetensors cannot hold a tensor of {entry.dtype}",
                cure='use checkpoint_format="milepost" or "pt"',
            )
        nbytes = math.prod(entry.shape) * DTYPES[entry.dtype].itemsize
        place = [end, end + nbytes]
        header[name] = {"dtype": _CODES[entry.dtype], "shape": entry.shape, "data_offsets": place}
        end += nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for entry in entries:
        file.write(_contiguous(entry, arena))


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


def _contiguous(entry: TensorEntry, arena: memoryview) -> memoryview | bytes:
    if entry.stride is None:
        return arena[entry.offset : entry.offset + entry.nbytes]
    dtype = DTYPES[entry.dtype].numpy
    strides = tuple(step * dtype.itemsize for step in entry.stride)
    return np.ndarray(entry.shape, dtype, buffer=arena, offset=entry.offset, strides=strides).tobytes()


def read(path: Path, file: io.BufferedReader) -> dict[str, Any]:
    """The tensors by name; with ``milepost`` beside them if it wrote the file.

    Raises:
        CorruptDataError: The header does not describe the file.
    """
    import torch

    try:
        header, first = _header(file)
        metadata = header.pop("__metadata__", {})
        size = os.fstat(file.fileno()).st_size
        tensors: dict[str, Any] = {}
        for name, described in header.items():
            start, end = described["data_offsets"]
            element = DTYPES[_NAMES[described["dtype"]]]
            shape = tuple(described["shape"])
            if not 0 <= start <= end <= size - first or math.prod(shape) * element.itemsize != end - start:
                raise ValueError(f"tensor {name!r} lies at {start}..{end} of {size - first} bytes")  # noqa: TRY301
            tensors[name] = _tensor(file, first + start, end - start).view(getattr(torch, element.name)).view(shape)
        return tensors | _own(metadata, tensors)
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise CorruptDataError(f"{path} is damaged: {error}", cure="use another checkpoint") from None


def _header(file: io.BufferedReader) -> tuple[dict[str, Any], int]:
    length = int.from_bytes(file.read(8), "little")
    size = os.fstat(file.fileno()).st_size
    if not 2 <= length <= min(_LONGEST_HEADER, size - 8):
        raise ValueError(f"a header of {length} bytes in a file of {size}")
    header = json.loads(file.read(length))
    if not isinstance(header, dict):
        raise TypeError("the header is no table")
    return header, 8 + length


def _tensor(file: io.BufferedReader, offset: int, nbytes: int) -> Any:
    import torch

    memory = torch.empty(nbytes, dtype=torch.uint8)
    file.seek(offset)
    if file.readinto(memory.numpy().data) != nbytes:
        raise ValueError(f"the file ends before byte {offset + nbytes}")
    return memory


def _own(metadata: dict[str, Any], tensors: dict[str, Any]) -> dict[str, Any]:
    if "milepost" not in metadata:
        return {}
    own = json.loads(metadata["milepost"])
    return {"milepost": own | {"tensors": [tensors[name] for name in own["order"]]}}
