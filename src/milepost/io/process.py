"""Which process is that, does it still live, what ended it, and how is a quiet second one started?

A process id alone names nobody: ids are used again. With the host, the boot and the start time it names one process
for ever. Linux answers exactly through ``/proc`` and pidfds; elsewhere psutil answers as well as it can.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "ExitCause",
    "ProcessIdentity",
    "can_start_python",
    "ends_its_container",
    "exit_cause",
    "exit_cause_is_known",
    "is_alive",
    "lower_priority",
    "open_pidfd",
    "start_python",
    "this_process",
]

_HAS_PROC = os.path.exists("/proc/self/stat")
_REAL_INITS = frozenset({"init", "systemd"})
_PIDFD_GET_INFO = 0xC040FF0B  # _IOWR(0xFF, 11, 64 bytes), linux/pidfd.h
_PIDFD_INFO_EXIT = 8
_IOPRIO_SET_NUMBER = {"x86_64": 251, "aarch64": 30}
_IOPRIO_BEST_EFFORT_LOWEST = 2 << 13 | 7


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessIdentity:
    """One process, for ever.

    Attributes:
        host: Name of the machine.
        boot_id: Random id of this start of the machine; empty where the system has none.
        pid: Its number.
        start_time: Seconds, on a scale of this boot (Linux) or since 1970 (elsewhere); only compared for equality.
    """

    host: str
    boot_id: str
    pid: int
    start_time: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ExitCause:
    """How a process ended. ``exit_code`` is None and ``signal`` empty where the system does not tell."""

    exit_code: int | None
    signal: str


def this_process() -> ProcessIdentity:
    """The identity of the calling process."""
    pid = os.getpid()
    return ProcessIdentity(host=_host(), boot_id=_boot_id(), pid=pid, start_time=_start_time(pid) or 0.0)


def is_alive(identity: ProcessIdentity) -> bool:
    """Whether that very process runs on this boot of this host; False for another host: nobody here knows."""
    if identity.host != _host() or identity.boot_id != _boot_id():
        return False
    return _start_time(identity.pid) == identity.start_time


@functools.cache
def _host() -> str:
    if sys.platform == "win32":
        return os.environ.get("COMPUTERNAME", "localhost")
    return os.uname().nodename


@functools.cache
def _boot_id() -> str:
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return ""


def _stat_fields(pid: int) -> list[str]:
    """Fields of ``/proc/<pid>/stat`` after the name, which may itself hold spaces and brackets; empty if gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return text.rpartition(")")[2].split()


def _start_time(pid: int) -> float | None:
    """When the process started, or None if it is gone (a zombie is gone: it runs nothing any more)."""
    if _HAS_PROC:
        fields = _stat_fields(pid)
        if not fields or fields[0] in {"Z", "X"}:
            return None
        return int(fields[19]) / os.sysconf("SC_CLK_TCK")
    import psutil

    try:
        return float(psutil.Process(pid).create_time())
    except psutil.Error:
        return None


def ends_its_container(pid: int) -> bool:
    """Whether every process around dies with this one: it, or its parent, is the first process of a container."""
    if pid == 1:
        return True
    fields = _stat_fields(pid)
    if not fields or fields[1] != "1":
        return False
    with suppress(OSError):
        return Path("/proc/1/comm").read_text(encoding="utf-8").strip() not in _REAL_INITS
    return False


def open_pidfd(pid: int) -> int | None:
    """A descriptor that becomes readable when the process ends, and keeps its end known; None where there is none."""
    if hasattr(os, "pidfd_open"):
        with suppress(OSError):
            return os.pidfd_open(pid)
    return None


def exit_cause(pidfd: int | None, pid: int) -> ExitCause:
    """How the process ended that ``pidfd`` was opened for while it lived.

    A kernel from 6.15 on tells it through the pidfd even after the parent collected the process; an older one only
    while it is a zombie, and only to the same user.
    """
    status = _status_from_pidfd(pidfd) if pidfd is not None else None
    if status is None:
        status = _status_of_zombie(pid)
    if status is None:
        return ExitCause(exit_code=None, signal="")
    if os.WIFSIGNALED(status):
        return ExitCause(exit_code=None, signal=_signal_name(os.WTERMSIG(status)))
    return ExitCause(exit_code=os.WEXITSTATUS(status), signal="")


