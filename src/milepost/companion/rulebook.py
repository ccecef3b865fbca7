"""When does a rule of the user's find something in a run, and how is that said exactly once?

A follower of the run's log like any guest, but a member of the house. What it remembers travels with its cursor; that
one rule, ``NoProgress``, has no record to judge, so it is asked now and then whether it is time.

**Invariants**: an alert is recorded once per episode, whichever companion finds it: what earlier ones recorded is read
when this one opens. What is remembered is bounded by the rules' windows, per metric.

**On crash**: records after the cursor are judged again, from what was remembered then. What had been found in them is
known by rule, title and the record that gave rise to it, and passed over; what was found and not yet recorded is found
again, and its actions, each of which may be done twice, are done again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from milepost.companion.episodes import Finding, Memory, take
from milepost.core.events import (
    Alerted,
    CheckpointChanged,
    Described,
    Event,
    Identified,
    Metrics,
    Rewound,
    StatusChanged,
)
from milepost.core.rules import NoProgress, Rule, rule_from_dict
from milepost.runs.layout import RunLayout
from milepost.runs.scan import LoggedRecord, read_log_files, scan, writer_of
from milepost.trackers.protocol import RunDescription

__all__ = ["Entry", "Respond", "RuleBook", "entries_of"]

_MOST_WISHES = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One rule of a run: its place in the settings, and whether it calls a function there."""

    number: int
    rule: Rule
    calls: bool


def entries_of(settings: Mapping[str, Any]) -> list[Entry]:
    """The rules in the settings of a run; what this version does not know is left out."""
    found = []
    for number, plain in enumerate(settings.get("rules") or ()):
        rule = rule_from_dict(plain)
        if rule is not None:
            found.append(Entry(number=number, rule=rule, calls=bool(plain.get("call"))))
    return found


class Respond(Protocol):
    """Does what a rule asks for."""

    def found(self, entry: Entry, finding: Finding, cause: str, tags: Sequence[str], *, tell: bool) -> None:
        """Act on a finding, and record it last; ``tell``: the training that it is about is the one that runs now."""

    def pin(self, before: int | None, rule: str) -> str:
        """Pin the newest checkpoint before a step; in words what was done."""


@dataclass(slots=True)
class _Progress:
    """The last sign of progress: when it was heard, which record it was, and its step."""

    heard: float = 0.0
    wall: float = 0.0
    cause: str = ""
    step: int | None = None
    running: bool = False


