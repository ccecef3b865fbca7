"""Does anything break when a process is killed at any one system call of an operation?

The operation runs once under a counter; then again for each number of a system call, and the process is killed on entry
of that call. Every time in a fresh store, up to the same gate, so the operation is killed and not its preparation.

Several threads make the calls, so the same number is not the same call each time; all numbers together still hit every
call. A process that needed fewer calls this time survives: its end is checked like any other.
"""

from __future__ import annotations

import random
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from torture.checker import check_apart
from torture.claims import Claims
from torture.flavours import FLAVOURS, FlavourName
from torture.subject import Subject, Target
from torture.tracer import Tracer
from torture.worker import Operation, Work

__all__ = ["KillPoint", "count_calls", "flavour_of", "kill_at", "points", "system_call"]

_PATIENCE = 90.0


@dataclass(slots=True)
class KillPoint:
    """What became of one kill.

    Attributes:
        operation: What was going on.
        process: Which process was traced; ``"both"`` traces the companion and kills the trainer with it.
        number: The number of the system call from 1; 0 only counts.
        calls: Calls that were begun.
        call: Name of the call that was not executed; empty if the process survived.
        problems: Broken promises.
        checkpoints: Files of checkpoints that were compared, over all checks.
        differences: Those of them that hold differences to another one.
        lost_ms: Window of acknowledged records lost when both died.
        kept: Where the store is, if it was kept.
    """

    operation: Operation
    process: Target
    number: int
    calls: int = 0
    call: str = ""
    problems: list[str] = field(default_factory=list)
    checkpoints: int = 0
    differences: int = 0
    lost_ms: float = 0.0
    kept: str = ""


def count_calls(operation: Operation, process: Target, folder: Path) -> KillPoint:
    """Run the operation once and count."""
    return kill_at(operation, process, 0, folder)


def flavour_of(operation: Operation) -> FlavourName:
    """How the worker saves when ``operation`` is what is looked at."""
    return next((name for name in FLAVOURS if name == operation), "save")


def points(calls: int, sample: int | None, seed: int) -> list[int]:
    """All numbers of system calls, or a random sample of them that holds the first and the last."""
    if sample is None or calls <= sample:
        return list(range(1, calls + 1))
    between = random.Random(seed).sample(range(2, calls), max(0, sample - 2))
    return sorted({1, calls, *between})


def kill_at(operation: Operation, process: Target, number: int, folder: Path, *, keep: bool = False) -> KillPoint:
    """Kill ``process`` at system call ``number`` of ``operation``, check, resume, and check again."""
    point = KillPoint(operation, process, number)
    claims = Claims(number + 1, flavour_of(operation))
    if operation == "resume":
        _die_after_a_checkpoint(claims, folder, point)
    subject = _start(claims, folder, operation, settle=process != "trainer")
    subject.hear_until("ready", _PATIENCE)
    tracer = _operate(subject, point)
    point.calls, killed_in = tracer.count, tracer.killed_in
    point.call = "" if killed_in is None else system_call(killed_in)
    if killed_in is not None:
        _note_the_kill(subject, process)
    subject.gate.open(2)
    _until_gone(subject, point)
    if not _recovers_by_itself(claims, point):
        _check(claims, folder, point, f"killed at call {number}, {point.call}" if point.call else "not killed")
    if not point.problems:
        _go_on(claims, folder, point)
    if point.problems or keep:
        point.kept = str(folder)
    else:
        shutil.rmtree(folder)
    return point


def _start(claims: Claims, folder: Path, operation: Operation, *, settle: bool = False) -> Subject:
    number = len(claims.attempts)
    to_do = Work(
        folder=str(folder),
        seed=claims.seed,
        attempt=number,
        operation=operation,
        flavour=claims.flavour,
        settle=settle,
        compression=claims.seed % 2 == 0,
    )
    subject = Subject(to_do)
    claims.attempts.append(subject.attempt)
    return subject


