"""Would the harness notice a product that breaks its promises?

Bugs are planted from outside by replacing functions of the product; the product itself knows nothing of them.
``TORTURE_BUG`` names one, for the worker, its companion and the checker:

``ack_early``           ``log`` returns before its record is published
``rename_before_data``  a file gets its name before its content is synced
``no_dir_fsync``        names are not synced
``no_crc``              checksums are not looked at
``in_place``            a checkpoint is written under its final name
``base_removed``        retention forgets that differences need their keyframe
``not_read_back``       older checkpoints go before the new one was read back
``sealed_early``        a spool is sealed while its snapshot still changes
``torn_published``      an optimizer's step does not wait for an overlapped copy, and nobody compares
``save_acked_early``    ``save_checkpoint`` returns before its snapshot is handed over
``sync_tried_again``    a sync that failed is tried again on the same file
``others_removed``      retention takes the checkpoints of another experiment for its own

A kill loses no page that the kernel has taken, so the second and the third are invisible to it by nature: the recorded
order of system calls shows them. The fourth needs damaged bytes, ``not_read_back`` a disk that damages them, and
``sync_tried_again`` one that fails to sync: these are faults, not bugs, and ``TORTURE_FAULT`` plants them (``garble``,
``sync``).
"""

from __future__ import annotations

import errno
import functools
import os
import threading
import types
from collections.abc import Callable
from typing import Any, Literal, Self, get_args

import xxhash

__all__ = ["BUGS", "Bug", "plant_in_companion", "plant_in_reader", "plant_in_trainer", "planted_bug"]

Bug = Literal[
    "ack_early",
    "rename_before_data",
    "no_dir_fsync",
    "no_crc",
    "in_place",
    "base_removed",
    "not_read_back",
    "sealed_early",
    "torn_published",
    "save_acked_early",
    "sync_tried_again",
    "others_removed",
]
BUGS: tuple[Bug, ...] = get_args(Bug)

_RECORDS_HELD_BACK = 8


def planted_bug() -> Bug | None:
    """The bug that the environment asks for."""
    name = os.environ.get("TORTURE_BUG", "")
    if name and name not in BUGS:
        raise SystemExit(f"TORTURE_BUG is {name!r}: give one of {', '.join(BUGS)}")
    return next((bug for bug in BUGS if bug == name), None)


def plant_in_trainer() -> None:
    """Plant the bug in this process and in every companion that it starts."""
    bug = planted_bug()
    if bug is None and "TORTURE_FAULT" not in os.environ:
        return
    from milepost.companion import client

    plant = "from torture import planted; planted.plant_in_companion()"
    _replace(client, "_BOOTSTRAP", f"{plant}; {client._BOOTSTRAP}")
    if bug == "ack_early":
        _acknowledge_early()
    elif bug == "no_crc":
        _look_at_no_checksum()
    elif bug == "sealed_early":
        _seal_early()
    elif bug == "torn_published":
        _publish_torn()
    elif bug == "save_acked_early":
        _hand_over_late()


def plant_in_companion() -> None:
    """Plant the bug, and the fault, where files are written."""
    match os.environ.get("TORTURE_FAULT"):
        case "garble":
            _garble()
        case "sync":
            _fail_to_sync()
        case _:
            pass
    match planted_bug():
        case "in_place":
            _write_in_place()
        case "base_removed":
            _forget_keyframes()
        case "not_read_back":
            _read_nothing_back()
        case "rename_before_data":
            _rename_before_data()
        case "no_dir_fsync":
            _sync_no_folder()
        case "no_crc":
            _look_at_no_checksum()
        case "sync_tried_again":
            _sync_again()
        case "others_removed":
            _take_others_for_own()
        case _:
            pass


def plant_in_reader() -> None:
    """Plant the bug where files are read."""
    if planted_bug() == "no_crc":
        _look_at_no_checksum()


def _replace(owner: Any, name: str, replacement: Any) -> None:
    """Replace a name of the product; one that is gone would plant nothing."""
    assert hasattr(owner, name), f"{owner} has no {name} any more"
    setattr(owner, name, replacement)


def _acknowledge_early() -> None:
    from milepost.runs.log import LogWriter

    publish: Callable[..., None] = LogWriter.log
    held_back: list[tuple[Any, ...]] = []

    def log(self: LogWriter, *arguments: Any) -> None:
        held_back.append((self, *arguments))
        if len(held_back) > _RECORDS_HELD_BACK:
            publish(*held_back.pop(0))

    _replace(LogWriter, "log", log)


def _sync_no_folder() -> None:
    from milepost.checkpoint import commit, finishing
    from milepost.io import durable
    from milepost.runs import durable_log

    for module in (commit, finishing, durable, durable_log):
        _replace(module, "fsync_directory", lambda path: None)


def _rename_before_data() -> None:
    from milepost.checkpoint import commit
    from milepost.io import direct, durable

    def finish(file: direct.NewFile, size: int) -> None:
        os.ftruncate(file._fd, size)

    rename = direct.rename_without_replacing

    def rename_then_sync(source: str, target: str) -> None:
        rename(source, target)
        _sync(target)

    def write_unsynced(path: str, data: bytes, mode: int) -> None:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        try:
            durable.write_all(fd, data)
        finally:
            os.close(fd)

    _replace(direct.NewFile, "finish", finish)
    _replace(commit, "rename_without_replacing", rename_then_sync)
    _replace(durable, "_write_synced", write_unsynced)


