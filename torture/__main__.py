"""Which commands are there? ``python -m torture --help``; run it with the interpreter that has milepost's packages."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

from torture.flavours import FLAVOURS
from torture.lanes import RESULTS
from torture.levels import (
    Outcome,
    equality,
    failing_sync,
    garbling_disk,
    order_of_operations,
    others_files,
    random_kills,
    rotten_bits,
    summary,
    sweep_operation,
)

_OPERATIONS = ("log", "end", "resume", *FLAVOURS)
_PROCESSES = ("trainer", "companion", "both")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 1 if a promise was broken."""
    given = _parser().parse_args(arguments)
    outcomes: list[Outcome] = given.run(given)
    table = summary(outcomes)
    print(f"\n{table}")
    problems = [problem for outcome in outcomes for problem in outcome.problems]
    for problem in problems[:50]:
        print(f"- {problem}")
    _keep(given.command, outcomes, table, problems)
    return 1 if problems else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m torture", description="Kill it, and look whether it keeps its promises."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--seed", type=int, default=int(time.time()) % 1_000_000, help="where the random numbers start")
    shared.add_argument("--lanes", type=int, default=min(8, os.cpu_count() or 1), help="faults at the same time")
    shared.add_argument("--keep", action="store_true", help="keep the stores of faults that broke nothing, too")

    sweep = commands.add_parser("sweep", parents=[shared], help="kill at every system call of an operation")
    sweep.add_argument("--operation", choices=_OPERATIONS, required=True)
    sweep.add_argument("--process", choices=_PROCESSES, required=True)
    sweep.add_argument("--sample", type=int, help="only so many of the system calls")
    sweep.set_defaults(run=_sweep)

    kills = commands.add_parser("random", parents=[shared], help="kill at random moments")
    kills.add_argument("--kills", type=int, default=1000)
    kills.add_argument("--replay", type=int, metavar="SEED", help="the faults of one store again, and keep it")
    kills.set_defaults(run=_random)

    order = commands.add_parser("order", parents=[shared], help="check the order of writes, syncs and renames")
    order.set_defaults(run=lambda given: [order_of_operations(keep=given.keep)])

    same = commands.add_parser("equality", parents=[shared], help="change the state right behind a save")
    same.add_argument("--rounds", type=int, default=2000)
    same.add_argument("--snapshot", choices=("copy", "overlap"), action="append", help="default: both")
    same.add_argument("--folder", help="where the checkpoints go; a folder in memory makes more rounds")
    same.set_defaults(run=_equality)

    disk = commands.add_parser("disk", parents=[shared], help="save on a disk that garbles, or fails to sync")
    disk.set_defaults(run=lambda given: [garbling_disk(given.seed), failing_sync(given.seed)])

    others = commands.add_parser("others", parents=[shared], help="keep few checkpoints beside another experiment")
    others.set_defaults(run=lambda given: [others_files(given.seed)])

    rot = commands.add_parser("rot", parents=[shared], help="flip bits in stored files")
    rot.add_argument("--flips", type=int, default=1000)
    rot.set_defaults(run=lambda given: [rotten_bits(given.flips, given.seed)])

    planted = commands.add_parser("planted", parents=[shared], help="plant bugs and show which level notices")
    planted.add_argument(
        "--only-where-it-must", action="store_true", help="of each bug only the levels that must notice it"
    )
    planted.set_defaults(run=_planted)
    return parser


def _sweep(given: argparse.Namespace) -> list[Outcome]:
    chosen = {"sample": given.sample, "seed": given.seed, "lanes": given.lanes, "keep": given.keep}
    return [sweep_operation(given.operation, given.process, **chosen)]


def _random(given: argparse.Namespace) -> list[Outcome]:
    if given.replay is not None:
        return [random_kills(1, given.replay, lanes=1, keep=True)]
    print(f"seed {given.seed}")
    return [random_kills(given.kills, given.seed, lanes=given.lanes, keep=given.keep)]


def _equality(given: argparse.Namespace) -> list[Outcome]:
    return [
        equality(given.rounds, snapshot, given.seed, lanes=given.lanes, folder=given.folder)
        for snapshot in given.snapshot or ("copy", "overlap")
    ]


def _planted(given: argparse.Namespace) -> list[Outcome]:
    from torture.biting import bite, table

    rows = bite(given.seed, lanes=given.lanes, everywhere=not given.only_where_it_must)
    text = table(rows)
    print(f"\n{text}\n")
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "planted.md").write_text(f"{text}\n")
    return [row.verdict for row in rows]


def _keep(command: str, outcomes: list[Outcome], table: str, problems: list[str]) -> None:
    """Results as JSON and as Markdown."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    name = f"{command}-{time.strftime('%Y%m%d-%H%M%S')}"
    content: dict[str, Any] = {"arguments": sys.argv[1:], "outcomes": [asdict(outcome) for outcome in outcomes]}
    (RESULTS / f"{name}.json").write_text(json.dumps(content, indent=1))
    listed = "\n".join(f"- {problem}" for problem in problems) or "No promise was broken."
    command_line = " ".join(["python -m torture", *sys.argv[1:]])
    (RESULTS / f"{name}.md").write_text(f"`{command_line}`\n\n{table}\n\n{listed}\n")


if __name__ == "__main__":
    sys.exit(main())
