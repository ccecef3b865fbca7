"""How are checkpoints kept in the formats of others: ``.pt``, ``.pt.gz``, ``.safetensors``?

So that others can read them: ``torch.load(path)["model"]`` and ``["optimizer"]`` go into ``load_state_dict`` as they
are, a ``.safetensors`` file holds the model's weights under their own names and the rest under prefixed ones. Beside
that each holds the typed tree, as text, so that milepost restores from it as exactly as from its own format.

A foreign file is described by a small file beside it (:func:`milepost.checkpoint.catalog.sidecar_of`), which also has
the digest of the whole file, because ``.pt`` and ``.safetensors`` have none that is always checked.

**Invariants**: a ``.pt`` file is read with ``weights_only=True`` and never otherwise. What a header declares is checked
before memory is allocated for it. An existing file is never replaced.

**On crash**: the description is written first, so a file without one is not ours; one without its file is ignored.
"""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import numpy as np
import xxhash

from milepost.checkpoint import safetensors_file
from milepost.checkpoint.catalog import sidecar_of, text_of
from milepost.checkpoint.codec import Bytes
from milepost.checkpoint.huggingface_folder import weight_files
from milepost.checkpoint.job import SaveJob, TensorEntry
from milepost.checkpoint.listing import info_of
from milepost.checkpoint.naming import map_leaves
from milepost.checkpoint.regions import state_bytes
from milepost.checkpoint.safetensors_file import SafetensorsFile
from milepost.checkpoint.strangers import parts_of_stranger, record_of_stranger
from milepost.checkpoint.torch_file import notes_on_torch, read_torch_file
from milepost.checkpoint.tree import decode_tree
from milepost.core.errors import CorruptDataError, NotFoundError
from milepost.core.records import CheckpointInfo
from milepost.io.durable import replace_file

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["ForeignState", "foreign_format", "open_foreign", "verify_foreign", "write_content", "write_foreign"]

_PIECE = 8 << 20
Read = Callable[[TensorEntry], Bytes]
_ABSENT = object()


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignState:
    """An open file that is not of milepost's format.

    Attributes:
        info: The record; without a run if somebody else wrote it.
        state: The state: tensors, or placeholders for tensors of ``file``.
        file: What placeholders are read from; whoever has this must close it.
        stranger: Whether somebody else wrote it, so that its names may be others.
        notes: What the reader should know.
    """

    info: CheckpointInfo
    state: dict[str, Any]
    file: SafetensorsFile | None = None
    stranger: bool = False
    notes: tuple[str, ...] = ()


def foreign_format(path: str | os.PathLike[str]) -> str | None:
    """The format by the name of a file; ``"huggingface"`` for a folder; None for milepost's own format."""
    if os.path.isdir(path):
        return "huggingface"
    name = os.fspath(path).lower()
    endings = {".pt.gz": "pt.gz", ".pth.gz": "pt.gz", ".pt": "pt", ".pth": "pt", ".bin": "pt"}
    endings[".safetensors"] = "safetensors"
    return next((kind for ending, kind in endings.items() if name.endswith(ending)), None)


def write_foreign(job: SaveJob, arena: memoryview, path: Path) -> None:
    """Write a staged snapshot in the foreign format that ``job`` names, and its description beside ``job.path``.

    Args:
        job: What to write.
        arena: The memory that its tensors lie in.
        path: The temporary file, which exists; the caller makes it durable and gives it its name.

    Raises:
        InvalidInputError: The format cannot hold a tensor of it.
        OSError: As the kernel gives it.
    """
    with open(path, "r+b") as file:
        write_content(job, lambda entry: _window(arena, entry), file)
    description = info_of(job, Path(job.path), path.stat().st_size).to_fields() | {"digest": _digest(path)}
    replace_file(sidecar_of(Path(job.path)), text_of(description).encode())


def write_content(job: SaveJob, read: Read, file: BinaryIO) -> None:
    """Write a state in the foreign format that ``job`` names.

    Args:
        job: What to write.
        read: Gives the bytes of a tensor of it, as they lie in memory.
        file: Open for writing, at its beginning.

    Raises:
        InvalidInputError: The format cannot hold a tensor of it.
        OSError: As the kernel gives it.
    """
    _WRITERS[job.format](job, read, file)


def _window(arena: memoryview, entry: TensorEntry) -> Bytes:
    return np.frombuffer(arena, np.uint8, entry.nbytes, entry.offset) if entry.nbytes else np.empty(0, np.uint8)


def verify_foreign(path: Path) -> None:
    """Read the file back and compare it with the digest taken when it was written; nothing if there is none.

    Raises:
        CorruptDataError: It is not what was written.
    """
    try:
        wanted = json.loads(sidecar_of(path).read_bytes())["digest"]
    except (OSError, ValueError, KeyError, TypeError):
        return
    if _digest(path) != wanted:
        raise _damaged(path, "its digest is not the one taken when it was written")


