"""When is a checkpoint there?

When the file was written under a temporary name, synced, renamed, and its folder synced. From then on it is complete
and survives power loss; before, nobody sees it. Torch is not needed, except by the foreign formats.

**Invariants**: an existing file is never replaced. A file whose write or sync failed is removed, never synced again
(the kernel may have dropped its pages and would report success): one fresh file is tried, then ``StorageError``.

**On crash**: a temporary ``.<name>.tmp`` stays behind; :func:`remove_stale_temporaries` removes those that nobody is
writing. Between rename and the folder's sync the file is complete, and there or not there.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from milepost.checkpoint.container import write_container
from milepost.checkpoint.job import SaveJob
from milepost.checkpoint.listing import info_of
from milepost.checkpoint.parallel import available_cores
from milepost.checkpoint.reading import open_checkpoint
from milepost.core.errors import ConflictError, StorageError
from milepost.core.records import CheckpointInfo
from milepost.io.direct import NewFile, remove_if_abandoned, rename_without_replacing
from milepost.io.durable import fsync_directory, storage_error

__all__ = ["commit", "remove_stale_temporaries", "verify"]

_PREFIX = ".checkpoint_"
_SUFFIX = ".tmp"


def commit(job: SaveJob, arena: memoryview, *, threads: int | None = None) -> CheckpointInfo:
    """Write the checkpoint that ``job`` describes; it is durable on return, and not yet verified.

    Args:
        job: What to write, and where.
        arena: The memory that its tensors lie in; it must not change meanwhile.
        threads: How many encode; all cores by default.

    Raises:
        ConflictError: The file exists already.
        InvalidInputError: The job contradicts itself.
        StorageError: It could not be written, twice; nothing of it is left, and what was committed before is whole.
    """
    path = Path(job.path)
    threads = threads or available_cores()
    try:
        _make_folder(path.parent)
        try:
            size = _write(job, arena, path, threads)
        except OSError:  # what the failed file holds is unknown; a fresh one has new pages and new blocks
            size = _write(job, arena, path, threads)
    except StorageError:
        raise
    except OSError as error:
        raise storage_error(error, "writing the checkpoint", path) from error
    return info_of(job, path, size)


def verify(path: str | os.PathLike[str], *, threads: int | None = None) -> None:
    """Read a checkpoint of milepost's format back from the disk and decode everything in it.

    Raises:
        CorruptDataError: It is damaged; the message names file, tensor and offset.
        NotFoundError: There is no such file.
        StorageError: The disk refuses.
    """
    with open_checkpoint(path) as file:
        file.forget_cached()
        file.verify(threads=threads)


def remove_stale_temporaries(folder: str | os.PathLike[str]) -> list[str]:
    """Remove temporaries of saves that no living process is writing; returns their names."""
    try:
        names = os.listdir(folder)
    except OSError:
        return []
    ours = [name for name in names if name.startswith(_PREFIX) and name.endswith(_SUFFIX)]
    return [name for name in sorted(ours) if remove_if_abandoned(os.path.join(folder, name))]


def _make_folder(folder: Path) -> None:
    missing = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for made in missing:
        fsync_directory(made.parent)


def _write(job: SaveJob, arena: memoryview, path: Path, threads: int) -> int:
    """Write, sync and name one file; whatever fails, nothing of it stays. Returns its length."""
    temporary = str(path.with_name(f".{path.name}{_SUFFIX}"))
    remove_if_abandoned(temporary)
    if os.path.lexists(path):
        raise _exists(path)
    try:
        file = NewFile(temporary)
    except FileExistsError:
        raise _exists(temporary) from None
    try:
        with file:
            size = _fill(file, temporary, job, arena, threads)
            file.finish(size)
        _publish(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
    return size


def _fill(file: NewFile, temporary: str, job: SaveJob, arena: memoryview, threads: int) -> int:
    if job.format == "milepost":
        return write_container(file, job, arena, threads=threads)
    from milepost.checkpoint.foreign import write_foreign

    write_foreign(job, arena, Path(temporary))
    return os.stat(temporary).st_size


def _publish(temporary: str, path: Path) -> None:
    try:
        rename_without_replacing(temporary, str(path))
    except FileExistsError:
        raise _exists(path) from None
    try:
        fsync_directory(path.parent)
    except OSError:
        os.unlink(path)  # a name that may vanish must not be listed
        raise


def _exists(path: str | os.PathLike[str]) -> ConflictError:
    return ConflictError(f"{os.fspath(path)!r} exists already", cure="save under another name, or remove it first")
