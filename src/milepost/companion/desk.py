"""Which saves are under way, and is the arena free?

The trainer's half of saving, whoever writes: implements :class:`milepost.checkpoint.writer.CheckpointWriter` over a
``dispatch`` that gets a numbered job to the writing side, and over the answers that come back.

**Invariants**: at most one snapshot lies in the arena. It stays there until its save is committed or failed, so a
second writer can be given the same job again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from milepost.checkpoint.arena import Arena
from milepost.checkpoint.job import SaveJob
from milepost.checkpoint.side_file import RANK_FORMAT
from milepost.checkpoint.writer import PendingSave
from milepost.companion.messages import Saved, SaveFailed, SaveOver
from milepost.core.errors import GaveUpWaitingError, MilepostError, StorageError
from milepost.core.records import CheckpointInfo
from milepost.io.memory import SharedSegment

if TYPE_CHECKING:
    from _thread import RLock

__all__ = ["SaveDesk"]


class SaveDesk:
    """Numbers saves and settles them.

    Args:
        dispatch: Gets a job to the writing side.
        lock: Guards the desk; its owner's, if the owner calls the desk while it holds a lock that ``dispatch`` takes.
    """

    def __init__(self, dispatch: Callable[[int, SaveJob], None], lock: RLock | None = None) -> None:
        self._dispatch = dispatch
        self._changed = threading.Condition(lock)
        self._arena = Arena()
        self._staged: int | None = None
        self._under_way: dict[int, tuple[SaveJob, PendingSave]] = {}
        self._number = 0
        self._closed: MilepostError | None = None

    def arena(self) -> Arena:
        """The one arena, as soon as no snapshot waits in it: the documented wait of ``save_checkpoint``."""
        with self._changed:
            while self._staged is not None:
                self._changed.wait()
            return self._arena

    @property
    def segment(self) -> SharedSegment | None:
        """The memory of the arena; None before the first snapshot."""
        return self._arena.segment

    def is_free(self) -> bool:
        """Whether no snapshot waits in the arena."""
        with self._changed:
            return self._staged is None

    def submit(self, job: SaveJob, arena: Arena | None, pending: PendingSave | None = None) -> PendingSave:
        """Give a staged snapshot to the writing side. From here on the death of the trainer no longer harms it."""
        assert arena is self._arena or arena is None
        pending = pending or PendingSave(Path(job.path), job.step)
        with self._changed:
            if self._closed is not None:
                pending.fail(self._closed)
                return pending
            self._number += 1
            self._under_way[self._number] = (job, pending)
            if job.format != RANK_FORMAT:
                self._staged = self._number
            try:
                self._dispatch(self._number, job)
            except BaseException:  # nobody will ever answer: the arena is free for the next one
                del self._under_way[self._number]
                self._staged = None
                raise
        return pending

    def wait(self, timeout: float | None = None) -> None:
        """Wait until everything submitted has ended, read-back and retention included.

        Raises:
            GaveUpWaitingError: It did not within ``timeout`` seconds.
        """
        end = None if timeout is None else time.monotonic() + timeout
        with self._changed:
            while self._under_way:
                left = None if end is None else end - time.monotonic()
                if left is not None and left <= 0:
                    raise GaveUpWaitingError("a checkpoint is still being written", cure="wait again")
                self._changed.wait(left)

    def take(self, message: Saved | SaveFailed | SaveOver) -> None:
        """An answer of the writing side."""
        with self._changed:
            job_and_pending = self._under_way.get(message.number)
            if job_and_pending is None:
                return
            pending = job_and_pending[1]
            match message:
                case Saved(info=info):
                    pending.commit(CheckpointInfo.from_fields(info))
                case SaveFailed(what=what, cure=cure, kind=kind):
                    pending.fail(StorageError(what, cure=cure, kind=kind))
                case SaveOver():
                    del self._under_way[message.number]
            if self._staged == message.number:
                self._staged = None
            self._changed.notify_all()

    def uncommitted(self) -> list[tuple[int, SaveJob]]:
        """Jobs that a new writing side must be given again."""
        with self._changed:
            return [(number, job) for number, (job, pending) in self._under_way.items() if not pending.done]

    def forget_committed(self) -> None:
        """The writing side died: what it had committed but not read back will not be reported any more."""
        with self._changed:
            self._under_way = {n: pair for n, pair in self._under_way.items() if not pair[1].done}
            self._changed.notify_all()

    def close(self, error: MilepostError) -> None:
        """There will be no answers any more: what is open fails with ``error``, and so does what is submitted later."""
        with self._changed:
            self._closed = self._closed or error
            for _, pending in self._under_way.values():
                pending.fail(error)
            self._under_way.clear()
            self._staged = None
            self._changed.notify_all()
