"""Which records does a guest get to see, and where does it go on after a restart?

The log holds what every rank and every process wrote, and some values that became known only after their record
(:class:`milepost.core.events.Deferred`). A guest wants one plain story: rank 0, every number at its step.

**Invariants**: the position is plain JSON; a feed made from the position of another yields exactly the records that
the other had not yet yielded. The memory of late values is bounded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from milepost.core.events import (
    Alerted,
    BigIntegers,
    Deferred,
    Identified,
    MediaAdded,
    MediaStaged,
    Metrics,
    StatusChanged,
    Text,
    body_of,
    event_from_body,
)
from milepost.runs.scan import LoggedRecord

__all__ = ["Feed", "LogSource", "OpenSource"]

_MOST_AWAITED = 1024


class LogSource(Protocol):
    """The records of a run, all its logs, each log in its order."""

    @property
    def cursor(self) -> Mapping[str, int]:
        """Per log id (32 hex digits) where the next ``read`` goes on."""
        ...

    def read(self, limit: int) -> list[LoggedRecord]:
        """Up to ``limit`` further records; none if there are no more yet."""
        ...


#: Opens the log at a cursor; an empty one is its beginning.
OpenSource = Callable[[Mapping[str, int]], LogSource]


@dataclass(frozen=True, slots=True)
class _Awaited:
    """A record of metrics of which ``missing`` values are still on their way from a device."""

    step: int | None
    epoch: float | None
    wall_ns: int
    missing: int


class Feed:
    """Reads a log as a guest should see it."""

    def __init__(self, open_source: OpenSource, position: Mapping[str, Any]) -> None:
        self._source = open_source(position.get("logs", {}))
        self._ranks: dict[str, int] = dict(position.get("ranks", {}))
        self._attempts: dict[str, int] = dict(position.get("attempts", {}))
        self._attempt: int = position.get("attempt", 0)
        self._last_step: int = position.get("last_step", 0)
        self._awaited = {key: _Awaited(*values) for key, values in position.get("awaited", {}).items()}
        end = event_from_body(StatusChanged.kind, None, None, position.get("end"))
        #: How the run ended, None while it runs.
        self.end = end if isinstance(end, StatusChanged) else None

    def position(self) -> dict[str, Any]:
        """Where the next ``read`` goes on, fit for JSON."""
        return {
            "logs": dict(self._source.cursor),
            "ranks": self._ranks,
            "attempts": self._attempts,
            "attempt": self._attempt,
            "last_step": self._last_step,
            "awaited": {key: (a.step, a.epoch, a.wall_ns, a.missing) for key, a in self._awaited.items()},
            "end": None if self.end is None else body_of(self.end),
        }

    def read(self, limit: int) -> tuple[list[LoggedRecord], int]:
        """The next records for the guest, and how many records of the log they were made from."""
        taken = self._source.read(limit)
        return [seen for record in taken if (seen := self._seen(record)) is not None], len(taken)

    def _seen(self, record: LoggedRecord) -> LoggedRecord | None:
        event = record.event
        log = record.log_id.hex()
        if isinstance(event, Identified):
            self._ranks[log] = event.rank
            self._attempts[log] = event.attempt
            if event.role == "trainer":
                self._begin_attempt(event.attempt)
        if self._ranks.get(log, 0) > 0 or isinstance(event, MediaStaged):
            return None  # a guest gets the encoded file, which is not there yet
        if isinstance(event, (Metrics, BigIntegers, Text)):
            return self._with_step(record, event, log)
        if isinstance(event, (MediaAdded, Alerted)) and event.step is None:
            return replace(record, event=replace(event, step=self._last_step))
        if isinstance(event, Deferred):
            return self._arrived(record, event, log)
        if isinstance(event, StatusChanged):
            self._take_status(event, self._attempts.get(log, 0))
        return record

    def _begin_attempt(self, attempt: int) -> None:
        if attempt > self._attempt:
            self._attempt, self.end = attempt, None

    def _take_status(self, event: StatusChanged, attempt: int) -> None:
        # A trainer that dies at once may have its log drained after its companion has recorded the death: which of both
        # logs is read first says nothing, the attempt does.
        self._begin_attempt(attempt)
        if attempt < self._attempt:
            return
        if event.status != "running":
            self.end = event
        elif self.end is not None and self.end.source == "trainer":
            self.end = None

    def _with_step(self, record: LoggedRecord, event: Metrics | BigIntegers | Text, log: str) -> LoggedRecord:
        if event.step is None:
            event = replace(event, step=self._last_step)
            record = replace(record, event=event)
        else:
            self._last_step = event.step
        if isinstance(event, Metrics) and event.rejected:
            self._await(record, event, log)
        return record

    def _await(self, record: LoggedRecord, event: Metrics, log: str) -> None:
        missing = sum(kind == "None" for kind in event.rejected.values())
        if not missing:
            return
        if len(self._awaited) >= _MOST_AWAITED:
            self._awaited.pop(next(iter(self._awaited)))
        self._awaited[f"{log}:{record.sequence}"] = _Awaited(event.step, event.epoch, record.wall_ns, missing)

    def _arrived(self, record: LoggedRecord, event: Deferred, log: str) -> LoggedRecord | None:
        key = f"{log}:{event.sequence}"
        awaited = self._awaited.pop(key, None)
        if awaited is None:
            return None
        if awaited.missing > 1:
            self._awaited[key] = replace(awaited, missing=awaited.missing - 1)
        metrics = Metrics(step=awaited.step, epoch=awaited.epoch, values={event.name: event.value})
        return replace(record, wall_ns=awaited.wall_ns, event=metrics)
