"""How does a training loop put down what happened in a microsecond, so that even ``kill -9`` cannot take it back?

:class:`LogWriter` stores each record into memory that a companion process also holds: no system call, no lock, no disk.
:class:`DirectLog` appends it to the durable file with one write. Both are a :class:`RunLog`.

**Invariants**: a record is stored payload first, then hash, then length, so a reader sees all of it or none. Nothing is
reserved before the record is complete, and between reserving and publishing CPython cannot run anybody else's code.

**On crash**: of the writing process, every record whose call returned is in the companion's memory; of a record under
way, a reader finds nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from time import monotonic_ns
from typing import Any

from xxhash import xxh3_64_intdigest

from milepost.core.errors import StorageError
from milepost.core.events import Lost
from milepost.io.memory import SharedSegment
from milepost.runs.direct_log import DirectLog
from milepost.runs.recording import ENCODING_FAILED, NOT_KEPT, ClockKeeper, Deferral, RunLog, begin_log
from milepost.runs.segment import HEADER_BYTES, LARGEST_HOT_PAYLOAD, Header, pack_header
from milepost.runs.values import OnBadValue

__all__ = ["ClockKeeper", "Deferral", "DirectLog", "LogWriter", "RunLog", "begin_log"]


class LogWriter(RunLog):
    """The log of a process that must not be held up.

    Args:
        log_id: From :func:`milepost.runs.segment.new_log_id`.
        hand_over: Gets every segment and its ordinal before the first record is stored there; must not fail.
        on_bad_value: Told once per metric whose value is no number.
        segment_size: Bytes of one segment, a power of two.
        capacity: Bytes of all segments that are not durable yet; beyond it records are lost and counted.
        strict: Raise on a value that is no number.
        deferred: Fetches device values.
    """

    __slots__ = (
        "_base", "_capacity", "_hand_over", "_limit", "_live", "_made", "_next", "_offset", "_size", "_spare",
        "_unsaid", "_view", "_words",
    )  # fmt: skip

    largest_payload = LARGEST_HOT_PAYLOAD

    def __init__(
        self,
        log_id: bytes,
        *,
        hand_over: Callable[[SharedSegment, int], None],
        on_bad_value: OnBadValue,
        segment_size: int = 8 << 20,
        capacity: int = 64 << 20,
        strict: bool = False,
        deferred: Deferral | None = None,
    ) -> None:
        super().__init__(log_id, on_bad_value, strict=strict, deferred=deferred)
        self._hand_over = hand_over
        self._size = segment_size
        self._capacity = capacity
        self._base = 0
        self._offset, self._limit = 1, 0  # "full": the first call takes the prepared segment like any other
        self._view = self._words = memoryview(b"")
        self._live: dict[int, tuple[SharedSegment, memoryview]] = {}
        self._spare: list[tuple[memoryview, memoryview, int]] = []
        self._next: tuple[memoryview, memoryview, int] | None = None
        self._made = 0
        self._unsaid = 0
        self.prepare()

    @property
    def position(self) -> int:
        """Sequence number that the next record will have at the least."""
        return self._base + self._offset

    def log(self, metrics: Mapping[str, Any], step: int | None = None, epoch: float | None = None) -> None:
        """See :meth:`RunLog.log`; about a microsecond for a plain dictionary of a few numbers."""
        # Everything unusual leaves here, so that the rest need not ask again. `type() is` is the cheapest question.
        if (
            self._strict
            or type(metrics) is not dict
            or (step is not None and type(step) is not int)
            or (epoch is not None and type(epoch) is not float and type(epoch) is not int)
        ):
            super().log(metrics, step, epoch)
            return
        if step is None:
            step = self.last_step + 1
        # The record is complete, hash included, before anything is reserved: whatever raises here leaves no trace.
        try:
            payload = self._encode((1, step, epoch, monotonic_ns(), metrics))
        except ENCODING_FAILED:
            super().log(metrics, step, epoch)
            return
        self.last_step = step
        length = len(payload)
        digest = xxh3_64_intdigest(payload, self._salt ^ length)
        if length > LARGEST_HOT_PAYLOAD:
            super().log(metrics, step, epoch)
            return
        # From here to the last store there is no call, no loop, no `with`, and only slots of this class: CPython
        # switches threads and runs signal handlers at calls, backward jumps and function entry, and nowhere else.
        # So these lines are atomic without a lock, and a lock could deadlock with a signal handler that logs.
        if self._offset > self._limit:
            taken = self._next
            if taken is None:
                self._publish(payload)  # the helper is late
                return
            self._view, self._words, self._limit = taken
            self._next = None
            self._offset = HEADER_BYTES
            self._base = self._base + self._size
            self._words[4] = self._base  # word 4 of the header: from this store on the segment is in use
        # Locals, because the slice below may run the garbage collector, a finalizer may log, and that may roll.
        offset = self._offset
        view = self._view
        words = self._words
        end = offset + 16 + length
        self._offset = (end + 7) & -8  # reserve before storing: a nested call then writes behind us, not over us
        try:
            view[offset + 16 : end] = payload
        except MemoryError:
            if self._offset == (end + 7) & -8:
                self._offset = offset  # nobody came after us: leave no hole
            self.lost += 1
            return
        offset >>= 3
        words[offset + 1] = digest
        words[offset] = length  # published; an aligned word store, which no reader can see half

    def _publish(self, payload: bytes) -> int:
        """The same for everything that is not in a hurry: makes a segment itself if none is ready.

        May be re-entered by a signal handler anywhere: it takes no lock, and what it made and no longer needs becomes
        a spare.
        """
        length = len(payload)
        digest = xxh3_64_intdigest(payload, self._salt ^ length)
        own = self._make() if self._offset > self._limit and self._next is None else None
        # The same call-free lines as in `log`; calling one function from both would cost the fast path 70 ns.
        if self._offset > self._limit:
            taken = self._next
            if taken is None:
                taken, own = own, None
            if taken is None:
                self.lost += 1
                self._unsaid += 1
                return NOT_KEPT
            self._next = None
            self._view, self._words, self._limit = taken
            self._offset = HEADER_BYTES
            self._base = self._base + self._size
            self._words[4] = self._base
        offset = self._offset
        view = self._view
        words = self._words
        sequence = self._base + offset
        end = offset + 16 + length
        self._offset = (end + 7) & -8
        try:
            view[offset + 16 : end] = payload
        except MemoryError:
            if self._offset == (end + 7) & -8:
                self._offset = offset
            self.lost += 1
            return NOT_KEPT
        words[(offset >> 3) + 1] = digest
        words[offset >> 3] = length
        if own is not None:
            self._spare.append(own)
        return sequence

    def _make(self) -> tuple[memoryview, memoryview, int] | None:
        """A segment that the companion already knows, or None: the cap is reached, or the system has no memory."""
        if self._spare:
            return self._spare.pop()
        if (len(self._live) + 1) * self._size > self._capacity:
            return None
        try:
            segment = SharedSegment.create(self._size, "milepost-log")
        except StorageError:
            return None
        self._made += 1
        ordinal = self._made
        segment.seal()
        view = memoryview(segment.map)
        view[:HEADER_BYTES] = pack_header(
            Header(
                log_id=self.log_id,
                base=0,
                wall_ns=time.time_ns(),
                monotonic_ns=monotonic_ns(),
                segment_size=self._size,
            )
        )
        words = view.cast("Q")
        self._live[ordinal] = (segment, words)
        self._hand_over(segment, ordinal)
        return view, words, self._size - 16 - LARGEST_HOT_PAYLOAD

    def prepare(self) -> None:
        """Have the next segment ready, with real pages, and say what was lost; for a thread that may wait.

        Raises:
            StorageError: The system has no memory for the pages.
        """
        if self._next is None:
            made = self._make()
            if made is not None:
                segment = next(s for s, words in list(self._live.values()) if words is made[1])
                segment.populate(0, self._size)
                self._offer(made)
        lost = self._unsaid
        if lost and (self._next is not None or self._offset <= self._limit):
            self._unsaid -= lost
            self.append(Lost(count=lost, reason="the disk was too slow for too long: the log's memory was full"))

    def _offer(self, made: tuple[memoryview, memoryview, int]) -> None:
        if self._next is None:  # no call between question and store: nobody can come between
            self._next = made
        else:
            self._spare.append(made)

    def release(self, durable: int) -> set[int]:
        """Drop segments that lie wholly before the sequence number ``durable``; the ordinals of those still needed."""
        for ordinal, (segment, words) in list(self._live.items()):
            base = words[4]
            if base and base + self._size <= durable and base < self._base:
                del self._live[ordinal]
                segment.close()
        return set(self._live)

    def live_segments(self) -> list[tuple[SharedSegment, int]]:
        """All segments that are not released, with their ordinals: what a restarted companion needs."""
        return [(segment, ordinal) for ordinal, (segment, _) in sorted(self._live.items())]

    def close(self) -> None:
        """Let go of the memory. Whoever holds the segments too still has every record; later calls count as lost."""
        self._capacity = 0
        self._offset, self._limit, self._next = 1, 0, None
        self._spare.clear()
        for segment, _ in self._live.values():
            segment.close()
        self._live.clear()
