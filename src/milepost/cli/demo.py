"""What happens to a training that is killed? See for yourself: one is, twice, and ends where it would have ended.

The same command runs four times in one folder. Nobody disturbs the first; the others are one run, which is killed
between two steps, then inside ``save_checkpoint``, and goes on each time. Its losses must equal those of the first, bit
for bit.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import count, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from milepost.cli.commands import show
from milepost.cli.output import Cell, print_line, print_table
from milepost.core.errors import ConflictError, MissingDependencyError

if TYPE_CHECKING:
    from rich.table import Table

    from milepost.runs.store import RunReader

__all__ = ["demo", "differences"]

_COMPARED = ("train/loss", "val/loss")
_PROGRESS = re.compile(r"step (\d+)/(\d+)  train/loss (\S+)")
_BEGIN = re.compile(r"(?:starts|goes on) at step (\d+)")
_COMMAND = "python train.py"
_BAR = 24

Losses = Mapping[str, Mapping[int, float]]


@dataclass(slots=True, kw_only=True)
class _Attempt:
    """One start of the command, as it is seen from outside.

    Attributes:
        accident: What the training is asked to die of: ``"step 84"``, ``"save 140"`` (the first one from there on).
        expected: How its end is called if everything goes as planned.
    """

    expected: str
    accident: str = ""
    begin: int | None = None
    done: int = 0
    total: int = 0
    loss: str = ""
    end: str = ""
    output: deque[str] = field(default_factory=lambda: deque(maxlen=30))

    def read(self, line: str) -> None:
        """Take in one line that the training printed."""
        self.output.append(line)
        if found := _PROGRESS.match(line):
            self.done, self.total, self.loss = int(found[1]), int(found[2]), found[3]
        elif found := _BEGIN.fullmatch(line):
            self.begin = int(found[1])

    def cells(self) -> tuple[str, ...]:
        filled = round(_BAR * self.done / self.total) if self.total else 0
        done = f"{self.done}/{self.total}" if self.total else ""
        start = "starting" if self.begin is None else f"from step {self.begin}"
        return start, "━" * filled + "·" * (_BAR - filled), done, self.loss, self.end


def _plan() -> list[_Attempt]:
    return [
        _Attempt(expected="completed"),
        _Attempt(expected="SIGKILL between two steps", accident="step 84"),
        _Attempt(expected="SIGKILL inside save_checkpoint", accident="save 140"),
        _Attempt(expected="completed"),
    ]


def demo(
    folder: Annotated[
        Path | None, typer.Option("--dir", metavar="FOLDER", help="An empty folder, or one to be made.")
    ] = None,
) -> None:
    """A training is killed twice and goes on as if nothing had happened: two minutes, offline, on the CPU."""
    if find_spec("torch") is None:
        raise MissingDependencyError(
            "the demo trains a small PyTorch model, and torch is not here", cure="pip install torch"
        )
    place = _empty_folder(folder)
    (place / "train.py").write_bytes(Path(__file__).with_name("demo_training.py").read_bytes())
    _introduce(place)
    attempts = _plan()
    with _watching() as changed:
        failed = next((a for a in attempts if not _run(a, place, changed)), None)
    if failed is not None:
        _explain_failure(failed)
        raise typer.Exit(1)
    if not _judge(place, attempts):
        raise typer.Exit(1)


def _empty_folder(asked: Path | None) -> Path:
    """The folder asked for, or the first of ``milepost-demo``, ``milepost-demo-2``, ... that holds nothing."""
    if asked is not None and any(_contents(asked)):
        raise ConflictError(f"{asked} is not empty", cure="give --dir a new folder")
    names = (f"milepost-demo-{number}" if number > 1 else "milepost-demo" for number in count(1))
    folder = asked or next(path for path in map(Path, names) if not any(_contents(path)))
    folder.mkdir(parents=True, exist_ok=True)
    return folder.absolute()


def _contents(folder: Path) -> Iterator[Path]:
    return folder.iterdir() if folder.is_dir() else iter([folder] if folder.exists() else [])


def _introduce(place: Path) -> None:
    print_line(("A training is killed twice. The same command goes on as if nothing had happened.", "bold"))
    print_line("A small transformer learns Python's manual, on the CPU and offline. Its first")
    print_line("run is left alone; the second is killed with SIGKILL, which nothing can catch.")
    print_line(f"Read it, and what it leaves: {os.path.relpath(place)}")
    print_line("")


def _run(attempt: _Attempt, place: Path, changed: Callable[[_Attempt], None]) -> bool:
    """Run the command once; whether it ended as planned."""
    with subprocess.Popen(
        [sys.executable, "train.py"],
        cwd=place,
        env=_environment(attempt.accident),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
    ) as training:
        assert training.stdout is not None
        for line in training.stdout:
            attempt.read(line.rstrip())
            changed(attempt)
    planned = training.returncode == (-9 if attempt.accident else 0)
    attempt.end = attempt.expected if planned else f"unexpected end, exit code {training.returncode}"
    changed(attempt)
    return planned


def _environment(accident: str) -> dict[str, str]:
    """Ours, so that the training finds the same packages from its own folder, without settings that lead elsewhere."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MILEPOST_")}
    paths = [os.path.abspath(path) for path in kept.pop("PYTHONPATH", "").split(os.pathsep) if path]
    if paths:
        kept["PYTHONPATH"] = os.pathsep.join(paths)
    return kept | {"DEMO_ACCIDENT": accident, "PYTHONIOENCODING": "utf-8"}


