"""Which faults are there, how much of each is tried, and what has it found?

Each level gives an :class:`Outcome`; the command line, the CI test and the table of planted bugs all run these.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from torture import planted
from torture.checker import check_apart, run_apart
from torture.claims import Claims
from torture.kills import KILLS_PER_STORE, StoreResult, torture_store
from torture.lanes import new_folder, spread
from torture.lint import Rules, broken_rules
from torture.operation_log import Recorder
from torture.subject import Subject, Target
from torture.sweep import KillPoint, count_calls, kill_at, points
from torture.worker import Operation, Work

__all__ = [
    "Outcome",
    "equality",
    "failing_sync",
    "garbling_disk",
    "order_of_operations",
    "others_files",
    "random_kills",
    "rotten_bits",
    "sweep_operation",
]

_PATIENCE = 90.0
#: Written after what it points at was delivered; an old or absent cursor only delivers again.
_MAY_BE_LOST = (re.compile(r"guest-.*\.json"),)

Progress = Callable[[str], None]


@dataclass(slots=True)
class Outcome:
    """What one level has found.

    Attributes:
        level: Its name and extent.
        tried: Faults that happened.
        problems: Broken promises, each with what replays it.
        facts: Counts and sizes worth keeping.
        seconds: How long it took.
    """

    level: str
    tried: int = 0
    problems: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0


def random_kills(kills: int, seed: int, *, lanes: int = 2, keep: bool = False, progress: Progress = print) -> Outcome:
    """Stores with random kills until at least ``kills`` processes were killed."""
    begun = time.monotonic()
    outcome = Outcome("random kills")
    by_target: Counter[str] = Counter()
    stores = -(-kills // KILLS_PER_STORE)
    lost: list[float] = []
    for result in spread(partial(_one_store, keep=keep), range(seed, seed + stores), lanes):
        by_target.update(result.kills)
        lost.append(result.lost_ms)
        outcome.tried = sum(by_target.values())
        outcome.problems += [_replayable(result, problem) for problem in result.problems]
        outcome.facts["checkpoints loaded and compared"] = (
            outcome.facts.get("checkpoints loaded and compared", 0) + result.checkpoints
        )
        outcome.facts["of them differences"] = outcome.facts.get("of them differences", 0) + result.differences
        outcome.facts["records compared"] = outcome.facts.get("records compared", 0) + result.records
        _slowest(outcome, result)
        progress(f"seed {result.seed}: {outcome.tried} of {kills} kills, {len(outcome.problems)} problems")
        for problem in result.problems:
            progress(f"  {problem}")
    outcome.facts |= {f"killed: {target}": count for target, count in sorted(by_target.items())}
    outcome.facts["longest window lost when both died, ms"] = round(max(lost, default=0.0), 1)
    outcome.seconds = time.monotonic() - begun
    return outcome


def _one_store(seed: int, *, keep: bool) -> StoreResult:
    return torture_store(seed, KILLS_PER_STORE, new_folder(), keep=keep)


def _replayable(result: StoreResult, problem: str) -> str:
    return f"{problem} [python -m torture random --replay {result.seed}; kept: {result.kept}]"


def _slowest(outcome: Outcome, result: StoreResult) -> None:
    name = "slowest opening after a fault, ms"
    outcome.facts[name] = max(outcome.facts.get(name, 0.0), round(result.opened_in_ms, 1))


def sweep_operation(
    operation: Operation,
    process: Target,
    *,
    sample: int | None = None,
    seed: int = 0,
    lanes: int = 2,
    keep: bool = False,
    progress: Progress = print,
) -> Outcome:
    """Kill at every system call of an operation, or at a sample of them."""
    begun = time.monotonic()
    outcome = Outcome(f"sweep of {operation}, {process} killed")
    counted = next(iter(spread(_one_count, [(operation, process)], 1)))
    outcome.problems += [f"uninterrupted: {problem}" for problem in counted.problems]
    numbers = points(counted.calls, sample, seed)
    reached: Counter[str] = Counter()
    compared = differences = 0
    tasks = [(operation, process, number, keep) for number in numbers]
    for point in spread(_one_point, tasks, lanes):
        outcome.tried += bool(point.call)
        compared, differences = compared + point.checkpoints, differences + point.differences
        reached[point.call or "(survived)"] += 1
        outcome.problems += [f"call {point.number} ({point.call}): {p} [kept: {point.kept}]" for p in point.problems]
        progress(f"{outcome.level}: call {point.number} of {counted.calls}, {len(outcome.problems)} problems")
    outcome.facts = {
        "system calls counted": counted.calls,
        "tried": len(numbers),
        "checkpoints compared": compared,
        "of them differences": differences,
        "killed in": dict(reached),
    }
    outcome.seconds = time.monotonic() - begun
    return outcome


def _one_count(task: tuple[Operation, Target]) -> KillPoint:
    return count_calls(*task, new_folder())


def _one_point(task: tuple[Operation, Target, int, bool]) -> KillPoint:
    operation, process, number, keep = task
    return kill_at(operation, process, number, new_folder(), keep=keep)


def order_of_operations(*, keep: bool = False) -> Outcome:
    """Record the companion while two checkpoints are saved and the run ends, and check the order of its calls."""
    begun = time.monotonic()
    outcome = Outcome("order of writes, syncs and renames")
    count, problems = next(iter(spread(_record, [keep], 1)))
    outcome.tried, outcome.problems = count, problems
    outcome.seconds = time.monotonic() - begun
    return outcome


def _record(keep: bool) -> tuple[int, list[str]]:
    folder = new_folder()
    subject = Subject(Work(folder=str(folder), seed=1, attempt=0, operation="save", settle=True))
    claims = Claims(1, attempts=[subject.attempt])
    subject.hear_until("ready", _PATIENCE)
    recorder = Recorder(subject.companions()[0], folder / "operations.strace")
    subject.gate.open(2)
    problems = [f"still there: {process}" for process in subject.wait_for_all(_PATIENCE)]
    operations = recorder.stop()
    problems += broken_rules(operations, Rules(folder=str(folder), need_no_sync=_MAY_BE_LOST))
    (folder / "operations.strace").rename(folder.with_suffix(".strace")) if keep else None
    problems += check_apart(str(folder), claims, doctor=False).problems
    if not keep:
        shutil.rmtree(folder)
    return len(operations), problems


def equality(rounds: int, snapshot: str, seed: int, *, lanes: int = 2, folder: str | None = None) -> Outcome:
    """Save, change everything at once, load, compare; one lane per core, each with rounds of its own."""
    begun = time.monotonic()
    outcome = Outcome(f"equality, snapshot={snapshot!r}")
    tasks = [(-(-rounds // lanes), snapshot, seed + lane, folder) for lane in range(lanes)]
    discarded: Counter[str] = Counter()
    for answer in spread(_equal, tasks, lanes):
        if isinstance(answer, str):
            outcome.problems.append(answer)
            continue
        outcome.tried += answer["rounds"]
        outcome.problems += answer["problems"]
        discarded.update(answer["discarded"])
    outcome.facts = {f"discarded after {name}": count for name, count in sorted(discarded.items())}
    outcome.seconds = time.monotonic() - begun
    return outcome


def _equal(task: tuple[int, Any, int, str | None]) -> Any:
    return run_apart(partial(_equal_apart, task))


def _equal_apart(task: tuple[int, Any, int, str | None]) -> dict[str, Any]:
    from dataclasses import asdict

    from torture.equality import equal_after

    planted.plant_in_trainer()
    return asdict(equal_after(*task))


def garbling_disk(seed: int) -> Outcome:
    """Save on a disk that garbles all but the first checkpoint, keeping one: what is left must hold a sound one."""
    begun = time.monotonic()
    outcome = Outcome("a disk that garbles")
    ((tried, sound, _, folder),) = spread(_saved_on_a_bad_disk, [("garble", seed)], 1)
    outcome.tried = tried
    if not sound:
        outcome.problems.append(f"no sound checkpoint is left [kept: {folder}]")
    outcome.seconds = time.monotonic() - begun
    return outcome


def failing_sync(seed: int) -> Outcome:
    """Save on a disk that fails to sync one checkpoint and forgets it: whatever got its name must be sound."""
    begun = time.monotonic()
    outcome = Outcome("a disk that fails to sync")
    ((tried, sound, files, folder),) = spread(_saved_on_a_bad_disk, [("sync", seed)], 1)
    outcome.tried = tried
    outcome.problems += [f"{name} is damaged [kept: {folder}]" for name in sorted({*files} - {*sound})]
    if not sound:
        outcome.problems.append(f"no sound checkpoint is left [kept: {folder}]")
    outcome.seconds = time.monotonic() - begun
    return outcome


def _saved_on_a_bad_disk(task: tuple[str, int]) -> tuple[int, list[str], list[str], Path]:
    """How many saves there were; which files are sound, which are there at all; where. Removed if all is sound."""
    fault, seed = task
    folder = new_folder()
    os.environ["TORTURE_FAULT"] = fault
    try:
        subject = Subject(Work(folder=str(folder), seed=seed, attempt=0, operation="retain", flavour="retain"))
        _let_it_end(subject)
    finally:
        del os.environ["TORTURE_FAULT"]
    sound, files = run_apart(partial(_sound_ones, folder))
    if sound == files:
        shutil.rmtree(folder)
    return len(subject.attempt.saves), sound, files, folder


def others_files(seed: int) -> Outcome:
    """Two experiments in one folder, each keeping one checkpoint: neither may touch what the other has."""
    begun = time.monotonic()
    outcome = Outcome("checkpoints of another experiment")
    ((outcome.tried, outcome.problems),) = spread(_beside_another, [seed], 1)
    outcome.seconds = time.monotonic() - begun
    return outcome


def _beside_another(seed: int) -> tuple[int, list[str]]:
    folder = new_folder()
    last_saves = []
    for number in (seed, seed + 1):
        subject = Subject(Work(folder=str(folder), seed=number, attempt=0, operation="retain", flavour="retain"))
        _let_it_end(subject)
        last_saves.append(subject.attempt.saves[-1].filename)
    sound, _ = run_apart(partial(_sound_ones, folder))
    problems = [f"{name} is gone [kept: {folder}]" for name in last_saves if name not in sound]
    if not problems:
        shutil.rmtree(folder)
    return len(last_saves), problems


def _let_it_end(subject: Subject) -> None:
    subject.gate.open(2)
    if left := subject.wait_for_all(_PATIENCE):
        raise TimeoutError(f"still there: {left}")


def _sound_ones(folder: Path) -> tuple[list[str], list[str]]:
    """Names of the checkpoints in a store that can be read whole, and of all."""
    from milepost.checkpoint.commit import verify
    from milepost.core.errors import MilepostError

    sound, files = [], sorted((folder / "checkpoints").glob("*.milepost"))
    for file in files:
        with suppress(MilepostError):
            verify(file)
            sound.append(file.name)
    return sound, [file.name for file in files]


def rotten_bits(flips: int, seed: int) -> Outcome:
    """Flip single bits in the files of a sound store."""
    begun = time.monotonic()
    outcome = Outcome("flipped bits")
    facts = next(iter(spread(_rot, [(flips, seed)], 1)))
    outcome.tried, outcome.problems, outcome.facts = facts
    outcome.seconds = time.monotonic() - begun
    return outcome


def _rot(task: tuple[int, int]) -> tuple[int, list[str], dict[str, int]]:
    from torture.rot import rot

    flips, seed = task
    folder = new_folder()
    for compression in (True, False):
        subject = Subject(
            Work(folder=str(folder / str(compression)), seed=seed, attempt=0, operation="save", compression=compression)
        )
        subject.gate.open(2)
        subject.wait_for_all(_PATIENCE)
    tried, problems, outcomes = 0, [], Counter[str]()
    for store in sorted(folder.iterdir()):
        answer = run_apart(partial(_rot_one, store, seed, flips, rot))
        if isinstance(answer, str):
            problems.append(answer)
            continue
        tried += answer["flips"]
        problems += answer["problems"]
        outcomes.update(answer["outcomes"])
    shutil.rmtree(folder)
    return tried, problems, dict(outcomes)


def _rot_one(store: Path, seed: int, flips: int, rot: Callable[..., Any]) -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(rot(store, seed, flips))


def summary(outcomes: Sequence[Outcome]) -> str:
    """The outcomes as a Markdown table."""
    lines = ["| level | faults | problems | facts | seconds |", "|---|---|---|---|---|"]
    for outcome in outcomes:
        facts = "; ".join(f"{name}: {value}" for name, value in outcome.facts.items() if not isinstance(value, dict))
        problems = len(outcome.problems) or "none"
        lines.append(f"| {outcome.level} | {outcome.tried} | {problems} | {facts} | {outcome.seconds:.0f} |")
    return "\n".join(lines)