class RuleBook:
    """A :class:`milepost.trackers.protocol.Tracker` that judges.

    Args:
        layout: The run.
        entries: Its rules.
        respond: Does what they ask for.
        clock: Seconds that never go back.
    """

    name = "rules"

    def __init__(
        self,
        layout: RunLayout,
        entries: Sequence[Entry],
        respond: Respond,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._layout = layout
        self._entries = entries
        self._respond = respond
        self._clock = clock
        self._lock = threading.Lock()
        self._known: set[tuple[str, str, str]] = set()
        self._watching: dict[str, list[Entry]] = {}
        self._memories: dict[tuple[str, str], Memory] = {}
        self._wishes: list[tuple[int, str]] = []
        self._tags: list[str] = []
        self._progress = _Progress()
        self._attempt = 0
        self._present: list[str] = []  # logs of the present attempt

    # ---------------------------------------------------------------- the follower's calls

    def open(self, run: RunDescription, cursor: Mapping[str, Any]) -> bool:
        """Go on from what was remembered."""
        with self._lock:
            self._known = _already_said(self._layout)
            remembered = cursor.get("memories", [])
            self._memories = {(rule, metric): Memory.from_dict(plain) for rule, metric, plain in remembered}
            self._wishes = [(before, rule) for before, rule in cursor.get("wishes", [])]
            self._tags = list(cursor.get("tags", run.tags))
            self._attempt = run.attempt
            self._present = cursor.get("present", []) if cursor.get("attempt") == run.attempt else []
            self._progress = _Progress(**cursor.get("progress", {}))
            self._progress.heard = self._clock() - max(0.0, time.time() - self._progress.wall)
        return True

    def write(self, records: Sequence[LoggedRecord]) -> None:
        """Judge a batch."""
        with self._lock:
            for record in records:
                self._take(record, f"{record.log_id.hex()}:{record.sequence}")

    def flush(self) -> Mapping[str, Any]:
        """What is remembered."""
        with self._lock:
            progress = self._progress
            return {
                "memories": [(*key, memory.to_dict()) for key, memory in self._memories.items()],
                "wishes": list(self._wishes),
                "tags": list(self._tags),
                "attempt": self._attempt,
                "present": list(self._present),
                "progress": {
                    "wall": progress.wall,
                    "cause": progress.cause,
                    "step": progress.step,
                    "running": progress.running,
                },
            }

    def close(self, end: StatusChanged | None) -> None:
        """Nothing is held."""

    # ---------------------------------------------------------------- judging

    def _take(self, record: LoggedRecord, cause: str) -> None:
        event: Event = record.event
        match event:
            case Metrics():
                self._progressed(record, cause, event.step)
                self._judge(event, cause)
            case Identified(attempt=attempt) if attempt == self._attempt:
                self._present.append(record.log_id.hex())
            case StatusChanged():
                self._progress.running = event.status == "running"
                self._progressed(record, cause, self._progress.step)
            case Described(fields=fields) if "tags" in fields:
                self._tags = [str(tag) for tag in fields["tags"] or ()]
            case Rewound(step=step):
                self._memories = {key: memory.rewound(step) for key, memory in self._memories.items()}
                self._wishes = [wish for wish in self._wishes if wish[0] <= step]
            case CheckpointChanged(action="committed", step=int(step)):
                self._grant(step)
            case _:
                pass

    def _judge(self, event: Metrics, cause: str) -> None:
        step = event.step or 0
        for metric, value in event.values.items():
            entries = self._watching.get(metric)
            if entries is None:
                entries = [entry for entry in self._entries if entry.rule.watches(metric)]
                self._watching[metric] = entries
            for entry in entries:
                key = (str(entry.rule), metric)
                before = self._memories.get(key, Memory())
                after, finding = take(entry.rule, before, metric, step, float(value))
                if after is not before:
                    self._memories[key] = after
                if finding is not None:
                    self._found(entry, finding, cause)

    def _found(self, entry: Entry, finding: Finding, cause: str) -> None:
        key = (str(entry.rule), finding.title, cause)
        if key in self._known:
            return
        tell = cause.partition(":")[0] in self._present
        self._respond.found(entry, finding, cause, self._tags, tell=tell)
        self._known.add(key)
        if entry.rule.mark is not None and entry.rule.mark not in self._tags:
            self._tags.append(entry.rule.mark)
        if entry.rule.pin and finding.step is not None:
            self._wishes = [*self._wishes, (finding.step, key[0])][-_MOST_WISHES:]

    def _grant(self, step: int) -> None:
        """A save that was still being written when something happened may be the one to keep."""
        for before, rule in self._wishes:
            if step < before:
                self._respond.pin(before, rule)
        self._wishes = [wish for wish in self._wishes if step < wish[0]]

    # ---------------------------------------------------------------- what no record says

    def _progressed(self, record: LoggedRecord, cause: str, step: int | None) -> None:
        progress = self._progress
        progress.wall, progress.cause, progress.step = record.wall_ns / 1e9, cause, step
        progress.heard = self._clock() - max(0.0, time.time() - progress.wall)

    def check(self) -> None:
        """Look whether a run that should go on has gone silent. Never waits for the follower."""
        if not self._lock.acquire(blocking=False):
            return  # it is judging records: there is progress
        try:
            progress = self._progress
            silent = self._clock() - progress.heard
            for entry in self._entries:
                rule = entry.rule
                if progress.running and isinstance(rule, NoProgress) and silent >= 60.0 * rule.minutes:
                    self._found(entry, _silence(rule, progress.step), progress.cause)
        finally:
            self._lock.release()


def _silence(rule: NoProgress, step: int | None) -> Finding:
    text = "nothing was logged yet" if step is None else f"the last ones were of step {step}"
    return Finding(title=f"no metrics for {rule.minutes:g} minutes", text=text)


def _already_said(layout: RunLayout) -> set[tuple[str, str, str]]:
    """By rule, title and cause, what companions recorded; their logs are short."""
    said = set()
    for log in read_log_files(layout.log):
        writer = writer_of(log)
        if writer is None or writer.role in {"trainer", "worker"}:
            continue
        for record in scan(log, live=True):
            if isinstance(record.event, Alerted) and record.event.cause:
                said.add((record.event.rule, record.event.title, record.event.cause))
    return said
