"""Who keeps ``experiment.log`` and ``metadata.json`` up to date while a run is alive?

A follower of the run log like any guest, but a member of the house: it appends finished console lines, folds
descriptions into the metadata, and tells the person once about metrics that are no numbers.

**On crash**: the cursor holds the length of ``experiment.log``; what was appended after it is cut off and appended
again, so every line stands there once.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from milepost.core.events import Alerted, Described, Line, Metrics, StatusChanged
from milepost.runs.console import append_console_log
from milepost.runs.layout import RunLayout
from milepost.runs.metadata import read_metadata, write_metadata
from milepost.runs.scan import LoggedRecord
from milepost.runs.told import LoggedAlert, newest_alerts
from milepost.trackers.protocol import RunDescription

__all__ = ["RecordKeeper"]


class RecordKeeper:
    """A :class:`milepost.trackers.protocol.Tracker` for the run's own files."""

    name = "record"

    def __init__(self, layout: RunLayout, tell: Callable[[str], None]) -> None:
        self._layout = layout
        self._tell = tell
        self._length = 0
        self._told: set[str] = set()

    def open(self, run: RunDescription, cursor: Mapping[str, Any]) -> bool:  # noqa: ARG002 - the protocol's signature
        """Cut ``experiment.log`` back to the cursor; False if it is shorter than that."""
        wanted = int(cursor.get("console", 0))
        path = self._layout.console
        path.touch()  # a run that printed nothing has an empty one
        present = path.stat().st_size
        self._length = min(wanted, present)
        if present > self._length:
            os.truncate(path, self._length)
        return present >= wanted

    def write(self, records: Sequence[LoggedRecord]) -> None:
        """Take a batch."""
        lines: list[tuple[float, Line]] = []
        changed: dict[str, Any] = {}
        alerts: list[LoggedAlert] = []
        for record in records:
            match record.event:
                case Line() as line:
                    lines.append((record.wall_ns / 1e9, line))
                case Described(fields=fields):
                    changed |= fields
                case StatusChanged(status=status):
                    changed["status"] = status
                case Alerted() as alerted:
                    alerts.append(LoggedAlert.of(alerted, record.wall_ns / 1e9))
                case Metrics(rejected=rejected) if rejected:
                    self._tell_rejected(rejected)
                case _:
                    pass
        if lines:
            self._length = append_console_log(self._layout.console, lines)
        if changed or alerts:
            known = read_metadata(self._layout)
            if alerts:
                changed["alerts"] = newest_alerts(alerts, before=known.get("alerts") or ())
            write_metadata(self._layout, known | changed)

    def _tell_rejected(self, rejected: Mapping[str, str]) -> None:
        for name, kind in rejected.items():
            if name not in self._told and kind != "None":
                self._told.add(name)
                self._tell(f"the metric {name!r} is skipped: it is no number but {kind} (said once)")

    def flush(self) -> Mapping[str, Any]:
        """Nothing is buffered."""
        return {"console": self._length}

    def close(self, end: StatusChanged | None) -> None:
        """Nothing to close: the projections at the end are made from the whole log."""
