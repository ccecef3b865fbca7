"""How does the state of a training become one piece of memory, while the training waits no longer than for the copy?

The plain values become a typed tree; each distinct tensor gets a window of the arena, and all are copied there at once.
Addresses and layout are planned once and used again as long as the tensors stay where they are, so that from the second
save on a save costs little more than copying the memory. Dense tensors on the CPU are moved as bytes by a few threads
that meet once, at the end: torch would let its threads meet for every tensor, which takes many times as long where the
cores are busy.

**Invariants**: after :meth:`Stager.stage` nothing refers to live memory. Two names of one tensor are one window. Views
that overlap without being the same are copied each for itself: more bytes, the same values.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from milepost.checkpoint.arena import Arena
from milepost.checkpoint.dtypes import DTYPES, name_of_numpy
from milepost.checkpoint.job import TensorEntry
from milepost.checkpoint.model_state import refuse_unsupported
from milepost.checkpoint.naming import named_leaves
from milepost.checkpoint.parallel import available_cores, share_out
from milepost.checkpoint.tree import encode_tree
from milepost.core.errors import InvalidInputError

__all__ = ["Outline", "Staged", "Stager", "outline", "text_of", "walk"]

_PAGE, _LINE, _LARGE = 4096, 64, 64 << 10
_ARRAY_INSIDE_TREE = 4096
_BATCH = 4 << 20
_WORTH_A_THREAD = 8 << 20
_MOST_THREADS = 8  # more do not make memory faster

_Move = tuple[int, int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outline:
    """A state as plain values and the distinct live tensors it refers to.

    Attributes:
        tree: JSON text of the typed tree; its leaves are indices into ``entries``.
        tensors: The live tensors, held so that no other can take their address.
        entries: Where each is to lie in an arena.
        nbytes: How large that arena must be.
        signature: Equal ones may be copied by the same plan.
    """

    tree: str
    tensors: list[Tensor]
    entries: list[TensorEntry]
    nbytes: int
    signature: tuple[Any, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Staged:
    """A snapshot in an arena.

    Attributes:
        tree: JSON text of the typed tree; its leaves are indices into ``tensors``.
        tensors: Where each tensor lies.
        nbytes: How much of the arena is in use.
    """

    tree: str
    tensors: list[TensorEntry]
    nbytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """What to copy where.

    Attributes:
        signature: Names and places of the tensors it was made for.
        entries: Where each tensor lies in the arena.
        nbytes: How much of the arena is in use.
        generation: Of the arena it was made for.
        moves: Batches of (target address, source address, bytes).
        windows: For tensors that are no dense CPU memory, by their index: where torch copies them to.
        memory: The arena as one tensor; keeps the addresses valid.
    """

    signature: tuple[Any, ...]
    entries: list[TensorEntry]
    nbytes: int
    generation: int
    moves: list[list[_Move]]
    windows: dict[int, Tensor]
    memory: Tensor

    def copy(self, tensors: list[Tensor]) -> None:
        """Copy ``tensors``, which have the places of ``signature``, into the arena."""
        if self.windows:
            sources = [tensors[index] for index in self.windows]
            with torch.no_grad():
                torch._foreach_copy_(list(self.windows.values()), sources, non_blocking=True)
        share_out(self.moves, _move_shares, threads=_threads(self.nbytes))
        for device in {tensor.device for tensor in tensors if tensor.is_cuda}:
            torch.cuda.synchronize(device)


def _move_shares(shares: Iterator[list[_Move]]) -> None:
    for moves in shares:
        for target, source, nbytes in moves:
            ctypes.memmove(target, source, nbytes)


def _threads(nbytes: int) -> int:
    return 1 if nbytes < _WORTH_A_THREAD else min(_MOST_THREADS, torch.get_num_threads(), available_cores())


def walk(state: dict[str, Any]) -> int:
    """Try what a save would do, without copying; returns the bytes a snapshot will need.

    Raises:
        InvalidInputError: Something cannot be saved; the message names its place.
    """
    return outline(state).nbytes


def outline(state: dict[str, Any], *, lossy: str = "") -> Outline:
    """What a snapshot of ``state`` will hold, and where in an arena.

    Args:
        state: As :func:`milepost.checkpoint.state.state_of` made it.
        lossy: Name of a lossy setting, ``"bf16-moments"``; empty: every bit.

    Raises:
        InvalidInputError: Something cannot be saved; the message names its place.
    """
    leaves = _Leaves(state)
    tree = json.dumps(encode_tree(state, leaf=leaves.index), separators=(",", ":"))
    entries, nbytes = _layout(leaves)
    signature = (tuple(leaves.names), tuple(leaves.keys))
    return Outline(tree=tree, tensors=leaves.tensors, entries=entries, nbytes=nbytes, signature=signature)


def text_of(state: dict[str, Any]) -> str:
    """A state without tensors as the JSON text of its typed tree."""
    return json.dumps(encode_tree(state, leaf=lambda _: None), separators=(",", ":"))


class Stager:
    """Copies states into an arena; remembers the layout from one save to the next."""

    def __init__(self) -> None:
        self._plan: _Plan | None = None

    def settle(self) -> None:
        """Wait until nothing of a state that was staged before is still to be copied."""

    def stage(self, content: Outline, arena: Arena) -> Staged:
        """Copy what ``content`` refers to into ``arena``.

        Raises:
            StorageError: There is not enough memory for the arena.
        """
        plan = self._plan_for(content, arena)
        plan.copy(content.tensors)
        return Staged(tree=content.tree, tensors=plan.entries, nbytes=plan.nbytes)

    def _plan_for(self, content: Outline, arena: Arena) -> _Plan:
        plan = self._plan
        if plan is not None and plan.generation == arena.generation and plan.signature == content.signature:
            return plan
        self._plan = plan = None  # its windows would keep an old segment mapped
        segment = arena.reserve(content.nbytes)
        memory = torch.frombuffer(segment.map, dtype=torch.uint8)
        moves, windows = _routes(content.tensors, content.entries, memory)
        self._plan = _Plan(
            signature=content.signature,
            entries=content.entries,
            nbytes=content.nbytes,
            generation=arena.generation,
            moves=moves,
            windows=windows,
            memory=memory,
        )
        return self._plan


class _Leaves:
    """The distinct tensors of a state, in the order the tree meets them.

    Attributes:
        tensors: Plain strided tensors to copy from.
        names: What each is called, unique.
        keys: Where each lies: equal keys mean that a copy of one is a copy of the other.
    """

    def __init__(self, state: dict[str, Any]) -> None:
        self.tensors: list[Tensor] = []
        self.names: list[str] = []
        self.keys: list[tuple[Any, ...]] = []
        self._name_of: dict[int, str] = {}
        for name, value in named_leaves(state):
            if isinstance(value, (Tensor, np.ndarray)):
                self._name_of.setdefault(id(value), name)
        self._index_of: dict[tuple[Any, ...], int] = {}
        self._taken: set[str] = set()

    def index(self, value: Any) -> int | None:
        """For :func:`encode_tree`: the number of a tensor or large array; None for what belongs inside the tree."""
        if isinstance(value, Tensor):
            tensor = self._plain(value)
        elif isinstance(value, np.ndarray) and value.nbytes > _ARRAY_INSIDE_TREE and name_of_numpy(value.dtype):
            tensor = torch.from_numpy(np.require(value, requirements=("C", "W")))
        else:
            return None
        key = _key(tensor)
        if key not in self._index_of:
            self._index_of[key] = len(self.tensors)
            self.tensors.append(tensor)  # held, so that no other tensor can take its address
            self.keys.append(key)
            self.names.append(self._unique(self._name_of.get(id(value), "tensor")))
        return self._index_of[key]

    def _plain(self, tensor: Tensor) -> Tensor:
        place = self._name_of.get(id(tensor), "the state")
        refuse_unsupported(tensor, place)
        if _name_of_dtype(tensor.dtype) not in DTYPES:
            raise InvalidInputError(
                f"{place}: a tensor of {tensor.dtype} cannot be saved", cure="convert it", kind="unsupported-state"
            )
        tensor = tensor.detach()
        if tensor.is_conj() or tensor.is_neg():
            tensor = tensor.resolve_conj().resolve_neg()
        return tensor

    def _unique(self, name: str) -> str:
        candidate, count = name, 1
        while candidate in self._taken:
            count += 1
            candidate = f"{name}#{count}"
        self._taken.add(candidate)
        return candidate


def _key(tensor: Tensor) -> tuple[Any, ...]:
    address = tensor.data_ptr() or id(tensor)  # tensors without elements have no address
    return address, tensor.dtype, tensor.shape, tensor.stride(), tensor.device


def _layout(leaves: _Leaves) -> tuple[list[TensorEntry], int]:
    """A window for each tensor, one behind the other."""
    entries: list[TensorEntry] = []
    end = 0
    for index, (name, tensor) in enumerate(zip(leaves.names, leaves.tensors, strict=True)):
        nbytes = tensor.numel() * tensor.element_size()
        alignment = _PAGE if nbytes >= _LARGE else _LINE
        offset = -(-end // alignment) * alignment
        entries.append(
            TensorEntry(
                name=name,
                dtype=_name_of_dtype(tensor.dtype),
                shape=tuple(tensor.shape),
                stride=_kept_stride(tensor),
                offset=offset,
                nbytes=nbytes,
                storage=index,
            )
        )
        end = offset + nbytes
    return entries, end


def _kept_stride(tensor: Tensor) -> tuple[int, ...] | None:
    """The strides of a dense tensor in another order (channels_last); None for C order and for views with gaps."""
    if tensor.is_contiguous():
        return None
    dense = torch.empty_like(tensor, device="meta").stride()
    return tuple(dense) if dense == tensor.stride() else None


def _routes(
    tensors: list[Tensor], entries: list[TensorEntry], memory: Tensor
) -> tuple[list[list[_Move]], dict[int, Tensor]]:
    batches: list[list[_Move]] = []
    room = 0
    windows: dict[int, Tensor] = {}
    for index, (tensor, entry) in enumerate(zip(tensors, entries, strict=True)):
        if tensor.device.type != "cpu" or not (tensor.is_contiguous() or entry.stride is not None):
            windows[index] = _window(memory, entry)
            continue
        target, source = memory.data_ptr() + entry.offset, tensor.data_ptr()
        for start in range(0, entry.nbytes, _BATCH):
            nbytes = min(_BATCH, entry.nbytes - start)
            if nbytes > room:
                batches.append([])
                room = _BATCH
            batches[-1].append((target + start, source + start, nbytes))
            room -= nbytes
    return batches, windows


def _window(memory: Tensor, entry: TensorEntry) -> Tensor:
    """A tensor that lies in the arena."""
    dtype: torch.dtype = getattr(torch, entry.dtype)
    flat = memory[entry.offset : entry.offset + entry.nbytes].view(dtype)
    return flat.view(entry.shape) if entry.stride is None else flat.as_strided(entry.shape, entry.stride)


def _name_of_dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
