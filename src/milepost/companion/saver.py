"""How does a staged snapshot become a committed, verified checkpoint, one after the other?

A thread that takes jobs from a queue and runs :func:`milepost.checkpoint.finishing.finish_save`: commit, list, verify,
retain. The arena is free for the next snapshot as soon as the commit is over, not only after the verification.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from milepost.checkpoint.finishing import finish_save
from milepost.checkpoint.habits import Habits
from milepost.checkpoint.job import SaveJob
from milepost.checkpoint.retention import RetentionRule
from milepost.core.errors import MilepostError
from milepost.core.events import CheckpointChanged
from milepost.core.saying import logger

__all__ = ["Saver"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Work:
    number: int
    job: SaveJob
    view: memoryview


class Saver:
    """Writes checkpoints in the order they were staged.

    Args:
        rule: What retention keeps.
        report: Takes every change of a checkpoint, with the number of the save it belongs to.
        failed: Takes the number of a save that cannot be committed, its job, and why.
        over: Takes the number of a save of which nothing is left to do.
        hurry: Whether what is left of a save should be stored the fastest way, because the training is gone.
        backup: A second folder that gets a copy of each verified checkpoint.
        written: Takes each job that was committed, and what is known of its writing.
    """

    def __init__(
        self,
        rule: RetentionRule,
        report: Callable[[int, CheckpointChanged], None],
        failed: Callable[[int, SaveJob, MilepostError], None],
        over: Callable[[int], None],
        *,
        hurry: Callable[[], bool] = lambda: False,
        backup: Path | None = None,
        written: Callable[[SaveJob, Habits], None] = lambda _job, _habits: None,
    ) -> None:
        self._rule = rule
        self._report = report
        self._failed = failed
        self._over = over
        self._hurry = hurry
        self._backup = backup
        self._written = written
        self._habits = Habits()
        self._queue: queue.SimpleQueue[_Work | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._doing = ""

    @property
    def doing(self) -> str:
        """What is being written, in words; empty if nothing is."""
        return self._doing

    def submit(self, number: int, job: SaveJob, view: memoryview) -> None:
        """Queue a save; ``view`` is the arena and stays untouched until the save is reported."""
        self._doing = self._doing or f"checkpoint of step {job.step}"
        self._queue.put(_Work(number=number, job=job, view=view))
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="milepost-saver", daemon=True)
            self._thread.start()

    def _work(self) -> None:
        while (work := self._queue.get()) is not None:
            self._doing = f"checkpoint of step {work.job.step}"
            try:
                finish_save(
                    work.job,
                    work.view,
                    self._rule,
                    partial(self._report, work.number),
                    habits=self._habits,
                    hurry=self._hurry,
                    backup=self._backup,
                )
                self._written(work.job, self._habits)
            except MilepostError as error:
                self._failed(work.number, work.job, error)
            except Exception as error:  # noqa: BLE001 - a bug in one save must not stop the saves after it
                logger.exception("the save of step %d failed", work.job.step)
                self._failed(work.number, work.job, MilepostError(f"{type(error).__name__}: {error}"))
            self._over(work.number)
            if self._queue.empty():
                self._doing = ""
        self._doing = ""

    def finish(self, timeout: float | None = None) -> bool:
        """Let what was submitted finish; True if it did in time."""
        if self._thread is None:
            return True
        self._queue.put(None)
        self._thread.join(timeout)
        finished = not self._thread.is_alive()
        if finished:
            self._thread = None
        return finished
