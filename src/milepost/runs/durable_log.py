"""How do records get from shared memory to the disk, so that power loss costs a second and a full disk costs nothing?

:class:`Drain` copies what was published to ``wal-*.mlog`` with plain writes and syncs it when told to. The memory is
let go only after that, so whatever the disk does, nothing is lost that fits the memory.

**Invariants**: hot segments and durable files hold the same bytes at the same sequence numbers; file offset = sequence
number - first sequence number of the file. After a failed sync a file is never touched again: the kernel may have
dropped its dirty pages and call them clean, so all that was not durable is written once more, to a new file.

**Threads**: :meth:`Drain.sync` may run in a thread of its own, and usually does: a sync can take seconds on a busy
disk, and copying must go on meanwhile. Everything else belongs to one thread.

**On crash**: of this process, the next :class:`Drain` starts at the last durable position with a new file. Records may
then stand in two files; readers take each sequence number once.
"""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass, replace

from milepost.io.durable import fsync_directory, storage_error, write_all
from milepost.io.memory import SharedSegment
from milepost.runs.layout import RunLayout
from milepost.runs.segment import (
    HEADER_BYTES,
    LARGEST_HOT_PAYLOAD,
    Header,
    find_record,
    pack_header,
    read_header,
    salt_of,
    walk,
)

__all__ = ["Drain"]

_ROLL_AT = 256 << 20
_HOLE_PATIENCE = 2.0  # seconds; a reservation that stays empty so long will not be filled any more


@dataclass(slots=True)
class _Hot:
    segment: SharedSegment
    view: memoryview


