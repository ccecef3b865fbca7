"""In which state is a run, told from what is there now?

Never stored, always derived: what the logs say comes first, then whether the processes that write them live. The kernel
knows that for processes of this machine; for others, the age of their heartbeat is all there is.

**Invariants**: a run whose process is dead is never called running. What cannot be known is called ``unsure``.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from milepost.core.events import Identified, Metrics, RunStatus, StatusChanged
from milepost.io.locks import is_held
from milepost.io.process import this_process
from milepost.runs.ending import STILL_GOING, last_status
from milepost.runs.layout import RunLayout
from milepost.runs.scan import LoggedRecord, RunLogFiles, read_log_files, tail, writer_of

__all__ = ["RunState", "run_state"]

#: Heartbeats come every 10 s; after this many seconds without one, another host's run is no longer taken for alive.
_HEARTBEAT_LATE = 60.0
_LOG_LOCK = re.compile(r"[0-9a-f]{32}\.lock")  # guests keep locks there too


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """What is known of a run's life.

    Attributes:
        status: Its state.
        since: When it came into it, seconds since 1970; None if nothing says so.
        source: Who says so: ``"trainer"``, ``"companion"``, ``"doctor"``, ``"lock"`` (its process is gone or there) or
            ``"heartbeat"`` (of another host).
        reason: In words, where somebody gave one.
        traceback: Of the exception that ended it.
        signal: Name of the signal that ended it.
        exit_code: Of the process that left without a word.
        unsure_since: Time of the last heartbeat, if ``status`` is ``"unsure"``.
        attempt: Number of the latest stay; 0 before the first record.
        last_step: Last step that was logged by the latest attempt that logged any; -1 if none did.
        live: Whether some process may still write: the training, or the companion finishing its work.
        finishing: The training is over, and its companion is not done yet.
        holder: Who that is, in words.
    """

    status: RunStatus
    since: float | None = None
    source: str = "lock"
    reason: str = ""
    traceback: str = ""
    signal: str = ""
    exit_code: int | None = None
    unsure_since: float | None = None
    attempt: int = 0
    last_step: int = -1
    live: bool = False
    finishing: bool = False
    holder: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Process:
    """A process that writes, or wrote, a log of this run."""

    writer: Identified
    log: RunLogFiles
    records: list[LoggedRecord]
    alive: bool


def run_state(layout: RunLayout) -> RunState:
    """Derive the state of the run from its logs and locks; reads the ends of the logs only."""
    logs = [(log, writer) for log in read_log_files(layout.log) if (writer := writer_of(log)) is not None]
    unknown = _held_without_log(layout, {log.log_id for log, _ in logs})
    companion = _companion_lives(layout)
    if not logs:
        return RunState(
            status="running" if unknown else "killed",
            live=unknown or companion,
            finishing=companion and not unknown,
            holder="a process that just started" if unknown or companion else "",
        )
    attempt = max(writer.attempt for _, writer in logs)
    processes = [
        _Process(writer=writer, log=log, records=tail(log), alive=is_held(layout.log_lock(log.log_id)))
        for log, writer in logs
        if writer.attempt == attempt and writer.role != "worker"
    ]
    trainer = next((p for p in processes if p.writer.role == "trainer" and p.writer.rank == 0), None)
    others = [p for p in processes if p.writer.role != "trainer"]
    if unknown:
        # A lock that is held before its log has a record: the next attempt has begun this very moment.
        return RunState(status="running", attempt=attempt, live=True, holder="a process that just started")
    state = _decide(layout, trainer, others)
    return replace(
        state,
        attempt=attempt,
        last_step=_last_step(logs),
        live=state.live or companion or any(p.alive for p in processes),
        finishing=state.status not in STILL_GOING and (companion or any(p.alive for p in processes)),
        holder=state.holder or _holder(processes),
    )


def _decide(layout: RunLayout, trainer: _Process | None, others: Sequence[_Process]) -> RunState:
    said = last_status(trainer.records) if trainer is not None else None
    if trainer is not None and said is not None and said[0].status not in STILL_GOING:
        return _ended(said, "trainer")
    if trainer is not None and trainer.alive:
        return _going(said, trainer)
    for other in reversed(others):
        end = last_status(other.records)
        if end is not None and end[0].status not in STILL_GOING:
            return _ended(end, end[0].source)
    if said is not None and said[0].status == "paused":
        return _ended(said, "trainer")
    if trainer is None or _is_of_this_machine(trainer.writer):
        return RunState(status="killed", since=_last_sign(trainer), reason="its process is gone")
    return _by_heartbeat(layout, trainer, said)


def _ended(said: tuple[StatusChanged, float], source: str) -> RunState:
    event, when = said
    return RunState(
        status=event.status,
        since=when,
        source=source,
        reason=event.reason,
        traceback=event.traceback,
        signal=event.signal,
        exit_code=event.exit_code,
    )


def _going(said: tuple[StatusChanged, float] | None, trainer: _Process, source: str = "lock") -> RunState:
    status: RunStatus = said[0].status if said is not None else "running"
    since = said[1] if said is not None else trainer.log.started_ns / 1e9
    return RunState(status=status, since=since, source=source, live=True, holder=_name(trainer))


def _by_heartbeat(layout: RunLayout, trainer: _Process, said: tuple[StatusChanged, float] | None) -> RunState:
    try:
        beat = os.stat(layout.log_lock(trainer.log.log_id)).st_mtime
    except OSError:  # its owner removed it, as it does when it leaves in order
        return RunState(status="killed", since=_last_sign(trainer), reason="its process is gone")
    if time.time() - beat <= _HEARTBEAT_LATE:
        return _going(said, trainer, "heartbeat")
    reason = f"no heartbeat from {trainer.writer.host}"
    return RunState(status="unsure", since=beat, source="heartbeat", reason=reason, unsure_since=beat)


def _held_without_log(layout: RunLayout, known: set[bytes]) -> bool:
    try:
        names = os.listdir(layout.log)
    except OSError:
        return False
    locks = {name for name in names if _LOG_LOCK.fullmatch(name)} - {layout.log_lock(log_id).name for log_id in known}
    return any(is_held(layout.log / name) for name in locks)


def _companion_lives(layout: RunLayout) -> bool:
    """A companion that has not yet opened its log is there too: its trainer may be dead before it has started."""
    return any(is_held(path) for path in layout.log.glob("*.companion"))


def _is_of_this_machine(writer: Identified) -> bool:
    """Whether the kernel that would hold the writer's lock is ours. A container has another host name, but our boot."""
    me = this_process()
    return writer.host == me.host or (bool(me.boot_id) and writer.boot_id == me.boot_id)


def _last_sign(process: _Process | None) -> float | None:
    return process.records[-1].wall_ns / 1e9 if process is not None and process.records else None


def _last_step(logs: Sequence[tuple[RunLogFiles, Identified]]) -> int:
    trainers = [(log, writer) for log, writer in logs if writer.role == "trainer" and writer.rank == 0]
    for log, _ in sorted(trainers, key=lambda pair: pair[1].attempt, reverse=True):
        for record in reversed(tail(log)):
            if isinstance(record.event, Metrics) and record.event.step is not None:
                return record.event.step
    return -1


def _holder(processes: Sequence[_Process]) -> str:
    return next((_name(process) for process in processes if process.alive), "")


def _name(process: _Process) -> str:
    writer = process.writer
    return f"{writer.role} process {writer.pid} on {writer.host}"
