"""Is the process that owns this file alive, and may I be the one?

A lock is a POSIX record lock on a whole small file. The kernel drops it the moment its process dies, whatever kills it,
and a forked child does not inherit it, so a surviving DataLoader worker never makes a dead run look alive.

**Invariants**: closing *any* descriptor of a file drops all of a process's record locks on it. Therefore every locked
file has exactly one descriptor in a process, kept in a registry, and a probe in the owning process uses that one.

**On crash**: the lock is free at once, the file stays. Its modification time is the heartbeat that other hosts see.
"""

from __future__ import annotations

import os
import struct
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from milepost.core.errors import GaveUpWaitingError
from milepost.io.durable import storage_error

if sys.platform == "win32":
    import msvcrt

    fcntl = None
else:
    import fcntl

__all__ = ["OwnedLock", "exclusive", "is_held", "lend_lock", "mark_in_use", "wait_until_unused"]

_Inode = tuple[int, int]
_owned: dict[_Inode, OwnedLock] = {}
_sections: dict[str, threading.Lock] = {}


class OwnedLock:
    """A lock that says "I live"; held from :meth:`acquire` to :meth:`release` or to the end of the process."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.path.abspath(path)
        self._fd = -1
        self._inode: _Inode = (0, 0)

    @property
    def held(self) -> bool:
        """Whether this object holds the lock in this process."""
        return self._fd >= 0

    def acquire(self) -> bool:
        """Take the lock without waiting; False if somebody else holds it, in this process or another.

        Raises:
            StorageError: The file cannot be made or locked at all.
        """
        while self._fd < 0:
            if _owner_here(self.path) is not None:
                return False
            try:
                fd = os.open(self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666)
            except OSError as error:
                raise storage_error(error, "opening the lock", self.path) from error
            if not _try_lock(fd):
                os.close(fd)
                return False
            # The former owner may have removed the file between our open and our lock; then we hold a nameless file.
            if _inode_of(self.path) == _inode_of(fd):
                self._fd, self._inode = fd, _inode_of(fd) or (0, 0)
                _owned[self._inode] = self
            else:
                os.close(fd)
        return True

    def release(self, *, unlink: bool = False) -> None:
        """Give the lock back; ``unlink`` removes its file first, while nobody else can hold it."""
        if self._fd < 0:
            return
        if unlink:
            with suppress(OSError):
                os.unlink(self.path)
        _owned.pop(self._inode, None)
        fd, self._fd = self._fd, -1
        os.close(fd)

    def touch(self) -> None:
        """Renew the heartbeat."""
        with suppress(OSError):
            os.utime(self.path)

    def _forget(self) -> None:
        """In a forked child: close the inherited descriptor. The parent's lock is the parent's and stays."""
        fd, self._fd = self._fd, -1
        with suppress(OSError):
            os.close(fd)


def is_held(path: str | os.PathLike[str]) -> bool:
    """Whether a living process, this one included, holds the lock at ``path``. Takes nothing and changes nothing."""
    if _owner_here(path) is not None:
        return True
    try:
        fd = os.open(path, os.O_RDWR if sys.platform == "win32" else os.O_RDONLY)
    except OSError:
        return False
    try:
        return _is_locked_elsewhere(fd)
    finally:
        os.close(fd)


def lend_lock(path: str | os.PathLike[str]) -> int | None:
    """Take a lock that a child process keeps: held as long as any process has the descriptor open.

    A parent that hands the descriptor on and closes its own is sure that the lock is held from before the child's first
    instruction to after its last. :func:`is_held` sees it.

    Returns:
        The descriptor; None where the system has no such locks (they belong to the open file, not to a process).
    """
    if not hasattr(fcntl, "F_OFD_SETLK"):
        return None
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
    except OSError:
        os.close(fd)
        return None
    return fd


def mark_in_use(folder: str | os.PathLike[str]) -> int | None:
    """Mark that something is being written into ``folder``, for as long as any process has the descriptor open.

    Any number of marks can stand at once; no file is made. :func:`wait_until_unused` waits for the last to go.

    Returns:
        The descriptor; None where folders cannot be locked.
    """
    if fcntl is None:
        return None
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH)
    except OSError:
        os.close(fd)
        return None
    return fd


def wait_until_unused(folder: str | os.PathLike[str], timeout: float) -> bool:
    """Wait until nobody holds a mark of :func:`mark_in_use`; False if somebody still does after ``timeout`` seconds."""
    if fcntl is None:
        return True
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return True
    deadline = time.monotonic() + timeout
    try:
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    return False
                time.sleep(0.02)
            except OSError:  # network file systems that lock folders for nobody
                return True
            else:
                return True
    finally:
        os.close(fd)


@contextmanager
def exclusive(path: str | os.PathLike[str], timeout: float) -> Iterator[None]:
    """Keep every other thread and process out of a short piece of work.

    Args:
        path: The lock's file; made if absent, never removed.
        timeout: Seconds to wait for the others.

    Raises:
        GaveUpWaitingError: Somebody else still holds it.
        StorageError: The file cannot be made.
    """
    name = os.path.abspath(path)
    deadline = time.monotonic() + timeout
    threads = _sections.setdefault(name, threading.Lock())  # record locks do not keep threads of one process apart
    if not threads.acquire(timeout=timeout):
        raise _gave_up(name, timeout)
    try:
        lock = OwnedLock(name)
        pause = 0.001
        while not lock.acquire():
            if time.monotonic() >= deadline:
                raise _gave_up(name, timeout)
            time.sleep(pause)
            pause = min(2 * pause, 0.05)
        try:
            yield
        finally:
            lock.release()
    finally:
        threads.release()


def _gave_up(path: str, timeout: float) -> GaveUpWaitingError:
    return GaveUpWaitingError(
        f"another process still holds {path!r} after {timeout:g} s", cure="wait for it to finish, or end it"
    )


def _inode_of(place: int | str | os.PathLike[str]) -> _Inode | None:
    try:
        found = os.stat(place)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _owner_here(path: str | os.PathLike[str]) -> OwnedLock | None:
    inode = _inode_of(path)
    return _owned.get(inode) if inode is not None else None


if sys.platform == "win32":

    def _try_lock(fd: int) -> bool:
        try:
            msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

    def _is_locked_elsewhere(fd: int) -> bool:
        return not _try_lock(fd)

else:

    def _try_lock(fd: int) -> bool:
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            return False
        except OSError as error:
            os.close(fd)
            raise storage_error(error, "locking", f"descriptor {fd}") from error
        return True

    def _is_locked_elsewhere(fd: int) -> bool:
        if sys.platform == "linux" and sys.maxsize > 2**32:
            # Asking (F_GETLK) never takes the lock, not even for a moment in which its owner-to-be could be refused.
            question = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
            with suppress(OSError):
                answer = fcntl.fcntl(fd, fcntl.F_GETLK, question)
                return bool(struct.unpack_from("h", answer)[0] != fcntl.F_UNLCK)
            return False
        try:
            fcntl.lockf(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
        return False


def _forget_in_child() -> None:
    for lock in _owned.values():
        lock._forget()  # noqa: SLF001 - the registry and its locks are one thing
    _owned.clear()
    _sections.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)
