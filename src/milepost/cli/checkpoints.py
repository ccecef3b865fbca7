"""What does each command below ``milepost checkpoints`` do?

``list``, ``show``, ``verify`` and ``diff`` read only. ``export`` writes a new file, ``verify --heal`` mends damaged
ones from a second copy, ``prune --yes`` removes what the run's own settings no longer keep.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from milepost.cli.options import AsJson, Folder
from milepost.cli.output import print_json, print_line
from milepost.core.errors import ConflictError, InvalidCallError, MilepostError, NotFoundError

if TYPE_CHECKING:
    from milepost.cli.checkpoint_views import VerifyView
    from milepost.core.events import CheckpointChanged
    from milepost.runs.store import RunReader, Store

__all__ = ["app"]

app = typer.Typer(help="Checkpoints: list, look into, verify, compare, export, prune.")

OptionalRun = Annotated[
    str | None, typer.Argument(metavar="[RUN]", help="A name (its newest run), an id, or a unique start of one.")
]
Named = Annotated[str, typer.Argument(metavar="CKPT", help="A path, RUN@STEP, RUN@best or RUN@latest.")]


class Format(StrEnum):
    """What an export can be."""

    milepost = "milepost"
    pt = "pt"
    pt_gz = "pt.gz"
    safetensors = "safetensors"
    huggingface = "huggingface"


def _store(folder: Path | None) -> Store:
    from milepost.runs.store import open as open_store

    return open_store(folder)


def _run(folder: Path | None, name: str | None) -> RunReader:
    """The run of that name, else the newest one."""
    store = _store(folder)
    if name is not None:
        return store[name]
    runs = store.runs()
    if not runs:
        raise NotFoundError(f"no runs in {store.folder}", cure="start one, or name another folder with --dir")
    return runs[0]


def _path(folder: Path | None, name: str) -> Path:
    from milepost.cli.checkpoint_names import named_checkpoint

    return named_checkpoint(name, lambda: _store(folder))


@app.callback(invoke_without_command=True)
def newest(context: typer.Context, folder: Folder = None, as_json: AsJson = False) -> None:
    """Checkpoints of the newest run, and commands for them: look into, verify, compare, export, prune."""
    if context.invoked_subcommand is None:
        list_checkpoints(None, folder, as_json)
    else:  # options before a command are meant for the command
        given = {"folder": folder, "as_json": as_json}
        context.default_map = {context.invoked_subcommand: {name: value for name, value in given.items() if value}}


@app.command("list")
def list_checkpoints(name: OptionalRun = None, folder: Folder = None, as_json: AsJson = False) -> None:
    """The checkpoints of one run, by step. Without RUN of the newest one."""
    from milepost.cli.pages import print_checkpoints
    from milepost.cli.views import checkpoint_views

    run = _run(folder, name)
    listed = checkpoint_views(run)
    if as_json:
        print_json(listed)
        return
    if name is None:
        print_line((run.id, "bold"))
    print_checkpoints(listed)


@app.command()
def show(
    name: Named,
    tensors: Annotated[str | None, typer.Option(metavar="PATTERN", help='List its tensors, "model.*" or "*".')] = None,
    folder: Folder = None,
    as_json: AsJson = False,
) -> None:
    """What is in a checkpoint. Parts, dtypes, how it is stored, what it needs, metrics, versions."""
    from milepost.checkpoint.reading import open_checkpoint
    from milepost.cli.checkpoint_pages import print_content
    from milepost.cli.checkpoint_views import content_view, is_marked_verified

    path = _path(folder, name)
    with open_checkpoint(path) as file:
        view = content_view(file, verified=is_marked_verified(path), tensors=tensors)
    if as_json:
        print_json(view)
    else:
        print_content(view)


@app.command()
def verify(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[RUN|CKPT]...", help="Default: all checkpoints of all runs.")
    ] = None,
    heal: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Mend what is damaged from the copies in this folder.")
    ] = None,
    folder: Folder = None,
    as_json: AsJson = False,
) -> None:
    """Read checkpoints back from the disk and decode every byte. Exit code 1 if one is damaged."""
    from milepost.cli.checkpoint_pages import print_verified
    from milepost.cli.progress import progress

    meant = [path for name in names for path in _meant(folder, name)] if names else _all_files(folder)
    paths = list(dict.fromkeys(meant))
    total, done = sum(path.stat().st_size for path in paths if path.exists()), 0
    views: list[VerifyView] = []
    with progress("verifying", shown=not as_json) as tell:
        for path in paths:
            views.append(_verified(path, heal))
            done += views[-1].size
            tell(done, total)
    if as_json:
        print_json(views)
    else:
        for view in views:
            print_verified(view)
        print_line(f"{sum(view.sound for view in views)} of {len(views)} are sound")
    if not all(view.sound for view in views):
        raise typer.Exit(1)


def _all_files(folder: Path | None) -> list[Path]:
    from milepost.cli.checkpoint_names import files_of

    return [path for run in _store(folder).runs() for path in files_of(run)]


def _meant(folder: Path | None, name: str) -> list[Path]:
    """The files of a run, or one file."""
    from milepost.cli.checkpoint_names import files_of

    if "@" not in name and not Path(name).expanduser().is_file():
        with suppress(NotFoundError):
            return files_of(_store(folder)[name])
    return [_path(folder, name)]


def _verified(path: Path, copies: Path | None) -> VerifyView:
    from milepost.checkpoint.commit import verify as read_back
    from milepost.checkpoint.foreign import verify_foreign
    from milepost.cli.checkpoint_views import VerifyView

    size = path.stat().st_size if path.exists() else 0
    mended: tuple[str, ...] = ()
    try:
        if copies is not None and path.name.endswith(".milepost"):
            from milepost.checkpoint.healing import heal

            mended = tuple(heal(path, copies))
        if path.name.endswith(".milepost"):
            read_back(path)
        else:
            verify_foreign(path)
    except MilepostError as error:
        return VerifyView(path=str(path), size=size, sound=False, what=error.what, cure=error.cure, mended=mended)
    return VerifyView(path=str(path), size=size, sound=True, mended=mended)


@app.command()
def diff(
    a: Annotated[str, typer.Argument(metavar="A", help="A path, RUN@STEP, RUN@best or RUN@latest.")],
    b: Annotated[str, typer.Argument(metavar="B", help="The same.")],
    only: Annotated[list[str] | None, typer.Option(metavar="PATTERN", help='Only these tensors: "model.*".')] = None,
    everything: Annotated[bool, typer.Option("--all", help="Equal tensors too.")] = False,
    exit_code: Annotated[bool, typer.Option("--exit-code", help="Exit with 1 if a tensor differs.")] = False,
    folder: Folder = None,
    as_json: AsJson = False,
) -> None:
    """How two checkpoints differ, tensor by tensor. From A to B."""
    from milepost.checkpoint.diff import diff as compare
    from milepost.cli.checkpoint_pages import print_differences
    from milepost.cli.progress import progress

    paths = _path(folder, a), _path(folder, b)
    with progress("comparing", shown=not as_json) as tell:
        found = compare(*paths, only, progress=tell)
    if as_json:
        print_json(found)
    else:
        print_differences(found, everything=everything)
    if exit_code and any(one.change != "equal" for one in found):
        raise typer.Exit(1)


@app.command()
def export(
    name: Named,
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="A file or, for huggingface, a folder to make.")],
    kind: Annotated[
        Format | None, typer.Option("--format", help="Default: what the name of TARGET ends with.", show_default=False)
    ] = None,
    only: Annotated[list[str] | None, typer.Option(metavar="PATTERN", help='Only these: "model.*".')] = None,
    folder: Folder = None,
    as_json: AsJson = False,
) -> None:
    """Write a checkpoint in another format. Needs torch for pt and pt.gz."""
    from milepost.cli.words import size

    written = _write(_path(folder, name), target, _format(kind, target), only)
    if as_json:
        print_json({"path": written})
    else:
        files = [written] if written.is_file() else [file for file in written.rglob("*") if file.is_file()]
        print_line(f"{written} is written ({size(sum(file.stat().st_size for file in files))})")


def _write(path: Path, target: Path, kind: Format, only: list[str] | None) -> Path:
    from milepost.checkpoint.export import export as write

    return write(path, target, format=kind.value, only=only)


def _format(given: Format | None, target: Path) -> Format:
    if given is not None:
        return given
    for kind in (Format.pt_gz, Format.pt, Format.safetensors, Format.milepost):
        if target.name.endswith(f".{kind.value}"):
            return kind
    raise InvalidCallError(
        f"the name {target.name!r} says no format", cure=f"give --format, one of {', '.join(map(str, Format))}"
    )


@app.command()
def prune(
    name: OptionalRun = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do it. Without, nothing is removed.")] = False,
    folder: Folder = None,
    as_json: AsJson = False,
) -> None:
    """Remove what the run's own settings no longer keep. Says what, and why; does it with --yes."""
    from milepost.checkpoint.catalog import scan
    from milepost.checkpoint.retention import decide
    from milepost.cli.checkpoint_names import rule_of
    from milepost.cli.checkpoint_pages import print_decisions
    from milepost.cli.checkpoint_views import decision_view

    run = _run(folder, name)
    own = [info for info in scan(run.layout.checkpoints).infos if info.experiment_id == run.id]
    decisions = [decision_view(decision) for decision in decide(own, rule_of(run))]
    removing = yes and not dry_run
    if removing:
        _prune(run)
    if as_json:
        print_json({"run": run.id, "done": removing, "decisions": decisions})
        return
    print_line((run.id, "bold"))
    print_decisions(decisions)
    if removing:
        print_line("done")
    elif any(decision.action != "keep" for decision in decisions):
        print_line("nothing was changed; --yes does it")


