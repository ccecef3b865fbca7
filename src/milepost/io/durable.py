"""How do bytes reach the disk so that a crash leaves the old content or the new one, and nothing between?

**Invariants**: a file that a reader may open is never written in place; it is replaced by rename, and the folder that
names it is synced after the rename. An error of the operating system leaves this module as a ``StorageError`` that
names the path and the cure.

**On crash**: a temporary named ``.<name>.<pid>.tmp`` may stay behind. It is never read, and the next replacement by a
process with the same id truncates it.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress

from milepost.core.errors import StorageError

__all__ = ["fsync_directory", "replace_file", "storage_error", "write_all"]

Bytes = bytes | bytearray | memoryview

_CURES: dict[int, tuple[str, str]] = {
    errno.ENOSPC: ("disk-full", "enable compression, lower max_checkpoints or free disk space"),
    errno.EDQUOT: ("disk-full", "enable compression, lower max_checkpoints or ask for a larger quota"),
    errno.EFBIG: ("file-too-large", "raise the limit of file sizes (ulimit -f), or save less"),
    errno.EIO: ("io-error", "check the disk and its cable or mount; what was committed before is whole"),
    errno.EROFS: ("read-only", "mount the file system writable or choose another folder"),
    errno.EACCES: ("permission", "give this user write access or choose another folder"),
    errno.EPERM: ("permission", "give this user write access or choose another folder"),
    errno.EMFILE: ("too-many-files", "raise the limit of open files (ulimit -n) or close some"),
    errno.ENFILE: ("too-many-files", "the whole system is out of file descriptors: close some programs"),
    errno.ENOENT: ("not-there", "check that the folder still exists"),
    errno.ENOTDIR: ("not-there", "a part of the path is a file: choose another folder"),
    errno.ENOMEM: ("no-memory", "free memory or raise the limit of this job"),
    errno.ENAMETOOLONG: ("name-too-long", "choose a shorter name or folder"),
    errno.ESTALE: ("io-error", "the network file system lost the file: mount it again"),
}


def storage_error(error: OSError, doing: str, path: str | os.PathLike[str]) -> StorageError:
    """The error a user sees for ``error``: ``"no space left on device while writing '/a/b': <cure>"``."""
    code = error.errno or 0
    kind, cure = _CURES.get(code, ("storage", "see the operating system's message"))
    reason = os.strerror(code).lower() if code else str(error)
    converted = StorageError(f"{reason} while {doing} {os.fspath(path)!r}", cure=cure, kind=kind)
    converted.errno = code or None
    return converted


def write_all(fd: int, data: Bytes, offset: int | None = None) -> None:
    """Write all of ``data``, at ``offset`` or at the descriptor's position, however the kernel cuts it up.

    Raises:
        OSError: As the kernel gives it; the caller knows the path and turns it into a ``StorageError``.
    """
    rest = memoryview(data).cast("B")
    while rest:
        if offset is None:
            written = os.write(fd, rest)
        else:
            written = os.pwrite(fd, rest, offset)
            offset += written
        rest = rest[written:]


def fsync_directory(path: str | os.PathLike[str]) -> None:
    """Make names created, renamed or removed in the folder ``path`` survive power loss.

    File systems that cannot sync a folder (some network and FUSE ones, Windows) order names by themselves or not at
    all; nothing better can be done there, so that is no error.
    """
    if os.name == "nt":
        return
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
    except OSError as error:
        if error.errno not in {errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.ENOSYS}:
            raise storage_error(error, "syncing the folder", path) from error


def replace_file(path: str | os.PathLike[str], data: Bytes, *, mode: int | None = None) -> None:
    """Make ``path`` hold exactly ``data``, durably; a reader sees the old content or the new one.

    Args:
        path: The file; its folder must exist.
        data: The whole new content.
        mode: Permission bits; None leaves them to the umask.

    Raises:
        StorageError: The old content is untouched.
    """
    folder, name = os.path.split(os.fspath(path))
    temporary = os.path.join(folder, f".{name}.{os.getpid()}.tmp")
    try:
        _write_synced(temporary, data, 0o666 if mode is None else mode)
        os.replace(temporary, path)
    except OSError as error:
        with suppress(OSError):
            os.unlink(temporary)
        raise storage_error(error, "writing", path) from error
    fsync_directory(folder or ".")


def _write_synced(path: str, data: Bytes, mode: int) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0)
    fd = os.open(path, flags, mode)
    try:
        write_all(fd, data)
        os.fsync(fd)
    finally:
        os.close(fd)
