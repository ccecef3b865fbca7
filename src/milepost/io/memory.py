"""Where do bytes lie that must outlive the process that wrote them, but not wait for a disk?

In anonymous shared memory (a memfd) whose descriptor a second process also holds. A store there costs no system call
and cannot block on a file system; the memory lives until the last holder is gone.

**Invariants**: a segment has its full size from the start and never changes it (sealed, so no holder can be killed by
SIGBUS through another one's truncation). Only the creator can write.

A forked child (a data loader's worker) has no use for large segments and may live long: :meth:`keep_from_children`
takes map and descriptors out of it, or a state's memory would stay as long as the child.

**On crash**: of one holder, nothing is lost. Of all holders at once, the content is gone.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import mmap
import os
import sys
import tempfile
import weakref
from contextlib import suppress
from pathlib import Path

from milepost.io.durable import storage_error

__all__ = ["SharedSegment", "available", "available_memory", "growing_file", "reserve_blocks"]

_SLICE = 4 << 20
_MADV_POPULATE_WRITE = 23  # Linux 5.14; newer than the mmap module of most Pythons
_MADV_DONTFORK, _MADV_DONTDUMP = 10, 16
_MFD_CLOEXEC, _MFD_ALLOW_SEALING, _MFD_NOEXEC_SEAL = 1, 2, 8
_F_ADD_SEALS = 1033
_SEAL_SHRINK, _SEAL_GROW, _SEAL_FUTURE_WRITE = 2, 4, 16
_NO_SUCH_ADVICE = frozenset({errno.EINVAL, errno.ENOSYS})
_MAP_PRIVATE, _MAP_ANONYMOUS, _MAP_NORESERVE, _MAP_FIXED_NOREPLACE = 2, 0x20, 0x4000, 0x100000
_MEMFD_CREATE_NUMBER = {"x86_64": 319, "aarch64": 279}


class SharedSegment:
    """A piece of shared memory of fixed size; made by :meth:`create`, seen elsewhere through :meth:`attach`.

    Attributes:
        fd: Descriptor to hand to another process. It belongs to the segment.
        map: The mapped bytes: writable for the creator, read-only when attached.
        size: Bytes.
        start: Where they begin in the file behind ``fd``: a multiple of the page size.
    """

    __slots__ = ("__weakref__", "fd", "map", "size", "start")

    def __init__(self, fd: int, size: int, *, writable: bool, start: int = 0) -> None:
        self.fd = fd
        self.size = size
        self.start = start
        access = mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ
        self.map = mmap.mmap(fd, size, access=access, offset=start)

    @classmethod
    def create(cls, size: int, name: str) -> SharedSegment:
        """A zero-filled segment that only this process can write.

        Raises:
            StorageError: There is not enough memory, or no descriptor left.
        """
        fd = -1
        try:
            fd = _anonymous_file(name, size)
            return cls(fd, size, writable=True)
        except OSError as error:  # also EFBIG and ENOMEM: limits of file size and address space hold here too
            if fd >= 0:
                os.close(fd)
            raise storage_error(error, "making shared memory", name) from error

    @classmethod
    def attach(cls, fd: int, size: int, start: int = 0) -> SharedSegment:
        """The read-only view of a segment whose descriptor came from another process; owns ``fd`` from now on.

        Raises:
            StorageError: The descriptor is no segment of that size.
        """
        try:
            return cls(fd, size, writable=False, start=start)
        except (OSError, ValueError) as error:  # mmap itself refuses a size beyond the end of the file
            raise storage_error(OSError(str(error)), "attaching shared memory", f"descriptor {fd}") from error

    def populate(self, offset: int, length: int) -> None:
        """Give ``[offset, offset + length)`` real pages now, so that no later store takes a page fault.

        Goes through ctypes because ``mmap.madvise`` holds the GIL, which would stop all threads for milliseconds;
        in slices, so that a thread that does this lets the others run.

        Raises:
            StorageError: There is not enough memory.
        """
        start = offset // mmap.PAGESIZE * mmap.PAGESIZE
        end = min(offset + length, self.size)
        for piece in range(start, end, _SLICE):
            bytes_now = min(_SLICE, end - piece)
            if not self._populate_by_kernel(piece, bytes_now):
                self._populate_by_stores(piece, bytes_now)

    def _populate_by_kernel(self, offset: int, length: int) -> bool:
        madvise = _madvise()
        if madvise is None:
            return False
        if madvise(self._address + offset, length, _MADV_POPULATE_WRITE) == 0:
            return True
        code = ctypes.get_errno()
        if code in _NO_SUCH_ADVICE:
            return False
        # a store into such a page would end this process by SIGBUS
        raise storage_error(OSError(errno.ENOMEM, "no memory"), "filling", "shared memory")

    @property
    def _address(self) -> int:
        window = ctypes.c_char.from_buffer(self.map)
        return ctypes.addressof(window)  # valid while the map is open; the window itself would keep it from closing

    def _populate_by_stores(self, offset: int, length: int) -> None:
        pages = self.map
        for place in range(offset, offset + length, mmap.PAGESIZE):
            pages[place] = pages[place]

    def seal(self) -> None:
        """Forbid shrinking, growing and new writable views from now on; best effort, Linux memfd only."""
        if sys.platform == "linux":
            import fcntl

            for seals in (_SEAL_SHRINK | _SEAL_GROW | _SEAL_FUTURE_WRITE, _SEAL_SHRINK | _SEAL_GROW):
                with suppress(OSError):
                    fcntl.fcntl(self.fd, _F_ADD_SEALS, seals)
                    return

    def keep_from_children(self) -> None:
        """Leave the map out of forked children and core dumps, and take the descriptors out of children."""
        madvise = _madvise()
        if madvise is not None:
            for advice in (_MADV_DONTFORK, _MADV_DONTDUMP):
                madvise(self._address, self.size, advice)
            _kept_from_children.add(self)

    def _leave_child(self) -> None:
        """In a forked child, where the map is a hole and the descriptors are copies that would keep the memory."""
        _fill_hole(self._address, self.size)
        node = os.fstat(self.fd)
        null = os.open(os.devnull, os.O_RDONLY)
        for name in os.listdir("/proc/self/fd"):
            with suppress(OSError):
                # the map has a descriptor of its own and will close that number: it must not be free before
                if os.path.samestat(os.fstat(int(name)), node):
                    os.dup2(null, int(name), inheritable=False)
        os.close(null)
        os.close(self.fd)
        self.fd = -1  # the child neither shares nor removes what is its parent's

    def close(self) -> None:
        """Let go of map and descriptor. Views that somebody still exports keep the map alive until they are gone."""
        with suppress(BufferError):
            self.map.close()
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


_kept_from_children: weakref.WeakSet[SharedSegment] = weakref.WeakSet()


def _after_fork() -> None:
    for segment in tuple(_kept_from_children):
        with suppress(OSError, ValueError):  # closed meanwhile
            segment._leave_child()  # noqa: SLF001 - the class's own hook
        _kept_from_children.discard(segment)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _fill_hole(address: int, size: int) -> None:
    """Private zeros where the parent has a map: the child would unmap that range later, whatever lay there by then."""
    if sys.platform == "linux":
        fill = ctypes.CDLL(None).mmap
        fill.restype = ctypes.c_void_p
        fill.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long)
        flags = _MAP_PRIVATE | _MAP_ANONYMOUS | _MAP_NORESERVE | _MAP_FIXED_NOREPLACE
        fill(address, size, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0)


def _anonymous_file(name: str, size: int) -> int:
    fd = _memfd(name)
    if fd is not None:
        try:
            os.ftruncate(fd, size)
        except OSError:
            os.close(fd)
            raise
        return fd
    folder = "/dev/shm" if os.path.isdir("/dev/shm") else None  # noqa: S108 - unlinked at once, mode 0600
    fd, path = tempfile.mkstemp(prefix="milepost-", dir=folder)
    os.unlink(path)
    try:
        reserve_blocks(fd, size)  # in a container /dev/shm is often small: an error now, or SIGBUS at a store
    except OSError:
        os.close(fd)
        raise
    return fd


def reserve_blocks(fd: int, size: int) -> None:
    """Give a file ``size`` bytes that no later store can fail to find room for.

    Raises:
        OSError: There is no room.
    """
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(fd, 0, size)
    else:
        os.ftruncate(fd, size)


def _memfd(name: str) -> int | None:
    """A new memfd; None where the system has none."""
    if sys.platform != "linux":
        return None
    wanted = _MFD_CLOEXEC | _MFD_ALLOW_SEALING
    for flags in (wanted | _MFD_NOEXEC_SEAL, wanted):  # kernels before 6.3 refuse the first
        fd = _memfd_with(name, flags)
        if fd is not None:
            return fd
    return None


def _memfd_with(name: str, flags: int) -> int | None:
    if hasattr(os, "memfd_create"):
        with suppress(OSError):
            return os.memfd_create(name, flags)
        return None
    # Pythons built against an old C library lack the function although the kernel has the call.
    number = _MEMFD_CREATE_NUMBER.get(os.uname().machine)
    if number is None:
        return None
    fd: int = ctypes.CDLL(None).syscall(number, name.encode(), flags)
    return fd if fd >= 0 else None


@functools.cache
def _madvise() -> ctypes._NamedFuncPointer | None:
    if sys.platform != "linux":
        return None
    function = ctypes.CDLL(None, use_errno=True).madvise
    function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return function


@functools.cache
def available() -> bool:
    """Whether memory can be shared with a companion without any file on a disk."""
    if sys.platform != "linux":
        return False
    fd = _memfd("milepost-probe")
    if fd is None:
        return False
    os.close(fd)
    return True


def growing_file(name: str) -> int | None:
    """Descriptor of an empty file in memory that grows as it is written; None where the system has none."""
    return _memfd(name)


def available_memory() -> int:
    """Bytes this process may still take before the machine or its control group is full."""
    rooms = [_machine_memory(), *_group_memory()]
    return max(0, min(rooms))


def _machine_memory() -> int:
    with suppress(OSError), open("/proc/meminfo", encoding="ascii") as lines:
        for line in lines:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    import psutil

    return int(psutil.virtual_memory().available)


def _group_memory() -> list[int]:
    """Room left in each control group above this process, version 1 or 2; empty where there are none."""
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    rooms: list[int] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            rooms += _rooms(Path("/sys/fs/cgroup"), path, "memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            rooms += _rooms(Path("/sys/fs/cgroup/memory"), path, "memory.limit_in_bytes", "memory.usage_in_bytes")
    return rooms


def _rooms(mount: Path, path: str, limit_name: str, usage_name: str) -> list[int]:
    group = mount / path.lstrip("/")
    rooms = []
    for folder in (group, *group.parents):
        try:
            limit = (folder / limit_name).read_text(encoding="ascii").strip()
            usage = int((folder / usage_name).read_text(encoding="ascii"))
        except (OSError, ValueError):
            limit = "max"
            usage = 0
        if limit != "max":
            rooms.append(int(limit) - usage + _reclaimable(folder))
        if folder == mount:
            break
    return rooms


def _reclaimable(group: Path) -> int:
    """Page cache that the kernel gives back under pressure: counted as usage, but no obstacle."""
    with suppress(OSError, ValueError, IndexError):
        for line in (group / "memory.stat").read_text(encoding="ascii").splitlines():
            name, _, count = line.partition(" ")
            if name in {"inactive_file", "total_inactive_file"}:
                return int(count)
    return 0
