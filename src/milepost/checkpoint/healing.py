"""How does a damaged checkpoint become whole again from its second copy?

**Invariants**: the damaged file is replaced only by bytes that were read back and decoded whole, and only by those of
the same checkpoint. A file without damage is not touched.

**On crash**: the damaged file or the whole one has the name; beside it a temporary ``.<name>.tmp`` may stay, which the
next save removes.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from milepost.checkpoint.block_source import BlockSource
from milepost.checkpoint.codec import BLOCK_BYTES
from milepost.checkpoint.reading import open_checkpoint
from milepost.core.errors import ConflictError, CorruptDataError, InvalidInputError, NotFoundError, StorageError
from milepost.io.direct import NewFile, aligned_buffer, read_fully, remove_if_abandoned
from milepost.io.durable import fsync_directory, storage_error

__all__ = ["damage_in", "heal"]

_PIECE = 8 << 20


def heal(path: str | os.PathLike[str], copy_folder: str | os.PathLike[str]) -> list[str]:
    """Replace a checkpoint that is damaged or missing by its copy, if that is whole.

    Args:
        path: The file.
        copy_folder: Where its copy lies, under the same name.

    Returns:
        What was damaged, one sentence each; empty: nothing, and nothing was done.

    Raises:
        NotFoundError: There is no copy, or the file that it holds differences to is not there.
        CorruptDataError: The copy is damaged as well.
        InvalidInputError: The copy is another checkpoint.
        StorageError: The disk refuses. After every error the damaged file is as it was.
        ConflictError: Another process is rewriting it.
    """
    path = Path(path).absolute()
    copy = Path(copy_folder).absolute() / path.name
    damage, digest = damage_in(path)
    if not damage:
        return []
    with open_checkpoint(copy, copies=[path.parent] if _has_base_only_here(copy, path) else []) as file:
        if digest is not None and file.manifest_digest != digest:
            raise InvalidInputError(f"{copy} is another checkpoint than {path}", cure="name the folder of its copy")
        file.forget_cached()
        file.verify()
    _replace(path, copy)
    return damage


def damage_in(path: Path) -> tuple[list[str], int | None]:
    """What is damaged in a file itself, one sentence each, and the digest of its manifest if that is sound.

    Raises:
        StorageError: The file cannot be opened, though it is there.
    """
    try:
        source = BlockSource(path)
    except (CorruptDataError, NotFoundError) as error:
        if error.kind == "unknown-version":
            raise
        return [error.what], None
    try:
        return _damaged_blocks(source), source.manifest_digest
    finally:
        source.close()


def _damaged_blocks(source: BlockSource) -> list[str]:
    damage = []
    reader = source.reader()
    names = {(t.region, t.offset // BLOCK_BYTES): t.name for t in reversed(source.manifest.tensors)}
    for number, region in enumerate(source.manifest.regions):
        name = ""
        for index in range(len(region.blocks)):
            name = names.get((number, index), name)
            try:
                reader.check(region, index, name)
            except (CorruptDataError, StorageError) as error:
                damage.append(error.what)
    return damage


def _has_base_only_here(copy: Path, path: Path) -> bool:
    """Whether the base that the copy needs lies beside the damaged file only."""
    with open_checkpoint(copy) as file:
        base = file.info.base
    return bool(base) and not copy.with_name(base).exists() and path.with_name(base).exists()


def _replace(path: Path, copy: Path) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    remove_if_abandoned(str(temporary))
    try:
        with NewFile(str(temporary)) as file:
            _pour(copy, file)
            with open_checkpoint(temporary, copies=[copy.parent]) as written:
                written.forget_cached()
                written.verify()
            os.replace(temporary, path)
    except FileExistsError:
        raise ConflictError(f"{path} is being rewritten", cure="wait until that has ended") from None
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError) and not isinstance(error, StorageError):
            raise storage_error(error, "healing", path) from error
        raise
    fsync_directory(path.parent)


def _pour(source: Path, file: NewFile) -> None:
    """Copy all bytes and sync them."""
    piece, done = aligned_buffer(_PIECE), 0
    with open(source, "rb", buffering=0) as original:
        size = os.fstat(original.fileno()).st_size
        file.preallocate(size)
        while count := read_fully(original.fileno(), piece, done):
            file.write(piece, done)
            done += count
    file.finish(done)
