"""What does each command do? Ask the store, make views, print them; the two that write say what they write."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from milepost.cli.options import AsJson, Folder, RunName
from milepost.cli.output import print_json, print_line

if TYPE_CHECKING:
    from milepost.companion.doctor import Finding
    from milepost.runs.store import Store

__all__ = ["checkout", "doctor", "runs", "show", "status"]


def _store(folder: Path | None) -> Store:
    from milepost.runs.store import open as open_store

    return open_store(folder)


def status(folder: Path | None, as_json: bool) -> None:
    """What runs here, and if nothing does, how the newest run ended."""
    from milepost.cli.pages import print_status
    from milepost.cli.views import status_view

    view = status_view(_store(folder))
    if as_json:
        print_json(view)
    else:
        print_status(view)


def runs(
    query: Annotated[
        str, typer.Argument(metavar="[QUERY]", help='Only these, for example "group:lr-sweep best(val/loss)<0.3".')
    ] = "",
    folder: Folder = None,
    as_json: AsJson = False,
) -> None:
    """All runs, newest first, or those that a query asks for."""
    from milepost.cli.pages import print_runs
    from milepost.cli.views import run_lines

    lines = run_lines(_store(folder).runs(query))
    if as_json:
        print_json(lines)
    else:
        print_runs(lines)


def show(
    name: RunName,
    code: Annotated[
        bool, typer.Option("--code", help="Its commit, branch, uncommitted difference and untracked files.")
    ] = False,
    folder: Folder = None,
    as_json: AsJson = False,
) -> None:
    """One run: what is wrong, metrics, checkpoints, settings. Names the cure of what is wrong."""
    from milepost.cli import pages, views

    run = _store(folder)[name]
    if code:
        view = views.code_view(run)
        print_json(view) if as_json else pages.print_code(view)
    else:
        page = views.run_view(run)
        print_json(page) if as_json else pages.print_run(page)


def checkout(
    name: RunName,
    target: Annotated[Path, typer.Argument(metavar="FOLDER", help="A folder that does not exist yet.")],
    repository: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="A clone with the commit. Default: where the run found it.")
    ] = None,
    folder: Folder = None,
    as_json: AsJson = False,
) -> None:
    """The code of a run, in a new folder. That is its commit with the uncommitted difference on it."""
    from milepost.cli.views import code_record
    from milepost.environment.checkout import restore_code

    run = _store(folder)[name]
    record = code_record(run)
    source = repository or (Path(record.root) if record.root and Path(record.root).is_dir() else Path.cwd())
    restored = restore_code(record, source, run.layout.code, target)
    if as_json:
        print_json(restored)
        return
    print_line(
        f"{restored.folder} is the code of {run.id}", f"(commit {restored.commit[:12]})" if restored.commit else ""
    )
    for note in restored.notes:
        print_line(("!", "yellow"), note)


def doctor(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")] = False,
    folder: Folder = None,
    as_json: AsJson = False,
) -> None:
    """Finish what was left behind, and say each step. Guests that are behind, dead runs, temporary files."""
    from milepost.companion.doctor import examine

    report: Callable[[Finding], None] = (lambda _: None) if as_json else _print_finding
    findings = examine(_store(folder), report, dry_run=dry_run)
    if as_json:
        print_json(findings)
    elif not findings:
        print_line("nothing was left to do")
    if not all(finding.done for finding in findings):
        raise typer.Exit(1)


def _print_finding(finding: Finding) -> None:
    mark = ("✓", "green") if finding.done else ("!", "yellow")
    run = [(finding.run, "bold")] if finding.run else []
    print_line(mark, *run, f"{finding.what}: {finding.done}" if finding.done else finding.what)
    if finding.cure:
        print_line(f"  {finding.cure}")
