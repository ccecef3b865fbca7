"""How do the records of many logs become one history?

One pass over each log in the order of attempts collects points and remembers everything else with its time; then what
was remembered is folded in the order in which it happened.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np

from milepost.core.events import (
    Alerted,
    BigIntegers,
    CheckpointChanged,
    Deferred,
    Described,
    Event,
    Identified,
    Line,
    Lost,
    MediaAdded,
    MediaStaged,
    Metrics,
    Noticed,
    Number,
    Rewound,
    StatusChanged,
    SystemSampled,
    Text,
)
from milepost.runs.ending import STILL_GOING
from milepost.runs.history import RunHistory
from milepost.runs.layout import RunLayout
from milepost.runs.logged_media import LoggedAt
from milepost.runs.scan import LoggedRecord, RunLogFiles, read_log_files, scan, writer_of
from milepost.runs.series import Points, Rewind
from milepost.runs.told import Attempt, LoggedAlert, LoggedLine, LoggedText

__all__ = ["read_history"]


def read_history(place: RunLayout | str | os.PathLike[str], *, live: bool = False) -> RunHistory:
    """Read all logs of a run.

    Args:
        place: The run, or the folder of its logs.
        live: Somebody may still be writing: unreadable ends of files are not there yet, and no damage.
    """
    folder = place.log if isinstance(place, RunLayout) else Path(place)
    history = RunHistory()
    _tell(read_log_files(folder), history, live=live)
    return history


def _tell(logs: Iterable[RunLogFiles], history: RunHistory, *, live: bool) -> None:
    """Fill an empty history from ``logs``."""
    points = _PointCollector(history)
    attempts = _Attempts()
    happened: list[tuple[int, int, int, LoggedRecord, Identified]] = []
    known = _in_order(logs)
    history.attempt_of_log = np.array([writer.attempt for _, writer in known], np.int64)
    for number, (log, writer) in enumerate(known):
        attempts.begin(log, writer)
        for record in scan(log, live=live, damage=history.damage):
            if points.take(number, writer.rank, record):
                continue
            if not isinstance(record.event, Identified):
                happened.append((writer.attempt, record.wall_ns, number, record, writer))
        attempts.heard(writer, points.last_step, points.last_wall_ns)
    happened.sort(key=lambda one: (*one[:3], one[3].sequence))
    fold = _Fold(history, attempts)
    for attempt, _, number, record, writer in happened:
        fold.take(attempt, number, record, writer)
    history.attempts = attempts.settled()
    history.status = attempts.latest_status()


def _in_order(logs: Iterable[RunLogFiles]) -> list[tuple[RunLogFiles, Identified]]:
    """Logs by attempt, then age. A log whose first record is damaged counts to the attempt that began before it."""
    attempt = 1
    known = []
    for log in logs:
        writer = writer_of(log) or _somebody(attempt)
        attempt = writer.attempt
        known.append((log, writer))
    return sorted(known, key=lambda pair: (pair[1].attempt, pair[0].started_ns, pair[0].log_id))


def _somebody(attempt: int) -> Identified:
    return Identified(role="worker", attempt=attempt, rank=0, world_size=1, host="", boot_id="", pid=0, start_time=0.0)


class _PointCollector:
    """Takes numbers, and puts those that came late in their places."""

    def __init__(self, history: RunHistory) -> None:
        self._history = history
        self._awaited: dict[tuple[int, int, str], tuple[int, float | None, int]] = {}
        self._log = -1
        self.last_step = -1
        self.last_wall_ns = 0

    def take(self, log: int, rank: int, record: LoggedRecord) -> bool:
        """Whether the record was one of numbers."""
        if log != self._log:
            self._log, self.last_step = log, -1
        self.last_wall_ns = record.wall_ns
        event = record.event
        place = (log, record.sequence)
        match event:
            case Metrics():
                step = self._step(event.step)
                for name, value in event.values.items():
                    self._points(rank, name).add(place, step, event.epoch, record.wall_ns, value)
                for name, kind in event.rejected.items():
                    if kind == "None":
                        self._awaited[*place, name] = (step, event.epoch, record.wall_ns)
            case Deferred():
                self._arrived(log, rank, event)
            case BigIntegers():
                step = self._step(event.step)
                for name, text in event.values.items():
                    number = _integer(text)
                    if number is not None:
                        self._points(rank, name).add(place, step, event.epoch, record.wall_ns, number)
            case _:
                return False
        return True

    def _step(self, step: int | None) -> int:
        if step is not None and -(1 << 63) <= step < 1 << 63:
            self.last_step = step
        return self.last_step

    def _arrived(self, log: int, rank: int, event: Deferred) -> None:
        awaited = self._awaited.pop((log, event.sequence, event.name), None)
        if awaited is not None:
            step, epoch, wall_ns = awaited
            self._points(rank, event.name).add((log, event.sequence), step, epoch, wall_ns, event.value)

    def _points(self, rank: int, name: str) -> Points:
        points = self._history.points.get((rank, name))
        if points is None:
            points = self._history.points[rank, name] = Points()
        return points


def _integer(text: str) -> Number | None:
    try:
        return int(text, 0)
    except ValueError:
        return None


class _Attempts:
    """Which stays did the run have, and what was said of each one's end?"""

    def __init__(self) -> None:
        self._known: dict[int, Attempt] = {}
        self._last_sign: dict[int, float] = {}
        self._stated: dict[tuple[int, bool], tuple[StatusChanged, float]] = {}

    def begin(self, log: RunLogFiles, writer: Identified) -> None:
        started = log.started_ns / 1e9
        attempt = self._known.get(writer.attempt) or Attempt(number=writer.attempt, started=started)
        if writer.role == "trainer":
            attempt = replace(attempt, rank_logs=(*attempt.rank_logs, (writer.rank, log.log_id)))
            if writer.rank == 0:
                attempt = replace(attempt, started=started, host=writer.host, pid=writer.pid)
        self._known[writer.attempt] = replace(attempt, log_ids=(*attempt.log_ids, log.log_id))

    def heard(self, writer: Identified, last_step: int, wall_ns: int) -> None:
        """The log of ``writer`` is read to its end."""
        number = writer.attempt
        if writer.role == "trainer" and writer.rank == 0:
            self._last_sign[number] = wall_ns / 1e9
            self._known[number] = replace(self._known[number], last_step=last_step)

    def state(self, writer: Identified, event: StatusChanged, when: float) -> None:
        """What the training process itself said counts more than what others said about it."""
        itself = writer.role == "trainer"
        if itself and writer.rank > 0:
            return
        self._stated[writer.attempt, itself] = (event, when)

    def _status(self, number: int) -> tuple[StatusChanged, float] | None:
        itself, others = self._stated.get((number, True)), self._stated.get((number, False))
        if itself is not None and itself[0].status not in STILL_GOING:
            return itself
        return others or itself

    def latest_status(self) -> tuple[StatusChanged, float] | None:
        return self._status(max(self._known)) if self._known else None

    def settled(self) -> list[Attempt]:
        return [self._settle(number, last=number == max(self._known)) for number in sorted(self._known)]

    def _settle(self, number: int, *, last: bool) -> Attempt:
        attempt = self._known[number]
        stated = self._status(number)
        if stated is not None and stated[0].status not in STILL_GOING:
            return replace(attempt, status=stated[0].status, reason=stated[0].reason, ended=stated[1])
        if not last:  # nobody saw it end, but another one began
            return replace(attempt, status="killed", ended=self._last_sign.get(number))
        return replace(attempt, status=stated[0].status) if stated is not None else attempt


