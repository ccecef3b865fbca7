"""How does a large new file reach the disk fast, and its name without replacing another file?

``NewFile`` takes aligned pieces from several threads and writes them past the page cache (``O_DIRECT``) where the file
system allows it, else through it. ``rename_without_replacing`` gives the finished file its name.

**Invariants**: a new file never opens or truncates an existing one; it is locked as long as its writer lives, so an
abandoned one is told from one in work by asking for the lock, never by its age or a process id.

**On crash**: the unnamed file stays behind unlocked; :func:`remove_if_abandoned` collects it.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import sys
from contextlib import suppress
from types import TracebackType
from typing import Self

from milepost.io.durable import write_all

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "ALIGNMENT",
    "NewFile",
    "aligned_buffer",
    "drop_from_cache",
    "read_fully",
    "remove_if_abandoned",
    "rename_without_replacing",
]

#: Bytes to which offsets, lengths and buffers must be aligned: a page, and the largest sector in use.
ALIGNMENT = 4096

_NOT_SUPPORTED = frozenset({errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EPERM})
_AT_FDCWD = -100
_RENAME_NOREPLACE = 1


def aligned_buffer(size: int) -> memoryview:
    """Writable memory of ``size`` bytes that starts at a page boundary."""
    return memoryview(mmap.mmap(-1, size))


class NewFile:
    """A file in the making, written by any number of threads.

    Args:
        path: Must not exist.

    Raises:
        OSError: As the kernel gives it, from every method; the file is then to be abandoned.
    """

    def __init__(self, path: str) -> None:
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
        self._fd = os.open(path, flags, 0o666)
        if fcntl is not None:
            with suppress(OSError):  # without locks the file system keeps abandoned files, and nothing else is lost
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._direct = self._set_direct(wanted=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        try:
            os.close(self._fd)
        except OSError:
            if error is None:  # a failed close is a failed write; else the first error tells more
                raise

    def _set_direct(self, *, wanted: bool) -> bool:
        direct = getattr(os, "O_DIRECT", 0)  # macOS has none, Windows neither of both
        if not direct:
            return False
        flags = fcntl.fcntl(self._fd, fcntl.F_GETFL)
        try:
            fcntl.fcntl(self._fd, fcntl.F_SETFL, flags | direct if wanted else flags & ~direct)
        except OSError as error:
            if error.errno in _NOT_SUPPORTED:
                return False
            raise
        return wanted

    def preallocate(self, size: int) -> None:
        """Reserve ``size`` bytes, where that is cheap and there is room; the writes find out otherwise."""
        # posix_fallocate would write zeros where the file system cannot reserve
        if sys.platform != "linux" or size <= 0:
            return
        room = os.fstatvfs(self._fd)
        if room.f_bavail * room.f_frsize > size:
            fallocate = ctypes.CDLL(None).fallocate
            fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
            fallocate(self._fd, 0, 0, size)

    def write(self, data: memoryview, offset: int) -> None:
        """Write ``data`` at ``offset``; address, length and offset are multiples of :data:`ALIGNMENT`."""
        direct = self._direct
        try:
            write_all(self._fd, data, offset)
        except OSError as error:
            if not direct or error.errno not in _NOT_SUPPORTED:
                raise
            self._direct = self._set_direct(wanted=False)
            write_all(self._fd, data, offset)

    def finish(self, size: int) -> None:
        """Cut the file to ``size`` bytes and make them survive power loss. A failed sync must not be tried again."""
        os.ftruncate(self._fd, size)
        os.fsync(self._fd)


def rename_without_replacing(source: str, target: str) -> None:
    """Give ``source`` the name ``target``.

    Raises:
        FileExistsError: ``target`` exists; both files are untouched.
        OSError: As the kernel gives it.
    """
    if not _rename_in_kernel(source, target):
        _link_without_replacing(source, target)


def _rename_in_kernel(source: str, target: str) -> bool:
    """By the one call made for it; False where the system or the file system has none."""
    if sys.platform != "linux":
        return False
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    if renameat2(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), _RENAME_NOREPLACE) == 0:
        return True
    code = ctypes.get_errno()
    if code in _NOT_SUPPORTED:
        return False
    raise OSError(code, os.strerror(code), source, None, target)


def _link_without_replacing(source: str, target: str) -> None:
    """The same by a second name, or, where files have only one, by looking first."""
    try:
        os.link(source, target, follow_symlinks=False)
    except FileExistsError:
        raise
    except (OSError, NotImplementedError, AttributeError):
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target) from None
        os.rename(source, target)
    else:
        os.unlink(source)


def remove_if_abandoned(path: str) -> bool:
    """Remove a :class:`NewFile` that nobody is writing any more; whether it was removed."""
    if sys.platform == "win32":  # no locks there: abandoned files stay
        return False
    try:
        fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(fd), os.lstat(path)):
            return False
        os.unlink(path)
    except OSError:
        return False
    finally:
        os.close(fd)
    return True


def read_fully(fd: int, buffer: memoryview, offset: int) -> int:
    """Fill ``buffer`` from ``offset``; returns how many bytes the file had there."""
    done = 0
    while done < len(buffer):
        count = os.preadv(fd, [buffer[done:]], offset + done)
        if count == 0:
            break
        done += count
    return done


def drop_from_cache(fd: int) -> None:
    """Ask the kernel to forget the file's pages, so that the next read shows what the disk holds."""
    if hasattr(os, "posix_fadvise"):
        with suppress(OSError):
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
