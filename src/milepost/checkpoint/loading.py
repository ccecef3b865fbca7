"""How does a checkpoint become tensors, with or without live objects to put them into?

``milepost.load`` gives a plain dict: ``model.load_state_dict(milepost.load(path)["model"])``. ``open_checkpoint`` opens
a file of milepost's own format and reads single tensors. Restoring into live objects starts with :func:`open_state`,
which reads no tensor yet.

**Invariant**: ``load`` returns a state whole and verified, or not at all; what it reads into is its own memory.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from milepost.checkpoint.naming import map_leaves
from milepost.checkpoint.reading import CheckpointFile, open_checkpoint
from milepost.checkpoint.side_file import rank_of
from milepost.checkpoint.tree import decode_tree
from milepost.core.errors import CorruptDataError, InvalidCallError, InvalidInputError, NotFoundError
from milepost.core.records import CheckpointInfo

if TYPE_CHECKING:
    import torch

    from milepost.checkpoint.safetensors_file import SafetensorsFile

__all__ = ["LoadedState", "StoredState", "load", "load_state", "open_checkpoint", "open_state"]

_LEFT_OUT = object()
_ANOTHER = "use another checkpoint"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedState:
    """A checkpoint in memory: its record, and its state as :func:`milepost.checkpoint.state.capture` made it."""

    info: CheckpointInfo
    state: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredState:
    """An open checkpoint: its record, and its state with a placeholder for each tensor (:mod:`.read_plan`).

    Attributes:
        info: The record.
        state: The state; with real tensors where a foreign format gave them at once.
        file: What the tensors are read from; None where all of them are there.
        stranger: Whether somebody else wrote it, so that its names may be others.
        foreign_notes: What is to be known of a foreign format.
    """

    info: CheckpointInfo
    state: dict[str, Any]
    file: CheckpointFile | SafetensorsFile | None
    stranger: bool = False
    foreign_notes: tuple[str, ...] = ()

    @property
    def notes(self) -> tuple[str, ...]:
        """What the reader should know: also what was damaged so far and taken from a copy."""
        mended = self.file.mended if isinstance(self.file, CheckpointFile) else ()
        return (*self.foreign_notes, *mended)

    def require_base(self) -> None:
        """Open the keyframe that the file holds differences to, if there is one.

        Raises:
            CorruptDataError: It is not there, or damaged.
        """
        try:
            _ = self.file.base if isinstance(self.file, CheckpointFile) else None
        except NotFoundError as error:
            raise CorruptDataError(error.what, cure=error.cure, kind="missing-keyframe") from None

    def read(self, value: Any, device: torch.device | str = "cpu") -> Any:
        """``value``, a part of the state, with its tensors in memory of their own on ``device``.

        Raises:
            CorruptDataError: One is damaged; the message names file, tensor and offset.
        """
        from milepost.checkpoint.read_plan import ReadPlan

        plan = ReadPlan()
        real = plan.materialise(value, device)
        plan.carry_out(self.file)
        return real


def load(
    path: str | os.PathLike[str] | CheckpointInfo,
    only: str | Collection[str] | None = None,
    device: str | torch.device | None = None,
    *,
    mapped: bool = False,
) -> dict[str, Any]:
    """The content of a checkpoint as a plain dict: ``model``, ``optimizer``, ``extra``, ... with tensors.

    Args:
        path: A file of milepost's own format, ``.pt``, ``.pt.gz`` or ``.safetensors``; or a listed checkpoint.
        only: Pattern or patterns of names, ``"model.encoder.*"``; what matches none is not read.
        device: Where the tensors shall be; the CPU without one.
        mapped: Give tensors that lie in the file itself and take no memory until they are used. Writing to one gives
            it memory of its own, and never reaches the file. The file must stay as it is while they are used: one that
            is cut ends the process. Only for checkpoints saved with ``compression=False``.

    Raises:
        NotFoundError: There is no such file, or nothing in it matches.
        CorruptDataError: It is damaged; the message names file, tensor and offset.
        InvalidInputError: The device is not here; or the checkpoint is compressed and cannot be mapped.
    """
    patterns = (only,) if isinstance(only, str) else None if only is None else tuple(only)
    if mapped and device is not None:
        raise InvalidCallError("mapped=True and a device are given", cure="map it, then move what is needed")
    state = _mapped(path, patterns) if mapped else load_state(path, patterns=patterns, device=_device(device)).state
    if patterns is not None and not state:
        raise NotFoundError(f"nothing in {_file(path)} is called {' or '.join(patterns)}", cure="see the names in it")
    return state


def load_state(
    path: str | os.PathLike[str] | CheckpointInfo,
    *,
    patterns: Collection[str] | None = None,
    device: str | torch.device = "cpu",
) -> LoadedState:
    """Read a checkpoint of any format into new memory, all of its bytes verified.

    Args:
        path: The file.
        patterns: Names of tensors and values wanted; None: all.
        device: Where the tensors shall be.

    Raises:
        NotFoundError: There is no such file.
        CorruptDataError: It is damaged; the message names file, tensor and offset.
    """
    with open_state(path) as stored:
        wanted = stored.state if patterns is None else _matching(stored.state, patterns)
        return LoadedState(info=stored.info, state=stored.read(wanted, device))


def _mapped(path: str | os.PathLike[str] | CheckpointInfo, patterns: Collection[str] | None) -> dict[str, Any]:
    from milepost.checkpoint.mapping import map_tensors

    with open_state(path) as stored:
        if not isinstance(stored.file, CheckpointFile):
            raise InvalidInputError(
                f"{_file(path)} cannot be mapped: it is of another format", cure="read it instead, or export it"
            )
        wanted = stored.state if patterns is None else _matching(stored.state, patterns)
        state: dict[str, Any] = map_tensors(stored.file, wanted)
        return state


@contextmanager
def open_state(path: str | os.PathLike[str] | CheckpointInfo, *, copies: Sequence[Path] = ()) -> Iterator[StoredState]:
    """Open a checkpoint of any format; of milepost's own, no tensor is read yet.

    Args:
        path: The file.
        copies: Folders with a second copy of it, from which damaged blocks are taken.

    Raises:
        NotFoundError: There is no such file.
        CorruptDataError: It is damaged; the message names file and place.
    """
    from milepost.checkpoint.foreign import foreign_format, open_foreign

    file_path = _file(path)
    if foreign_format(file_path) is not None:
        foreign = open_foreign(file_path)
        with closing(foreign.file) if foreign.file is not None else nullcontext():
            yield StoredState(
                info=foreign.info,
                state=foreign.state,
                file=foreign.file,
                stranger=foreign.stranger,
                foreign_notes=foreign.notes,
            )
        return
    with open_checkpoint(file_path, copies=copies) as file:
        yield StoredState(info=file.info, state=_outline(file) | {"ranks": _ranks(file)}, file=file)


def _file(path: str | os.PathLike[str] | CheckpointInfo) -> Path:
    return path.path if isinstance(path, CheckpointInfo) else Path(os.fspath(path))


def _outline(file: CheckpointFile) -> dict[str, Any]:
    """The state in ``file``, with a placeholder for each tensor; one that is tied is one."""
    from milepost.checkpoint.read_plan import Placeholder, placeholder_of

    made: dict[int, Placeholder] = {}

    def by_index(index: int) -> Placeholder:
        if not 0 <= index < len(file.names):
            raise CorruptDataError(f"{file.path} refers to tensor {index} of {len(file.names)}", cure=_ANOTHER)
        if index not in made:
            made[index] = placeholder_of(file.tensors[file.names[index]])
        return made[index]

    state = decode_tree(file.tree, leaf=by_index)
    if not isinstance(state, dict):
        raise CorruptDataError(f"{file.path} holds no state of a training", cure="read it with open_checkpoint")
    return state


def _matching(state: dict[str, Any], patterns: Collection[str]) -> dict[str, Any]:
    found = map_leaves(
        state,
        lambda name, leaf: leaf if any(fnmatchcase(name, pattern) for pattern in patterns) else _LEFT_OUT,
        without=_LEFT_OUT,
    )
    return {} if found is _LEFT_OUT else found


def _ranks(file: CheckpointFile) -> dict[int, Any]:
    """What the other ranks had for themselves."""
    return {
        rank_of(name): decode_tree(json.loads(file.read_side_file(name)), leaf=lambda index: index)
        for name in file.side_files
        if name.rpartition(".rank")[2].isdigit()
    }


def _device(device: str | torch.device | None) -> str | torch.device:
    if device is None:
        return "cpu"
    import torch

    try:
        target = torch.device(device)
        torch.empty(0, device=target)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise InvalidInputError(
            f"device {str(device)!r} is not here ({str(error).splitlines()[0]})", cure="leave it out, or name another"
        ) from None
    return target
