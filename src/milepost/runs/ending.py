"""Has somebody said how a run, or one process of it, ended?"""

from __future__ import annotations

from collections.abc import Iterable

from milepost.core.events import Noticed, StatusChanged
from milepost.runs.layout import RunLayout
from milepost.runs.scan import LoggedRecord, read_log_files, tail

__all__ = ["STILL_GOING", "last_status", "signals_that_came", "terminal_status"]

#: States that are no end.
STILL_GOING = frozenset({"running", "paused"})


def last_status(records: Iterable[LoggedRecord]) -> tuple[StatusChanged, float] | None:
    """The last change of state among ``records``, and when it was (seconds since 1970)."""
    found = None
    for record in records:
        if isinstance(record.event, StatusChanged):
            found = record.event, record.wall_ns / 1e9
    return found


def terminal_status(layout: RunLayout, log_id: bytes) -> StatusChanged | None:
    """The end that the log ``log_id`` itself states, or None if it states none."""
    for log in read_log_files(layout.log):
        if log.log_id == log_id:
            found = last_status(tail(log))
            return found[0] if found is not None and found[0].status not in STILL_GOING else None
    return None


def signals_that_came(layout: RunLayout, log_id: bytes) -> list[str]:
    """Names of the watched signals that the last records of the log ``log_id`` tell of, oldest first."""
    return [
        record.event.topic
        for log in read_log_files(layout.log)
        if log.log_id == log_id
        for record in tail(log)
        if isinstance(record.event, Noticed) and record.event.source == "signal"
    ]
