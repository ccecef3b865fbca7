"""Does anything break when trainer, companion or both are killed at a random moment, again and again?

One *store* is one run with several attempts: each is killed within 0 to 300 ms of its birth, its first record or its
first checkpoint, is checked, and the next one resumes it; the last one ends in order. The faults of a store are a
function of its seed.
"""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from torture.checker import Verdict, check_apart
from torture.claims import Claims
from torture.flavours import FLAVOURS
from torture.subject import Subject, Target
from torture.worker import Work

__all__ = ["Fault", "StoreResult", "plan", "torture_store"]

KILLS_PER_STORE = 8
_LONGEST_DELAY = 0.3
#: A loaded machine may take its time; whoever is still there after this hangs.
_PATIENCE = 90.0
#: Pruning is no training.
_TRAINED = tuple(name for name in FLAVOURS if name != "prune")
_WORDS = {"first record": "logged", "first checkpoint": "committed"}


Anchor = Literal["birth", "first record", "first checkpoint", "before"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One kill, or the order to end.

    Attributes:
        anchor: What the delay counts from: the birth of the process, its first record (its companion is still starting
            then), its first committed checkpoint, or the fault before.
        delay: Seconds.
        target: Who dies; ``"end"`` lets the worker end its run.
        companion_first: Of both, which dies first.
    """

    anchor: Anchor
    delay: float
    target: Target | Literal["end"]
    companion_first: bool = False


@dataclass(slots=True)
class StoreResult:
    """What became of one store.

    Attributes:
        seed: Replays it.
        kills: Processes killed, by target.
        problems: Broken promises.
        records: Records of metrics found by the last check.
        checkpoints: Checkpoint files found whole, over all checks.
        differences: Those of them that hold differences to another one.
        lost_ms: Largest window of acknowledged records lost when both died.
        opened_in_ms: Slowest opening and reading after a fault.
        seconds: How long all of it took.
        kept: Where the store is, if it was kept.
    """

    seed: int
    kills: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    records: int = 0
    checkpoints: int = 0
    differences: int = 0
    lost_ms: float = 0.0
    opened_in_ms: float = 0.0
    seconds: float = 0.0
    kept: str = ""

    def take(self, verdict: Verdict, label: str) -> None:
        """Add what one check has found."""
        self.problems += [f"{label}: {problem}" for problem in verdict.problems]
        self.records = verdict.records
        self.checkpoints += len(verdict.checkpoints)
        self.differences += verdict.differences
        self.lost_ms = max(self.lost_ms, verdict.lost_ms)
        self.opened_in_ms = max(self.opened_in_ms, verdict.opened_in_ms)


def plan(seed: int, kills: int) -> list[list[Fault]]:
    """The faults of each attempt at the store of ``seed``; the last attempt ends in order."""
    chance = random.Random(seed)
    attempts: list[list[Fault]] = []
    planned = 0
    while planned < kills:
        faults = list(_faults(chance))
        planned += sum(fault.target != "end" for fault in faults)
        attempts.append(faults)
    return [*attempts, [Fault(anchor="first checkpoint", delay=chance.uniform(0, _LONGEST_DELAY), target="end")]]


def _faults(chance: random.Random) -> Iterator[Fault]:
    """The faults of one attempt; the last one ends it."""
    anchors: tuple[Anchor, ...] = ("birth", "first record", "first checkpoint")
    anchor = chance.choices(anchors, (2, 2, 6))[0]
    while True:
        targets: tuple[Target, ...] = ("trainer", "companion", "both")
        target = chance.choices(targets, (5, 2, 3))[0]
        delay = chance.uniform(0, _LONGEST_DELAY)
        yield Fault(anchor=anchor, delay=delay, target=target, companion_first=chance.random() < 0.5)
        if target != "companion":
            return
        anchor = "before"


def torture_store(seed: int, kills: int, folder: Path, *, keep: bool = False) -> StoreResult:
    """Live and die through the plan of ``seed`` in ``folder``, which is removed unless something is wrong."""
    begun = time.monotonic()
    result = StoreResult(seed)
    chance = random.Random(~seed)
    save_every = chance.choice((25, 60, 150))
    compression = chance.random() < 0.7
    claims = Claims(seed, chance.choice(_TRAINED))
    expected_step = 0
    for number, faults in enumerate(plan(seed, kills)):
        subject = Subject(
            Work(
                folder=str(folder),
                seed=seed,
                attempt=number,
                flavour=claims.flavour,
                save_every=save_every,
                compression=compression,
            )
        )
        claims.attempts.append(subject.attempt)
        left = _apply(faults, subject, result)
        label = f"{claims.flavour}, attempt {number} ({', '.join(fault.target for fault in faults)})"
        result.problems += [f"{label}: still there after {_PATIENCE:.0f} s: {process}" for process in left]
        at = subject.attempt.resumed_at
        if at is not None and at != expected_step:
            result.problems.append(f"{label}: went on at step {at}, the checkpoint says {expected_step}")
        verdict = check_apart(str(folder), claims, doctor=chance.random() < 0.2)
        result.take(verdict, label)
        if result.problems:
            break
        expected_step = verdict.newest_step + 1
        claims.seen = sorted({*claims.seen, *verdict.checkpoints})
    result.seconds = time.monotonic() - begun
    if result.problems or keep:
        result.kept = str(folder)
    else:
        shutil.rmtree(folder)
    return result


def _apply(faults: list[Fault], subject: Subject, result: StoreResult) -> list[str]:
    """Do to the worker what is planned; command lines of what does not go away."""
    for fault in faults:
        if fault.anchor in _WORDS:
            subject.hear_until(_WORDS[fault.anchor], _PATIENCE)
        subject.hear_for(fault.delay)
        if fault.target == "end":
            subject.gate.open(1)
        else:
            result.kills[fault.target] = result.kills.get(fault.target, 0) + 1
            subject.kill(fault.target, companion_first=fault.companion_first)
    return subject.wait_for_all(_PATIENCE)
