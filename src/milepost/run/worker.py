"""How does a child process of a training log to the same run?

A forked or spawned child (a DataLoader worker) gets a log of its own beside the parent's, written by one system call
per record: it lives too briefly for a companion. It can log, nothing else: checkpoints and the end belong to the
parent.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from typing import Any

from milepost.core.errors import StorageError
from milepost.core.events import Event
from milepost.core.saying import say
from milepost.io.locks import OwnedLock
from milepost.run.alerting import GivesAlerts
from milepost.run.logging_media import LogsMedia
from milepost.run.media import MediaDesk
from milepost.runs.layout import RunLayout
from milepost.runs.log import DirectLog, begin_log
from milepost.runs.segment import new_log_id

__all__ = ["WorkerRun"]


class WorkerRun(LogsMedia, GivesAlerts):
    """A run as a child process sees it; its log is opened when it is first used."""

    def __init__(self, layout: RunLayout, attempt: int, rank: int) -> None:
        self.id = layout.experiment_id
        self.last_step = 0
        self._layout = layout
        self._attempt = attempt
        self._rank = rank
        self._log: DirectLog | None = None
        self._media: MediaDesk | None = None
        self._lock: OwnedLock | None = None
        self._pid = os.getpid()

    @classmethod
    def open(cls, layout: Mapping[str, Any], attempt: int, rank: int) -> WorkerRun:
        """What a pickled run becomes in another process."""
        return cls(RunLayout.from_dict(layout), attempt, rank)

    def log(self, metrics: Mapping[str, Any], step: int | None = None, epoch: float | None = None) -> None:
        """As :meth:`milepost.Run.log`."""
        self._opened().log(metrics, step, epoch)

    @property
    def media_desk(self) -> MediaDesk | None:
        """Where things to look at are handed over."""
        if self._media is None:
            self._media = MediaDesk(
                self._layout,
                self._rank,
                append=self.append,
                last_step=lambda: self._opened().last_step,
                notice=lambda message, cure: say(message, cure=cure),
                make_durable=self.make_durable,
            )
        return self._media

    def make_durable(self, deadline: float) -> bool:  # noqa: ARG002 - one sync of a small file is not interrupted
        """Sync the log; whether the disk took it."""
        if self._log is not None:
            with contextlib.suppress(StorageError):
                self._log.sync()
                return True
        return self._log is None

    def append(self, event: Event, *, step: int | None = None) -> int:
        """Append any other record."""
        return self._opened().append(event, step=step)

    def close(self) -> None:
        """Close the log, if it was ever opened."""
        if self._log is not None:
            self._log.close()
            self._log = None
        if self._lock is not None:
            self._lock.release(unlink=True)
            self._lock = None

    def _opened(self) -> DirectLog:
        if self._pid != os.getpid():  # forked since: two processes must never write to one log
            self.close()
            self._pid = os.getpid()
        if self._log is None:
            log_id = new_log_id()
            self._lock = OwnedLock(self._layout.log_lock(log_id))
            self._lock.acquire()
            self._log = DirectLog(
                self._layout,
                log_id,
                on_bad_value=lambda name, kind, _: say(f"the metric {name!r} is skipped: it is no number but {kind}"),
            )
            begin_log(self._log, role="worker", attempt=self._attempt, rank=self._rank)
        return self._log

    def __reduce__(self) -> tuple[Any, ...]:
        return WorkerRun.open, (self._layout.to_dict(), self._attempt, self._rank)

    def __repr__(self) -> str:
        return f"<WorkerRun {self.id} in process {os.getpid()}>"