def _digest(path: Path) -> str:
    digest = xxhash.xxh3_128()
    with open(path, "rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()


def open_foreign(path: Path) -> ForeignState:
    """A file of a foreign format, written by milepost or by somebody else, or a folder of Hugging Face.

    Raises:
        NotFoundError: There is no such file, or no weights in the folder.
        CorruptDataError: It is damaged.
        InvalidInputError: It holds objects that are neither tensors nor plain values.
    """
    kind = foreign_format(path)
    if kind == "huggingface":
        files = weight_files(path)
    elif path.exists():
        files = [path]
        verify_foreign(path)
    else:
        raise NotFoundError(f"no checkpoint {str(path)!r}", cure="check the path")
    if files[0].suffix == ".safetensors":
        return _open_safetensors(path, files, kind or "")
    content: dict[str, Any] = {}
    for file in files:
        content |= read_torch_file(file, packed=kind == "pt.gz")
    if "milepost" in content:
        own = content.pop("milepost")
        return _ours(path, own, [_as_it_was(*pair) for pair in _with_originals(own)])
    parts = parts_of_stranger(content)
    info = record_of_stranger(path, kind or "", content, parts)
    return ForeignState(info=info, state=parts, stranger=True, notes=notes_on_torch(_torch_version()))


def _open_safetensors(path: Path, files: list[Path], kind: str) -> ForeignState:
    from milepost.checkpoint.read_plan import placeholder_of

    file = SafetensorsFile(files)
    try:
        if "milepost" in file.metadata:
            own = json.loads(file.metadata["milepost"])
            file.rename(own["order"], own["names"], own["original"])
            tensors = [placeholder_of(file.tensors[name]) for name in own["names"]]
            return replace(_ours(path, own, tensors), file=file)
        model = {name: placeholder_of(tensor) for name, tensor in file.tensors.items()}
        parts = parts_of_stranger(model)
        info = record_of_stranger(path, kind, {}, parts)
        return ForeignState(info=info, state=parts, file=file, stranger=True)
    except (ValueError, KeyError, TypeError) as error:
        file.close()
        raise error if isinstance(error, CorruptDataError) else _misfit(path, error) from None


def _ours(path: Path, own: dict[str, Any], tensors: list[Any]) -> ForeignState:
    """What milepost wrote, as it was."""
    try:
        state = decode_tree(json.loads(own["tree"]), leaf=lambda index: tensors[index])
        described = own["info"]
        state["ranks"] = {
            int(rank): decode_tree(json.loads(text), leaf=lambda _: None) for rank, text in own["ranks"].items()
        }
        job = SaveJob(path=str(path), tree="", tensors=[], arena_bytes=0, **described)
        info = replace(info_of(job, path, path.stat().st_size), state_bytes=own["state_bytes"])
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise _misfit(path, error) from None
    return ForeignState(info=info, state=state)


def _with_originals(own: dict[str, Any]) -> list[tuple[Tensor, str | None]]:
    return [(tensor, own["original"].get(str(index))) for index, tensor in enumerate(own["tensors"])]


def _as_it_was(tensor: Tensor, original: str | None) -> Tensor:
    import torch

    return tensor if original is None else tensor.to(getattr(torch, original))


def _torch_version() -> str:
    import torch

    return str(torch.__version__)


def _write_pt(job: SaveJob, read: Read, file: BinaryIO) -> None:
    import torch

    from milepost.checkpoint.mapping import tensor_over

    # nobody writes to them, though torch believes one could
    tensors = [tensor_over(read(entry), entry.dtype, entry.shape, entry.stride) for entry in job.tensors]
    state = decode_tree(json.loads(job.tree), leaf=lambda index: tensors[index])
    content = {part: _plain_only(state[part]) for part in ("model", "optimizer", "scheduler") if part in state}
    content |= {"epoch": job.epoch, "step": job.step, "metrics": _plain_only(dict(job.metrics))}
    torch.save(content | {"milepost": _own(job) | {"tensors": tensors}}, file)


def _write_pt_gz(job: SaveJob, read: Read, file: BinaryIO) -> None:
    with gzip.GzipFile(fileobj=file, mode="wb", compresslevel=1, filename="", mtime=0) as packed:
        _write_pt(job, read, cast("BinaryIO", packed))


def _write_safetensors(job: SaveJob, read: Read, file: BinaryIO) -> None:
    safetensors_file.write(file, job.tensors, read, _own(job))


_WRITERS: dict[str, Callable[[SaveJob, Read, BinaryIO], None]] = {
    "pt": _write_pt,
    "pt.gz": _write_pt_gz,
    "safetensors": _write_safetensors,
}


def _own(job: SaveJob) -> dict[str, Any]:
    """What milepost needs beside the tensors to restore exactly."""
    ranks = {name.rpartition(".rank")[2]: Path(name).read_text("utf-8", "surrogatepass") for name in job.side_files}
    info = {name: getattr(job, name) for name in ("format", "experiment_id", "step", "epoch", "metrics", "is_best")}
    info |= {name: getattr(job, name) for name in ("pinned", "timestamp", "stall_ms", "wait_ms", "attempt", "contents")}
    info |= {"include": job.include, "lossy": job.lossy}
    original = {str(index): entry.original for index, entry in enumerate(job.tensors) if entry.original}
    return {
        "info": info,
        "tree": job.tree,
        "ranks": ranks,
        "original": original,
        "state_bytes": state_bytes(job.tensors),
    }


def _plain_only(value: Any) -> Any:
    """What ``torch.load(weights_only=True)`` accepts of ``value``; the rest stands in the typed tree."""
    found = map_leaves(value, lambda _, leaf: leaf if _is_plain(leaf) else _ABSENT, without=_ABSENT)
    return {} if found is _ABSENT else found


def _is_plain(value: Any) -> bool:
    if value is None or type(value) in {bool, int, float, str, dict, list, tuple}:
        return True  # containers that come here are empty
    return type(value).__name__ in {"Tensor", "Parameter"} and type(value).__module__.startswith("torch")


def _misfit(path: Path, error: Exception) -> CorruptDataError:
    return _damaged(path, f"what milepost wrote about it does not fit ({error})")


def _damaged(path: Path, what: str) -> CorruptDataError:
    return CorruptDataError(f"{path} is damaged: {what}", cure="use another checkpoint")
