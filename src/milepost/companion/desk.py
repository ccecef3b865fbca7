"""Which saves are under way, and is the arena free?

The trainer's half of saving, whoever writes: implements :class:`milepost.checkpoint.writer.CheckpointWriter` over a
``dispatch`` that gets a numbered job to the writing side, and over the answers that come back.

**Invariants**: at most one snapshot lies in the arena. It stays there until its save is committed or failed, so a
second writer can be given the same job again, once: a job that two writers died over fails, and the others go on.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from milepost.checkpoint.arena import Arena
from milepost.checkpoint.job import SaveJob
from milepost.checkpoint.writer import PendingSave
from milepost.companion.messages import Saved, SaveFailed, SaveOver
from milepost.core.errors import GaveUpWaitingError, MilepostError, StorageError
from milepost.core.records import CheckpointInfo
from milepost.io.memory import SharedSegment

if TYPE_CHECKING:
    from _thread import RLock

__all__ = ["SaveDesk", "Submitted"]

_SLICES_AT_A_TIME = 16  # of 4 MiB: some 30 ms of the helper thread, which has other things to do


@dataclass(slots=True, kw_only=True)
class Submitted:
    """A save that is not over.

    Attributes:
        number: Counts the saves from 1.
        job: What to write.
        pending: What the caller holds.
        staged: Whether its snapshot lies in the arena.
        deaths: How many writers died over it.
    """

    number: int
    job: SaveJob
    pending: PendingSave
    staged: bool
    deaths: int = 0


class SaveDesk:
    """Numbers saves and settles them.

    Args:
        dispatch: Gets a save to the writing side.
        record: Lets the writing side record that a save will never be submitted to it, and why.
        lock: Guards the desk; its owner's, if the owner calls the desk while it holds a lock that ``dispatch`` takes.
        spool: Folder to keep the staged snapshot in as a file; None: in memory.

    Attributes:
        unprotected_since: Step of the first save that failed after the last one committed; None: all is well.
    """

    def __init__(
        self,
        dispatch: Callable[[Submitted], None],
        record: Callable[[SaveJob, MilepostError], None],
        lock: RLock | None = None,
        *,
        spool: Path | None = None,
    ) -> None:
        self._dispatch = dispatch
        self._record = record
        self._changed = threading.Condition(lock)
        self._arena = Arena(spool)
        self._to_prepare = 0
        self._staged: int | None = None
        self._under_way: dict[int, Submitted] = {}
        self._number = 0
        self._closed: MilepostError | None = None
        self.unprotected_since: int | None = None

    # ---------------------------------------------------------------- for the training thread

    def prepare(self, nbytes: int) -> None:
        """Let the helper thread make the arena's pages ahead of the first save."""
        self._to_prepare = nbytes

    def arena(self) -> Arena:
        """The one arena, as soon as no snapshot waits in it: the documented wait of ``save_checkpoint``."""
        with self._changed:
            while self._staged is not None:
                self._changed.wait()
        self._arena.unseal()
        return self._arena

    def is_free(self) -> bool:
        """Whether no snapshot waits in the arena."""
        with self._changed:
            return self._staged is None

    def submit(self, job: SaveJob, arena: Arena | None, pending: PendingSave | None = None) -> PendingSave:
        """Give a staged snapshot to the writing side. From here on the death of the trainer no longer harms it."""
        assert arena is self._arena or arena is None
        pending = pending or PendingSave(Path(job.path), job.step)
        if arena is not None:
            arena.seal(job)
        with self._changed:
            if self._closed is not None:
                pending.fail(self._closed)
                return pending
            self._number += 1
            submitted = Submitted(number=self._number, job=job, pending=pending, staged=arena is not None)
            self._under_way[submitted.number] = submitted
            if submitted.staged:
                self._staged = submitted.number
            try:
                self._dispatch(submitted)
            except BaseException:  # nobody will ever answer
                self._forget(submitted)
                raise
        return pending

    def refuse(self, job: SaveJob, pending: PendingSave, error: MilepostError) -> None:
        """Fail a save that could not be staged; the writing side records it."""
        with self._changed:
            pending.fail(error)
            self._note_failure(job)
            if self._closed is None:
                self._record(job, error)

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

    # ---------------------------------------------------------------- for the helper thread

    def make_ready(self) -> None:
        """Go on with what :meth:`prepare` asked for, a little."""
        if self._to_prepare and not self._arena.prepare(self._to_prepare, slices=_SLICES_AT_A_TIME):
            self._to_prepare = 0

    def held(self) -> AbstractContextManager[SharedSegment | None]:
        """The memory of the arena, which cannot be replaced meanwhile; None before the first snapshot."""
        return self._arena.held()

    def take(self, message: Saved | SaveFailed | SaveOver) -> None:
        """An answer of the writing side."""
        with self._changed:
            submitted = self._under_way.get(message.number)
            if submitted is None:
                return
            match message:
                case Saved(info=info):
                    submitted.pending.commit(CheckpointInfo.from_fields(info))
                    self.unprotected_since = None
                case SaveFailed(what=what, cure=cure, kind=kind):
                    submitted.pending.fail(StorageError(what, cure=cure, kind=kind))
                    self._note_failure(submitted.job)
                case SaveOver():
                    del self._under_way[message.number]
            if self._staged == message.number:
                self._arena.unseal()
                self._staged = None
            self._changed.notify_all()

    def uncommitted(self) -> list[Submitted]:
        """What a new writing side must be given again."""
        with self._changed:
            return [submitted for submitted in self._under_way.values() if not submitted.pending.done]

    def after_death(self) -> list[tuple[SaveJob, MilepostError]]:
        """The writing side died. What it had committed but not read back will not be reported any more.

        Returns:
            The saves that are given up, because it was the second to die over them, and why.
        """
        with self._changed:
            given_up = self._blame(next(iter(self._under_way.values()), None))
            self._under_way = {one.number: one for one in self._under_way.values() if not one.pending.done}
            self._changed.notify_all()
            return given_up

    def close(self, error: MilepostError) -> None:
        """There will be no answers any more: what is open fails with ``error``, and so does what is submitted later."""
        with self._changed:
            self._closed = self._closed or error
            for submitted in self._under_way.values():
                submitted.pending.fail(error)
            self._under_way.clear()
            self._staged = None
            self._changed.notify_all()

    def leave(self, error: MilepostError) -> None:
        """The run is over: :meth:`close`, and give the memory back unless somebody may still write out of it."""
        free = self.is_free()
        self.close(error)
        if free:
            self._arena.close()

    # ---------------------------------------------------------------- under the lock

    def _blame(self, at: Submitted | None) -> list[tuple[SaveJob, MilepostError]]:
        """Count the death against the save that was being written, the oldest that is not over."""
        if at is None or at.pending.done:
            return []
        at.deaths += 1
        if at.deaths == 1:
            return []
        error = StorageError(
            "two companion processes died while they wrote it",
            cure="see milepost-*.log in the logs folder, and whether the job's memory limit is too low",
            kind="companion-died",
        )
        at.pending.fail(error)
        self._note_failure(at.job)
        self._forget(at)
        return [(at.job, error)]

    def _forget(self, submitted: Submitted) -> None:
        del self._under_way[submitted.number]
        if self._staged == submitted.number:
            self._staged = None

    def _note_failure(self, job: SaveJob) -> None:
        if self.unprotected_since is None:
            self.unprotected_since = job.step
