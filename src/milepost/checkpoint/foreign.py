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

import errno
import gzip
import io
import json
import os
import pickle
import zlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from milepost.checkpoint import safetensors_file
from milepost.checkpoint.catalog import sidecar_of, text_of
from milepost.checkpoint.job import SaveJob, TensorEntry
from milepost.checkpoint.listing import info_of
from milepost.checkpoint.naming import map_leaves
from milepost.checkpoint.regions import state_bytes
from milepost.checkpoint.tree import decode_tree
from milepost.core.errors import CorruptDataError, InvalidInputError
from milepost.core.records import CheckpointInfo
from milepost.io.durable import replace_file, storage_error

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["foreign_format", "read_foreign", "verify_foreign", "write_foreign"]

_PIECE = 8 << 20
_ABSENT = object()
_DAMAGE = (RuntimeError, EOFError, zlib.error, ValueError, KeyError, TypeError)


def foreign_format(path: str | os.PathLike[str]) -> str | None:
    """``"pt"``, ``"pt.gz"`` or ``"safetensors"`` by the name of a file; None for milepost's own format."""
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
        _WRITERS[job.format](job, arena, file)
    description = info_of(job, Path(job.path), path.stat().st_size).to_fields() | {"digest": _digest(path)}
    replace_file(sidecar_of(Path(job.path)), text_of(description).encode())


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


def read_foreign(path: Path) -> tuple[CheckpointInfo, dict[str, Any]]:
    """A file of a foreign format, written by milepost or by somebody else, as record and state.

    Raises:
        CorruptDataError: It is damaged.
        InvalidInputError: It holds objects that are neither tensors nor plain values.
    """
    verify_foreign(path)
    kind = foreign_format(path)
    with open(path, "rb") as file:
        content = safetensors_file.read(path, file) if kind == "safetensors" else _read_torch(path, file, kind)
    own = content.pop("milepost", None)
    if own is None:
        return _stranger(path, kind or "pt"), _parts_of_stranger(content)
    try:
        tree = json.loads(own["tree"])
        tensors = own["tensors"]
        state = decode_tree(tree, leaf=lambda index: tensors[index])
        described = own["info"]
        state["ranks"] = {
            int(rank): decode_tree(json.loads(text), leaf=lambda _: None) for rank, text in own["ranks"].items()
        }
        job = SaveJob(path=str(path), tree="", tensors=[], arena_bytes=0, **described)
        info = replace(info_of(job, Path(job.path), path.stat().st_size), state_bytes=own["state_bytes"])
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise _damaged(path, f"what milepost wrote about it does not fit ({error})") from None
    return info, state


