"""Who takes the bytes of a framework's checkpoint to the disk, so that the training does not wait and no kill tears it?

A small second process. The training writes the content into shared memory (one copy); the descriptor travels to the
process, which writes, syncs, reads back, renames, and answers. Removals travel the same way, behind the saves that were
before them. Where no memory can be shared or no process started, a thread does the same.

**Invariants**: requests are carried out in their order, one at a time. While one is on its way its folder is marked
(:func:`milepost.io.locks.mark_in_use`), by both processes. A file is not removed while the save before it failed.

**On crash**: of the training, the process finishes what it was given and leaves. Of the process, the training still
holds every content that was not answered for, and gives it to another one.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import mmap
import os
import queue
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from milepost.core.errors import GaveUpWaitingError, MilepostError, StorageError
from milepost.integrations.sound_file import remove_sound, write_sound
from milepost.io import memory
from milepost.io.durable import storage_error
from milepost.io.locks import mark_in_use
from milepost.io.process import can_start_python, lower_priority, start_python

__all__ = ["Courier", "PendingFile", "main"]

#: Contents that may lie in memory at once: Lightning writes two files in a row, the new best and the last.
_MOST_PENDING = 2
_MOST_DEATHS = 3
_LARGEST_ANSWER = 1 << 16
_BOOTSTRAP = "from milepost.integrations.file_courier import main; main()"


@dataclass(slots=True, eq=False)
class PendingFile:
    """One file on its way.

    Attributes:
        path: Where it will be.
        about: What the caller knows of it.
        is_removal: Whether it is to go instead.
        done: Whether it ended, well or not.
        described: What stands beside the file; empty unless it was written.
        error: Why it was not written, or not removed.
    """

    path: Path
    about: dict[str, Any]
    is_removal: bool = False
    done: bool = False
    described: dict[str, Any] = field(default_factory=dict)
    error: MilepostError | None = None
    content: int | memoryview | None = None
    mark: int | None = None
    followers: list[Callable[[PendingFile], None]] = field(default_factory=list)

    def then(self, follower: Callable[[PendingFile], None]) -> None:
        """Call ``follower`` when it has ended: at once if it has, else in the thread that hears of it."""
        if self.done:
            follower(self)
        else:
            self.followers.append(follower)

    def _settle(self, answer: dict[str, Any]) -> None:
        if "what" in answer:
            self.error = StorageError(answer["what"], cure=answer["cure"], kind=answer["kind"])
        self.described = answer.get("described", {})
        self.done = True
        for descriptor in (self.content, self.mark):
            if isinstance(descriptor, int):
                os.close(descriptor)
        self.content = self.mark = None
        for follower in self.followers:
            follower(self)


class _Carrier(Protocol):
    """Who carries requests out."""

    def send(self, request: dict[str, Any], pending: PendingFile) -> bool:
        """Hand one request over; False if nobody is there any more."""

    def receive(self, timeout: float | None) -> dict[str, Any] | None:
        """The next answer, or None after ``timeout`` seconds. Raises ``EOFError`` if nobody will answer."""

    def close(self) -> None:
        """Let it finish what it has, wait for that, and let it go."""


class Courier:
    """Takes files to the disk in order; all calls come from the training's own thread, or its signal handlers."""

    def __init__(self) -> None:
        self._carrier: _Carrier | None = None
        self._pending: dict[int, PendingFile] = {}
        self._numbers = itertools.count(1)
        self._deaths = 0

    @property
    def pending(self) -> list[PendingFile]:
        """What is on its way, the oldest first."""
        return list(self._pending.values())

    def save(self, path: Path, fill: Callable[[BinaryIO], None], about: dict[str, Any]) -> PendingFile:
        """Take the content that ``fill`` writes; returns when it is copied.

        Args:
            path: The file to be; its folder is made if it is not there.
            fill: Writes the content into an open file.
            about: Plain values to keep beside the file.

        Raises:
            StorageError: There is no memory for the content, or the folder cannot be made.
        """
        while sum(not one.is_removal for one in self._pending.values()) >= _MOST_PENDING:
            self._hear(None)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            content = _content_of(fill)
        except OSError as error:
            raise storage_error(error, "copying a checkpoint for", path) from error
        return self._send(PendingFile(path, about, content=content, mark=mark_in_use(path.parent)))

    def remove(self, path: Path) -> PendingFile:
        """Remove a file once the saves before are verified; not at all if the last of them failed."""
        return self._send(PendingFile(path, {}, is_removal=True, mark=mark_in_use(path.parent)))

    def poll(self) -> None:
        """Take the answers that have come; never waits."""
        while self._pending and self._hear(0.0):
            pass

    def wait(self, timeout: float | None = None) -> None:
        """Wait until nothing is on its way.

        Raises:
            GaveUpWaitingError: ``timeout`` seconds were not enough.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while self._pending:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not self._hear(left) and left == 0.0 and self._pending:
                names = ", ".join(one.path.name for one in self.pending)
                raise GaveUpWaitingError(f"{names} is still being written after {timeout} s", cure="wait longer")

    def close(self) -> None:
        """Wait until nothing is on its way, and let the process go; the next save starts another."""
        self.wait()
        if self._carrier is not None:
            self._carrier.close()
            self._carrier = None

    def _send(self, pending: PendingFile) -> PendingFile:
        number = next(self._numbers)
        self._pending[number] = pending
        if self._carrier is None:
            self._carrier = _new_carrier()
        self._carrier.send(_request(number, pending), pending)
        return pending

    def _hear(self, timeout: float | None) -> bool:
        """Take one answer; False if none came in time."""
        assert self._carrier is not None
        try:
            answer = self._carrier.receive(timeout)
        except EOFError:
            self._replace_carrier()
            return True
        if answer is None:
            return False
        self._deaths = 0
        self._pending.pop(answer["number"])._settle(answer)  # noqa: SLF001 - the two are one thing
        return True

    def _replace_carrier(self) -> None:
        """Give all that was not answered for to another process; to nobody if processes die of it."""
        assert self._carrier is not None
        self._carrier.close()
        self._deaths += 1
        if self._deaths > _MOST_DEATHS:
            number, pending = next(iter(self._pending.items()))
            del self._pending[number]
            what = f"{pending.path} was not written: the process that writes it keeps dying"
            pending._settle({"what": what, "cure": "give the job more memory", "kind": "writer-died"})  # noqa: SLF001
        self._carrier = _new_carrier()
        for number, pending in self._pending.items():
            self._carrier.send(_request(number, pending), pending)


def _request(number: int, pending: PendingFile) -> dict[str, Any]:
    return {"number": number, "path": str(pending.path), "remove": pending.is_removal, "about": pending.about}


def _content_of(fill: Callable[[BinaryIO], None]) -> int | memoryview:
    """The content in memory that another process can map: its descriptor; else in memory of our own."""
    fd = memory.growing_file("milepost-file") if _shares_memory() else None
    if fd is None:
        own = io.BytesIO()
        fill(own)
        return own.getbuffer()
    try:
        with open(fd, "wb", buffering=1 << 20, closefd=False) as file:
            fill(file)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _shares_memory() -> bool:
    wanted = os.environ.get("MILEPOST_COMPANION", "process") != "thread"
    return wanted and memory.available() and can_start_python()


def _new_carrier() -> _Carrier:
    return _ProcessCarrier() if _shares_memory() else _ThreadCarrier()


class _ProcessCarrier:
    def __init__(self) -> None:
        self._end, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._process: subprocess.Popen[bytes] | None = start_python(
                _BOOTSTRAP, [str(theirs.fileno())], pass_fds=[theirs.fileno()]
            )
        finally:
            theirs.close()
        _carriers.add(self)

    def send(self, request: dict[str, Any], pending: PendingFile) -> bool:
        descriptors = [fd for fd in (pending.content, pending.mark) if isinstance(fd, int)]
        try:
            socket.send_fds(self._end, [json.dumps(request).encode()], descriptors)
        except OSError:
            return False
        return True

    def receive(self, timeout: float | None) -> dict[str, Any] | None:
        ready, _, _ = select.select([self._end], [], [], timeout)
        if not ready:
            return None
        try:
            packet = self._end.recv(_LARGEST_ANSWER, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None  # a signal handler that saved took it
        except ConnectionError:
            packet = b""
        if not packet:
            raise EOFError
        answer: dict[str, Any] = json.loads(packet)
        return answer

    def close(self) -> None:
        self._end.close()
        if self._process is not None:
            self._process.wait()

    def leave_child(self) -> None:
        """In a forked child: let go of the parent's end, or its death would go unseen while the child lives."""
        self._end.close()
        self._process = None


