"""What replaces the companion where no memory can be shared with one, or no process started?

The same duties in threads of the training process. Records reach the disk by one write each, so metrics survive
``kill -9`` as well. What is given up: a checkpoint under way dies with the process, and guests take time from the
training.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable

from milepost.checkpoint.job import SaveJob
from milepost.companion.desk import SaveDesk, Submitted
from milepost.companion.duties import Duties
from milepost.companion.messages import FromCompanion, Hello, Saved, SaveFailed, SaveOver, Told
from milepost.core.errors import MilepostError, StorageError
from milepost.core.events import Noticed
from milepost.core.saying import say
from milepost.runs.log import DirectLog

__all__ = ["InlineCompanion", "instead_of_a_process"]

_TICK = 0.05
_SYNC_EVERY = 1.0
_HEARTBEAT_EVERY = 10.0


class InlineCompanion:
    """Has the surface of :class:`milepost.companion.client.CompanionProcess`."""

    def __init__(
        self,
        hello: Hello,
        *,
        every_tick: Callable[[], None] = lambda: None,
        heard: Callable[[FromCompanion], None] = lambda _: None,
    ) -> None:
        self._every_tick = every_tick
        self._heard = heard
        self._log: DirectLog | None = None
        self._leaving = threading.Event()
        self._thread = threading.Thread(target=self._work, name="milepost-helper", daemon=True)
        self._duties = Duties(hello, self._take)
        spool = self._duties.layout.checkpoints if hello.settings.get("staging") == "spool" else None
        self.writer = SaveDesk(self._save, self._refused, spool=spool)

    def start(self, log: DirectLog) -> None:
        """Begin the duties for ``log``."""
        self._log = log
        self._duties.start()
        self._thread.start()

    def leave_child(self) -> None:
        """Threads do not survive a fork: there is nothing to let go of."""

    def make_durable(self, position: int, deadline: float) -> bool:
        """Sync the log up to ``position``; False if the disk refuses or ``deadline`` is over."""
        while self._log is not None:
            with contextlib.suppress(StorageError):
                if self._log.sync() >= position:
                    return True
            if time.monotonic() > deadline:
                return False
            time.sleep(_TICK)
        return True

    def _save(self, submitted: Submitted) -> None:
        with self.writer.held() as segment:
            view = memoryview(segment.map if submitted.staged and segment is not None else b"")
        self._duties.save(submitted.number, submitted.job, view)

    def _refused(self, job: SaveJob, error: MilepostError) -> None:
        self._duties.refused(job.step, os.path.basename(job.path), error)

    def _take(self, message: FromCompanion) -> None:
        match message:
            case Told(text=text):
                say(text)
            case Saved() | SaveFailed() | SaveOver():
                self.writer.take(message)
            case _:
                pass
        self._heard(message)

    def _work(self) -> None:
        synced_at = beat_at = time.monotonic()
        while not self._leaving.wait(_TICK):
            self._every_tick()
            self.writer.make_ready()
            now = time.monotonic()
            if now - synced_at > _SYNC_EVERY:
                synced_at = now
                self._sync()
            if now - beat_at > _HEARTBEAT_EVERY:
                beat_at = now
                self._duties.check()
                self._duties.beat()

    def _sync(self) -> None:
        if self._log is not None:
            with contextlib.suppress(StorageError):  # a failing write is reported by the log itself
                self._log.sync()

    def finish(self, timeout: float) -> list[str]:
        """Finish what is open; return in words what is left after ``timeout`` seconds."""
        self._leaving.set()
        self._thread.join(1.0)
        self._sync()
        try:
            return self._duties.finish(time.monotonic() + timeout, _Patience())
        finally:
            self._duties.close()
            self.writer.leave(StorageError("the run ended before the checkpoint was known to be written"))


class _Patience:
    """Says every five seconds what is being waited for, the first time after two."""

    def __init__(self) -> None:
        self._say_at = time.monotonic() + 2.0

    def __call__(self, text: str) -> None:
        if time.monotonic() > self._say_at:
            self._say_at = time.monotonic() + 5.0
            say(f"waiting for {text}")


def instead_of_a_process(refusal: str) -> Noticed:
    """What to say where a companion process was wanted and the system gave none."""
    return Noticed(
        source="companion",
        topic="no-process",
        message=f"no companion process can be started ({refusal}): threads of the training do its work, and a "
        "checkpoint that is under way ends with it",
        cure="raise the limit of processes (ulimit -u), or that of the container",
    )
