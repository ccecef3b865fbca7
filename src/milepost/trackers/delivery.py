"""How does one guest get from its cursor to the end of the log?

The straight road: open, write batches, flush, save the cursor, close. Whatever goes wrong leaves through an exception;
:mod:`milepost.trackers.follower` decides what becomes of it.

**Invariants**: at most one batch is in memory. The cursor is saved only after the guest's flush returned and
what it acknowledged has settled.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from milepost.runs.scan import LoggedRecord
from milepost.trackers.cursor import Cursor, load_cursor, save_cursor
from milepost.trackers.feed import Feed, OpenSource
from milepost.trackers.protocol import RunDescription, Tracker

__all__ = ["Delivery", "Pace"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How hard a guest is fed, in records and seconds.

    Attributes:
        batch: Records per ``write``; with it the memory that a backlog of any length takes.
        flush_every: Longest time between two flushes while there is more to write.
        poll_every: How often the log is looked at when there was nothing new.
        backoff: Waits after the first, second, ... failure in a row; after the last the guest is parked.
        settle: How long what a guest's flush acknowledged can still be lost by a crash of the guest's own process; the
            saved cursor lags by this.
        patience: A call that takes longer than this is reported as hanging.
    """

    batch: int = 2048
    flush_every: float = 1.0
    poll_every: float = 1.0
    backoff: tuple[float, ...] = (1.0, 2.0, 5.0, 15.0, 60.0, 300.0)
    settle: float = 0.0
    patience: float = 60.0


class Delivery:
    """One attempt to bring a guest up to date and keep it so."""

    def __init__(
        self,
        build: Callable[[], Tracker],
        run: RunDescription,
        *,
        open_source: OpenSource,
        cursor_path: Path,
        on_progress: Callable[[int], None],
        pace: Pace,
    ) -> None:
        self._build = build
        self._run = run
        self._open_source = open_source
        self._cursor_path = cursor_path
        self._on_progress = on_progress
        self._pace = pace
        self._settling: deque[tuple[float, Cursor]] = deque()
        self._tracker: Tracker | None = None
        self._saved = load_cursor(cursor_path)
        self._acknowledged = self._saved.guest
        self._feed = Feed(open_source, self._saved.position)
        self._flushed = self._saved.records
        self._unflushed = 0
        self._flushed_at = time.monotonic()
        #: ``time.monotonic()`` at which the guest was called, None while it is not in a call.
        self.calling_since: float | None = None

    def advance(self) -> bool:
        """Hand over at most one batch; True if there was something in the log."""
        records, taken = self._feed.read(self._pace.batch)
        if records:
            if self._tracker is None and not self._open():
                return True
            self._write(records)
        self._unflushed += taken
        if self._unflushed and (not taken or time.monotonic() - self._flushed_at >= self._pace.flush_every):
            self._flush()
        self._save_settled()
        return taken > 0

    def finish(self) -> None:
        """Tell the guest how the run ended, unless it knows."""
        if self._tracker is None and self._feed.end is not None and not self._saved.closed:
            self._open()
        if self._tracker is None:
            return
        with self._guest_called():
            self._tracker.close(self._feed.end)
        self._save(self._cursor(self._acknowledged, closed=self._feed.end is not None))

    def abandon(self) -> None:
        """After a call that raised: let the guest release what it holds. What that raises is of no interest."""
        if self._tracker is not None:
            with suppress(Exception, SystemExit), self._guest_called():
                self._tracker.close(None)

    def _open(self) -> bool:
        """False if the story has to be told from its first record, which the next ``advance`` does."""
        cursor, self._tracker = self._saved.guest, self._build()
        with self._guest_called():
            goes_on = self._tracker.open(self._run, cursor)
        if goes_on or not self._saved.position:
            return True
        self._tracker = None
        self._saved = Cursor()
        self._acknowledged = self._saved.guest
        self._feed = Feed(self._open_source, {})
        self._flushed = self._unflushed = 0
        return False

    def _write(self, records: list[LoggedRecord]) -> None:
        assert self._tracker is not None
        with self._guest_called():
            self._tracker.write(records)

    def _flush(self) -> None:
        if self._tracker is not None:
            with self._guest_called():
                self._acknowledged = self._tracker.flush()
        self._flushed += self._unflushed
        self._settling.append((time.monotonic() + self._pace.settle, self._cursor(self._acknowledged, closed=False)))
        self._on_progress(self._unflushed)
        self._unflushed = 0
        self._flushed_at = time.monotonic()

    def _save_settled(self) -> None:
        settled = None
        while self._settling and self._settling[0][0] <= time.monotonic():
            _, settled = self._settling.popleft()
        if settled is not None:
            self._save(settled)

    def _cursor(self, guest: Mapping[str, Any], *, closed: bool) -> Cursor:
        return Cursor(position=self._feed.position(), guest=guest, closed=closed, records=self._flushed)

    def _save(self, cursor: Cursor) -> None:
        self._saved = cursor
        save_cursor(self._cursor_path, cursor)

    @contextmanager
    def _guest_called(self) -> Iterator[None]:
        self.calling_since = time.monotonic()
        try:
            yield
        finally:
            self.calling_since = None
