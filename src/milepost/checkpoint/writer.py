"""Who turns a staged snapshot into a file, and how does the trainer learn how it went?

``CheckpointWriter`` is the seam: the companion process is one implementation, :class:`InlineWriter` (a thread of this
process) the other. Both run :func:`milepost.checkpoint.finishing.finish_save`.

**On crash**: a job handed to the companion is finished there. With :class:`InlineWriter` it dies with the process; the
newest committed checkpoint remains.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from milepost.checkpoint.advice import Advisor
from milepost.checkpoint.arena import Arena
from milepost.checkpoint.job import SaveJob
from milepost.checkpoint.retention import RetentionRule
from milepost.core.errors import GaveUpWaitingError, MilepostError, StorageError
from milepost.core.events import CheckpointChanged
from milepost.core.records import CheckpointInfo
from milepost.core.saying import say

if TYPE_CHECKING:
    from milepost.checkpoint.habits import Habits

__all__ = ["CheckpointWriter", "InlineWriter", "PendingSave"]

_writers: weakref.WeakSet[InlineWriter] = weakref.WeakSet()


class PendingSave:
    """One save on its way to the disk. Ends once, by :meth:`commit` or by :meth:`fail`.

    Attributes:
        path: The file that will exist.
        step: Its step.
        info: The checkpoint as listed; None until it is committed.
        error: Why it failed; None unless it did.
    """

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        self.step = step
        self.info: CheckpointInfo | None = None
        self.error: MilepostError | None = None
        self._ended = threading.Event()

    @property
    def done(self) -> bool:
        """Whether it ended, well or not."""
        return self._ended.is_set()

    def commit(self, info: CheckpointInfo) -> None:
        """The file is complete and survives power loss."""
        if not self.done:
            self.info = info
            self._ended.set()

    def fail(self, error: MilepostError) -> None:
        """There will be no file."""
        if not self.done:
            self.error = error
            self._ended.set()

    def settle(self, timeout: float | None = None) -> bool:
        """Wait until it ended, well or not; whether it did in time."""
        return self._ended.wait(timeout)

    def wait(self, timeout: float | None = None) -> CheckpointInfo:
        """Wait until the file is committed.

        Raises:
            MilepostError: The save failed; this is its error.
            GaveUpWaitingError: It did not end within ``timeout`` seconds.
        """
        if not self.settle(timeout):
            raise GaveUpWaitingError(
                f"the checkpoint of step {self.step} was not committed within {timeout:g} seconds",
                cure="it is still being written: wait again",
            )
        if self.error is not None:
            raise self.error
        assert self.info is not None
        return self.info


class CheckpointWriter(Protocol):
    """Takes one staged snapshot at a time.

    Contract: ``arena()`` waits until the one arena is free and gives it to the caller until the next ``submit``.
    ``submit`` returns at once, never raises for what happens on the disk, and keeps the arena's content unchanged until
    the save it returns has ended. Without an arena there is nothing to keep: the job is of format ``"rank"``, which
    carries no tensors, or its file is committed already and only the rest is to be done.
    """

    def prepare(self, nbytes: int) -> None:
        """Make room for a snapshot of ``nbytes`` in the background, ahead of the first save. Never raises or waits."""

    def arena(self) -> Arena:
        """The arena to stage into, as soon as it is free."""

    def is_free(self) -> bool:
        """Whether :meth:`arena` would return at once."""

    def submit(self, job: SaveJob, arena: Arena | None, pending: PendingSave | None = None) -> PendingSave:
        """Write the snapshot that ``job`` describes and ``arena`` holds; settle ``pending``, or a new one."""

    def refuse(self, job: SaveJob, pending: PendingSave, error: MilepostError) -> None:
        """``job`` will never be submitted, because of ``error``: fail ``pending``, and report it like any failure."""

    def wait(self, timeout: float | None = None) -> None:
        """Wait until everything submitted has ended, read-back and retention included.

        Raises:
            GaveUpWaitingError: It did not within ``timeout`` seconds.
        """


class InlineWriter:
    """Writes in a thread of this process: for checkpoints without a run, and where no companion can be started.

    Args:
        rule: What is kept after each save.
        report: Told each change of a checkpoint, from the writing thread.
        backup: A second folder that gets a copy of each verified checkpoint.
        spool: Folder to keep the staged snapshot in as a file; None: in memory.
    """

    def __init__(
        self,
        rule: RetentionRule,
        report: Callable[[CheckpointChanged], None] | None = None,
        *,
        backup: Path | None = None,
        spool: Path | None = None,
    ) -> None:
        self._rule = rule
        self._report = report
        self._backup = backup
        self._spool = spool
        self._advisor = Advisor(lambda noticed: say(noticed.message, cure=noticed.cure))
        self._habits: Habits | None = None  # made by the writing thread: it brings the writing side along
        self.forget()
        _writers.add(self)

    def forget(self) -> None:
        """Start from nothing: a forked child has neither the thread nor the right to the arena's content."""
        self._arena = Arena(self._spool)
        weakref.finalize(self, self._arena.close)  # also at the interpreter's exit, after the last save
        self._staged: PendingSave | None = None
        self._thread: threading.Thread | None = None

    def prepare(self, nbytes: int) -> None:
        """Make the arena's pages in a thread."""
        arena = self._arena

        def make() -> None:
            while arena.prepare(nbytes, slices=1):
                pass

        with suppress(RuntimeError):  # no thread left: the first save makes them
            threading.Thread(target=make, name="milepost-prepare", daemon=True).start()

    def arena(self) -> Arena:
        """The arena, once the save before has been committed."""
        if self._staged is not None:
            self._staged.settle()
        self._arena.unseal()
        return self._arena

    def is_free(self) -> bool:
        """Whether the save before has been committed."""
        return self._staged is None or self._staged.done

    def submit(self, job: SaveJob, arena: Arena | None, pending: PendingSave | None = None) -> PendingSave:
        """Start the thread that writes; not a daemon, so that the interpreter's exit waits for the commit."""
        pending = pending or PendingSave(Path(job.path), job.step)
        if arena is not None:
            self._staged = pending
            arena.seal(job)
        self._advisor.staged(job)
        before = self._thread
        self._thread = threading.Thread(target=self._finish, args=(job, arena, pending, before), name="milepost-save")
        try:
            self._thread.start()
        except RuntimeError as error:  # no thread left, or the interpreter is shutting down
            self._thread = before
            self.refuse(job, pending, StorageError(f"no thread to save with ({error})", cure="raise the limit of it"))
        return pending

    def wait(self, timeout: float | None = None) -> None:
        """Wait for the last save, its read-back and the retention after it."""
        if self._thread is None:
            return
        self._thread.join(timeout)
        if self._thread.is_alive():
            raise GaveUpWaitingError("a checkpoint is still being written", cure="wait again")

    def _finish(self, job: SaveJob, arena: Arena | None, pending: PendingSave, before: threading.Thread | None) -> None:
        # all of the writing side: not for those who only hand over
        from milepost.checkpoint.finishing import finish_save
        from milepost.checkpoint.habits import Habits

        if before is not None:
            before.join()  # read-back and retention of one save end before the next save begins

        def report(change: CheckpointChanged) -> None:
            if change.action == "committed":
                pending.commit(CheckpointInfo.from_fields(change.info))
            if self._report is not None:
                self._report(change)

        self._habits = habits = self._habits or Habits()
        view = memoryview(b"") if arena is None else arena.view
        try:
            pending.commit(finish_save(job, view, self._rule, report, habits=habits, backup=self._backup))
            self._advisor.written(job, habits)
        except MilepostError as error:
            self.refuse(job, pending, error)
        except (OSError, MemoryError) as error:
            self.refuse(job, pending, StorageError(f"saving {job.path} failed ({error})", cure="see the log"))
        finally:
            # the next save waits for this one to end, whatever happened to it
            pending.fail(StorageError(f"saving {job.path} ended unexpectedly", cure="report this as a bug"))

    def refuse(self, job: SaveJob, pending: PendingSave, error: MilepostError) -> None:
        """Fail ``pending`` and report it, or say it if nobody is reported to."""
        pending.fail(error)
        if self._report is None:
            say(f"checkpoint of step {job.step} was not saved: {error.what}", cure=error.cure)
            return
        self._report(CheckpointChanged(step=job.step, action="failed", filename=pending.path.name, reason=str(error)))


def _after_fork() -> None:
    for writer in tuple(_writers):
        writer.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
