"""How does an answer reach the terminal, a pipe or a program?

A terminal gets colours and its own width; a pipe gets plain lines that are never cut, so that ``grep`` finds what is
there; ``--json`` gets one document with stable keys, in which NaN and the infinities are the strings ``"NaN"``,
``"Infinity"`` and ``"-Infinity"``, because JSON has no numbers for them.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from milepost.cli.words import plain

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

__all__ = ["Cell", "print_json", "print_line", "print_table", "to_json"]

#: A text, or a text and the rich style it has in a terminal.
Cell = str | tuple[str, str]

_UNCUT = 100_000
_GAP = 3


def _console() -> Console:
    from rich.console import Console

    width = None if sys.stdout.isatty() else _UNCUT
    return Console(file=sys.stdout, width=width, highlight=False, markup=False, emoji=False, soft_wrap=False)


def _text(cell: Cell) -> Text:
    from rich.text import Text

    content, style = cell if isinstance(cell, tuple) else (cell, "")
    return Text(plain(content), style)


def print_line(*cells: Cell) -> None:
    """One line made of the cells, with a space between two."""
    from rich.text import Text

    _console().print(Text(" ").join(_text(cell) for cell in cells), soft_wrap=True)


def print_table(
    headings: Sequence[str],
    rows: Sequence[Sequence[Cell]],
    *,
    numbers: Collection[str] = (),
    whole: Collection[str] = (),
) -> None:
    """Aligned columns without a frame; no rows, no output.

    A terminal that is too narrow gets fewer columns, because half a number is a wrong one.

    Args:
        headings: Empty for a table without them.
        rows: A cell per column, the important ones first.
        numbers: Columns that stand to the right.
        whole: Columns that are always there; where even they are too wide they are folded.
    """
    if not rows:
        return
    from rich.cells import cell_len
    from rich.table import Table

    console = _console()
    titles = list(headings) or [""] * len(rows[0])
    cells = [[_text(cell) for cell in row] for row in rows]
    columns = list(range(len(titles)))
    if headings and console.is_terminal:
        widths = [max(cell_len(titles[i]), *(cell_len(row[i].plain) for row in cells)) for i in columns]
        columns = _fitting(widths, [title in whole for title in titles], console.width)
    table = Table(box=None, pad_edge=False, show_header=bool(headings), header_style="dim", padding=(0, _GAP, 0, 0))
    for i in columns:
        table.add_column(titles[i], justify="right" if titles[i] in numbers else "left", overflow="fold")
    for row in cells:
        table.add_row(*(row[i] for i in columns))
    if console.is_terminal:
        console.print(table)
        return
    with console.capture() as captured:
        console.print(table)
    sys.stdout.writelines(f"{line.rstrip()}\n" for line in captured.get().splitlines())


def _fitting(widths: Sequence[int], needed: Sequence[bool], room: int) -> list[int]:
    """Indices of the columns that fit: those that are not needed go, the last one first."""
    kept = list(range(len(widths)))
    for i in reversed(range(len(widths))):
        if sum(widths[k] + _GAP for k in kept) - _GAP > room and not needed[i]:
            kept.remove(i)
    return kept


def to_json(value: Any) -> Any:
    """``value`` in the terms of JSON: records as objects, paths as text, no number that JSON lacks."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else "NaN" if math.isnan(value) else f"{'-' * (value < 0)}Infinity"
    if dataclasses.is_dataclass(value):
        return {field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_json(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [to_json(entry) for entry in value]
    return str(value)


def print_json(value: Any) -> None:
    """One document. Beyond ASCII everything is escaped, so that no output encoding and no terminal can trip over it."""
    sys.stdout.write(json.dumps(to_json(value), indent=2, allow_nan=False) + "\n")
