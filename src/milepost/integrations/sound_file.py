"""How does a file that a framework made reach the disk whole, and how is it told later whether it still is?

Such a file (Lightning's ``.ckpt``) has to stay what the framework reads, so what milepost knows of it stands in a small
file beside it (:func:`milepost.checkpoint.catalog.sidecar_of`): the digest of every byte, and which bytes are meant, by
size and modification time.

**Invariants**: a name that exists belongs to a file that was synced and read back once. A description that is not of
this very file (it was replaced by somebody else) counts as none; then the checksums inside the zip decide.

**On crash**: the old file or the new one. A temporary may stay behind; the next write of that name removes it.
"""

from __future__ import annotations

import json
import os
import time
import zipfile
import zlib
from contextlib import suppress
from glob import escape
from pathlib import Path
from typing import Any

import xxhash

from milepost.checkpoint.catalog import sidecar_of, text_of
from milepost.core.errors import CorruptDataError, StorageError
from milepost.io.direct import ALIGNMENT, NewFile, aligned_buffer, drop_from_cache, remove_if_abandoned
from milepost.io.durable import fsync_directory, replace_file, storage_error

__all__ = ["damage_of", "description_of", "remove_sound", "write_sound"]

_PIECE = 8 << 20
_PATIENCE = 30.0
_ZIP, _PICKLE = b"PK", b"\x80"


def write_sound(path: Path, content: memoryview, about: dict[str, Any]) -> dict[str, Any]:
    """Make ``path`` hold exactly ``content``, synced and read back; a reader sees the old file or the new one.

    Args:
        path: The file; its folder must exist. What it holds now is replaced.
        content: All of it.
        about: Plain values that are kept with the digest.

    Returns:
        What now stands beside the file: ``about`` with ``digest``, ``size``, ``mtime_ns`` and ``seconds``.

    Raises:
        StorageError: The disk refuses; what was there before is untouched.
        CorruptDataError: The disk does not give back what was written; likewise.
    """
    started = time.monotonic()
    temporary = str(path.with_name(f".{path.name}.tmp"))
    try:
        file = _new_file(temporary)
        try:
            with file:
                _remove_torn_descriptions(path)
                digest = _fill(file, content)
                file.finish(len(content))
            mtime_ns = _read_back(temporary, digest)
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary)
            raise
    except OSError as error:
        raise error if isinstance(error, StorageError) else storage_error(error, "writing", path) from error
    fsync_directory(path.parent)
    described = about | {"digest": digest, "size": len(content), "mtime_ns": mtime_ns}
    described |= {"seconds": round(time.monotonic() - started, 6)}
    replace_file(sidecar_of(path), text_of(described).encode())
    return described


def _new_file(temporary: str) -> NewFile:
    """The temporary; one that a living process is filling (the attempt before) is waited for."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        remove_if_abandoned(temporary)
        try:
            return NewFile(temporary)
        except FileExistsError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def _remove_torn_descriptions(path: Path) -> None:
    """What a process that died while it described the file before left; nobody else writes here while we do."""
    for left in path.parent.glob(f".{escape(sidecar_of(path).name)}.*.tmp"):
        with suppress(OSError):
            left.unlink()


def _fill(file: NewFile, content: memoryview) -> str:
    digest = xxhash.xxh3_128()
    buffer = aligned_buffer(_PIECE)
    for start in range(0, len(content), _PIECE):
        piece = content[start : start + _PIECE]
        digest.update(piece)
        buffer[: len(piece)] = piece
        file.write(buffer[: -(-len(piece) // ALIGNMENT) * ALIGNMENT], start)
    return digest.hexdigest()


def _read_back(path: str, wanted: str) -> int:
    """The modification time of the file, once the disk has given back what was written."""
    with open(path, "rb") as file:
        drop_from_cache(file.fileno())
        if _digest(file.fileno()) != wanted:
            raise CorruptDataError(f"{path} is not what was written to it", cure="check the disk")
        return os.fstat(file.fileno()).st_mtime_ns


def _digest(fd: int) -> str:
    digest = xxhash.xxh3_128()
    while piece := os.read(fd, _PIECE):
        digest.update(piece)
    return digest.hexdigest()


def description_of(path: Path) -> dict[str, Any]:
    """What was noted of this very file when it was written; empty if nothing was."""
    try:
        status = path.stat()
        described = json.loads(sidecar_of(path).read_bytes())
        is_of_this_file = (described["size"], described["mtime_ns"]) == (status.st_size, status.st_mtime_ns)
        return dict(described) if is_of_this_file else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def damage_of(path: Path) -> str:
    """What is wrong with a file of torch, in words; empty if it is sound, or nothing can tell."""
    described = description_of(path)
    try:
        if "digest" in described:
            with open(path, "rb") as file:
                is_sound = _digest(file.fileno()) == described["digest"]
            return "" if is_sound else "its digest is not the one taken when it was written"
        return _damage_by_checksums(path)
    except OSError as error:
        return f"it cannot be read ({error.strerror or error})"


def _damage_by_checksums(path: Path) -> str:
    """By what torch itself leaves in a file: a checksum for each entry of the zip."""
    with open(path, "rb") as file:
        magic = file.read(2)
        if magic[:1] == _PICKLE:
            return ""  # torch before 1.6: no checksums anywhere
        if magic != _ZIP:
            return "it is no file that torch wrote"
        try:
            entry = zipfile.ZipFile(file).testzip()
        except (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError, ValueError) as error:
            return f"its zip is broken ({error})"
    return f"the checksum of {entry!r} in it does not fit" if entry else ""


def remove_sound(path: Path) -> None:
    """Remove a file and what stands beside it; nothing if it is gone.

    Raises:
        StorageError: The disk refuses.
    """
    try:
        path.unlink(missing_ok=True)
        sidecar_of(path).unlink(missing_ok=True)
    except OSError as error:
        raise storage_error(error, "removing", path) from error
    fsync_directory(path.parent)
