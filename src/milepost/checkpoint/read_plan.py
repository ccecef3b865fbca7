"""How do stored tensors get into live ones without a second copy of the state in memory?

A state that is still in its file is decoded with a :class:`Placeholder` for each tensor: shape, dtype and strides, no
memory. Whatever has to be compared is compared with those. A :class:`ReadPlan` collects what goes where; then it is
carried out at once, by all cores.

A live tensor on the CPU that lies in memory as the stored one does is read in place. Everything else (another device,
another dtype, other strides, memory that several tensors share) goes through a staging buffer of
:data:`_STAGING_BYTES`, or of one tensor where that is larger, and is verified before it reaches the live tensor.

**Invariant**: before :meth:`ReadPlan.carry_out` no live memory is written.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from milepost.checkpoint.manifest import StoredTensor
from milepost.checkpoint.tree import decode_tree, encode_tree

__all__ = ["Placeholder", "ReadPlan", "TensorFile", "placeholder_of", "write_into"]

#: Enough that all cores have blocks to decode, little beside any state that is worth the trouble.
_STAGING_BYTES = 64 << 20


class TensorFile(Protocol):
    """What is asked of an open file: its tensors' descriptions, and to fill memory with them."""

    @property
    def tensors(self) -> Mapping[str, StoredTensor]:
        """Descriptions by name."""

    def read_many_into(self, buffers: Mapping[str, Any]) -> None:
        """Fill each buffer with the bytes of the tensor of its name, verified."""


class Placeholder(Tensor):
    """Stands for a stored tensor: has its shape, strides and the dtype it had when it was saved, and no data.

    Attributes:
        stored_name: What it is called in the file.
        lossy: Whether a part of its bits was given up when it was saved.
    """

    stored_name: str
    lossy: bool

    def __array__(self, _dtype: object = None, /) -> Any:
        """An array of objects around it: a stored NumPy array is one whose content is still to come."""
        around = np.empty((), object)
        around[()] = self
        return around


def placeholder_of(stored: StoredTensor) -> Placeholder:
    """What stands for ``stored`` until it is read."""
    dtype: torch.dtype = getattr(torch, stored.original or stored.dtype)
    if stored.stride is None:
        meta = torch.empty(stored.shape, dtype=dtype, device="meta")
    else:
        meta = torch.empty_strided(stored.shape, stored.stride, dtype=dtype, device="meta")
    placeholder = meta.as_subclass(Placeholder)
    placeholder.stored_name = stored.name
    placeholder.lossy = stored.original is not None
    return placeholder


class ReadPlan:
    """What is to be written where, collected before anything is."""

    def __init__(self) -> None:
        self._pairs: list[tuple[Tensor, Tensor]] = []
        self._made: dict[tuple[str, str], Tensor] = {}

    @property
    def lossy(self) -> tuple[str, ...]:
        """Names of planned tensors of which a part was given up when they were saved."""
        sources = (source for _, source in self._pairs if isinstance(source, Placeholder))
        return tuple(dict.fromkeys(source.stored_name for source in sources if source.lossy))

    def write(self, target: Tensor, source: Tensor) -> None:
        """Write ``source``, a placeholder or a tensor with data, into ``target``, which has its shape."""
        self._pairs.append((target.detach(), source))

    def allocate(self, source: Tensor, device: torch.device | str = "cpu") -> Tensor:
        """A new tensor with the dtype and the strides of ``source``, which will have its content."""
        made = torch.empty_strided(tuple(source.shape), source.stride(), dtype=source.dtype, device=device)
        self.write(made, source)
        return made

    def materialise(self, value: Any, device: torch.device | str = "cpu") -> Any:
        """``value`` with a new tensor for each placeholder in it, in whatever container; tied ones stay one.

        Args:
            value: A state, or a part of one.
            device: Where new tensors are made; what was a NumPy array stays on the CPU.
        """
        found: list[tuple[Tensor, str]] = []

        def index(part: Any) -> int | None:
            is_array = isinstance(part, np.ndarray) and part.dtype.hasobject
            inside = part.item() if is_array else part
            if not isinstance(inside, Tensor):
                return None
            found.append((inside, "cpu" if is_array else str(device)))
            return len(found) - 1

        node = encode_tree(value, leaf=index)
        if not any(isinstance(tensor, Placeholder) for tensor, _ in found):
            return value
        return decode_tree(node, leaf=lambda number: self._materialised(*found[number]))

    def _materialised(self, tensor: Tensor, device: str) -> Tensor:
        if not isinstance(tensor, Placeholder):
            return tensor
        key = tensor.stored_name, device
        if key not in self._made:
            self._made[key] = self.allocate(tensor, device)
        return self._made[key]

    def carry_out(self, file: TensorFile | None) -> None:
        """Read and write everything planned.

        Args:
            file: Where the placeholders' tensors are; None if there are only tensors with data.

        Raises:
            CorruptDataError: A tensor is damaged; others may have been written before it was found.
            StorageError: The disk refused, likewise.
        """
        waiting = [(target, source.stored_name) for target, source in self._pairs if isinstance(source, Placeholder)]
        if waiting and file is not None:
            _read(file, waiting)
        for target, source in self._pairs:
            if not isinstance(source, Placeholder):
                write_into(target, source)


