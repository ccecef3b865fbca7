"""How does a verified checkpoint get a second copy, in a folder that another disk may hold?

The copy has the name of the original, and so have the keyframe that it needs and the file that describes a foreign one:
the folder is a folder of checkpoints like any other.

**Invariants**: a copy has its name only after its bytes were synced, read back and found equal. A file that is in the
way is replaced by rename, and only if it differs.

**On crash**: a temporary ``.<name>.tmp`` stays behind; the next copy removes those that nobody is writing.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import xxhash

from milepost.checkpoint.catalog import mark_verified, sidecar_of
from milepost.checkpoint.commit import remove_stale_temporaries
from milepost.core.errors import StorageError
from milepost.core.records import CheckpointInfo
from milepost.io.direct import NewFile, aligned_buffer, drop_from_cache, read_fully
from milepost.io.durable import fsync_directory, replace_file, storage_error

__all__ = ["copy_checkpoint", "remove_copy"]

_PIECE = 8 << 20


def copy_checkpoint(info: CheckpointInfo, backup: Path) -> None:
    """Bring a checkpoint, and the keyframe it needs, into the folder ``backup``.

    Raises:
        StorageError: It could not be copied, or the copy reads back differently; what was there before is whole.
    """
    try:
        backup.mkdir(parents=True, exist_ok=True)
        remove_stale_temporaries(backup)
        if info.base:
            _bring(info.path.with_name(info.base), backup / info.base)
        _bring(info.path, backup / info.filename)
        description = sidecar_of(info.path)
        if description.exists():
            replace_file(sidecar_of(backup / info.filename), description.read_bytes())
    except StorageError:
        raise
    except OSError as error:
        raise storage_error(error, "making the second copy of", info.path) from error


def remove_copy(filename: str, backup: Path) -> None:
    """Remove the copy of a checkpoint that is no longer kept; no error if there is none.

    Raises:
        OSError: As the kernel gives it.
    """
    for path in (backup / filename, sidecar_of(backup / filename)):
        with suppress(FileNotFoundError):
            path.unlink()


def _bring(source: Path, target: Path) -> None:
    if target.exists() and _is_same(source, target):
        return
    temporary = target.with_name(f".{target.name}.tmp")
    try:
        with NewFile(str(temporary)) as file:
            digest = _copy(source, file)
        _check(temporary, digest)
        os.replace(temporary, target)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    fsync_directory(target.parent)
    mark_verified(target)


def _is_same(source: Path, target: Path) -> bool:
    """Checkpoints end with a trailer that holds the digest of all that the file says about itself."""
    sizes = source.stat().st_size, target.stat().st_size
    return sizes[0] == sizes[1] and _tail(source) == _tail(target)


def _tail(path: Path) -> bytes:
    with open(path, "rb") as file:
        file.seek(-min(_PIECE, path.stat().st_size), os.SEEK_END)
        return file.read()


def _copy(source: Path, file: NewFile) -> bytes:
    """Copy and sync; returns the digest of the bytes."""
    hasher, piece, done = xxhash.xxh3_128(), aligned_buffer(_PIECE), 0
    with open(source, "rb", buffering=0) as original:
        size = os.fstat(original.fileno()).st_size
        file.preallocate(size)
        while done < size:
            count = read_fully(original.fileno(), piece, done)
            if count == 0:
                raise StorageError(f"{source} became shorter while it was copied", cure="copy it again")
            hasher.update(piece[:count])
            file.write(piece, done)
            done += count
    file.finish(done)
    return hasher.digest()


def _check(path: Path, digest: bytes) -> None:
    """Read what the disk holds."""
    hasher, piece, done = xxhash.xxh3_128(), aligned_buffer(_PIECE), 0
    with open(path, "rb", buffering=0) as copy:
        drop_from_cache(copy.fileno())
        while count := read_fully(copy.fileno(), piece, done):
            hasher.update(piece[:count])
            done += count
    if hasher.digest() != digest:
        raise StorageError(f"{path} does not read back as it was written", cure="check that disk")
