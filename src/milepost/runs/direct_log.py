"""How is a record put down by a process that may wait for a disk?

One write per record at a place reserved beforehand, straight into the durable file. So the companion writes its own
log, forked children theirs, and the trainer where no memory can be shared.

**Invariants**: as in :mod:`milepost.runs.log`; the file is one segment that never ends. What the disk refuses waits
in memory, up to a bound, and comes later in the file than it happened.

**On crash**: of the process, every record whose call returned is with the kernel, unless the disk had refused it. Of
the machine, what was synced.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from time import monotonic_ns

from milepost.core.errors import StorageError
from milepost.io.durable import storage_error, write_all
from milepost.runs.layout import RunLayout
from milepost.runs.recording import NOT_KEPT, Deferral, RunLog
from milepost.runs.segment import HEADER_BYTES, Header, pack_header, seal_record
from milepost.runs.values import OnBadValue

__all__ = ["DirectLog"]

_MOST_BYTES_WAITING = 64 << 20


class DirectLog(RunLog):
    """The log of a process that may wait for a disk: every record is one write to the durable file.

    Args:
        layout: Where the run lies; the folder of its log must exist.
        log_id: From :func:`milepost.runs.segment.new_log_id`.
        on_bad_value: Told once per metric whose value is no number.
        on_failure: Told when the disk refuses, once until it takes records again; they wait in memory meanwhile.
        strict: Raise on a value that is no number.
        deferred: Fetches device values.

    Raises:
        StorageError: The file cannot be made.
    """

    __slots__ = ("_fd", "_offset", "_on_failure", "_refused", "_waiting", "_waiting_bytes", "path")

    #: One segment that never ends: the file has no gaps.
    segment_size = 1 << 40

    def __init__(
        self,
        layout: RunLayout,
        log_id: bytes,
        *,
        on_bad_value: OnBadValue = lambda *_: None,
        on_failure: Callable[[StorageError], None] = lambda _: None,
        strict: bool = False,
        deferred: Deferral | None = None,
    ) -> None:
        super().__init__(log_id, on_bad_value, strict=strict, deferred=deferred)
        self.path = layout.durable_log(log_id, self.segment_size)
        self._on_failure = on_failure
        self._refused = False
        self._waiting: deque[tuple[int | None, bytes]] = deque()
        self._waiting_bytes = 0
        self._offset = HEADER_BYTES
        header = Header(
            log_id=log_id,
            base=self.segment_size,
            wall_ns=time.time_ns(),
            monotonic_ns=monotonic_ns(),
            segment_size=self.segment_size,
        )
        try:
            self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), 0o666)
            write_all(self._fd, pack_header(header), 0)
        except OSError as error:
            raise storage_error(error, "making the log", self.path) from error

    @property
    def position(self) -> int:
        """Sequence number that the next record will have at the least."""
        return self.segment_size + self._offset

    def _publish(self, payload: bytes) -> int:
        record = seal_record(payload, self._salt)
        self.catch_up()
        # Tried although others wait: a short record may fit where a long one did not, and say that the disk is full.
        try:
            offset = self._write(record)
        except OSError as error:
            if not self._refused:
                self._refused = True
                self._on_failure(storage_error(error, "writing the log", self.path))
            return NOT_KEPT
        self._refused = bool(self._waiting)
        return self.segment_size + offset

    def _write(self, record: bytes, offset: int | None = None) -> int:
        """Write a record at the end, or at the place that it has; let it wait if the disk refuses."""
        # Reserve, then write there: threads and signal handlers write behind each other, without a lock.
        place = self._offset if offset is None else offset
        end = place + len(record)
        if offset is None:
            self._offset = end
        try:
            write_all(self._fd, record, place)
        except OSError:
            if offset is None and self._offset == end:
                self._offset = place
                self._let_wait(None, record)
            else:  # its place is between others: nothing else may stand there
                self._let_wait(place, record)
            raise
        return place

    def _let_wait(self, offset: int | None, record: bytes) -> None:
        if self._waiting_bytes + len(record) > _MOST_BYTES_WAITING:
            self.lost += 1
            return
        self._waiting_bytes += len(record)
        self._waiting.append((offset, record))

    def catch_up(self) -> None:
        """Write what the disk refused earlier, if it takes it now."""
        for _ in range(len(self._waiting)):
            # Several threads may catch up: each takes a record out before it writes it.
            with suppress(IndexError, OSError):
                offset, record = self._waiting.popleft()
                self._waiting_bytes -= len(record)
                self._write(record, offset)

    def sync(self) -> int:
        """Make what is written survive power loss; the sequence number up to which that holds.

        Raises:
            StorageError: The disk refuses.
        """
        self.catch_up()
        position = min([self.position, *(self.segment_size + o for o, _ in tuple(self._waiting) if o is not None)])
        try:
            os.fdatasync(self._fd) if hasattr(os, "fdatasync") else os.fsync(self._fd)
        except OSError as error:
            raise storage_error(error, "syncing the log", self.path) from error
        return position

    def close(self) -> None:
        """Close the file; what the disk still refuses, and later records, are lost and counted."""
        if self._fd < 0:
            return
        self.catch_up()
        self.lost += len(self._waiting)
        self._waiting.clear()
        fd, self._fd = self._fd, -1
        os.close(fd)
