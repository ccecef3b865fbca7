"""How is a process killed at exactly its n-th system call, whichever of its threads makes it?

By ptrace, with one counter for the whole process: strace counts each thread for itself, so its ``when=N`` never reaches
the threads that make few calls. The n-th call is not executed: the process dies on its entry.

Calls that change nothing outside of the process (waiting, reading, its own memory) are not counted: dying at one of
them leaves the same world as dying at the next one that does.

The tracer is a process of its own. When it is killed the traced one goes on unharmed.
"""

from __future__ import annotations

import ctypes
import os
import signal
import struct
import sys
import time
from contextlib import suppress
from mmap import mmap
from pathlib import Path

__all__ = ["Tracer", "is_available"]

_SEIZE, _SYSCALL, _LISTEN, _INTERRUPT, _GET_SYSCALL_INFO, _CONT = 0x4206, 24, 0x4208, 0x4207, 0x420E, 7
_OPTIONS = 1 | 8  # mark system-call stops; follow new threads
_SYSCALL_STOP = signal.SIGTRAP | 0x80
_EVENT_STOP = 128
_WALL = 0x40000000
_ENTRY = 1
_COUNT = struct.Struct("=qqq")

#: By their numbers on x86-64: read, stat, fstat, lstat, poll, lseek, mmap, mprotect, munmap, brk, rt_sigaction,
#: rt_sigprocmask, pread64, readv, access, select, sched_yield, madvise, nanosleep, getpid, uname, getcwd, readlink,
#: times, getuid ... getegid, getppid, sigaltstack, gettid, futex, sched_getaffinity, getdents64, restart_syscall,
#: clock_gettime, clock_nanosleep, pselect6, ppoll, set_robust_list, getrandom, newfstatat, readlinkat, faccessat, rseq,
#: statx.
_X86_64_WITHOUT_EFFECT = frozenset(
    {0, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 17, 19, 21, 23, 24, 28, 35, 39, 63, 79, 89, 100}
    | {102, 104, 107, 108, 110, 131, 186, 202, 204, 217, 219, 228, 230, 262, 267, 269, 270, 271, 273, 318, 332, 334}
)
_OPENAT = 257 if os.uname().machine == "x86_64" else -1
_WITHOUT_EFFECT = _X86_64_WITHOUT_EFFECT if os.uname().machine == "x86_64" else frozenset[int]()

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
_libc.ptrace.restype = ctypes.c_long


def _ptrace(request: int, tid: int, address: int = 0, data: int = 0) -> None:
    if _libc.ptrace(request, tid, address, data) < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def is_available() -> bool:
    """Whether this system lets us trace our own child."""
    if sys.platform != "linux":
        return False
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
    try:
        _ptrace(_SEIZE, child)
    except OSError:
        return False
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, _WALL)
    return True


class Tracer:
    """Counts the system calls of process ``pid``, and at number ``kill_at`` kills it, after those in ``also_kill``.

    Args:
        pid: The process, all of its threads; a descendant of ours.
        kill_at: From 1; 0 only counts.
        also_kill: Processes that die in the same moment.
    """

    def __init__(self, pid: int, *, kill_at: int = 0, also_kill: tuple[int, ...] = ()) -> None:
        self._shared = mmap(-1, _COUNT.size)
        self._process = os.fork()
        if self._process == 0:
            try:
                _trace(pid, kill_at, also_kill, self._shared)
            finally:
                os._exit(0)
        while not self._attached and os.waitpid(self._process, os.WNOHANG)[0] == 0:
            time.sleep(0.0005)

    @property
    def _attached(self) -> bool:
        return bool(_COUNT.unpack(self._shared[:])[2])

    @property
    def count(self) -> int:
        """System calls begun so far."""
        return int(_COUNT.unpack(self._shared[:])[0])

    @property
    def killed_in(self) -> int | None:
        """Number of the system call at which the process was killed; None if it was not."""
        number = int(_COUNT.unpack(self._shared[:])[1])
        return number - 1 if number else None

    def stop(self) -> None:
        """Let the process go."""
        with suppress(ProcessLookupError, ChildProcessError):
            os.kill(self._process, signal.SIGKILL)
            os.waitpid(self._process, 0)


def _trace(pid: int, kill_at: int, also_kill: tuple[int, ...], shared: mmap) -> None:
    traced: set[int] = set()
    while True:  # a thread may be born while the others are being seized
        try:
            tids = {int(entry.name) for entry in Path(f"/proc/{pid}/task").iterdir()} - traced
        except OSError:
            return
        if not tids:
            break
        for tid in tids:
            with suppress(OSError):
                _ptrace(_SEIZE, tid, 0, _OPTIONS)
                _ptrace(_INTERRUPT, tid)
            traced.add(tid)
    count = 0
    shared[:] = _COUNT.pack(0, 0, 1)
    information = ctypes.create_string_buffer(128)
    while True:
        try:
            tid, status = os.waitpid(-1, _WALL)
        except ChildProcessError:
            return
        if not os.WIFSTOPPED(status):
            continue
        stopped_by, event = os.WSTOPSIG(status), status >> 16
        with suppress(OSError):
            if stopped_by == _SYSCALL_STOP:
                _libc.ptrace(_GET_SYSCALL_INFO, tid, len(information), ctypes.addressof(information))
                number, _, _, flags = struct.unpack_from("=QQQQ", information.raw, 24)
                only_opens = number == _OPENAT and not flags & os.O_CREAT
                if information.raw[0] == _ENTRY and number not in _WITHOUT_EFFECT and not only_opens:
                    count += 1
                    killed = count == kill_at
                    shared[:] = _COUNT.pack(count, number + 1 if killed else 0, 1)
                    if killed:
                        for process in (*also_kill, pid):
                            os.kill(process, signal.SIGKILL)
                        return
                _ptrace(_SYSCALL, tid)
            elif event == _EVENT_STOP and stopped_by in {signal.SIGSTOP, signal.SIGTSTP}:
                _ptrace(_LISTEN, tid)
            else:
                _ptrace(_SYSCALL, tid, 0, 0 if event else stopped_by)