def _operate(subject: Subject, point: KillPoint) -> Tracer:
    """Let the operation happen under the tracer, until it is done or the traced process dead."""
    also_kill = (subject.pid,) if point.process == "both" else ()
    if point.process == "trainer":
        tracer = Tracer(subject.pid, kill_at=point.number)
        subject.gate.open(1)
    else:
        if point.operation == "resume":
            subject.gate.open(1)
        tracer = Tracer(_companion_of(subject), kill_at=point.number, also_kill=also_kill)
        subject.gate.open(1)
    subject.hear_until("done", _PATIENCE)
    tracer.stop()
    return tracer


def _companion_of(subject: Subject) -> int:
    end = time.monotonic() + _PATIENCE
    while time.monotonic() < end:
        with suppress(IndexError):
            return subject.companions()[0]
        if not subject.hear(0.001):
            break
    raise RuntimeError("the worker has no companion")


def _note_the_kill(subject: Subject, process: Target) -> None:
    now = time.monotonic_ns()
    if process != "companion":
        subject.attempt.trainer_killed_at = now
    if process != "trainer":
        subject.attempt.companion_killed_at.append(now)


def _until_gone(subject: Subject, point: KillPoint) -> None:
    point.problems += [f"still there after {_PATIENCE:.0f} s: {process}" for process in subject.wait_for_all(_PATIENCE)]


def _die_after_a_checkpoint(claims: Claims, folder: Path, point: KillPoint) -> None:
    """An attempt whose trainer is killed, so that there is something to resume."""
    subject = _start(claims, folder, "log")
    subject.hear_until("ready", _PATIENCE)
    subject.kill("trainer")
    _until_gone(subject, point)


def _go_on(claims: Claims, folder: Path, point: KillPoint) -> None:
    """The next attempt goes on with the same run behind its newest checkpoint, and ends in order."""
    if claims.attempts[-1].end_intended:
        return  # a run that has ended is not resumed
    steps = _steps_to_go_on_at(claims, folder, point)
    subject = _start(claims, folder, "train")
    subject.hear_until("logged", _PATIENCE)
    subject.gate.open(1)
    _until_gone(subject, point)
    if subject.attempt.resumed_at not in steps:
        point.problems.append(f"went on at {subject.attempt.resumed_at}, the checkpoint says {steps}")
    if not subject.attempt.end_acknowledged:
        point.problems.append("the attempt after it did not end")
    _check(claims, folder, point, "after the next attempt")


def _recovers_by_itself(claims: Claims, point: KillPoint) -> bool:
    """Whether nobody looks before the next attempt starts, which then has to find the spool."""
    return claims.promised.survives_all and point.number % 2 == 1 and not claims.attempts[-1].end_intended


def _steps_to_go_on_at(claims: Claims, folder: Path, point: KillPoint) -> range:
    if not _recovers_by_itself(claims, point):
        step = check_apart(str(folder), claims, doctor=False).newest_step + 1
        return range(step, step + 1)
    saves = [save for attempt in claims.attempts for save in attempt.saves if claims.is_kept(attempt, save)]
    begun = [save.step for attempt in claims.attempts for save in attempt.saves]
    return range(max(save.step for save in saves) + 1, max(begun) + 2)


def _check(claims: Claims, folder: Path, point: KillPoint, label: str) -> None:
    verdict = check_apart(str(folder), claims, doctor=point.number % 10 == 1)
    point.lost_ms = max(point.lost_ms, verdict.lost_ms)
    point.checkpoints += len(verdict.checkpoints)
    point.differences += verdict.differences
    point.problems += [f"{label}: {problem}" for problem in verdict.problems]
    claims.seen = sorted({*claims.seen, *verdict.checkpoints})


@cache
def _names() -> dict[int, str]:
    """Names of system calls, where the C library's headers are installed."""
    names: dict[int, str] = {}
    for header in ("/usr/include/x86_64-linux-gnu/asm/unistd_64.h", "/usr/include/asm-generic/unistd.h"):
        with suppress(OSError):
            for line in Path(header).read_text().splitlines():
                parts = line.split()
                if len(parts) == 3 and parts[1].startswith("__NR_") and parts[2].isdigit():
                    names.setdefault(int(parts[2]), parts[1].removeprefix("__NR_"))
            break
    return names


def system_call(number: int) -> str:
    """Name of a system call, or its number."""
    return _names().get(number, f"call {number}")
