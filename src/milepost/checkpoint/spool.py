"""How does a staged snapshot survive the death of every process, of a whole container for example?

The arena is then a file ``.spool-<id>`` beside the checkpoints, mapped by the trainer and read by its companion. When
a snapshot is complete, the file is *sealed*: its header says what lies there. Whoever starts next and finds a sealed
spool whose owners are dead commits it as they would have done.

The file: a header of one page, the arena, the job. It never survives a power loss for certain, because nothing syncs
it: that would cost what the checkpoint costs.

**Invariants**: the header is written last and taken away before the arena changes. Owners hold a lock on one open file
(both have descriptors of the same opening), so a spool is abandoned exactly if the lock can be had. A spool is removed
only when its checkpoint is committed, when it holds none, or when its bytes are not what was sealed.

**On crash**: of all owners, a sealed spool is recovered, an unsealed one is removed. Of the recovery, the next one
finds the spool as it was, or the checkpoint committed and the spool to remove.
"""

from __future__ import annotations

import mmap
import os
import secrets
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import xxhash

from milepost.checkpoint.job import SaveJob, decode_job, encode_job
from milepost.core.errors import CorruptDataError, MilepostError, StorageError
from milepost.core.records import CheckpointInfo
from milepost.io.durable import storage_error, write_all
from milepost.io.memory import SharedSegment, reserve_blocks

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["Recovered", "SpoolSegment", "abandoned", "recover"]

_PREFIX = ".spool-"
_MAGIC = b"MPSPOOL1"
_HEADER_BYTES = 4096
#: magic, version, bytes of the snapshot, where the job is, its bytes, digests of snapshot and job; then their xxh3_64
_HEADER = struct.Struct("<8sQQQQ16s16s")
_VERSION = 1
_CURE = 'free disk space, or set staging="memory"'


class SpoolSegment(SharedSegment):
    """An arena in a file. Made by :meth:`create_in`; the other process attaches it like any segment.

    Attributes:
        path: The file.
    """

    __slots__ = ("path",)

    path: Path

    @classmethod
    def create_in(cls, folder: Path, size: int) -> SpoolSegment:
        """A preallocated spool in ``folder``, locked by this process and whoever is given its descriptor.

        Raises:
            StorageError: There is no room, the folder cannot be written, or has no locks.
        """
        if fcntl is None:
            raise StorageError("no spool can be kept on this system", cure='set staging="memory"', kind="not-supported")
        path = folder / f"{_PREFIX}{secrets.token_hex(8)}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise storage_error(error, "making the spool", path) from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            reserve_blocks(fd, _HEADER_BYTES + size)
            segment = cls(fd, size, writable=True, start=_HEADER_BYTES)
        except OSError as error:
            os.close(fd)
            with suppress(OSError):
                os.unlink(path)
            raise storage_error(error, "making the spool", path) from error
        segment.path = path
        return segment

    def seal_job(self, job: SaveJob) -> None:
        """Note that ``job``'s snapshot lies here, complete.

        Raises:
            StorageError: The disk refuses.
        """
        content = encode_job(job)
        place = _HEADER_BYTES + self.size
        with memoryview(self.map) as whole, whole[: job.arena_bytes] as used:
            digest = xxhash.xxh3_128_digest(used)
        header = _HEADER.pack(
            _MAGIC, _VERSION, job.arena_bytes, place, len(content), digest, xxhash.xxh3_128_digest(content)
        )
        try:
            write_all(self.fd, content, place)
            write_all(self.fd, header + xxhash.xxh3_64_digest(header), 0)
        except OSError as error:
            refused = storage_error(error, "sealing the spool", self.path)
            raise StorageError(refused.what, cure=_CURE, kind=refused.kind) from error

    def unseal(self) -> None:
        """Nothing that must be recovered lies here from now on."""
        with suppress(OSError):  # its blocks are there: only a dying disk refuses
            write_all(self.fd, bytes(_HEADER.size + 8), 0)

    def close(self) -> None:
        """Let go of it, and remove the file."""
        if self.fd >= 0:
            with suppress(OSError):
                os.unlink(self.path)
        super().close()


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovered:
    """What became of an abandoned spool.

    Attributes:
        spool: Its file.
        info: The checkpoint that was made of it; None: it held none, or it could not be made.
        problem: Why it could not be made; empty: it was, or there was nothing to make.
    """

    spool: Path
    info: CheckpointInfo | None = None
    problem: str = ""


