"""Where does a snapshot lie between the training and the disk?

In one shared segment, made once and used again for every save. It is made anew, larger, when a state no longer fits.

**Invariants**: one segment at a time, so memory is one state and not two. ``generation`` changes with the segment, so
whoever cached addresses or passed the descriptor on knows when to do so again. ``view`` never changes the bytes.

**On crash**: whoever else holds the segment's descriptor still has the whole snapshot.
"""

from __future__ import annotations

import threading

from milepost.core.errors import StorageError
from milepost.io.memory import SharedSegment, available_memory

__all__ = ["Arena"]

_ROUND = 2 << 20
_SPARE = 64 << 20  # what the rest of the process may need while the arena fills


class Arena:
    """Room for one snapshot.

    Attributes:
        segment: The shared segment; None until something was reserved.
        generation: Counts the segments made so far.
    """

    def __init__(self) -> None:
        self.segment: SharedSegment | None = None
        self.generation = 0
        self._lock = threading.Lock()

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
        with self._lock:
            if self.segment is not None and self.segment.size >= nbytes:
                return self.segment
            return self._renew(nbytes)

    def prepare(self, nbytes: int) -> None:
        """Reserve ahead of the first save, from a thread that has time: the save then pays for its copy alone."""
        self.reserve(nbytes)

    def close(self) -> None:
        """Give the memory back."""
        with self._lock:
            if self.segment is not None:
                self.segment.close()
                self.segment = None

    def _renew(self, nbytes: int) -> SharedSegment:
        grown = self.segment is not None
        if self.segment is not None:
            self.segment.close()  # before the larger one is made: never two at once
            self.segment = None
        # a state that grew once (LBFGS, optimizer state after the first step) may grow again
        size = -(-(nbytes + nbytes // 8 if grown else nbytes) // _ROUND) * _ROUND or _ROUND
        room = available_memory()
        if size + _SPARE > room:
            raise StorageError(
                f"a snapshot needs {size >> 20} MiB of memory and {room >> 20} MiB are left",
                cure="give the job more memory, or save less",
                kind="out-of-memory",
            )
        segment = SharedSegment.create(size, "milepost-arena")
        try:
            segment.populate(0, size)
            segment.seal()
        except StorageError:
            segment.close()
            raise
        self.segment = segment
        self.generation += 1
        return segment
