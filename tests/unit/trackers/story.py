"""Runs made of lists, and guests with character, for the tests of this room."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from milepost.core.events import Event, Identified, Metrics, Noticed, StatusChanged
from milepost.runs.scan import LoggedRecord
from milepost.trackers.delivery import Pace
from milepost.trackers.follower import Follower
from milepost.trackers.protocol import RunDescription, Tracker

LOG = bytes(range(16))
STARTED = 1_700_000_000
SECOND = 10**9
#: No waits worth mentioning: what a test waits for is always an event.
QUICK = Pace(poll_every=0.01, flush_every=0.0, backoff=(0.0, 0.0, 0.0))


def record(event: Event, number: int, log: bytes = LOG) -> LoggedRecord:
    wall = (STARTED + number) * SECOND
    return LoggedRecord(log_id=log, sequence=64 + 8 * number, monotonic_ns=number, wall_ns=wall, event=event)


def told(events: Sequence[Event], log: bytes = LOG) -> list[LoggedRecord]:
    return [record(event, number, log) for number, event in enumerate(events)]


def identified(rank: int = 0, role: str = "trainer", attempt: int = 1) -> Identified:
    return Identified(role=role, attempt=attempt, rank=rank, world_size=2, host="h", boot_id="b", pid=1, start_time=0.0)


def metrics(step: int | None, epoch: float | None = None, **values: float) -> Metrics:
    return Metrics(step=step, epoch=epoch, values=dict(values))


def training(steps: int, *, end: str | None = "completed") -> list[Event]:
    events: list[Event] = [identified(), *(metrics(step, loss=1.0 / (step + 1)) for step in range(steps))]
    return events if end is None else [*events, StatusChanged(status=end)]  # type: ignore[arg-type]


class ListSource:
    """A log that is a list, which may grow while it is read."""

    def __init__(self, records: Sequence[LoggedRecord], cursor: Mapping[str, int]) -> None:
        self._records = records
        self.cursor = dict(cursor)

    def read(self, limit: int) -> list[LoggedRecord]:
        found = []
        for candidate in self._records:
            log = candidate.log_id.hex()
            if candidate.sequence >= self.cursor.get(log, 0) and len(found) < limit:
                found.append(candidate)
                self.cursor[log] = candidate.sequence + 1
        return found


def source_of(records: Sequence[LoggedRecord]) -> Callable[[Mapping[str, int]], ListSource]:
    return lambda cursor: ListSource(records, cursor)


@dataclass
class Memory:
    """What a guest remembers over its lives; ``steps`` only what it acknowledged."""

    steps: list[int] = field(default_factory=list)
    unflushed: list[int] = field(default_factory=list)
    opened: list[Mapping[str, Any]] = field(default_factory=list)
    ends: list[StatusChanged | None] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)


class Diary:
    """A guest that does as it should."""

    name = "diary"

    def __init__(self, memory: Memory) -> None:
        self.memory = memory

    def open(self, run: RunDescription, cursor: Mapping[str, Any]) -> bool:
        self.memory.opened.append(dict(cursor))
        self.memory.unflushed.clear()
        return True

    def write(self, records: Sequence[LoggedRecord]) -> None:
        self.memory.batches.append(len(records))
        self.memory.unflushed += [r.event.step for r in records if isinstance(r.event, Metrics)]  # type: ignore[misc]

    def flush(self) -> Mapping[str, Any]:
        self.memory.steps += self.memory.unflushed
        self.memory.unflushed.clear()
        return {"told": len(self.memory.steps)}

    def close(self, end: StatusChanged | None) -> None:
        self.memory.ends.append(end)


class Hangs(Diary):
    """Blocks in ``write`` until it is let go."""

    def __init__(self, memory: Memory, entered: threading.Event, let_go: threading.Event) -> None:
        super().__init__(memory)
        self._entered = entered
        self._let_go = let_go

    def write(self, records: Sequence[LoggedRecord]) -> None:
        self._entered.set()
        self._let_go.wait()
        super().write(records)


class Fails(Diary):
    """Raises in the first calls of ``write`` of all its lives together."""

    def __init__(self, memory: Memory, failures: list[BaseException]) -> None:
        super().__init__(memory)
        self._failures = failures

    def write(self, records: Sequence[LoggedRecord]) -> None:
        if self._failures:
            raise self._failures.pop()
        super().write(records)


class RaisesAlways:
    """Every call raises."""

    name = "diary"

    def _raise(self, *_arguments: object) -> Any:
        raise RuntimeError("no")

    open = write = flush = close = _raise


def follower(
    folder: Path,
    build: Callable[[], Tracker],
    records: Sequence[LoggedRecord],
    *,
    run: RunDescription | None = None,
    notices: list[Noticed] | None = None,
    pace: Pace = QUICK,
    name: str = "diary",
) -> Follower:
    notices = [] if notices is None else notices
    run = run or RunDescription(id="exp-1", name="exp")
    return Follower(
        name,
        build,
        run,
        open_source=source_of(records),
        cursor_path=folder / f"guest-{name}.json",
        notice=notices.append,
        pace=pace,
    )