def write_into(target: Tensor, source: Tensor) -> None:
    """Copy ``source`` into ``target``; of an expanded dimension, whose elements are one and the same, only one."""
    target, source = target.detach(), source.detach()
    for dimension, (length, stride) in enumerate(zip(target.shape, target.stride(), strict=True)):
        if stride == 0 and length > 1:
            target, source = target.narrow(dimension, 0, 1), source.narrow(dimension, 0, 1)
    target.copy_(source)


def _read(file: TensorFile, waiting: Sequence[tuple[Tensor, str]]) -> None:
    in_place: dict[str, Tensor] = {}
    alone = _with_memory_of_their_own([target for target, _ in waiting])
    for target, name in waiting:
        if id(target) in alone and name not in in_place and _lies_like(target, file.tensors[name]):
            in_place[name] = target
    file.read_many_into({name: _memory(target) for name, target in in_place.items()})
    _count_as_changed(in_place.values())
    rest: dict[str, list[Tensor]] = {}
    for target, name in waiting:
        if in_place.get(name) is not target:
            rest.setdefault(name, []).append(target)
    _copy_again({name: targets for name, targets in rest.items() if name in in_place}, in_place)
    _read_staged(file, {name: targets for name, targets in rest.items() if name not in in_place})


def _copy_again(rest: Mapping[str, list[Tensor]], done: Mapping[str, Tensor]) -> None:
    for name, targets in rest.items():
        for target in targets:
            write_into(target, done[name])


def _with_memory_of_their_own(targets: Sequence[Tensor]) -> set[int]:
    """The ``id`` of each CPU tensor whose memory no other of them touches, so that threads may fill it at once."""
    spans = sorted(_spans(targets))
    alone = {number for _, _, number in spans}
    reach, last = 0, -1
    for start, end, number in spans:
        if start < reach:
            alone -= {number, last}
        if end > reach:
            reach, last = end, number
    return {id(targets[number]) for number in alone}


def _spans(targets: Sequence[Tensor]) -> Iterator[tuple[int, int, int]]:
    for number, target in enumerate(targets):
        if target.device.type == "cpu" and target.layout == torch.strided and target.numel():
            reach = sum((length - 1) * step for length, step in zip(target.shape, target.stride(), strict=True))
            start = target.data_ptr()
            yield start, start + (reach + 1) * target.element_size(), number


def _lies_like(target: Tensor, stored: StoredTensor) -> bool:
    """Whether the stored bytes are, one by one, those that ``target`` shall have in memory."""
    if str(target.dtype) != f"torch.{stored.dtype}" or target.is_conj() or target.is_neg():
        return False
    if target.numel() * target.element_size() != stored.nbytes:
        return False
    if stored.stride is None:
        return target.is_contiguous()
    steps = zip(target.shape, target.stride(), stored.stride, strict=True)
    return all(live == kept for length, live, kept in steps if length > 1)


def _memory(target: Tensor) -> Any:
    """The bytes of a dense tensor, in the order in which they lie."""
    return target.as_strided((target.numel(),), (1,)).view(torch.uint8).numpy()


def _count_as_changed(targets: Any) -> None:
    """Tell autograd, which sees no write past torch, so that a backward over the old values raises as it should."""
    changed = [target for target in targets if not target.is_inference()]
    increment = getattr(torch.autograd.graph, "increment_version", None)
    if increment is not None and changed:
        increment(changed)


def _read_staged(file: TensorFile, waiting: Mapping[str, list[Tensor]]) -> None:
    for names in _batches(file, waiting):
        staged = {name: torch.empty(file.tensors[name].nbytes, dtype=torch.uint8) for name in names}
        file.read_many_into({name: memory.numpy() for name, memory in staged.items()})
        for name, memory in staged.items():
            for target in waiting[name]:
                write_into(target, _shaped(memory, file.tensors[name]))


def _batches(file: TensorFile, names: Mapping[str, Any]) -> Iterator[list[str]]:
    batch: list[str] = []
    room = _STAGING_BYTES
    for name in names:
        nbytes = file.tensors[name].nbytes
        if batch and nbytes > room:
            yield batch
            batch, room = [], _STAGING_BYTES
        batch.append(name)
        room -= nbytes
    if batch:
        yield batch


def _shaped(memory: Tensor, stored: StoredTensor) -> Tensor:
    dtype: torch.dtype = getattr(torch, stored.dtype)
    flat = memory.view(dtype)
    return flat.view(stored.shape) if stored.stride is None else flat.as_strided(stored.shape, stored.stride)