_carriers: weakref.WeakSet[_ProcessCarrier] = weakref.WeakSet()


def _after_fork() -> None:
    for carrier in tuple(_carriers):
        carrier.leave_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class _ThreadCarrier:
    def __init__(self) -> None:
        self._requests: queue.SimpleQueue[tuple[dict[str, Any], memoryview | None] | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="milepost-files", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        works = _Works()
        while (taken := self._requests.get()) is not None:
            self._answers.put(works.carry_out(*taken))

    def send(self, request: dict[str, Any], pending: PendingFile) -> bool:
        self._requests.put((request, pending.content if isinstance(pending.content, memoryview) else None))
        return True

    def receive(self, timeout: float | None) -> dict[str, Any] | None:
        with contextlib.suppress(queue.Empty):
            return self._answers.get(timeout=timeout) if timeout != 0 else self._answers.get_nowait()
        return None

    def close(self) -> None:
        self._requests.put(None)
        self._thread.join()


class _Works:
    """The other side: carries out requests, in the process or in the thread."""

    def __init__(self) -> None:
        self._failed: dict[Path, str] = {}

    def carry_out(self, request: dict[str, Any], content: memoryview | None) -> dict[str, Any]:
        """Do what is asked, and say how it went."""
        path = Path(request["path"])
        try:
            if request["remove"]:
                self._refuse_after_failure(path)
                remove_sound(path)
                return {"number": request["number"]}
            assert content is not None
            described = write_sound(path, content, request["about"])
        except MilepostError as error:
            if not request["remove"]:
                self._failed[path.parent] = path.name
            return {"number": request["number"], "what": error.what, "cure": error.cure, "kind": error.kind}
        self._failed.pop(path.parent, None)
        return {"number": request["number"], "described": described}

    def _refuse_after_failure(self, path: Path) -> None:
        failed = self._failed.get(path.parent)
        if failed is not None:
            raise StorageError(f"{path.name} stays, because {failed} could not be written", cure="", kind="kept")


def main() -> None:
    """Entry of the process: ``sys.argv[1]`` is the number of the inherited socket."""
    for name in ("SIGINT", "SIGHUP", "SIGTERM"):
        signal.signal(getattr(signal, name), signal.SIG_IGN)  # they are meant for the training
    lower_priority()
    end = socket.socket(fileno=int(sys.argv[1]))
    works = _Works()
    while True:
        packet, descriptors, _, _ = socket.recv_fds(end, 1 << 20, 2)
        if not packet:
            return
        request = json.loads(packet)
        content = None if request["remove"] else _mapped(descriptors[0])
        answer = works.carry_out(request, content)
        if content is not None:
            content.release()
        for descriptor in descriptors:
            os.close(descriptor)
        with contextlib.suppress(OSError):  # the training is gone; the file is there all the same
            end.send(json.dumps(answer).encode())


def _mapped(fd: int) -> memoryview:
    size = os.fstat(fd).st_size
    return memoryview(mmap.mmap(fd, size, access=mmap.ACCESS_READ)) if size else memoryview(b"")