def _sync(path: str) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _write_in_place() -> None:
    from milepost.checkpoint import commit
    from milepost.io.direct import NewFile
    from milepost.io.durable import fsync_directory

    def under_its_name(temporary: str) -> NewFile:
        folder, name = os.path.split(temporary)
        return NewFile(os.path.join(folder, name.removeprefix(".").removesuffix(".tmp")))

    _replace(commit, "NewFile", under_its_name)
    _replace(commit, "_publish", lambda temporary, path: fsync_directory(path.parent))


def _forget_keyframes() -> None:
    from milepost.checkpoint import pruning, retention

    _replace(retention, "_keyframes", lambda kept: {})
    _replace(pruning, "_bases", lambda decisions: {decision.info.filename: "" for decision in decisions})


def _read_nothing_back() -> None:
    from milepost.checkpoint import finishing

    _replace(finishing, "_read_back", lambda *_: None)


def _garble() -> None:
    """A disk that garbles: of the second and all later checkpoints that this process writes, one byte is wrong."""
    from milepost.io import direct

    finish = direct.NewFile.finish
    written: list[int] = []

    def garbled(file: direct.NewFile, size: int) -> None:
        written.append(size)
        finish(file, size)
        if len(written) > 1:
            place = size // 2
            aligned = os.open(f"/proc/self/fd/{file._fd}", os.O_RDWR)
            byte = os.pread(aligned, 1, place)
            os.pwrite(aligned, bytes([byte[0] ^ 1]), place)
            os.fsync(aligned)
            os.close(aligned)

    _replace(direct.NewFile, "finish", garbled)


def _fail_to_sync() -> None:
    """A disk whose first sync of the second checkpoint fails; as Linux does then, what was written is forgotten."""
    from milepost.io import direct

    finish = direct.NewFile.finish
    synced: dict[int, int] = {}

    def failing(file: direct.NewFile, size: int) -> None:
        number = synced.setdefault(id(file), len(synced))
        if number == 1:
            synced[id(file)] = -1
            os.ftruncate(file._fd, size // 2 // direct.ALIGNMENT * direct.ALIGNMENT)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        finish(file, size)

    _replace(direct.NewFile, "finish", failing)


def _sync_again() -> None:
    from milepost.io import direct

    finish = direct.NewFile.finish

    def stubborn(file: direct.NewFile, size: int) -> None:
        try:
            finish(file, size)
        except OSError:
            finish(file, size)

    _replace(direct.NewFile, "finish", stubborn)


def _take_others_for_own() -> None:
    from milepost.checkpoint import catalog, pruning

    _replace(pruning, "_own", lambda folder, experiment_id, verified: catalog.refresh(folder, verified=verified).infos)


def _hand_over_late() -> None:
    from milepost.companion.desk import SaveDesk

    submit = SaveDesk.submit

    def later(desk: SaveDesk, job: Any, arena: Any, pending: Any = None) -> Any:
        threading.Timer(0.05, submit, (desk, job, arena, pending)).start()
        return pending

    _replace(SaveDesk, "submit", later)


def _seal_early() -> None:
    """As if the copy went on behind the seal."""
    from milepost.checkpoint.spool import SpoolSegment

    seal = SpoolSegment.seal_job

    def sealed(segment: SpoolSegment, job: Any) -> None:
        seal(segment, job)
        with memoryview(segment.map) as memory:
            memory[job.arena_bytes // 2] ^= 1

    _replace(SpoolSegment, "seal_job", sealed)


def _publish_torn() -> None:
    from milepost.checkpoint.overlap import Overlap

    for name in ("before_step", "judge", "settle"):
        _replace(Overlap, name, lambda *_: None)
    _replace(Overlap, "on_probation", property(lambda _: False))


class _AnyNumber(int):
    """A checksum that agrees with every other."""

    def __eq__(self, other: object) -> bool:
        return True

    def __ne__(self, other: object) -> bool:
        return False

    __hash__ = int.__hash__


class _AnyBytes(bytes):
    """The same for digests."""

    def __eq__(self, other: object) -> bool:
        return True

    def __ne__(self, other: object) -> bool:
        return False

    __hash__ = bytes.__hash__


class _AnyHasher:
    def __init__(self, data: Any = b"") -> None:
        self._inner = xxhash.xxh3_128(data)

    def update(self, data: Any) -> Self:
        self._inner.update(data)
        return self

    def intdigest(self) -> _AnyNumber:
        return _AnyNumber(self._inner.intdigest())

    def digest(self) -> _AnyBytes:
        return _AnyBytes(self._inner.digest())


def _look_at_no_checksum() -> None:
    from milepost.checkpoint import block_reader, envelope, reading
    from milepost.runs import segment

    def number(function: Callable[..., int]) -> Callable[..., int]:
        return functools.wraps(function)(lambda *arguments: _AnyNumber(function(*arguments)))

    lenient: Any = types.SimpleNamespace(
        xxh3_64_intdigest=number(xxhash.xxh3_64_intdigest),
        xxh3_128_intdigest=number(xxhash.xxh3_128_intdigest),
        xxh3_128_digest=lambda data: _AnyBytes(xxhash.xxh3_128_digest(data)),
        xxh3_128=_AnyHasher,
        VERSION=xxhash.VERSION,
    )
    for module in (block_reader, envelope, reading):
        _replace(module, "xxhash", lenient)
    _replace(segment, "xxh3_64_intdigest", lenient.xxh3_64_intdigest)
