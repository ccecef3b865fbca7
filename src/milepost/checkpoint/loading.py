"""How does a checkpoint become tensors, with or without live objects to put them into?

``milepost.load`` gives a plain dict: ``model.load_state_dict(milepost.load(path)["model"])``. ``open_checkpoint`` opens
a file of milepost's own format and reads single tensors. Restoring a training starts with :func:`load_state`.

**Invariant**: a state is returned whole and verified, or not at all; so a damaged file leaves live objects untouched.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from milepost.checkpoint.dtypes import DTYPES
from milepost.checkpoint.naming import map_leaves
from milepost.checkpoint.reading import CheckpointFile, open_checkpoint
from milepost.checkpoint.side_file import rank_of
from milepost.checkpoint.tree import decode_tree, encode_tree
from milepost.core.errors import CorruptDataError, InvalidInputError, NotFoundError
from milepost.core.records import CheckpointInfo

if TYPE_CHECKING:
    import torch

    from milepost.checkpoint.manifest import StoredTensor

__all__ = ["LoadedState", "load", "load_state", "open_checkpoint"]

_LEFT_OUT = object()
_ANOTHER = "use another checkpoint"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedState:
    """A checkpoint in memory: its record, and its state as :func:`milepost.checkpoint.state.capture` made it."""

    info: CheckpointInfo
    state: dict[str, Any]


class _Stored:
    """Stands for a tensor while it is decided which ones to read."""

    def __init__(self, name: str) -> None:
        self.name = name


def load(
    path: str | os.PathLike[str] | CheckpointInfo,
    only: str | Collection[str] | None = None,
    device: str | torch.device | None = None,
) -> dict[str, Any]:
    """The content of a checkpoint as a plain dict: ``model``, ``optimizer``, ``extra``, ... with tensors.

    Args:
        path: A file of milepost's own format, ``.pt``, ``.pt.gz`` or ``.safetensors``; or a listed checkpoint.
        only: Pattern or patterns of names, ``"model.encoder.*"``; what matches none is not read.
        device: Where the tensors shall be; the CPU without one.

    Raises:
        NotFoundError: There is no such file, or nothing in it matches.
        CorruptDataError: It is damaged; the message names file, tensor and offset.
        InvalidInputError: The device is not here.
    """
    patterns = (only,) if isinstance(only, str) else None if only is None else tuple(only)
    target = _device(device)
    state = load_state(path, patterns=patterns).state
    if patterns is not None and not state:
        raise NotFoundError(f"nothing in {_file(path)} is called {' or '.join(patterns)}", cure="see the names in it")
    if target is not None and target.type != "cpu":
        moved: dict[str, Any] = map_leaves(
            state, lambda _, leaf: leaf.to(target) if hasattr(leaf, "is_contiguous") else leaf, without=_LEFT_OUT
        )
        return moved
    return state


def load_state(
    path: str | os.PathLike[str] | CheckpointInfo,
    *,
    parts: Collection[str] | None = None,
    patterns: Collection[str] | None = None,
) -> LoadedState:
    """Read a checkpoint of any format, all of its bytes verified.

    Args:
        path: The file.
        parts: Which of its parts (``model``, ``optimizer``, ...); None: all.
        patterns: Names of tensors and values wanted; None: all.

    Raises:
        NotFoundError: There is no such file.
        CorruptDataError: It is damaged; the message names file, tensor and offset.
    """
    from milepost.checkpoint.foreign import foreign_format, read_foreign

    file_path = _file(path)
    if not file_path.exists():
        raise NotFoundError(f"no checkpoint {str(file_path)!r}", cure="check the path")
    if foreign_format(file_path) is not None:
        info, state = read_foreign(file_path, lambda part: parts is None or part in parts)
        return LoadedState(info=info, state=_matching(state, patterns))
    with open_checkpoint(file_path) as file:
        outline = _tree(file, _Stored)
        wanted = _matching({part: value for part, value in outline.items() if parts is None or part in parts}, patterns)
        tensors = _read(file, wanted)
        whole = _tree(file, tensors.get)
        state = _matching({part: whole[part] for part in wanted}, patterns)
        if patterns is None and (parts is None or "ranks" in parts):
            state["ranks"] = _ranks(file)
        return LoadedState(info=file.info, state=state)


def _file(path: str | os.PathLike[str] | CheckpointInfo) -> Path:
    return path.path if isinstance(path, CheckpointInfo) else Path(os.fspath(path))


def _tree(file: CheckpointFile, leaf: Callable[[str], Any]) -> dict[str, Any]:
    """The state in ``file``, with ``leaf(name)`` for each tensor."""

    def by_index(index: int) -> Any:
        if not 0 <= index < len(file.names):
            raise CorruptDataError(f"{file.path} refers to tensor {index} of {len(file.names)}", cure=_ANOTHER)
        return leaf(file.names[index])

    state = decode_tree(file.tree, leaf=by_index)
    if not isinstance(state, dict):
        raise CorruptDataError(f"{file.path} holds no state of a training", cure="read it with open_checkpoint")
    return state


def _matching(state: dict[str, Any], patterns: Collection[str] | None) -> dict[str, Any]:
    if patterns is None:
        return state
    found = map_leaves(
        state,
        lambda name, leaf: leaf if any(fnmatchcase(name, pattern) for pattern in patterns) else _LEFT_OUT,
        without=_LEFT_OUT,
    )
    return {} if found is _LEFT_OUT else found


def _read(file: CheckpointFile, outline: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The tensors that ``outline`` refers to: each once, by all cores, straight into its memory."""
    tensors: dict[str, Any] = {}
    memory: dict[str, Any] = {}

    def note(value: Any) -> int | None:
        if isinstance(value, np.ndarray) and value.dtype == object:
            value = value.item()  # what was an array comes as an array around what stands for it
        if not isinstance(value, _Stored):
            return None
        if value.name not in tensors:
            tensors[value.name], memory[value.name] = _empty(file.tensors[value.name])
        return 0

    encode_tree(outline, leaf=note)  # knows its way through every container a tree can hold
    file.read_many_into(memory)
    return tensors


def _empty(stored: StoredTensor) -> tuple[torch.Tensor, Any]:
    """A tensor of the stored shape, and its memory as bytes."""
    import torch

    memory = torch.empty(stored.nbytes, dtype=torch.uint8)
    dtype: torch.dtype = getattr(torch, DTYPES[stored.dtype].name)
    flat = memory.view(dtype)
    tensor = flat.view(stored.shape) if stored.stride is None else flat.as_strided(stored.shape, stored.stride)
    return tensor, memory.numpy()


def _ranks(file: CheckpointFile) -> dict[int, Any]:
    """What the other ranks had for themselves."""
    return {
        rank_of(name): decode_tree(json.loads(file.read_side_file(name)), leaf=lambda index: index)
        for name in file.side_files
        if name.rpartition(".rank")[2].isdigit()
    }


def _device(device: str | torch.device | None) -> torch.device | None:
    if device is None:
        return None
    import torch

    try:
        target = torch.device(device)
        torch.empty(0, device=target)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise InvalidInputError(
            f"device {str(device)!r} is not here ({str(error).splitlines()[0]})", cure="leave it out, or name another"
        ) from None
    return target