def _read_torch(path: Path, file: io.BufferedReader, kind: str | None) -> dict[str, Any]:
    import torch

    try:
        source = io.BytesIO(gzip.GzipFile(fileobj=file).read()) if kind == "pt.gz" else file
        content = torch.load(source, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InvalidInputError(
            f"{path} holds more than tensors and plain values ({str(error).splitlines()[0]})",
            cure="load it with torch.load(weights_only=False) if you trust it, and save its state_dict",
        ) from None
    except OSError as error:
        if error.errno not in {None, errno.EINVAL}:  # what torch's and gzip's readers make of a cut file
            raise storage_error(error, "reading", path) from error
        raise _damaged(path, str(error)) from None
    except _DAMAGE as error:
        raise _damaged(path, str(error).splitlines()[0] if str(error) else type(error).__name__) from None
    if not isinstance(content, dict):
        raise InvalidInputError(f"{path} holds a {type(content).__name__}, not a dict of tensors", cure="save a dict")
    return dict(content)


def _stranger(path: Path, kind: str) -> CheckpointInfo:
    status = path.stat()
    return CheckpointInfo(
        filename=path.name,
        path=path,
        experiment_id="",
        step=0,
        timestamp=status.st_mtime,
        size=status.st_size,
        format=kind,
        contents=("model",),
    )


def _parts_of_stranger(content: dict[str, Any]) -> dict[str, Any]:
    """The parts of a file that somebody else wrote, under the names people use for them."""
    parts: dict[str, Any] = {}
    for part in ("model", "optimizer", "scheduler", "scaler"):
        for name in (f"{part}_state_dict", part, *(("state_dict",) if part == "model" else ())):
            if isinstance(content.get(name), Mapping):
                parts[part] = content[name]
                break
    if "model" not in parts:
        parts["model"] = content
    parts["model"] = _without_wrapper(dict(parts["model"]))
    return parts


def _without_wrapper(model: dict[str, Any]) -> dict[str, Any]:
    for prefix in ("_orig_mod.", "module.", "_orig_mod."):
        if model and all(name.startswith(prefix) for name in model):
            model = {name.removeprefix(prefix): value for name, value in model.items()}
    return model


def _write_pt(job: SaveJob, arena: memoryview, file: Any) -> None:
    import torch

    tensors = [_tensor(entry, arena) for entry in job.tensors]
    state = decode_tree(json.loads(job.tree), leaf=lambda index: tensors[index])
    content = {part: _plain_only(state[part]) for part in ("model", "optimizer", "scheduler") if part in state}
    content |= {"epoch": job.epoch, "step": job.step, "metrics": _plain_only(dict(job.metrics))}
    torch.save(content | {"milepost": _own(job) | {"tensors": tensors}}, file)


def _write_pt_gz(job: SaveJob, arena: memoryview, file: Any) -> None:
    with gzip.GzipFile(fileobj=file, mode="wb", compresslevel=1, filename="", mtime=0) as packed:
        _write_pt(job, arena, packed)


def _write_safetensors(job: SaveJob, arena: memoryview, file: Any) -> None:
    safetensors_file.write(file, job.tensors, arena, _own(job))


_WRITERS: dict[str, Callable[[SaveJob, memoryview, Any], None]] = {
    "pt": _write_pt,
    "pt.gz": _write_pt_gz,
    "safetensors": _write_safetensors,
}


def _own(job: SaveJob) -> dict[str, Any]:
    """What milepost needs beside the tensors to restore exactly."""
    ranks = {name.rpartition(".rank")[2]: Path(name).read_text("utf-8", "surrogatepass") for name in job.side_files}
    info = {name: getattr(job, name) for name in ("format", "experiment_id", "step", "epoch", "metrics", "is_best")}
    info |= {name: getattr(job, name) for name in ("pinned", "timestamp", "stall_ms", "attempt", "contents")}
    return {"info": info, "tree": job.tree, "ranks": ranks, "state_bytes": state_bytes(job.tensors)}


def _tensor(entry: TensorEntry, arena: memoryview) -> Tensor:
    """A tensor whose memory is its window of the arena; nobody writes to it, though torch believes one could."""
    import torch

    dtype: torch.dtype = getattr(torch, entry.dtype)
    if not entry.nbytes:
        return torch.empty(entry.shape, dtype=dtype)
    window = np.frombuffer(arena, np.uint8, entry.nbytes, entry.offset)
    flat = torch.from_numpy(np.asarray(_Writable(window))).view(dtype)
    return flat.view(entry.shape) if entry.stride is None else flat.as_strided(entry.shape, entry.stride)


class _Writable:
    """Shows a read-only array as one that torch takes without a warning or a copy."""

    def __init__(self, array: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
        self._array = array
        address = array.__array_interface__["data"][0]
        self.__array_interface__ = array.__array_interface__ | {"data": (address, False)}


def _plain_only(value: Any) -> Any:
    """What ``torch.load(weights_only=True)`` accepts of ``value``; the rest stands in the typed tree."""
    found = map_leaves(value, lambda _, leaf: leaf if _is_plain(leaf) else _ABSENT, without=_ABSENT)
    return {} if found is _ABSENT else found


def _is_plain(value: Any) -> bool:
    if value is None or type(value) in {bool, int, float, str, dict, list, tuple}:
        return True  # containers that come here are empty
    return type(value).__name__ in {"Tensor", "Parameter"} and type(value).__module__.startswith("torch")


def _damaged(path: Path, what: str) -> CorruptDataError:
    return CorruptDataError(f"{path} is damaged: {what}", cure="use another checkpoint")
