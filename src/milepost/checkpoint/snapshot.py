"""How does the state of a training become one piece of memory, while the training waits no longer than for the copy?

The plain values become a typed tree; the distinct tensors get their places in the arena (:mod:`.storages`) and are
copied there at once (:mod:`.copying`). Addresses and layout are planned once and used again as long as the tensors stay
where they are, so that from the second save on a save costs little more than copying the memory.

**Invariants**: after :meth:`Stager.stage`, or where it gave a :class:`Copying`, once that ended, nothing refers to live
memory. Two names of one tensor are one window; views that overlap are windows of one copy. A storage is never read
beyond its end, at any save.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from milepost.checkpoint.arena import Arena
from milepost.checkpoint.arguments import TrainingObjects
from milepost.checkpoint.copying import Copying, DeviceCopies, Route, Transfer, pin, route
from milepost.checkpoint.dtypes import name_of_numpy
from milepost.checkpoint.job import TensorEntry
from milepost.checkpoint.known_tensors import KnownTensors
from milepost.checkpoint.lossy import moments_of
from milepost.checkpoint.naming import named_leaves
from milepost.checkpoint.overlap import Overlap, torn_error
from milepost.checkpoint.storages import Piece, View, arrange
from milepost.checkpoint.tree import encode_tree

__all__ = ["Outline", "Staged", "Stager", "outline", "text_of", "walk"]

_ARRAY_INSIDE_TREE = 4096
_PATIENCE = 60.0  # seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Outline:
    """A state as plain values and the distinct live tensors it refers to.

    Attributes:
        tree: JSON text of the typed tree; its leaves are indices into ``entries``.
        tensors: The live tensors, held so that no other can take their address.
        entries: Where each is to lie in an arena.
        pieces: What fills the arena: :func:`milepost.checkpoint.copying.live_memory` gives the memory of each.
        nbytes: How large that arena must be.
        signature: Equal ones may be copied by the same plan.
    """

    tree: str
    tensors: list[Tensor]
    entries: list[TensorEntry]
    pieces: tuple[Piece, ...]
    nbytes: int
    signature: tuple[View, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Staged:
    """A snapshot in an arena.

    Attributes:
        tree: JSON text of the typed tree; its leaves are indices into ``tensors``.
        tensors: Where each tensor lies.
        nbytes: How much of the arena is in use.
        copying: What still fills it; None: it is complete.
    """

    tree: str
    tensors: list[TensorEntry]
    nbytes: int
    copying: Copying | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """What to copy where.

    Attributes:
        signature: Names and places of the tensors it was made for.
        generation: Of the arena it was made for.
        routes: How each piece gets there.
        whole: All of them at once.
        memory: The arena as one tensor; keeps the addresses valid.
    """

    signature: tuple[View, ...]
    generation: int
    routes: Sequence[Route]
    whole: Transfer
    memory: Tensor


def walk(state: dict[str, Any]) -> int:
    """Try what a save would do, without copying; returns the bytes a snapshot will need.

    Raises:
        InvalidInputError: Something cannot be saved; the message names its place.
    """
    return outline(state).nbytes


def outline(state: dict[str, Any], *, lossy: str = "", known: KnownTensors | None = None) -> Outline:
    """What a snapshot of ``state`` will hold, and where in an arena.

    Args:
        state: As :func:`milepost.checkpoint.state.state_of` made it.
        lossy: Name of a lossy setting, ``"bf16-moments"``; empty: every bit.
        known: The tensors of earlier states of the same training; None: all are new.

    Raises:
        InvalidInputError: Something cannot be saved; the message names its place.
    """
    known = known or KnownTensors()
    known.look_again()
    leaves = _Leaves(state, known, rounded=moments_of(state) if lossy else frozenset())
    tree = json.dumps(encode_tree(state, leaf=leaves.index), separators=(",", ":"))
    signature = tuple(leaves.views)
    arrangement = arrange(signature)
    return Outline(
        tree=tree,
        tensors=leaves.tensors,
        entries=list(arrangement.entries),
        pieces=arrangement.pieces,
        nbytes=arrangement.nbytes,
        signature=signature,
    )


def text_of(state: dict[str, Any]) -> str:
    """A state without tensors as the JSON text of its typed tree."""
    return json.dumps(encode_tree(state, leaf=lambda _: None), separators=(",", ":"))


class Stager:
    """Copies states into an arena; remembers the layout from one save to the next."""

    def __init__(self, overlap: Overlap | None = None) -> None:
        self._overlap = overlap
        self._plan: _Plan | None = None
        self._copying: Copying | None = None

    @property
    def is_copying(self) -> bool:
        """Whether :meth:`settle` would wait."""
        return self._copying is not None and not self._copying.over

    def settle(self) -> None:
        """Wait until nothing of a state that was staged before is still to be copied, and judge how it went.

        Raises:
            StorageError: It did not end; the arena cannot be used.
        """
        patience = _PATIENCE if self._overlap is None else self._overlap.patience
        if self._copying is not None and not self._copying.join(patience):
            reason = torn_error(f"the copy of the save before was not done within {patience:g} seconds")
            self._copying.give_up(reason)
            raise reason
        failure = None if self._copying is None else self._copying.error
        self._copying = None
        if self._overlap is not None:
            if failure is not None:
                self._overlap.ban(failure.what)
            self._overlap.settle()

    def stage(self, content: Outline, arena: Arena, objects: TrainingObjects | None = None) -> Staged:
        """Copy what ``content`` refers to into ``arena``: now, or where the result has a ``copying`` by its end.

        Args:
            content: What :func:`outline` gave.
            arena: Free, until that save was written.
            objects: What the state was taken from; None: nothing is copied later than now.

        Raises:
            StorageError: There is not enough memory for the arena.
        """
        plan = self._plan_for(content, arena)
        overlap = self._overlap
        later = () if overlap is None or objects is None else overlap.postponable(plan.routes, content.tensors, objects)
        if overlap is None or not later:
            self._copying = _copied_by(plan.whole.run(content.tensors))
        else:
            self._copying = self._overlapped(content, plan, overlap, later)
        return Staged(tree=content.tree, tensors=content.entries, nbytes=content.nbytes, copying=self._copying)

    def _overlapped(self, content: Outline, plan: _Plan, overlap: Overlap, later: Sequence[Route]) -> Copying | None:
        watched = overlap.watched(later, content.tensors, [entry.name for entry in content.entries])
        if overlap.on_probation:
            on_devices = plan.whole.run(content.tensors)
            overlap.arm(watched, None)
            return _copied_by(on_devices)
        waiting = {way.piece.offset for way in later}
        on_devices = Transfer([way for way in plan.routes if way.piece.offset not in waiting]).run(content.tensors)

        def copy_the_rest() -> None:
            if not watched.marked():  # memory that was given back must not be read
                Transfer(later).run(content.tensors)
            overlap.judge(watched)
            if on_devices is not None:
                on_devices.wait()

        copying = Copying(copy_the_rest)
        overlap.arm(watched, copying)
        return copying

    def _plan_for(self, content: Outline, arena: Arena) -> _Plan:
        plan = self._plan
        if plan is not None and plan.generation == arena.generation and plan.signature == content.signature:
            return plan
        self._plan = plan = None  # its windows would keep an old segment mapped
        memory = torch.frombuffer(arena.reserve(content.nbytes).map, dtype=torch.uint8)
        if any(tensor.is_cuda for tensor in content.tensors):
            pin(memory)
        routes = [route(piece, content.tensors, memory) for piece in content.pieces]
        self._plan = _Plan(
            signature=content.signature,
            generation=arena.generation,
            routes=routes,
            whole=Transfer(routes),
            memory=memory,
        )
        return self._plan


class _Leaves:
    """The distinct tensors of a state, in the order the tree meets them.

    Args:
        state: What they are in.
        known: Those of earlier states.
        rounded: ``id`` of each tensor that is to be kept as bfloat16.

    Attributes:
        tensors: Plain strided tensors to copy from.
        views: Where each lies: views that differ in no more than their name are one tensor.
    """

    def __init__(self, state: dict[str, Any], known: KnownTensors, rounded: frozenset[int]) -> None:
        self.tensors: list[Tensor] = []
        self.views: list[View] = []
        self._known = known
        self._rounded = rounded
        self._name_of: dict[int, str] = {}
        for name, value in named_leaves(state):
            if isinstance(value, (Tensor, np.ndarray)):
                self._name_of.setdefault(id(value), name)
        self._index_of: dict[tuple[Any, ...], int] = {}
        self._taken: set[str] = set()

    def index(self, value: Any) -> int | None:
        """For :func:`encode_tree`: the number of a tensor or large array; None for what belongs inside the tree."""
        name = self._name_of.get(id(value), "tensor")
        if isinstance(value, Tensor):
            source = value
        elif isinstance(value, np.ndarray) and value.nbytes > _ARRAY_INSIDE_TREE and name_of_numpy(value.dtype):
            source = torch.from_numpy(np.require(value, requirements=("C", "W")))
        else:
            return None
        tensor, view = self._known.find(source, name, rounded=id(value) in self._rounded)
        place = view[1:] if tensor.numel() else (len(self.tensors),)  # what is empty lies nowhere
        index = self._index_of.setdefault(place, len(self.tensors))
        if index == len(self.tensors):
            self.tensors.append(tensor)  # held, so that no other tensor can take its address
            self.views.append(view._replace(name=self._unique(name)) if name in self._taken else view)
            self._taken.add(self.views[-1].name)
        return index

    def _unique(self, name: str) -> str:
        count = 2
        while f"{name}#{count}" in self._taken:
            count += 1
        return f"{name}#{count}"


def _copied_by(devices: DeviceCopies | None) -> Copying | None:
    return None if devices is None else Copying(devices.wait)
