"""Where in memory is each tensor of a state, and must that be found out anew at every save?

Only for what has changed. What is found follows from a few facts: name, type, dtype, device, shape, strides, and
address and length of the storage. Comparing them with those of the last look costs a fraction of finding out.

**Invariants**: a remembered view is given again only if all facts that it follows from are as they were, so it equals
what a fresh look would give; which object has them does not matter. No tensor is referred to, not even weakly: a weak
reference would forbid ``torch.utils.swap_tensors``. What was not seen at one look is forgotten at the next.
"""

# ruff: noqa: SLF001 - torch has no public way to look at a subclass without its own answers, nor at its own record

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from milepost.checkpoint.copying import is_dense
from milepost.checkpoint.dtypes import DTYPES
from milepost.checkpoint.model_state import refuse_unsupported
from milepost.checkpoint.storages import View
from milepost.core.errors import InvalidInputError

__all__ = ["KnownTensors"]

_PLAIN = {Tensor, nn.Parameter}

_Facts = tuple[Any, ...]


class _Sighting(NamedTuple):
    """A tensor at the last look."""

    facts: _Facts
    view: View


class KnownTensors:
    """The tensors of one training, from save to save. Begin each walk with :meth:`look_again`."""

    def __init__(self) -> None:
        self._before: dict[str, _Sighting] = {}
        self._now: dict[str, _Sighting] = {}

    def look_again(self) -> None:
        """A new walk begins: what the last one did not meet is forgotten."""
        self._before, self._now = self._now, {}

    def find(self, tensor: Tensor, name: str, *, rounded: bool) -> tuple[Tensor, View]:
        """A plain strided tensor over the memory of ``tensor``, to copy from, and where it lies.

        Args:
            tensor: Of a state.
            name: What it is called there.
            rounded: Whether it is to be kept as bfloat16.

        Raises:
            InvalidInputError: It cannot be saved; the message names it.
        """
        facts = _facts(tensor, rounded=rounded)
        seen = self._before.get(name)
        if seen is not None and facts is not None and seen.facts == facts:
            self._now[name] = seen
            return tensor.detach(), seen.view
        plain = _plain(tensor, name)
        view = _view(plain, name, rounded=rounded)
        if facts is not None:
            self._now[name] = _Sighting(facts, view)
        return plain, view


def _facts(tensor: Tensor, *, rounded: bool) -> _Facts | None:
    """All that the view of an ordinary tensor follows from; None: it is not ordinary, and looked at anew each time."""
    kind = type(tensor)
    if kind not in _PLAIN or tensor.layout is not torch.strided or tensor.is_nested or tensor.is_complex():
        return None
    if torch._C._functorch.is_functorch_wrapped_tensor(tensor) or torch._is_functional_tensor(tensor):
        return None
    if tensor.is_neg() or not torch._C._has_storage(tensor):
        return None
    storage = tensor.untyped_storage()
    return (
        kind,
        rounded,
        tensor.dtype,
        tensor.device,
        tensor.shape,
        tensor.stride(),
        tensor.storage_offset(),
        storage.data_ptr(),
        storage.nbytes(),
        hasattr(tensor, "ds_tensor"),
    )


def _plain(tensor: Tensor, name: str) -> Tensor:
    refuse_unsupported(tensor, name)
    if _name_of_dtype(tensor.dtype) not in DTYPES:
        raise InvalidInputError(
            f"{name}: a tensor of {tensor.dtype} cannot be saved", cure="convert it", kind="unsupported-state"
        )
    if type(tensor) not in _PLAIN:
        with torch._C.DisableTorchFunctionSubclass():
            tensor = tensor.as_subclass(Tensor)  # a subclass may answer differently for its own memory
    tensor = tensor.detach()
    if tensor.is_conj() or tensor.is_neg():
        tensor = tensor.resolve_conj().resolve_neg()
    return tensor


def _view(tensor: Tensor, name: str, *, rounded: bool) -> View:
    """Where ``tensor`` lies.

    Raises:
        InvalidInputError: It reaches beyond the end of its storage.
    """
    storage = tensor.untyped_storage()
    contiguous = tensor.is_contiguous()
    dtype = _name_of_dtype(tensor.dtype)
    view = View(
        name=name,
        dtype=dtype,
        stored="bfloat16" if rounded else dtype,
        shape=tuple(tensor.shape),
        stride=None if contiguous else tensor.stride(),
        dense=not contiguous and is_dense(tensor),
        start=int(tensor.storage_offset()) * tensor.element_size(),
        storage=(str(tensor.device), storage.data_ptr(), storage.nbytes()),
    )
    if view.nbytes and view.start + view.span > storage.nbytes():
        raise InvalidInputError(
            f"{name}: a tensor whose memory was freed or cut short (storage().resize_) cannot be saved",
            cure="save while its memory is there; of a sharded model, save a gathered copy",
            kind="unsupported-state",
        )
    return view


@functools.cache
def _name_of_dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
