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
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from milepost.checkpoint.container import BaseChoice, Written, write_container
from milepost.checkpoint.habits import Habits
from milepost.checkpoint.job import SaveJob
from milepost.checkpoint.listing import info_of
from milepost.checkpoint.parallel import available_cores
from milepost.checkpoint.reading import open_checkpoint
from milepost.checkpoint.regions import PieceSource
from milepost.core.errors import ConflictError, CorruptDataError, InvalidCallError, NotFoundError, StorageError
from milepost.core.records import CheckpointInfo
from milepost.core.saying import logger
from milepost.io.direct import NewFile, remove_if_abandoned, rename_without_replacing
from milepost.io.durable import fsync_directory, storage_error

__all__ = ["commit", "remove_stale_temporaries", "verify"]

_PREFIX = ".checkpoint_"
_SUFFIX = ".tmp"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Way:
    """How a file is written: what :func:`commit` was told."""

    threads: int
    habits: Habits | None
    hurry: Callable[[], bool]
    base: BaseChoice | None = None


def commit(
    job: SaveJob,
    arena: memoryview | PieceSource,
    *,
    threads: int | None = None,
    habits: Habits | None = None,
    base: Path | None = None,
    hurry: Callable[[], bool] = lambda: False,
    keep: int = 1,
) -> CheckpointInfo:
    """Write the checkpoint that ``job`` describes; it is durable on return, and not yet verified.

    Args:
        job: What to write, and where.
        arena: The memory that its tensors lie in, or what gives it piece by piece; it must not change meanwhile.
        threads: How many encode; all cores by default.
        habits: What earlier saves of this state taught; None: nothing is learnt either.
        base: A checkpoint of the same folder to hold differences to, where they pay; not used if it cannot be read.
        hurry: Asked before each block: whether it is to be stored the fastest way.
        keep: How many checkpoints will hold differences to ``base``.

    Raises:
        ConflictError: The file exists already.
        InvalidInputError: The job contradicts itself.
        StorageError: It could not be written, twice; nothing of it is left, and what was committed before is whole.
            ``kind`` is ``"no-space"`` if the disk has too little room: then it was not tried.
    """
    path = Path(job.path)
    way = _Way(threads=threads or available_cores(), habits=habits, hurry=hurry)
    try:
        _make_folder(path.parent)
        written = _write_beside(job, arena, path, way, base, keep) if base is not None else None
        if written is None:
            written = _write_twice(job, arena, path, way)
    except StorageError:
        raise
    except OSError as error:
        raise storage_error(error, "writing the checkpoint", path) from error
    if habits is not None and job.format == "milepost":
        habits.learn(written.sources, written.tensors, written.size)
    return info_of(job, path, written.size, written.base)


def _write_beside(
    job: SaveJob, arena: memoryview | PieceSource, path: Path, way: _Way, base: Path, keep: int
) -> Written | None:
    """Write with differences to ``base``; None if that cannot be read, or may not be a base."""
    try:
        with _opened(base, path, keep) as choice:
            return _write_twice(job, arena, path, replace(way, base=choice))
    except (CorruptDataError, NotFoundError) as error:
        logger.warning("%s stands alone: %s", path, error)
        return None


@contextmanager
def _opened(base: Path, path: Path, keep: int) -> Iterator[BaseChoice | None]:
    """The base, open; None if ``path`` must not refer to it."""
    with open_checkpoint(base) as file:
        usable = file.manifest.base is None and base.parent.samefile(path.parent)
        yield BaseChoice(file=file, step=file.info.step, keep=keep) if usable else None


def _write_twice(job: SaveJob, arena: memoryview | PieceSource, path: Path, way: _Way) -> Written:
    try:
        return _write(job, arena, path, way)
    except OSError as error:
        if isinstance(error, StorageError) and error.kind == "no-space":
            raise
        # what the failed file holds is unknown; a fresh one has new pages and new blocks
        return _write(job, arena, path, way)


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


def _write(job: SaveJob, arena: memoryview | PieceSource, path: Path, way: _Way) -> Written:
    """Write, sync and name one file; whatever fails, nothing of it stays."""
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
            written = _fill(file, temporary, job, arena, way)
            file.finish(written.size)
        _publish(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
    return written


def _fill(file: NewFile, temporary: str, job: SaveJob, arena: memoryview | PieceSource, way: _Way) -> Written:
    if job.format == "milepost":
        return write_container(file, job, arena, threads=way.threads, habits=way.habits, base=way.base, hurry=way.hurry)
    from milepost.checkpoint.foreign import write_foreign

    if not isinstance(arena, memoryview):
        raise InvalidCallError(f"a checkpoint of format {job.format!r} is not written piece by piece", cure="stage it")
    write_foreign(job, arena, Path(temporary))
    return Written(size=os.stat(temporary).st_size)


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