def abandoned(folder: Path) -> list[Path]:
    """Spools in ``folder`` whose owners are dead."""
    found = []
    for path in _spools(folder):
        with _owned(path) as fd:
            if fd is not None:
                found.append(path)
    return found


def recover(folder: Path, *, experiment_id: str | None = None) -> list[Recovered]:
    """Commit what lies in spools whose owners are dead, and remove them. Nothing older is let go of here.

    Args:
        folder: Where checkpoints and spools are.
        experiment_id: Leave what belongs to others, who will want to record it; None: take all.

    Returns:
        One entry for each abandoned spool. One that could not be committed stays, for a later try.
    """
    outcome = []
    for path in _spools(folder):
        with _owned(path) as fd:
            if fd is not None:
                outcome += _recover_one(path, fd, experiment_id)
    return outcome


def _spools(folder: Path) -> list[Path]:
    try:
        return sorted(folder / name for name in os.listdir(folder) if name.startswith(_PREFIX))
    except OSError:
        return []


@contextmanager
def _owned(path: Path) -> Iterator[int | None]:
    """The open spool, locked; None if its owners live, or it is no file of ours."""
    if fcntl is None:
        yield None
        return
    try:
        fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        yield None
        return
    try:
        yield fd if _lock(fd, path) else None
    finally:
        os.close(fd)


def _lock(fd: int, path: Path) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(fd), os.lstat(path))  # else its owner removed it while we came
    except OSError:
        return False


def _recover_one(path: Path, fd: int, experiment_id: str | None) -> list[Recovered]:
    from milepost.checkpoint.finishing import finish_save
    from milepost.checkpoint.retention import RetentionRule

    try:
        sealed = _read(fd, path)
        info = None
        if sealed is not None:
            job, view = sealed
            if experiment_id not in {None, job.experiment_id}:
                return []
            keep_all = RetentionRule(keep_newest=sys.maxsize)
            info = finish_save(_moved(job, path.parent), view, keep_all, lambda _: None)
        os.unlink(path)
    except CorruptDataError as error:
        if error.kind == "torn-spool":
            with suppress(OSError):
                os.unlink(path)
        return [Recovered(spool=path, problem=error.what)]
    except (MilepostError, OSError) as error:
        return [Recovered(spool=path, problem=str(error))]
    return [Recovered(spool=path, info=info)]


def _read(fd: int, path: Path) -> tuple[SaveJob, memoryview] | None:
    """Job and snapshot of a sealed spool; None if it is not sealed.

    Raises:
        CorruptDataError: The bytes are not those that were sealed.
    """
    raw = os.pread(fd, _HEADER.size + 8, 0)
    if len(raw) < _HEADER.size + 8 or xxhash.xxh3_64_digest(raw[:-8]) != raw[-8:]:
        return None
    magic, version, nbytes, place, job_bytes, digest, job_digest = _HEADER.unpack(raw[:-8])
    if magic != _MAGIC or version != _VERSION:
        raise CorruptDataError(f"{path} was spooled by another version", cure="use the milepost that wrote it")
    size = os.fstat(fd).st_size
    if max(_HEADER_BYTES + nbytes, place + job_bytes) > size:
        raise _torn(path)
    content = os.pread(fd, job_bytes, place)
    view = _mapped(path, nbytes)
    if xxhash.xxh3_128_digest(content) != job_digest or xxhash.xxh3_128_digest(view) != digest:
        raise _torn(path)
    return decode_job(content), view


def _mapped(path: Path, nbytes: int) -> memoryview:
    """The snapshot, through an opening of its own: a view that somebody still holds must not hold the lock."""
    if not nbytes:
        return memoryview(b"")
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        return memoryview(mmap.mmap(fd, nbytes, access=mmap.ACCESS_READ, offset=_HEADER_BYTES))
    finally:
        os.close(fd)


def _torn(path: Path) -> CorruptDataError:
    return CorruptDataError(
        f"the spool {path} does not hold what was sealed (the machine lost power)",
        cure="go on from the newest checkpoint",
        kind="torn-spool",
    )


def _moved(job: SaveJob, folder: Path) -> SaveJob:
    """The job for where its folder is now; of the other ranks' files, those that are there."""
    side_files = [folder / Path(name).name for name in job.side_files]
    return replace(
        job,
        path=str(folder / Path(job.path).name),
        side_files=[str(file) for file in side_files if file.is_file()],
    )