def _prune(run: RunReader) -> None:
    """Do it, and record it in the run as the companion would."""
    from milepost.checkpoint.pruning import prune as carry_out
    from milepost.cli.checkpoint_names import rule_of

    if run.status in {"running", "paused", "unsure"} or run.state.finishing:
        raise ConflictError(
            f"{run.id} is {run.status}, and prunes its checkpoints itself after each save", cure="wait for its end"
        )
    settings = run.metadata.get("settings")
    backup = settings.get("backup_dir") if isinstance(settings, dict) else None
    with _recording(run) as report:
        carry_out(
            run.layout.checkpoints, run.id, rule_of(run), report, backup=Path(backup) if backup is not None else None
        )


@contextmanager
def _recording(run: RunReader) -> Iterator[Callable[[CheckpointChanged], None]]:
    """Takes what changes, for a log of our own in the run."""
    from milepost.io.locks import OwnedLock
    from milepost.runs.log import DirectLog, begin_log
    from milepost.runs.segment import new_log_id

    log_id = new_log_id()
    lock = OwnedLock(run.layout.log_lock(log_id))
    lock.acquire()
    try:
        log = DirectLog(run.layout, log_id)
        begin_log(log, role="doctor", attempt=max(run.state.attempt, 1))

        def record(change: CheckpointChanged) -> None:
            log.append(change, step=change.step)

        yield record
        log.close()
    finally:
        lock.release(unlink=True)
