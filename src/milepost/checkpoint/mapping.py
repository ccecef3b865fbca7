"""How do tensors lie in a checkpoint's file instead of in memory of their own?

torch has no tensors that cannot be written to, and a write to a read-only map ends the process. The maps are therefore
private: a page that is written to becomes a page of memory, and the file stays as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from milepost.checkpoint.codec import Bytes
from milepost.checkpoint.read_plan import Placeholder
from milepost.checkpoint.reading import CheckpointFile
from milepost.checkpoint.tree import decode_tree, encode_tree

__all__ = ["map_tensors", "tensor_over"]


def map_tensors(file: CheckpointFile, value: Any) -> Any:
    """``value``, a part of the state in ``file``, with tensors that lie in the file, each verified now.

    Raises:
        InvalidInputError: One does not lie there as it is; the message names it.
        CorruptDataError: One is damaged; the message names file, tensor and offset.
    """
    found: list[Placeholder] = []
    made: dict[str, Tensor] = {}

    def index(part: Any) -> int | None:
        inside = part.item() if isinstance(part, np.ndarray) and part.dtype.hasobject else part
        if not isinstance(inside, Placeholder):
            return None
        found.append(inside)
        return len(found) - 1

    def tensor(number: int) -> Tensor:
        placeholder = found[number]
        if placeholder.stored_name not in made:
            made[placeholder.stored_name] = _mapped(file, placeholder)
        return made[placeholder.stored_name]

    return decode_tree(encode_tree(value, leaf=index), leaf=tensor)


def _mapped(file: CheckpointFile, placeholder: Placeholder) -> Tensor:
    stored = file.tensors[placeholder.stored_name]
    content = file.mapped(stored.name).reshape(-1).view(np.uint8)
    return tensor_over(content, stored.dtype, stored.shape).to(placeholder.dtype)


def tensor_over(content: Bytes, dtype: str, shape: Sequence[int], stride: Sequence[int] | None = None) -> Tensor:
    """A tensor whose memory is ``content``, which may be marked read-only: torch would copy it or warn."""
    element: torch.dtype = getattr(torch, dtype)
    if not len(content):
        return torch.empty(tuple(shape), dtype=element)
    flat = torch.from_numpy(np.asarray(_Writable(content))).view(element)
    return flat.view(tuple(shape)) if stride is None else flat.as_strided(tuple(shape), tuple(stride))


class _Writable:
    """Shows a read-only array as one that could be written to, and keeps its memory."""

    def __init__(self, array: Bytes) -> None:
        self._array = array
        address = array.__array_interface__["data"][0]
        self.__array_interface__ = array.__array_interface__ | {"data": (address, False)}
