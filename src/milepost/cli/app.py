"""What does ``milepost`` do with what was typed?

It reads; only ``checkout``, ``doctor``, ``demo`` and a few commands below ``checkpoints`` write, and they say what.
Exit codes: 0 all is well; 1 something is wrong that was asked about (there is no such run, a file is damaged,
``doctor`` left something open); 2 the command was not understood.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Annotated

import typer

from milepost.cli import checkpoints, commands, demo
from milepost.cli.options import AsJson, Folder
from milepost.cli.words import plain
from milepost.core.errors import InvalidCallError, InvalidInputError, MilepostError

__all__ = ["app", "main"]

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, context_settings={"max_content_width": 100})

for command in (
    commands.runs,
    commands.show,
    commands.checkout,
    commands.doctor,
    demo.demo,
):
    app.command()(command)
app.add_typer(checkpoints.app, name="checkpoints")


def _print_version(wanted: bool) -> None:
    if wanted:
        from milepost import __version__

        print(__version__)
        raise typer.Exit


@app.callback(invoke_without_command=True)
def status(
    context: typer.Context,
    folder: Folder = None,
    as_json: AsJson = False,
    _version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version.")
    ] = False,
) -> None:
    """What runs here: state, step, best, last checkpoint. Experiments and checkpoints of PyTorch models."""
    if context.invoked_subcommand is None:
        commands.status(folder, as_json)
    else:  # options before a command are meant for the command
        given = {"folder": folder, "as_json": as_json}
        context.default_map = {context.invoked_subcommand: {name: value for name, value in given.items() if value}}


def main() -> None:
    """Entry point of the command ``milepost``."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal that lacks the symbols still gets the words
    try:
        try:
            app()
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else the flush at exit would complain
        sys.exit(1)
    except MilepostError as error:
        _complain(error.what, error.cure, error.kind)
        sys.exit(2 if isinstance(error, (InvalidInputError, InvalidCallError)) else 1)
    except OSError as error:
        _complain(f"{error.filename or 'the operating system'}: {error.strerror or error}", "", "storage")
        sys.exit(1)


def _complain(what: str, cure: str, kind: str) -> None:
    if "--json" in sys.argv:
        print(json.dumps({"error": {"kind": kind, "what": what, "cure": cure}}, indent=2), file=sys.stderr)
    else:
        print(f"milepost: {plain(what)}" + (f"\n  {plain(cure)}" if cure else ""), file=sys.stderr)