class Drain:
    """The durable side of one log.

    Args:
        layout: Where the run lies; the folder of its log must exist.
        log_id: Whose records are copied.

    Attributes:
        position: Everything before this sequence number was written; 0 before the first record.
        durable: Everything before this sequence number survives power loss.
    """

    def __init__(self, layout: RunLayout, log_id: bytes) -> None:
        self.position = 0
        self.durable = 0
        self._layout = layout
        self._log_id = log_id
        self._salt = salt_of(log_id)
        self._hot: dict[int, _Hot] = {}
        self._fd = -1
        self._path = ""
        self._first = 0
        self._names_unsynced = False
        self._stuck_at = (0, 0.0)
        self._lock = threading.Lock()  # between copying and syncing; never held during either
        self._retired: list[int] = []
        self._start_over = False

    @property
    def unsynced(self) -> int:
        """Bytes that were written and not synced; a caller may sync earlier than usual when they are many."""
        return self.position - self.durable if self.durable else self.position - self._first

    def attach(self, segment: SharedSegment, ordinal: int) -> None:
        """Take a segment to drain; it is closed when all of it is durable."""
        with self._lock:
            self._hot[ordinal] = _Hot(segment, memoryview(segment.map))

    def resume_from(self, sequence: int) -> None:
        """Go on after another drain's death: everything before ``sequence`` is durable, the rest is written again."""
        self.position = self.durable = sequence
        self._retire_file()

    def copy(self, *, finishing: bool = False) -> int:
        """Write every record published by now.

        Args:
            finishing: The writer is dead or done: what follows an unfinished record is final too.

        Returns:
            ``position``.

        Raises:
            StorageError: The disk refuses. Nothing is lost: the next call tries again.
        """
        if self._start_over:
            self._retire_file()
            self.position = self.durable
            self._start_over = False
        self._drop_durable()
        while (hot := self._current()) is not None:
            header = read_header(hot.view)
            assert header is not None  # _current found it
            start = self.position - header.base
            end, exhausted = self._published_end(hot.view, header, start, finishing=finishing)
            if end > start:
                self._write(hot.view, header, start, end)
                self.position = header.base + end
            following = header.base + header.segment_size
            if not (exhausted and self._in_use(following)):
                break
            self.position = following + HEADER_BYTES
            if following - self._first >= _ROLL_AT:
                self._retire_file()
        return self.position

    def _current(self) -> _Hot | None:
        """The segment that ``position`` lies in."""
        for hot in self._hot.values():
            header = read_header(hot.view)
            if header is None or not header.base or header.log_id != self._log_id:
                continue
            if not self.position and header.base == header.segment_size:
                self.position = header.base + HEADER_BYTES
            if header.base <= self.position < header.base + header.segment_size:
                self.position = max(self.position, header.base + HEADER_BYTES)
                return hot
        return None

    def _in_use(self, base: int) -> bool:
        headers = (read_header(hot.view) for hot in self._hot.values())
        return any(header is not None and header.base == base for header in headers)

    def _published_end(self, view: memoryview, header: Header, start: int, *, finishing: bool) -> tuple[int, bool]:
        """Offset after the last record that can be taken now, and whether nothing can follow it in this segment."""
        end = _walk_end(view, start, header.segment_size, self._salt)
        # A writer leaves a segment only when the largest record would no longer fit, so this end is complete.
        if end > header.segment_size - 16 - LARGEST_HOT_PAYLOAD:
            return end, True
        superseded = self._in_use(header.base + header.segment_size)
        if not finishing and not (superseded and self._is_stuck(header.base + end)):
            return end, False
        # Something reserved here was never published: the process died in that very instant, or was out of memory.
        # What comes after it is copied together with the hole; readers see the hole and skip it.
        while (found := find_record(view[end:], header.segment_size - end, self._salt)[0]) is not None:
            end = _walk_end(view, end + found, header.segment_size, self._salt)
        return end, superseded

    def _is_stuck(self, sequence: int) -> bool:
        """Whether the walk has ended at this place for long, although the writer is already in the next segment."""
        place, since = self._stuck_at
        if place != sequence:
            self._stuck_at = (sequence, time.monotonic())
            return False
        return time.monotonic() - since > _HOLE_PATIENCE

    def _write(self, view: memoryview, header: Header, start: int, end: int) -> None:
        try:
            if self._fd < 0:
                self._open(header)
            if start == HEADER_BYTES and header.base != self._first:
                start = 0  # the segment's own header goes along: same bytes at the same places
            write_all(self._fd, view[start:end], header.base + start - self._first)
        except OSError as error:
            raise storage_error(error, "writing the log", self._path or self._layout.log) from error

    def _open(self, header: Header) -> None:
        """Make a file that begins 64 bytes before ``position``, so that its header takes no record's place."""
        first = max(self.position - HEADER_BYTES, header.base)
        copy = 0
        while True:
            path = str(self._layout.durable_log(self._log_id, first, copy))
            try:
                fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), 0o666)
                break
            except FileExistsError:
                copy += 1
        try:
            write_all(fd, pack_header(replace(header, base=first)), 0)
        except OSError:
            os.close(fd)
            os.unlink(path)
            raise
        self._fd, self._path, self._first, self._names_unsynced = fd, path, first, True

    def sync(self) -> int:
        """Make everything copied by now survive power loss.

        Returns:
            ``durable``.

        Raises:
            StorageError: The disk refuses; what was not durable goes to a new file at the next :meth:`copy`.
        """
        with self._lock:
            position = self.position
            if self._start_over or position <= self.durable:
                return self.durable
            files, self._retired = self._retired, []
            if self._fd >= 0:
                files.append(os.dup(self._fd))
        try:
            self._sync_files(files)
        except OSError as error:
            self._start_over = True
            raise storage_error(error, "syncing the log", self._path) from error
        finally:
            for fd in files:
                os.close(fd)
        self.durable = position
        return position

    def _sync_files(self, files: list[int]) -> None:
        for fd in files:
            os.fdatasync(fd) if hasattr(os, "fdatasync") else os.fsync(fd)
        if self._names_unsynced:
            self._names_unsynced = False
            fsync_directory(self._layout.log)

    def _retire_file(self) -> None:
        """The next record begins a new file; this one is still to be synced."""
        with self._lock:
            if self._fd >= 0:
                self._retired.append(self._fd)
                self._fd = -1

    def _drop_durable(self) -> None:
        for ordinal, hot in list(self._hot.items()):
            header = read_header(hot.view)
            if header is not None and header.base and header.base + header.segment_size <= self.durable:
                del self._hot[ordinal]
                hot.view.release()
                hot.segment.close()

    def close(self) -> None:
        """Let go of files and memory; copies and syncs nothing."""
        self._retire_file()
        for fd in self._retired:
            os.close(fd)
        self._retired.clear()
        for hot in self._hot.values():
            hot.view.release()
            hot.segment.close()
        self._hot.clear()


def _walk_end(view: memoryview, start: int, size: int, salt: int) -> int:
    end = start
    for position, payload in walk(view, start, size, 0, salt):
        end = (position + 16 + len(payload) + 7) & -8
    return end
