"""How does one state get from live objects to whoever writes it?

By a copy into the arena; by one that is completed behind the training (``snapshot="overlap"``); or, where there is no
room for a copy, straight out of the live tensors while the training waits. Ranks other than 0 hand over what each of
them has for itself.

**Invariant**: the pending save ends in each of these ways: the writer settles it, or it is refused here.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from milepost.checkpoint.arguments import is_optimizer
from milepost.checkpoint.job import SaveJob
from milepost.checkpoint.side_file import RANK_FORMAT, side_file
from milepost.core.errors import MilepostError, StorageError

if TYPE_CHECKING:
    from milepost.checkpoint.arena import Arena
    from milepost.checkpoint.arguments import TrainingObjects
    from milepost.checkpoint.gradients import GradientWatch
    from milepost.checkpoint.known_tensors import KnownTensors
    from milepost.checkpoint.snapshot import Outline, Staged, Stager
    from milepost.checkpoint.writer import CheckpointWriter, PendingSave

__all__ = ["Handover"]


class Handover:
    """Takes states, one at a time.

    Args:
        writer: Who gets them.
        rank: Which rank of a distributed training this is.
        say: Told topic, message and cure of what the user should know once.
        overlap: Complete the copy behind the training where that is safe.
    """

    def __init__(
        self, writer: CheckpointWriter, *, rank: int, say: Callable[[str, str, str], None], overlap: bool
    ) -> None:
        self._writer = writer
        self._rank = rank
        self._say = say
        self._wants_overlap = overlap
        self._stager: Stager | None = None  # made at the first save: it needs torch, a run may not
        self._gradients: GradientWatch | None = None  # likewise
        self._known: KnownTensors | None = None
        self._prepared = False
        self._expected: TrainingObjects | None = None  # what the first save will hold, as far as is known

    @property
    def is_free(self) -> bool:
        """Whether :meth:`hand_over` would wait for nothing but its copy."""
        return self._writer.is_free() and (self._stager is None or not self._stager.is_copying)

    def watch(self, objects: TrainingObjects) -> GradientWatch:
        """See from now on which gradients the optimizers use up; those that they did not belong to the state.

        Once all optimizers have made their state, in their first step, the arena for it is made as well.
        """
        from milepost.checkpoint.gradients import GradientWatch

        self._expected = None if self._prepared else objects
        self._gradients = self._gradients or GradientWatch(self._stepped)
        self._gradients.follow(objects)
        return self._gradients

    def _stepped(self) -> None:
        if self._expected is not None:
            with suppress(MilepostError):  # an optimizer's step is no place to hear of it: the save will say so
                self.prepare(self._expected)

    vars(_stepped)["_torchdynamo_disable"] = True  # a compiled step calls it as it is

    def prepare(self, objects: TrainingObjects) -> None:
        """Have the writer make the arena for this state, once, before the first save needs it."""
        optimizers = filter(is_optimizer, (objects.optimizer, *(objects.extra or {}).values()))
        if self._prepared or self._rank or not all(getattr(one, "state", True) for one in optimizers):
            return  # an optimizer before its first step has none of the state that the arena must hold
        from milepost.checkpoint.snapshot import outline
        from milepost.checkpoint.state import state_of
        from milepost.checkpoint.streaming import worth_streaming

        self._prepared, self._expected = True, None
        nbytes = outline(state_of(objects), known=self._tensors()).nbytes
        if not worth_streaming(nbytes, 0):
            self._writer.prepare(nbytes)

    def settle(self) -> None:
        """Wait until what is still being copied is handed over; a bounded wait.

        Raises:
            StorageError: It did not end.
        """
        if self._stager is not None:
            self._stager.settle()

    def hand_over(self, job: SaveJob, objects: TrainingObjects, pending: PendingSave, started: float) -> None:
        """Take the state of ``objects`` for ``job``.

        Args:
            job: What is known of the save so far.
            objects: The live objects.
            pending: Settled when the save has ended.
            started: ``time.perf_counter()`` when the training was stopped for it.

        Raises:
            InvalidInputError: Something cannot be saved; the message names its place.
            StorageError: It could not be staged, and ``pending`` is for the caller to settle.
        """
        from milepost.checkpoint.snapshot import outline
        from milepost.checkpoint.state import capture_rank, state_of

        if self._rank:
            self._writer.submit(_rank_job(job, self._rank, capture_rank(objects.loader)), None, pending)
            return
        self._prepared = True
        stager = self._stager = self._stager or self._new_stager()
        stager.settle()
        waiting_since = time.perf_counter()
        arena = self._writer.arena()
        waited = time.perf_counter() - waiting_since
        state = state_of(objects, include=job.include, gradients=self.watch(objects))
        content = outline(state, lossy=job.lossy, known=self._tensors())
        job = replace(job, tree=content.tree, tensors=content.entries, contents=list(state), timestamp=time.time())
        job = replace(job, arena_bytes=content.nbytes, wait_ms=1e3 * waited)
        staged = _staged(stager, job, content, arena, objects)
        if staged is None:
            self._stream(job, content, pending, started)
            return
        job = replace(job, stall_ms=1e3 * (time.perf_counter() - started))
        if staged.copying is None:
            self._writer.submit(job, arena, pending)
        else:
            staged.copying.then(partial(self._copied, job, arena, pending))

    def _tensors(self) -> KnownTensors:
        from milepost.checkpoint.known_tensors import KnownTensors

        self._known = self._known or KnownTensors()
        return self._known

    def _new_stager(self) -> Stager:
        from milepost.checkpoint.overlap import Overlap
        from milepost.checkpoint.snapshot import Stager

        say = self._say
        return Stager(Overlap(lambda topic, text: say(topic, text, "")) if self._wants_overlap else None)

    def _stream(self, job: SaveJob, content: Outline, pending: PendingSave, started: float) -> None:
        """Write out of the live state while the training waits; the writer does what comes after the commit."""
        from milepost.checkpoint.streaming import commit_from_live

        self._say(
            "streamed",
            f"the state of {content.nbytes >> 20} MiB is too large to be copied into the memory that is left: training "
            "waits while it is written",
            "give the job more memory",
        )
        info = commit_from_live(replace(job, stall_ms=1e3 * (time.perf_counter() - started)), content)
        pending.commit(info)
        self._writer.submit(replace(job, stall_ms=info.stall_ms), None, pending)

    def _copied(self, job: SaveJob, arena: Arena, pending: PendingSave, error: StorageError | None) -> None:
        """On the copying thread: the arena holds the state, or was discarded."""
        if error is None:
            self._writer.submit(job, arena, pending)
        else:
            self._writer.refuse(job, pending, error)


def _staged(stager: Stager, job: SaveJob, content: Outline, arena: Arena, objects: TrainingObjects) -> Staged | None:
    """The snapshot in the arena; None if there is no memory for it, but the format can do without."""
    from milepost.checkpoint.streaming import NO_MEMORY, worth_streaming

    if job.format == "milepost" and worth_streaming(content.nbytes, arena.size):
        return None
    try:
        return stager.stage(content, arena, objects)
    except StorageError as error:
        if job.format != "milepost" or error.kind not in NO_MEMORY:
            raise
        return None


def _rank_job(job: SaveJob, rank: int, state: dict[str, object]) -> SaveJob:
    from milepost.checkpoint.snapshot import text_of

    path = side_file(Path(job.path), rank)
    return replace(
        job, path=str(path), format=RANK_FORMAT, tree=text_of(state), contents=list(state), timestamp=time.time()
    )
