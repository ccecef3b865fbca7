"""Does each level notice the bugs that it can notice, and nothing where there is none?"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from torture.levels import (
    Outcome,
    equality,
    failing_sync,
    garbling_disk,
    order_of_operations,
    others_files,
    random_kills,
    rotten_bits,
    sweep_operation,
)
from torture.planted import BUGS, Bug

__all__ = ["NOTICED_BY", "Row", "bite", "table"]

Level = Callable[[int, int], Outcome]

LEVELS: dict[str, Level] = {
    "sweep of log": lambda seed, lanes: sweep_operation(
        "log", "trainer", sample=8, seed=seed, lanes=lanes, progress=_silent
    ),
    "random kills": lambda seed, lanes: random_kills(16, seed, lanes=lanes, progress=_silent),
    "sweep of saves": lambda seed, lanes: sweep_operation(
        "save", "both", sample=40, seed=seed, lanes=lanes, progress=_silent
    ),
    "sweep of returned saves": lambda seed, lanes: sweep_operation(
        "save", "trainer", sample=8, seed=seed, lanes=lanes, progress=_silent
    ),
    "sweep of differences": lambda seed, lanes: sweep_operation(
        "delta", "companion", sample=3, seed=seed, lanes=lanes, progress=_silent
    ),
    "sweep of spools": lambda seed, lanes: sweep_operation(
        "spool", "both", sample=16, seed=seed, lanes=lanes, progress=_silent
    ),
    "equality": lambda seed, lanes: equality(60, "overlap", seed, lanes=lanes),
    "garbling disk": lambda seed, lanes: garbling_disk(seed),
    "failing sync": lambda seed, lanes: failing_sync(seed),
    "other's files": lambda seed, lanes: others_files(seed),
    "order of calls": lambda seed, lanes: order_of_operations(),
    "flipped bits": lambda seed, lanes: rotten_bits(200, seed),
}

#: Where a planted bug must be noticed. A kill loses no page that the kernel was given, so a missing sync is no concern
#: of the first two levels; and nothing but damaged bytes needs a checksum.
NOTICED_BY: dict[Bug, tuple[str, ...]] = {
    "ack_early": ("sweep of log", "random kills"),
    "rename_before_data": ("order of calls",),
    "no_dir_fsync": ("order of calls",),
    "no_crc": ("flipped bits",),
    "in_place": ("sweep of saves",),
    "base_removed": ("sweep of differences",),
    "not_read_back": ("garbling disk",),
    "sealed_early": ("sweep of spools",),
    "torn_published": ("equality",),
    "save_acked_early": ("sweep of returned saves",),
    "sync_tried_again": ("failing sync",),
    "others_removed": ("other's files",),
}


@dataclass(slots=True)
class Row:
    """What the levels have said with one bug planted, or with none.

    Attributes:
        bug: Which; None for the product as it is.
        outcomes: By level.
    """

    bug: Bug | None
    outcomes: dict[str, Outcome] = field(default_factory=dict)

    @property
    def verdict(self) -> Outcome:
        """A problem if a level was silent that must notice, or noticed what is not there."""
        must = NOTICED_BY[self.bug] if self.bug is not None else ()
        verdict = Outcome(f"planted: {self.bug or 'nothing'}", tried=sum(o.tried for o in self.outcomes.values()))
        for level, outcome in self.outcomes.items():
            if level in must and not outcome.problems:
                verdict.problems.append(f"{level} did not notice {self.bug}")
            if self.bug is None:
                verdict.problems += outcome.problems
        verdict.seconds = sum(outcome.seconds for outcome in self.outcomes.values())
        return verdict


def _silent(text: str) -> None:
    del text


def bite(seed: int, *, lanes: int = 2, everywhere: bool = True) -> list[Row]:
    """Plant each bug and let the levels look.

    Args:
        seed: Of the faults.
        lanes: Faults at the same time.
        everywhere: Run every level for every bug, and with none planted, instead of only those that must notice.
    """
    rows = []
    for bug in (None, *BUGS):
        row = Row(bug)
        must = NOTICED_BY[bug] if bug is not None else ()
        levels = tuple(LEVELS) if everywhere else must
        with _planted(bug):
            for level in levels:
                row.outcomes[level] = LEVELS[level](seed, lanes)
        rows.append(row)
    return rows


@contextmanager
def _planted(bug: Bug | None) -> Iterator[None]:
    before = os.environ.pop("TORTURE_BUG", None)
    if bug is not None:
        os.environ["TORTURE_BUG"] = bug
    try:
        yield
    finally:
        os.environ.pop("TORTURE_BUG", None)
        if before is not None:
            os.environ["TORTURE_BUG"] = before


def table(rows: list[Row]) -> str:
    """Planted bugs by levels, as Markdown."""
    lines = [f"| planted bug | {' | '.join(LEVELS)} |", f"|---|{'---|' * len(LEVELS)}"]
    for row in rows:
        cells = [_cell(row, level) for level in LEVELS]
        lines.append(f"| {row.bug or '(none)'} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(row: Row, level: str) -> str:
    outcome = row.outcomes.get(level)
    if outcome is None:
        return "not run"
    if outcome.problems:
        return f"**noticed** ({len(outcome.problems)} problems, {outcome.tried} tried)"
    must = row.bug is not None and level in NOTICED_BY[row.bug]
    return "**NOT NOTICED**" if must else f"silent ({outcome.tried} tried)"