def _status_from_pidfd(pidfd: int) -> int | None:
    # struct pidfd_info: u64 mask, u64 cgroup id, eleven u32 (ids), s32 exit code in the form of waitpid
    question = struct.pack("=Q56x", _PIDFD_INFO_EXIT)
    try:
        import fcntl

        answer = fcntl.ioctl(pidfd, _PIDFD_GET_INFO, question)
    except (OSError, ImportError):
        return None
    mask, status = struct.unpack("=Q52xi", answer)
    return status if mask & _PIDFD_INFO_EXIT else None


def _status_of_zombie(pid: int) -> int | None:
    fields = _stat_fields(pid)
    if not fields or fields[0] != "Z":
        return None
    return int(fields[49])


def _signal_name(number: int) -> str:
    with suppress(ValueError):
        return signal.Signals(number).name
    return f"SIG{number}"


@functools.cache
def exit_cause_is_known() -> bool:
    """Whether the kernel tells how a process ended after its parent collected it."""
    if sys.platform != "linux":
        return False
    numbers = os.uname().release.split(".")
    if not all(part.isdigit() for part in numbers[:2]) or tuple(map(int, numbers[:2])) < (6, 15):
        return False
    pidfd = open_pidfd(os.getpid())
    if pidfd is None:
        return False
    import fcntl

    try:
        fcntl.ioctl(pidfd, _PIDFD_GET_INFO, struct.pack("=Q56x", _PIDFD_INFO_EXIT))
    except OSError:
        return False
    finally:
        os.close(pidfd)
    return True


def lower_priority() -> None:
    """Step behind everything else on the machine, for processor and disk; what the system refuses is left as it is."""
    if sys.platform == "win32":
        return
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, max(10, os.getpriority(os.PRIO_PROCESS, 0)))
    if sys.platform != "linux":
        return
    # With autogroups, niceness only counts inside a session, and ours is a new one: lower the session itself.
    with suppress(OSError), open("/proc/self/autogroup", "w", encoding="ascii") as group:
        group.write("10")
    number = _IOPRIO_SET_NUMBER.get(os.uname().machine)
    if number is not None:
        import ctypes

        ctypes.CDLL(None).syscall(number, 1, 0, _IOPRIO_BEST_EFFORT_LOWEST)


# sys.path arrives as an argument, so the child needs no site-packages scan and runs none of its .pth files.
_BOOTSTRAP = (
    "import sys, json; sys.path[:] = json.loads(sys.argv.pop(1)); exec(compile(sys.argv.pop(1), '<{}>', 'exec'))"
)


def can_start_python() -> bool:
    """Whether there is a Python to start: a frozen program is none, and an embedded one may not know of any."""
    return not getattr(sys, "frozen", False) and bool(sys.executable) and os.access(sys.executable, os.X_OK)


def start_python(
    code: str,
    arguments: Sequence[str],
    *,
    pass_fds: Sequence[int] = (),
    cwd: str | os.PathLike[str] | None = None,
    output: int = subprocess.DEVNULL,
    name: str = "milepost",
) -> subprocess.Popen[bytes]:
    """Start ``code`` in a fresh, quiet Python: own session, no terminal, one computing thread, the caller's packages.

    The child cannot be hit by a ``numpy.py`` beside the user's script, and holds none of the caller's descriptors
    beyond ``pass_fds``: a pipe that the caller was started in ends with the caller.

    Args:
        code: Source; sees ``arguments`` as ``sys.argv[1:]``.
        arguments: Texts for it.
        pass_fds: Descriptors it inherits under the same numbers.
        cwd: Its working folder; None keeps the caller's.
        output: Where stdout and stderr go: a descriptor, ``subprocess.PIPE`` or ``DEVNULL``.
        name: Shown in tracebacks as the file of ``code``.
    """
    command = [
        sys.executable,
        "-P",
        "-S",
        "-c",
        _BOOTSTRAP.format(name),
        json.dumps(_packages_path()),
        code,
        *arguments,
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output if output != subprocess.PIPE else subprocess.STDOUT,
        pass_fds=tuple(pass_fds),
        cwd=cwd,
        env=environment,
        start_new_session=True,
    )


def _packages_path() -> list[str]:
    """``sys.path`` without the script's folder and the working folder, whose files are not packages meant for us.

    What the user put into ``PYTHONPATH`` stays, and so does the folder this package itself lies in.
    """
    asked_for = {os.path.abspath(part) for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part}
    script = getattr(sys.modules.get("__main__"), "__file__", None)
    unwanted = {os.getcwd(), os.path.dirname(os.path.abspath(script)) if script else ""} - asked_for
    kept = [os.path.abspath(part) for part in sys.path if part]
    kept = [part for part in kept if part not in unwanted]
    own = str(Path(__file__).parents[2])
    return kept if own in kept else [*kept, own]
