"""Which of several copies of a checkpoint can be opened, and is its manifest sound?

The file itself is tried first, then the file of the same name in each folder of copies. The first sound manifest
counts; every other file that could be opened is a second source of blocks, whose checksums tell whether they belong.

**Invariants**: a manifest is parsed only if its digest holds, and read only up to a length that is no attack.

**On crash**: nothing is written here.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import xxhash

from milepost.checkpoint.block_reader import BlockFile
from milepost.checkpoint.envelope import FIRST_BLOCK, HEADER_BYTES, TRAILER_BYTES, Trailer, check_header
from milepost.checkpoint.manifest import Manifest, parse_manifest
from milepost.core.errors import CorruptDataError, MilepostError, NotFoundError, StorageError
from milepost.io.direct import read_fully
from milepost.io.durable import storage_error

__all__ = ["Opened", "open_files"]

_ANOTHER = "load another checkpoint"
_READ_ONLY = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A checkpoint whose manifest was found sound.

    Attributes:
        manifest: What it says about itself.
        digest: xxh3_128 of the manifest's text.
        size: Length of the file that the manifest is from.
        files: Where its blocks are to be looked for, in this order; whoever has this must close them.
        mended: What was damaged and taken from a copy, one sentence each.
    """

    manifest: Manifest
    digest: int
    size: int
    files: tuple[BlockFile, ...]
    mended: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Described:
    file: BlockFile
    manifest: Manifest
    digest: int
    size: int


def open_files(path: Path, folders: Sequence[Path] = (), *, digest: int | None = None) -> Opened:
    """Open ``path`` and its copies.

    Args:
        path: The file.
        folders: Where copies of it may lie, under the same name.
        digest: Of the manifest that is wanted; None: that of the first sound file.

    Raises:
        NotFoundError: There is no such file.
        CorruptDataError: It is no checkpoint, a later version (``kind`` is ``"unknown-version"``), or damaged.
        StorageError: The disk refuses.
    """
    problems: list[MilepostError] = []
    unread: list[BlockFile] = []
    found: _Described | None = None
    copies: list[BlockFile] = []
    with ExitStack() as undo:
        for place in (path, *(folder / path.name for folder in folders)):
            try:
                file = _open(place)
                undo.callback(os.close, file.fd)
                unread.append(file)
                described = _describe(file, digest)
            except (NotFoundError, CorruptDataError, StorageError) as error:
                if error.kind == "unknown-version":
                    raise
                problems.append(error)
                continue
            unread.remove(file)
            if found is None:
                found, digest = described, described.digest
            else:
                copies.append(file)
        if found is None:
            raise problems[0]
        undo.pop_all()
    mended = (f"{problems[0].what}; {found.file.path} was read instead",) if found.file.path != path else ()
    files = (found.file, *copies, *unread)
    return Opened(manifest=found.manifest, digest=found.digest, size=found.size, files=files, mended=mended)


def _open(path: Path) -> BlockFile:
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise CorruptDataError(f"{path}: it is no file", cure="name a checkpoint file")
        return BlockFile(os.open(path, _READ_ONLY), path)
    except (FileNotFoundError, NotADirectoryError):
        raise NotFoundError(f"no checkpoint {str(path)!r}", cure="check the path") from None
    except OSError as error:
        raise storage_error(error, "opening", path) from error


def _describe(file: BlockFile, wanted: int | None) -> _Described:
    """Read the manifest of one file."""
    try:
        size = os.fstat(file.fd).st_size
        trailer = _trailer(file.fd, size)
        digest = int.from_bytes(trailer.manifest_digest, "big")
        if wanted is not None and digest != wanted:
            raise _another_file()
        manifest = parse_manifest(_text(file.fd, trailer), first=FIRST_BLOCK, end=trailer.manifest_offset)
    except CorruptDataError as error:
        raise CorruptDataError(f"{file.path}: {error.what}", cure=error.cure, kind=error.kind) from None
    except OSError as error:
        raise storage_error(error, "reading", file.path) from error
    return _Described(file=file, manifest=manifest, digest=digest, size=size)


def _another_file() -> CorruptDataError:
    what = "it is not the file that it was when another one was written against it"
    return CorruptDataError(what, cure="put back the file that had this name")


def _trailer(fd: int, size: int) -> Trailer:
    if size < FIRST_BLOCK + TRAILER_BYTES:
        raise CorruptDataError(f"{size} bytes are too few for a checkpoint", cure=_ANOTHER)
    check_header(_read_at(fd, 0, HEADER_BYTES))
    return Trailer.unpack(_read_at(fd, size - TRAILER_BYTES, TRAILER_BYTES), size)


def _text(fd: int, trailer: Trailer) -> bytes:
    offset, length = trailer.manifest_offset, trailer.manifest_bytes
    text = _read_at(fd, offset, length)
    if xxhash.xxh3_128_digest(text) != trailer.manifest_digest:
        raise CorruptDataError(f"the manifest is damaged at offset {offset}", cure=_ANOTHER)
    return text


def _read_at(fd: int, offset: int, length: int) -> bytes:
    buffer = bytearray(length)
    with memoryview(buffer) as view:
        return bytes(buffer[: read_fully(fd, view, offset)])
