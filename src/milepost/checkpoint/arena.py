"""Where does a snapshot lie between the training and the disk?

In one shared segment, made once and used again for every save. It is made anew, larger, when a state no longer fits.
With a folder to spool to it is a file there (:mod:`milepost.checkpoint.spool`), else anonymous memory.

One segment, not many of 256 MiB: a state that grows would keep its earlier ones, but tensors are windows of one memory,
so each larger than the rest of a segment would leave a hole there, and a plan would need an address per segment.

**Invariants**: one segment at a time, so memory is one state and not two. ``generation`` changes with the segment, so
whoever cached addresses or passed the descriptor on knows when to do so again; ``prepare`` makes the first one only,
because a save may be writing into it. ``view`` never changes the bytes.

**On crash**: whoever else holds the segment's descriptor still has the whole snapshot.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from milepost.checkpoint.job import SaveJob
from milepost.checkpoint.streaming import worth_streaming
from milepost.core.errors import StorageError
from milepost.core.saying import say
from milepost.io.memory import SharedSegment, available_memory

__all__ = ["Arena"]

_ROUND = 2 << 20
_SLICE = 4 << 20
_SPARE = 64 << 20  # what the rest of the process may need while the arena fills


class Arena:
    """Room for one snapshot.

    Attributes:
        segment: The shared segment; None until something was reserved.
        generation: Counts the segments made so far.

    Args:
        spool: Folder to keep the snapshot in as a file; None: in memory.
    """

    def __init__(self, spool: Path | None = None) -> None:
        self.segment: SharedSegment | None = None
        self.generation = 0
        self._spool = spool
        self._populated = 0
        self._lock = threading.Lock()
        self._taken_over = False
        self._refusal_said = False

    @property
    def size(self) -> int:
        """Bytes that fit without a new segment."""
        return self.segment.size if self.segment is not None else 0

    @property
    def view(self) -> memoryview:
        """The whole segment, read-only; empty if there is none."""
        return memoryview(self.segment.map).toreadonly() if self.segment is not None else memoryview(b"")

    def reserve(self, nbytes: int) -> SharedSegment:
        """A segment of at least ``nbytes`` whose pages are there. Costs nothing if the present one is large enough.

        Raises:
            StorageError: The memory that this job may still use does not suffice.
        """
        self._taken_over = True  # the thread that prepares gives up its place after the slice it is at
        with self._lock:
            if self.segment is None or self.segment.size < nbytes:
                self._renew(nbytes)
            while self._populate_slice():
                pass
            assert self.segment is not None
            return self.segment

    def prepare(self, nbytes: int, *, slices: int) -> bool:
        """Make ahead of the first save, from a thread that has time, what the first save would else wait for.

        Holds up a save that comes meanwhile for one slice of 4 MiB at most. Never raises.

        Args:
            nbytes: What the snapshot will need.
            slices: How many slices to make in this call.

        Returns:
            Whether something is left to prepare.
        """
        try:
            for _ in range(slices):
                with self._lock:
                    if self._taken_over or not self._prepare_slice(nbytes):
                        return False
        except (StorageError, OSError, MemoryError):  # the save will find out, and say so
            self._taken_over = True
            return False
        return True

    def _prepare_slice(self, nbytes: int) -> bool:
        if self.segment is None:
            if not nbytes or worth_streaming(nbytes, 0):
                return False
            self._renew(nbytes)
        return self._populate_slice()

    def seal(self, job: SaveJob) -> None:
        """In a spool: note what lies here, so that it is found after the death of every process.

        If the disk refuses, that is said, once: the snapshot is then as safe as it would be in memory.
        """
        if self._spool is None:
            return
        from milepost.checkpoint.spool import SpoolSegment

        if isinstance(self.segment, SpoolSegment):
            try:
                self.segment.seal_job(job)
            except StorageError as error:
                if not self._refusal_said:
                    say(
                        f"the snapshot of step {job.step} would not survive the container ({error.what})",
                        cure=error.cure,
                    )
                self._refusal_said = True

    def unseal(self) -> None:
        """In a spool: what lies here is committed, or about to change."""
        if self._spool is not None:
            from milepost.checkpoint.spool import SpoolSegment

            if isinstance(self.segment, SpoolSegment):
                self.segment.unseal()

    @contextmanager
    def held(self) -> Iterator[SharedSegment | None]:
        """The segment, which cannot be replaced meanwhile."""
        with self._lock:
            yield self.segment

    def close(self) -> None:
        """Give the memory back."""
        with self._lock:
            self._drop()

    def _drop(self) -> None:
        if self.segment is not None:
            self.segment.close()
            self.segment = None

    def _renew(self, nbytes: int) -> None:
        grown = self.segment is not None
        self._drop()  # before the larger one is made: never two at once
        # a state that grew once (LBFGS, optimizer state after the first step) may grow again
        size = -(-(nbytes + nbytes // 8 if grown else nbytes) // _ROUND) * _ROUND or _ROUND
        room = available_memory()
        if self._spool is None and size + _SPARE > room:
            raise StorageError(
                f"a snapshot needs {size >> 20} MiB of memory and {room >> 20} MiB are left",
                cure="give the job more memory, or save less",
                kind="out-of-memory",
            )
        self.segment = self._make(size)
        self.segment.keep_from_children()
        self._populated = 0
        self.generation += 1

    def _make(self, size: int) -> SharedSegment:
        if self._spool is not None:
            from milepost.checkpoint.spool import SpoolSegment

            return SpoolSegment.create_in(self._spool, size)
        segment = SharedSegment.create(size, "milepost-arena")
        segment.seal()
        return segment

    def _populate_slice(self) -> bool:
        """Give the next slice its pages; False if all have them."""
        segment = self.segment
        if segment is None or self._populated >= segment.size:
            return False
        try:
            segment.populate(self._populated, _SLICE)
        except StorageError:
            self._drop()
            raise
        self._populated += _SLICE
        return True
