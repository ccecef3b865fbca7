"""How does a training process keep its companion: start it, hand memory over, hear from it, replace it, let it end?

The training thread sends a message only when a snapshot is staged or a segment could not be made ahead of time. All
else is one quiet helper thread that wakes twenty times a second: it keeps the next segment ready, reads the companion's
answers, keeps the clock, and starts another companion if this one died.

**On crash**: if the companion dies, everything it had not made durable is still in our memory: segments and the staged
snapshot are handed to the next one. If companions keep dying, the helper thread drains the log itself and says so.
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import threading
import time
from collections.abc import Callable

import msgspec

from milepost.checkpoint.job import SaveJob, encode_job
from milepost.companion.desk import SaveDesk, Submitted
from milepost.companion.messages import (
    ArenaShared,
    Channel,
    Finish,
    Finished,
    FromCompanion,
    Hello,
    Saved,
    SaveFailed,
    SaveOver,
    SaveRefused,
    SaveStaged,
    SegmentShared,
    Synced,
    Told,
    Waiting,
)
from milepost.core.errors import MilepostError, StorageError
from milepost.core.events import Noticed
from milepost.core.saying import say
from milepost.io.locks import lend_lock
from milepost.io.memory import SharedSegment
from milepost.io.process import open_pidfd, start_python
from milepost.runs.durable_log import Drain
from milepost.runs.layout import RunLayout
from milepost.runs.log import LogWriter

__all__ = ["CompanionProcess"]

_TICK = 0.05
_RESTARTS_PER_MINUTE = 5
_SAY_WHAT_IS_WAITED_FOR_AFTER = 2.0

_BOOTSTRAP = "from milepost.companion.process import main; main()"


class CompanionProcess:
    """The trainer's side of the companion.

    Attributes:
        writer: Where the run's checkpointer stages its snapshots.

    Args:
        hello: Who we are and what is wanted of the companion.
        every_tick: Called by the helper thread twenty times a second (device values, ranks' agreement to stop).
        heard: Called by it with every message of the companion, after what the message says has happened here.
    """

    def __init__(
        self,
        hello: Hello,
        *,
        every_tick: Callable[[], None] = lambda: None,
        heard: Callable[[FromCompanion], None] = lambda _: None,
    ) -> None:
        self._hello = hello
        self._every_tick = every_tick
        self._heard = heard
        self._lock = threading.RLock()
        self._segments: dict[int, SharedSegment] = {}
        self._unsent: list[int] = []
        self._arena_sent: SharedSegment | None = None
        layout = RunLayout.from_dict(hello.layout)
        spool = layout.checkpoints if hello.settings.get("staging") == "spool" else None
        self.writer = SaveDesk(self._send_save, self._send_refusal, self._lock, spool=spool)
        self._refusals: list[SaveRefused] = []
        self._durable = 0
        self._launches: list[float] = []
        self._own_drain: Drain | None = None
        self._disk_refuses = False
        self._leaving = False
        self._finished = threading.Event()
        self._left: list[str] = []
        self._waiting_for = ""
        self._log: LogWriter | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: Channel | None = None
        self._helper = threading.Thread(target=self._help, name="milepost-helper", daemon=True)

    # ---------------------------------------------------------------- life

    def start(self, log: LogWriter) -> None:
        """Start the companion for ``log`` and the helper thread.

        Raises:
            OSError: No process can be started.
        """
        self._log = log
        self._launch()
        self._helper.start()

    @property
    def pid(self) -> int | None:
        """Process id of the companion, or None if there is none now."""
        return self._process.pid if self._process is not None else None

    def _launch(self) -> None:
        """Start a companion and hand over all that is not durable yet."""
        with self._lock:
            self._launches.append(time.monotonic())
            channel, theirs = Channel.pair()
            alive = self._lock_for_companion()
            inherited = [fd for fd in (theirs.fileno(), alive) if fd is not None]
            try:
                self._process = start_python(_BOOTSTRAP, [str(theirs.fileno())], pass_fds=inherited)
            finally:
                theirs.close()
                if alive is not None:
                    os.close(alive)
            given_up = self.writer.after_death()
            self._channel = channel
            self._introduce(channel)
            self._unsent = sorted(self._segments)
            self._send_segments()
            self._arena_sent = None
            for job, error in given_up:
                self._send_refusal(job, error)
            self._send_refusals()
            for submitted in self.writer.uncommitted():
                self._send_save(submitted)

    def _lock_for_companion(self) -> int | None:
        """What tells a later attempt that a companion is at work, even if it has not executed its first line yet."""
        path = RunLayout.from_dict(self._hello.layout).companion_lock(self._hello.log_id, len(self._launches))
        with contextlib.suppress(OSError):
            return lend_lock(path)
        return None

    def _introduce(self, channel: Channel) -> None:
        """Say who we are, with a descriptor of this very process: we may be dead before the companion has started."""
        hello = msgspec.structs.replace(
            self._hello,
            durable=self._durable,
            launch=len(self._launches),
            unprotected_since=self.writer.unprotected_since,
        )
        pidfd = open_pidfd(self._hello.pid)
        channel.send(hello, () if pidfd is None else (pidfd,))
        if pidfd is not None:
            os.close(pidfd)

    def _send_segments(self) -> None:
        while self._unsent and self._channel is not None:
            ordinal = self._unsent[0]
            segment = self._segments[ordinal]
            message = SegmentShared(ordinal=ordinal, size=segment.size)
            if not self._channel.send(message, (segment.fd,), wait=False):
                return
            del self._unsent[0]

    def leave_child(self) -> None:
        """In a forked child: drop the parent's end, or its death would go unseen while the child lives."""
        if self._channel is not None:
            self._channel.close()
        self._channel = None
        self._process = None

    # ---------------------------------------------------------------- the log

    def hand_over(self, segment: SharedSegment, ordinal: int) -> None:
        """Share a segment before its first record is written; may run on the training thread."""
        with self._lock:
            self._segments[ordinal] = segment
            self._unsent.append(ordinal)
            self._send_segments()

    def make_durable(self, position: int, deadline: float) -> bool:
        """Wait until the log is on disk up to ``position``; False if it is not by ``deadline``."""
        while self._durable < position:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True

    # ---------------------------------------------------------------- checkpoints

    def _send_save(self, submitted: Submitted) -> None:
        with self._lock:
            if self._channel is None:
                return  # the next companion gets it
            if submitted.staged:
                self._share_arena()
            content = encode_job(submitted.job)
            parcel = SharedSegment.create(len(content), "milepost-job")
            try:
                parcel.map[:] = content
                message = SaveStaged(number=submitted.number, size=len(content), staged=submitted.staged)
                self._channel.send(message, (parcel.fd,))
            finally:
                parcel.close()

    def _share_arena(self) -> None:
        """Let the companion map the arena, unless it has."""
        with self._lock, self.writer.held() as segment:
            if self._channel is None or segment is None or segment is self._arena_sent:
                return
            message = ArenaShared(size=segment.size, start=segment.start, path=str(getattr(segment, "path", "")))
            if self._channel.send(message, (segment.fd,)):
                self._arena_sent = segment

    def _send_refusal(self, job: SaveJob, error: MilepostError) -> None:
        with self._lock:
            name = os.path.basename(job.path)
            refused = SaveRefused(step=job.step, filename=name, what=error.what, cure=error.cure, kind=error.kind)
            self._refusals.append(refused)
            self._send_refusals()

    def _send_refusals(self) -> None:
        while self._refusals and self._channel is not None and self._channel.send(self._refusals[0]):
            del self._refusals[0]

    # ---------------------------------------------------------------- the helper thread

    def _help(self) -> None:
        while not self._leaving:
            channel = self._channel
            if channel is not None:
                self._hear(channel)
            else:
                time.sleep(_TICK)
                self._replace_companion()
            if self._log is None or self._leaving:
                continue
            with contextlib.suppress(MemoryError, OSError):
                self._log.prepare()
            with self._lock:
                self._send_segments()
            self.writer.make_ready()
            self._share_arena()
            self._drain_without_companion()
            self._every_tick()

    def _hear(self, channel: Channel) -> None:
        try:
            ready, _, _ = select.select([channel], [], [], _TICK)
        except (OSError, ValueError):
            return  # closed by the end of the run
        while ready:
            received = channel.receive()
            if received is None:
                self._companion_died()
                return
            for descriptor in received[1]:
                os.close(descriptor)
            self._take(received[0])  # type: ignore[arg-type]
            ready, _, _ = select.select([channel], [], [], 0)

    def _take(self, message: FromCompanion) -> None:
        match message:
            case Synced(position=position):
                self._forget_segments(position)
            case Saved() | SaveFailed() | SaveOver():
                self.writer.take(message)
            case Told(text=text):
                say(text)
            case Waiting(text=text):
                self._waiting_for = text
            case Finished(left=left):
                self._left = left
                self._finished.set()
        self._heard(message)

    def _forget_segments(self, position: int) -> None:
        with self._lock:
            self._durable = max(self._durable, position)
            assert self._log is not None
            kept = self._log.release(self._durable)
            self._segments = {n: s for n, s in self._segments.items() if n in kept}
            self._unsent = [n for n in self._unsent if n in self._segments]

    def _companion_died(self) -> None:
        with self._lock:
            if self._channel is not None:
                self._channel.close()
            self._channel = None
            if self._process is not None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(0.2)

    def _replace_companion(self) -> None:
        """Start another one, unless the run is over or the last ones died too quickly."""
        if self._leaving or self._finished.is_set() or self._own_drain is not None:
            return
        recent = [at for at in self._launches if time.monotonic() - at < 60]
        with self._lock:
            if len(recent) >= _RESTARTS_PER_MINUTE:
                self._give_up()
                return
            with contextlib.suppress(OSError):  # no process now; the next tick tries again
                self._launch()

    def _give_up(self) -> None:
        message = (
            "the companion process keeps dying: metrics are kept by the training process itself, checkpoints and "
            "TensorBoard/W&B stand still"
        )
        cure = "see milepost-*.log in the logs folder; `milepost doctor` finishes what is left"
        say(message, cure=cure)
        if self._log is not None:
            self._log.append(Noticed(source="companion", topic="gone", message=message, cure=cure))
        self._own_drain = Drain(RunLayout.from_dict(self._hello.layout), self._hello.log_id)
        self._own_drain.resume_from(self._durable)
        for ordinal, segment in sorted(self._segments.items()):
            self._own_drain.attach(segment, ordinal)
        self._unsent = []
        self.writer.close(
            StorageError("no companion process writes the checkpoint: it keeps dying", cure="start the training again")
        )

    def _drain_without_companion(self) -> None:
        drain = self._own_drain
        if drain is None:
            return
        with self._lock:
            for ordinal in self._unsent:
                drain.attach(self._segments[ordinal], ordinal)
            self._unsent = []
        try:
            drain.copy()
            self._forget_segments(drain.sync())
        except StorageError as error:
            if not self._disk_refuses:
                say(f"the run log cannot be written ({error.what}); it is kept in memory meanwhile", cure=error.cure)
            self._disk_refuses = True
        else:
            self._disk_refuses = False

    # ---------------------------------------------------------------- the end

    def finish(self, timeout: float) -> list[str]:
        """Let the companion finish, at most ``timeout`` seconds; the run's last record must be in the log.

        Returns:
            What is left for ``milepost doctor``, in words; empty if everything is done.
        """
        try:
            return self._wait_for_the_end(timeout)
        except KeyboardInterrupt:
            say("left at once; the companion goes on alone", cure="`milepost doctor` shows and finishes what is left")
            return [self._waiting_for] if self._waiting_for else []
        finally:
            self._close()

    def _wait_for_the_end(self, timeout: float) -> list[str]:
        end = time.monotonic() + timeout
        said_at = time.monotonic() + _SAY_WHAT_IS_WAITED_FOR_AFTER
        sent_to: Channel | None = None
        while not self._finished.wait(0.02):
            channel = self._channel
            if channel is None and self._own_drain is not None:
                return ["what the companion should have finished"]
            if channel is not None and channel is not sent_to and channel.send(Finish(timeout=end - time.monotonic())):
                sent_to = channel  # a replaced companion must be told again
            now = time.monotonic()
            if now > end:
                return [self._waiting_for or "the companion's last work"]
            if now > said_at:
                said_at = now + 5.0
                what = self._waiting_for or "the companion"
                say(f"waiting for {what}, {end - now:.0f} s more at most (Ctrl-C leaves)")
        return self._left

    def _close(self) -> None:
        self._leaving = True
        if self._helper.is_alive() and threading.current_thread() is not self._helper:
            self._helper.join(1.0)
        with self._lock:
            self.writer.leave(StorageError("the run ended before the checkpoint was known to be written"))
            if self._own_drain is not None:
                with contextlib.suppress(StorageError):  # the disk's refusal was said
                    self._own_drain.copy(finishing=True)
                    self._own_drain.sync()
            if self._channel is not None:
                self._channel.close()
                self._channel = None
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(0.5)