@contextmanager
def _watching() -> Iterator[Callable[[_Attempt], None]]:
    """Shows the attempts while they run: live in a terminal, else a line when one has ended."""
    if not sys.stdout.isatty():
        yield lambda attempt: print_line(_as_line(attempt)) if attempt.end else None
        return
    from rich.live import Live

    started: list[_Attempt] = []
    with Live(refresh_per_second=8) as live:

        def changed(attempt: _Attempt) -> None:
            if attempt not in started:
                started.append(attempt)
            live.update(_as_table(started))

        yield changed


def _as_line(attempt: _Attempt) -> str:
    start, bar, done, loss, end = attempt.cells()
    return f"$ {_COMMAND}   {start:<13}  {bar}  {done:>7}  loss {loss}  {end}"


def _as_table(attempts: list[_Attempt]) -> Table:
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(max_width=_BAR)  # this one and the last give way where the terminal is narrow
    table.add_column(no_wrap=True, justify="right")
    table.add_column(no_wrap=True, style="dim")
    table.add_column(min_width=len("save_checkpoint"))
    for attempt in attempts:
        start, _, done, loss, end = attempt.cells()
        bar = ProgressBar(attempt.total or 1, attempt.done, complete_style="cyan", finished_style="cyan")
        table.add_row(f"$ {_COMMAND}", start, bar, done, loss, Text(end, "green" if end == "completed" else "red"))
    return table


def _explain_failure(attempt: _Attempt) -> None:
    print_line("")
    print_line((f"The demo stops here: expected was '{attempt.expected}', seen was '{attempt.end}'.", "bold red"))
    print_line("The last that the training printed:")
    for line in attempt.output:
        print_line(f"  {line}")


def _judge(place: Path, attempts: list[_Attempt]) -> bool:
    """Show the two runs side by side, and return whether they are what was promised."""
    from milepost.runs.store import open as open_store

    runs = open_store(place).runs()
    if len(runs) != 2:
        print_line((f"There should be two runs in {place}, but there are {len(runs)}.", "bold red"))
        return False
    resumed, reference = runs
    expected, found = _losses(reference), _losses(resumed)
    print_line("")
    _print_side_by_side(expected, found, attempts)
    print_line("")
    print_line((f"$ milepost show {resumed.id}", "bold"))
    show(resumed.id, folder=place)
    print_line("")
    return _pass_judgement(expected, found, place)


def _pass_judgement(expected: Losses, found: Losses, place: Path) -> bool:
    problems = differences(expected, found)
    if problems:
        print_line(("The run that was killed differs from the one that was not:", "bold red"))
        for problem in problems[:10]:
            print_line(f"  {problem}")
        return False
    numbers = " and ".join(f"{len(expected[name])} {name}" for name in _COMPARED)
    print_line((f"✓ All {numbers} values are equal, bit for bit.", "bold green"))
    print_line("  Your turn: start it again, kill it wherever you like, start it once more:")
    print_line(f"  cd {os.path.relpath(place)} && {_COMMAND}")
    return True


def _losses(run: RunReader) -> dict[str, dict[int, float]]:
    series = {name: run.series(name) for name in _COMPARED}
    return {name: dict(zip(s.step.tolist(), s.value.tolist(), strict=True)) for name, s in series.items()}


def differences(expected: Losses, found: Losses) -> list[str]:
    """What is not the same in both, one sentence each; numbers must agree in every bit."""
    problems = []
    for name, values in expected.items():
        if not values:
            problems.append(f"{name}: the uninterrupted run logged none")
        for step in sorted(values.keys() | found[name].keys()):
            left, right = values.get(step), found[name].get(step)
            if left is None or right is None or left.hex() != right.hex():
                problems.append(f"{name} at step {step}: {left} without, {right} with interruptions")
    return problems


def _print_side_by_side(expected: Losses, found: Losses, attempts: list[_Attempt]) -> None:
    before, after = expected["train/loss"], found["train/loss"]
    rows: list[list[Cell]] = []
    for step, remark in _interesting_steps(attempts, last=max(before, default=0)).items():
        left, right = before.get(step), after.get(step)
        same: Cell = ("=", "green") if left is not None and left == right else ("differs", "bold red")
        rows.append([str(step), repr(left), same, repr(right), (remark, "dim")])
    print_table(["step", "train/loss, uninterrupted", "", "killed twice", ""], rows, numbers=["step"])


def _interesting_steps(attempts: list[_Attempt], *, last: int) -> dict[int, str]:
    """The ends of the training and both sides of each accident, with what happened there."""
    steps = {0: "", last: ""}
    for attempt, successor in pairwise(attempts[1:]):
        steps[successor.begin or 0] = "the next attempt goes on here"
        if "save" in attempt.expected:
            steps |= {attempt.done: "SIGKILL while this step is saved", attempt.done + 1: ""}
        else:
            steps |= {attempt.done - 1: "SIGKILL after this step", attempt.done: ""}
    return dict(sorted(steps.items()))
