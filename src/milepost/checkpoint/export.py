"""How does a checkpoint leave for somebody who reads another format?

Tensor by tensor out of the file and into the new one, each with its digest checked: no second state in memory, and no
torch, except to write or read ``.pt``. From a file of a foreign format the whole state is read first.

**Invariants**: what has the target's name is complete and synced. An existing file or folder is never replaced.

**On crash**: a temporary ``.<name>.<pid>.tmp`` may stay beside the target; nobody reads it.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO, Literal

from milepost.checkpoint.commit import commit, verify
from milepost.checkpoint.export_content import ExportContent, content_of
from milepost.checkpoint.foreign import write_content
from milepost.checkpoint.huggingface_folder import folder_content
from milepost.checkpoint.safetensors_file import write_named
from milepost.checkpoint.tree import decode_tree
from milepost.core.errors import ConflictError, InvalidCallError
from milepost.core.records import CheckpointInfo
from milepost.io.direct import rename_without_replacing
from milepost.io.durable import fsync_directory, replace_file, storage_error

__all__ = ["Format", "export"]

Format = Literal["milepost", "pt", "pt.gz", "safetensors", "huggingface"]

_FORMATS = ("milepost", "pt", "pt.gz", "safetensors", "huggingface")


def export(
    path: str | os.PathLike[str] | CheckpointInfo,
    target: str | os.PathLike[str],
    *,
    format: Format,  # noqa: A002  # what everybody calls it
    only: str | Collection[str] | None = None,
) -> Path:
    """Write a checkpoint in another format.

    Args:
        path: A checkpoint of any format that ``milepost.load`` reads; or a listed one.
        target: The file to make; for ``"huggingface"`` the folder. It must not exist.
        format: ``"milepost"`` (a file that loads alone), ``"pt"``, ``"pt.gz"`` (both by torch), ``"safetensors"``, or
            ``"huggingface"``: a folder that ``from_pretrained`` loads.
        only: Pattern or patterns of names, ``"model.*"``; the rest is left out.

    Returns:
        The absolute path of what was made.

    Raises:
        ConflictError: The target exists.
        NotFoundError: There is no such checkpoint, or nothing in it matches.
        CorruptDataError: The checkpoint is damaged; nothing was made.
        InvalidInputError: The format cannot hold it; or no config of a transformers model was saved with it.
        StorageError: The disk refuses; nothing was made.
    """
    if format not in _FORMATS:
        raise InvalidCallError(f"format is {format!r}", cure=f"give one of {', '.join(_FORMATS)}")
    made = Path(os.fspath(target)).absolute()
    if os.path.lexists(made):
        raise ConflictError(f"{str(made)!r} exists already", cure="export under another name, or remove it first")
    patterns = (only,) if isinstance(only, str) else only
    source = path.path if isinstance(path, CheckpointInfo) else Path(os.fspath(path))
    with TemporaryDirectory() as folder, content_of(source, patterns, Path(folder)) as content:
        if format == "milepost":
            commit(replace(content.job, path=str(made)), content)
            verify(made)
        else:
            _make(made, format, content)
    return made


def _make(target: Path, kind: str, content: ExportContent) -> None:
    """Write beside the target, sync, and give it its name."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if kind == "huggingface":
            _write_folder(temporary, content)
        else:
            _write_file(temporary, lambda file: write_content(replace(content.job, format=kind), content.read, file))
        rename_without_replacing(str(temporary), str(target))
    except FileExistsError:
        raise ConflictError(f"{str(target)!r} exists already", cure="export under another name") from None
    except OSError as error:
        raise storage_error(error, "writing", target) from error
    finally:
        _remove(temporary)
    fsync_directory(target.parent)


def _write_file(path: Path, write: Callable[[BinaryIO], None]) -> None:
    with open(path, "wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())


def _write_folder(folder: Path, content: ExportContent) -> None:
    entries = content.job.tensors
    state = decode_tree(json.loads(content.job.tree), leaf=lambda index: entries[index])
    weights, texts = folder_content(state)
    folder.mkdir()
    _write_file(folder / "model.safetensors", lambda file: write_named(file, weights, content.read, {"format": "pt"}))
    for name, text in texts.items():
        replace_file(folder / name, text.encode())
    fsync_directory(folder)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()
