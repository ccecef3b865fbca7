"""How is a worker started, heard, killed, and known to be gone together with everything it started?

Each worker is a fork of this process, which has only imported. This process adopts what the worker leaves behind (child
subreaper), so "all processes of this attempt are gone" is a fact and not a delay.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torture.claims import Attempt
from torture.worker import Gate, Work, work

__all__ = ["Subject", "Target", "adopt_orphans"]

Target = Literal["trainer", "companion", "both"]

_PR_SET_CHILD_SUBREAPER = 36
_PIPE_BYTES = 1 << 20
_F_SETPIPE_SZ = 1031


def adopt_orphans() -> None:
    """Become the parent of what a killed worker leaves behind."""
    if ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError("this system has no child subreaper")


@dataclass(slots=True)
class _Ended:
    """What is known of children that were waited for."""

    trainer_status: int | None = None


class Subject:
    """One worker and what it starts.

    Attributes:
        pid: The worker: the training process of this attempt.
        attempt: What it has said so far.
        gate: Lets it go on.
    """

    def __init__(self, to_do: Work) -> None:
        self.attempt = Attempt(to_do.attempt)
        self.gate = Gate()
        self._lines = b""
        self._closed = False
        self._ended = _Ended()
        self._pipe, their_end = os.pipe()
        with suppress(OSError):
            import fcntl

            fcntl.fcntl(their_end, _F_SETPIPE_SZ, _PIPE_BYTES)
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._pipe)
            work(to_do, their_end, self.gate)
        os.close(their_end)

    # ---------------------------------------------------------------- hearing

    def hear(self, seconds: float = 0.0) -> bool:
        """Take what the worker says within ``seconds``; False once it can say no more."""
        if self._closed or not select.select([self._pipe], [], [], max(0.0, seconds))[0]:
            return not self._closed
        data = os.read(self._pipe, 1 << 18)
        if not data:
            self._closed = True
            os.close(self._pipe)
            return False
        *lines, self._lines = (self._lines + data).split(b"\n")
        for line in lines:
            self.attempt.take(line.decode())
        return True

    def hear_for(self, seconds: float) -> None:
        """Keep taking what it says for ``seconds``."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if not self.hear(left):
                time.sleep(left)
                return

    def hear_until(self, word: str, seconds: float) -> bool:
        """Wait until it has said ``word`` (``started``, ``logged``, ...); False if it has ended or takes longer."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self._has_said(word):
                return True
            if not self.hear(0.05):
                return self._has_said(word)
        return self._has_said(word)

    def _has_said(self, word: str) -> bool:
        if word == "logged":
            return bool(self.attempt.acknowledged)
        if word == "committed":
            return any(save.committed for save in self.attempt.saves)
        return bool(getattr(self.attempt, word))

    # ---------------------------------------------------------------- killing

    def companions(self) -> list[int]:
        """Process ids of the companions that the worker has now."""
        found: list[int] = []
        with suppress(OSError):
            for task in Path(f"/proc/{self.pid}/task").iterdir():
                found += [int(child) for child in (task / "children").read_text().split()]
        return found

    def kill(self, target: Target, *, companion_first: bool = False) -> None:
        """SIGKILL now."""
        companions = self.companions() if target != "trainer" else []
        if companion_first:
            self._kill_companions(companions)
        if target != "companion":
            self._kill_trainer()
        if not companion_first:
            self._kill_companions(companions)

    def _kill_trainer(self) -> None:
        if self._ended.trainer_status is None and not self._collect(self.pid):
            self.attempt.trainer_killed_at = time.monotonic_ns()
            os.kill(self.pid, signal.SIGKILL)

    def _kill_companions(self, pids: list[int]) -> None:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                self.attempt.companion_killed_at.append(time.monotonic_ns())

    def _collect(self, pid: int) -> bool:
        """Whether the worker has ended by itself."""
        with suppress(ChildProcessError):
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                self._ended.trainer_status = status
                return True
        return False

    # ---------------------------------------------------------------- the end

    def wait_for_all(self, seconds: float) -> list[str]:
        """Wait until the worker and everything it started are gone; command lines of those that are not in time."""
        end = time.monotonic() + seconds
        while True:
            self.hear(0.0)
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == self.pid:
                self._ended.trainer_status = status
            elif pid == 0:
                if time.monotonic() > end:
                    return self._end_by_force()
                if not self.hear(0.005):
                    time.sleep(0.005)
        while self.hear(1.0):
            pass
        return []

    def _end_by_force(self) -> list[str]:
        left = []
        for pid in _children(os.getpid()):
            with suppress(OSError):
                left.append(Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").strip()[:300])
                os.kill(pid, signal.SIGKILL)
        with suppress(ChildProcessError):
            while True:
                os.waitpid(-1, 0)
        return left


def _children(pid: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += [int(child) for child in (task / "children").read_text().split()]
    return found
