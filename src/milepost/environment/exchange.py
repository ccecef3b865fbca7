"""How does one rank tell the others something small, without a collective?

A collective would hang as soon as one rank does not take part, and ``if rank == 0:`` around calls of a tracker is
common. So ranks leave values in a place that all can see: the key-value store that ``init_process_group`` made, over a
connection of our own; or, started by torchrun but without a process group, a private folder of this host.
"""

from __future__ import annotations

import os
import shutil
import stat
import sys
import tempfile
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Protocol
from urllib.parse import quote

from milepost.core.errors import InvalidCallError, StorageError
from milepost.environment.scheduler import slurm_task
from milepost.io.durable import storage_error

__all__ = ["Exchange", "FolderExchange", "StoreExchange", "find_exchange"]

_PREFIX = "milepost/"


class Exchange(Protocol):
    """A place where ranks leave small values for each other. Neither call waits for another rank.

    Both raise ``OSError`` or ``RuntimeError`` when the place is gone: the process that keeps it has ended.
    """

    def put(self, key: str, value: bytes) -> None:
        """Leave ``value`` under ``key``, for everyone, at once and whole."""

    def get(self, key: str) -> bytes | None:
        """What was left under ``key``, or None if nothing was yet."""


class _Store(Protocol):
    def set(self, key: str, value: bytes) -> None: ...

    def get(self, key: str) -> bytes: ...

    def check(self, keys: list[str]) -> bool: ...


class StoreExchange:
    """The store of a process group.

    Args:
        store: A ``torch.distributed.Store``. It is cloned where torch can: one connection answers one question at a
            time, so a training that waits on the store's own connection would make us wait too.
    """

    def __init__(self, store: _Store) -> None:
        clone = getattr(store, "clone", None)
        self._store: _Store = clone() if clone is not None else store

    def put(self, key: str, value: bytes) -> None:
        """Leave a value in the store."""
        self._store.set(_PREFIX + key, value)

    def get(self, key: str) -> bytes | None:
        """Look, without waiting."""
        name = _PREFIX + key
        return self._store.get(name) if self._store.check([name]) else None


class FolderExchange:
    """A folder that only this user can enter.

    Args:
        folder: Made if it is not there; refused if it belongs to somebody else, because the name can be guessed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
            status = folder.lstat()
        except OSError as error:
            raise storage_error(error, "meeting the other ranks", folder) from error
        if not stat.S_ISDIR(status.st_mode) or (hasattr(os, "getuid") and status.st_uid != os.getuid()):
            raise StorageError(f"{folder} belongs to somebody else", cure="set TMPDIR to a folder of your own")

    def put(self, key: str, value: bytes) -> None:
        """Leave a file; the rename makes it appear whole."""
        target = self._folder / quote(key, safe="")
        temporary = target.with_name(f".{os.getpid()}-{threading.get_ident()}.tmp")
        temporary.write_bytes(value)
        temporary.replace(target)

    def get(self, key: str) -> bytes | None:
        """Read the file if it is there."""
        try:
            return (self._folder / quote(key, safe="")).read_bytes()
        except FileNotFoundError:
            return None


def find_exchange(environ: Mapping[str, str]) -> Exchange:
    """The place where the ranks of this training can meet.

    Raises:
        InvalidCallError: Ranks on several hosts have no process group yet, so there is no place that all can see.
    """
    c10d = sys.modules.get("torch.distributed.distributed_c10d")
    if c10d is not None and c10d.is_initialized():
        store = c10d._get_default_store()  # noqa: SLF001 - torch has no public name for it
        if store is not None:  # MPI keeps none
            return StoreExchange(store)
    if _on_several_hosts(environ):
        raise InvalidCallError(
            "ranks on several hosts cannot meet before there is a process group",
            cure="call torch.distributed.init_process_group() before the run starts",
        )
    return FolderExchange(_folder_of_launcher(environ))


def _on_several_hosts(environ: Mapping[str, str]) -> bool:
    if "WORLD_SIZE" in environ:
        return environ.get("LOCAL_WORLD_SIZE", environ["WORLD_SIZE"]) != environ["WORLD_SIZE"]
    task = slurm_task(environ)
    return task is not None and task.nodes > 1


def _folder_of_launcher(environ: Mapping[str, str]) -> Path:
    """Siblings share a parent process; its start time and torchrun's count of restarts keep trainings apart."""
    owner = os.getuid() if hasattr(os, "getuid") else 0
    restarts = environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    place = Path(tempfile.gettempdir())
    _remove_stale_folders(place, owner)
    launcher = _launcher(environ)
    return place / f"milepost-{owner}-{launcher}-{_started(launcher)}-{quote(restarts, safe='')}"


def _launcher(environ: Mapping[str, str]) -> int:
    """The process that started the ranks; under ``srun`` it may have put a shell between itself and each of them."""
    if "WORLD_SIZE" not in environ and slurm_task(environ) is not None:
        import psutil

        with suppress(psutil.Error, ValueError):
            return int(psutil.Process(int(environ.get("SLURM_TASK_PID", ""))).ppid())
    return os.getppid()


def _remove_stale_folders(place: Path, owner: int) -> None:
    """Nobody knows when the last rank has read; when the launcher is gone, all of them are."""
    for folder in place.glob(f"milepost-{owner}-*-*-*"):
        launcher, started = folder.name.split("-")[2:4]
        if launcher.isdigit() and _started(int(launcher)) != started:
            shutil.rmtree(folder, ignore_errors=True)


def _started(pid: int) -> str:
    """When a process started, as every one of its children reads it; empty if it is gone."""
    with suppress(OSError, IndexError):
        # Counted from the boot, so unlike seconds since 1970 it stays the same when the clock is set.
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[19]
    import psutil

    try:
        return str(int(psutil.Process(pid).create_time()))
    except psutil.Error:
        return ""