class _Fold:
    """Takes everything but numbers, in the order in which it happened."""

    def __init__(self, history: RunHistory, attempts: _Attempts) -> None:
        self._history = history
        self._attempts = attempts
        self._notices: dict[tuple[str, str], Noticed] = {}

    def take(self, attempt: int, log: int, record: LoggedRecord, writer: Identified) -> None:
        event: Event = record.event
        history = self._history
        when = record.wall_ns / 1e9
        match event:
            case Described():
                history.fields.update(event.fields)
            case StatusChanged():
                self._attempts.state(writer, event, when)
            case Line() | Text() | Alerted():
                self._content(event, when)
            case MediaStaged() | MediaAdded() | SystemSampled():
                self._beside_metrics(event, attempt, log, record, writer.rank)
            case CheckpointChanged():
                self._checkpoint(event)
            case Noticed():
                self._notice(event)
            case Rewound():
                # Each rank records the resume; one of them is enough to hide what all of them did.
                if writer.rank == 0:
                    history.rewinds.append(_rewind(event, attempt, log, record))
            case Lost():
                history.lost += event.count
            case _:
                pass

    def _beside_metrics(
        self, event: MediaStaged | MediaAdded | SystemSampled, attempt: int, log: int, record: LoggedRecord, rank: int
    ) -> None:
        at = LoggedAt(attempt=attempt, log=log, sequence=record.sequence, wall_ns=record.wall_ns, rank=rank)
        match event:
            case MediaStaged(source=source):
                self._history.media.staged[source] = at
            case MediaAdded():
                self._history.media.added.append((event, at))
            case SystemSampled(values=values):
                self._history.samples.add(rank, record.wall_ns, values)

    def _content(self, event: Line | Text | Alerted, when: float) -> None:
        match event:
            case Line(stream=stream, text=text):
                self._history.lines.append(LoggedLine(time=when, stream=stream, text=text))
            case Text(step=step, name=name, text=text):
                self._history.texts.append(LoggedText(time=when, step=step, name=name, text=text))
            case Alerted():
                self._history.alerts.append(LoggedAlert.of(event, when))

    def _checkpoint(self, event: CheckpointChanged) -> None:
        checkpoints = self._history.checkpoints
        if event.action in {"committed", "demoted"}:
            checkpoints[event.filename] = dict(event.info)
        elif event.action == "verified" and event.filename in checkpoints:
            checkpoints[event.filename]["verified"] = True
        elif event.action == "pinned" and event.filename in checkpoints:
            checkpoints[event.filename]["pinned"] = True
        elif event.action == "removed":
            checkpoints.pop(event.filename, None)

    def _notice(self, event: Noticed) -> None:
        self._notices.pop((event.source, event.topic), None)
        if not event.cured:
            self._notices[event.source, event.topic] = event
        self._history.notices = list(self._notices.values())


def _rewind(event: Rewound, attempt: int, log: int, record: LoggedRecord) -> Rewind:
    return Rewind(
        step=event.step,
        attempt=attempt,
        log=log,
        sequence=record.sequence,
        wall_ns=record.wall_ns,
        checkpoint=event.checkpoint,
    )
