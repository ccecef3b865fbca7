"""How is a record put down by a process that may wait for a disk?

One write per record at a place reserved beforehand, straight into the durable file. So the companion writes its own
log, forked children theirs, and the trainer where no memory can be shared.

**Invariants**: as in :mod:`milepost.runs.log`; the file is one segment that never ends. What the disk refuses keeps its
place in the file and waits in memory, up to a bound.

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
        self._waiting: deque[tuple[int, bytes]] = deque()
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
        # Reserve, then write there: threads and signal handlers write behind each other, without a lock.
        offset = self._offset
        end = offset + len(record)
        self._offset = end
        try:
            self._write_waiting()
            write_all(self._fd, record, offset)
        except OSError as error:
            if not self._refused:
                self._refused = True
                self._on_failure(storage_error(error, "writing the log", self.path))
            if not self._wait_for_room(offset, record):
                self.lost += 1
                return NOT_KEPT
        else:
            self._refused = False
        return self.segment_size + offset

    def _wait_for_room(self, offset: int, record: bytes) -> bool:
        """Keep a record that was refused, whole, however much of it is on the disk; False if too many wait."""
        if self._waiting_bytes + len(record) > _MOST_BYTES_WAITING:
            return False
        self._waiting_bytes += len(record)
        self._waiting.append((offset, record))
        return True

    def _write_waiting(self) -> None:
        """Write what was refused earlier. Several threads may: each takes one out before it writes it."""
        while self._waiting:
            try:
                offset, record = self._waiting.popleft()
            except IndexError:
                return
            try:
                write_all(self._fd, record, offset)
            except OSError:
                self._waiting.appendleft((offset, record))
                raise
            self._waiting_bytes -= len(record)

    def catch_up(self) -> None:
        """Write what the disk refused earlier, if it takes it now."""
        with suppress(OSError):
            self._write_waiting()

    def sync(self) -> int:
        """Make what is written survive power loss; the sequence number up to which that holds.

        Raises:
            StorageError: The disk refuses.
        """
        self.catch_up()
        waiting = min((offset for offset, _ in tuple(self._waiting)), default=None)
        position = self.position if waiting is None else self.segment_size + waiting
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
