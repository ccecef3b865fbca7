"""What does the companion process do from its first to its last breath?

It drains the trainer's log every 50 ms, syncs it every second in a thread of its own, renews the heartbeat, and leaves
everything else to :class:`milepost.companion.duties.Duties`. When the trainer dies it sees that at once (pidfd), drains
what is left, records how the trainer ended, finishes the checkpoints, and leaves.

**On crash**: the trainer still holds all memory that was not durable, and starts another companion.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys
import threading
import time
from collections import deque

from milepost.checkpoint.job import decode_job
from milepost.companion.duties import Duties
from milepost.companion.messages import (
    ArenaShared,
    Channel,
    Finish,
    Finished,
    FromCompanion,
    FromTrainer,
    Hello,
    SaveRefused,
    SaveStaged,
    SegmentShared,
    Synced,
    Waiting,
)
from milepost.core.errors import StorageError
from milepost.core.events import Noticed, StatusChanged
from milepost.core.saying import keep_own_log, logger
from milepost.environment.scheduler import is_preemption_signal, seconds_left
from milepost.io.memory import SharedSegment
from milepost.io.process import ProcessIdentity, exit_cause, is_alive, lower_priority
from milepost.runs.durable_log import Drain
from milepost.runs.ending import signals_that_came, terminal_status
from milepost.runs.layout import RunLayout

__all__ = ["main"]

_DRAIN_EVERY = 0.05
_SYNC_EVERY = 1.0
_SYNC_EARLY_AT = 8 << 20
_FEED_ONLY_BELOW = 4 << 20
_HEARTBEAT_EVERY = 10.0
_ORPHAN_PATIENCE = 10.0
_LIMIT_IS_REACHED = 10.0  # seconds before the limit by our clock, which need not be the scheduler's


def main() -> None:
    """Entry: ``sys.argv[1]`` is the number of the inherited socket."""
    for name in ("SIGINT", "SIGHUP", "SIGTERM"):
        signal.signal(getattr(signal, name), signal.SIG_IGN)  # the terminal's Ctrl-C is for the trainer
    lower_priority()
    channel = Channel(socket.socket(fileno=int(sys.argv[1])))
    received = channel.receive()
    if received is None or not isinstance(received[0], Hello):
        return
    hello, descriptors = received[0], received[1]
    keep_own_log(hello.layout["logs_dir"], os.getpid())
    try:
        Companion(channel, hello, pidfd=descriptors[0] if descriptors else None).run()
    except Exception:
        logger.exception("the companion stopped over a fault of its own")
        raise
    finally:
        os._exit(0)  # a guest that hangs in a thread must not keep the process


class Companion:
    """The loop of the companion process."""

    def __init__(self, channel: Channel, hello: Hello, *, pidfd: int | None) -> None:
        self._channel = channel
        self._hello = hello
        self._trainer = ProcessIdentity(
            host=hello.host, boot_id=hello.boot_id, pid=hello.pid, start_time=hello.start_time
        )
        self._pidfd = pidfd
        self._layout = RunLayout.from_dict(hello.layout)
        self._drain = Drain(self._layout, hello.log_id)
        if hello.durable:
            self._drain.resume_from(hello.durable)
        self._outbox: deque[FromCompanion] = deque()
        self._sending = threading.Lock()
        self._may_feed = threading.Event()
        self._may_feed.set()
        self._duties = Duties(hello, self._tell, may_feed=self._may_feed)
        self._arena: SharedSegment | None = None
        self._spool = ""
        self._sync_now = threading.Event()
        self._disk_refuses = False
        self._copy_refused = False
        self._heartbeat_at = 0.0
        self._finish: Finish | None = None
        self._leaving = False

    def run(self) -> None:
        """Work until the run has ended, or the trainer died."""
        self._duties.start()
        syncing = threading.Thread(target=self._sync_regularly, name="milepost-sync", daemon=True)
        syncing.start()
        while self._finish is None and self._trainer_lives():
            self._receive(_DRAIN_EVERY)
            self._drain_once()
            self._send()
            self._beat()
        self._end()

    def _trainer_lives(self) -> bool:
        if self._leaving:
            return False
        if self._pidfd is not None:
            return not select.select([self._pidfd], [], [], 0)[0]
        return is_alive(self._trainer)

    # ---------------------------------------------------------------- messages

    def _receive(self, timeout: float) -> None:
        socket_fd = self._channel.fileno()
        watched = [fd for fd in (socket_fd, self._pidfd) if fd is not None]
        ready, _, _ = select.select(watched, [], [], timeout)
        while socket_fd in ready:
            received = self._channel.receive()
            if received is None:
                # Our end of the pair is closed: the trainer is dead, about to be, or has let us go.
                self._leaving = True
                return
            message, descriptors = received
            self._take(message, descriptors)  # type: ignore[arg-type]
            ready, _, _ = select.select([socket_fd], [], [], 0)

    def _take(self, message: FromTrainer, descriptors: tuple[int, ...]) -> None:
        match message:
            case SegmentShared(ordinal=ordinal, size=size):
                self._drain.attach(SharedSegment.attach(descriptors[0], size), ordinal)
            case ArenaShared(size=size, start=start, path=path):
                if self._arena is not None:
                    self._arena.close()  # its descriptor would keep a whole state of memory alive
                self._arena = SharedSegment.attach(descriptors[0], size, start)
                self._spool = path
            case SaveStaged(number=number, size=size, staged=staged):
                parcel = SharedSegment.attach(descriptors[0], max(size, 1))
                job = decode_job(bytes(parcel.map[:size]))
                parcel.close()
                view = memoryview(self._arena.map) if staged and self._arena is not None else memoryview(b"")
                self._duties.save(number, job, view)
            case SaveRefused(step=step, filename=filename, what=what, cure=cure, kind=kind):
                self._duties.refused(step, filename, StorageError(what, cure=cure, kind=kind))
            case Finish():
                self._finish = message
            case _:
                for descriptor in descriptors:
                    os.close(descriptor)

    def _tell(self, message: FromCompanion) -> None:
        """Send it at once, from whichever thread: somebody may wait for this very commit."""
        self._outbox.append(message)
        self._send()

    def _send(self) -> None:
        with self._sending:
            while self._outbox:
                if not self._channel.send(self._outbox[0], wait=False):
                    if self._leaving or len(self._outbox) > 10_000:
                        self._outbox.clear()
                    return
                self._outbox.popleft()

    # ---------------------------------------------------------------- the log

    def _drain_once(self, *, finishing: bool = False) -> None:
        try:
            before = self._drain.position
            after = self._drain.copy(finishing=finishing)
        except StorageError as error:
            self._copy_refused = True
            self._disk_fails(error)
            return
        self._copy_refused = False
        if self._drain.unsynced > _SYNC_EARLY_AT:
            self._sync_now.set()
        # Guests read and decode in this process: while the log grows fast, the drain must not wait for the GIL.
        if after - before > _FEED_ONLY_BELOW:
            self._may_feed.clear()
        else:
            self._may_feed.set()

    def _sync_regularly(self) -> None:
        while not self._leaving:
            self._sync_now.wait(_SYNC_EVERY)
            self._sync_now.clear()
            self._sync_once()

    def _sync_once(self) -> None:
        try:
            durable = self._drain.sync()
        except StorageError as error:
            self._disk_fails(error)
            return
        self._tell(Synced(position=durable))
        if self._disk_refuses and not self._copy_refused:  # what was copied before may well be synced meanwhile
            self._disk_refuses = False
            self._duties.notice(
                Noticed(source="log", topic="disk", message="the disk takes the run log again", cured=True)
            )

    def _disk_fails(self, error: StorageError) -> None:
        if not self._disk_refuses:
            self._disk_refuses = True
            self._duties.notice(
                Noticed(
                    source="log",
                    topic="disk",
                    message=f"the run log cannot be written ({error.what}); it is kept in memory meanwhile",
                    cure=error.cure,
                )
            )

    def _beat(self) -> None:
        now = time.monotonic()
        if now - self._heartbeat_at < _HEARTBEAT_EVERY:
            return
        self._heartbeat_at = now
        self._duties.beat()
        self._duties.check()

    # ---------------------------------------------------------------- the end

    def _end(self) -> None:
        if self._finish is None:
            self._duties.hurry()
            self._wait_for_death()
            self._receive(0.0)  # what the trainer handed over and we had no time to take
        self._drain_once(finishing=True)
        self._sync_once()
        if self._finish is None:
            self._record_death()
            deadline = time.monotonic() + _ORPHAN_PATIENCE
        else:
            deadline = time.monotonic() + self._finish.timeout
        left = self._duties.finish(deadline, self._tell_waiting)
        self._remove_spool()
        self._tell(Finished(left=left))
        self._duties.close()
        with contextlib.suppress(OSError):
            os.unlink(self._layout.companion_lock(self._hello.log_id, self._hello.launch))

    def _wait_for_death(self) -> None:
        """The socket may close a moment before the process is gone; how it ended is known only then."""
        if self._pidfd is not None:
            select.select([self._pidfd], [], [], 2.0)

    def _record_death(self) -> None:
        """Say how the trainer ended, unless it said so itself."""
        if terminal_status(self._layout, self._hello.log_id) is not None:
            return
        cause = exit_cause(self._pidfd, self._hello.pid)
        self._duties.record(death_of(cause.exit_code, cause.signal, self._warning(cause.signal)))
        with contextlib.suppress(OSError):
            os.unlink(self._layout.log_lock(self._hello.log_id))

    def _warning(self, signal_name: str) -> str:
        """In words, what the scheduler had said before it killed the training; empty if it did not, or nobody knows."""
        if is_preemption_signal(signal_name, os.environ):
            return "by its scheduler"
        if signal_name not in {"SIGTERM", "SIGKILL"}:
            return ""
        left = seconds_left(os.environ, time.time())
        if left is not None and left < _LIMIT_IS_REACHED:
            return "at the time limit of its job"
        came = signals_that_came(self._layout, self._hello.log_id)
        return next((f"after {name}" for name in came if is_preemption_signal(name, os.environ)), "")

    def _remove_spool(self) -> None:
        """All that was staged is committed; what failed stays for whoever starts next."""
        if self._spool and self._duties.unprotected_since is None:
            with contextlib.suppress(OSError):
                os.unlink(self._spool)

    def _tell_waiting(self, text: str) -> None:
        self._tell(Waiting(text=text))


def death_of(exit_code: int | None, signal_name: str, warning: str = "") -> StatusChanged:
    """The state of a run whose process ended without a word; ``warning``: what its scheduler had said before."""
    if signal_name and warning:
        reason = f"killed by {signal_name} {warning}"
        return StatusChanged(status="preempted", reason=reason, signal=signal_name, source="companion")
    if signal_name:
        return StatusChanged(status="killed", reason=f"killed by {signal_name}", signal=signal_name, source="companion")
    if exit_code is None:
        return StatusChanged(status="killed", reason="the process ended, how is not known", source="companion")
    return StatusChanged(
        status="failed",
        reason=f"the process left with exit status {exit_code} without ending the run",
        exit_code=exit_code,
        source="companion",
    )
