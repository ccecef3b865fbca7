"""What is the table, the page or the interactive figure that a user gives, as text that may be written down?

Cells are plain values and secrets are taken out here, in the training process: raw texts must not reach a disk.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from milepost.core.errors import InvalidCallError, InvalidInputError
from milepost.core.plain import plain
from milepost.environment.secrets import redact, redact_tree
from milepost.run.media_forms import Form
from milepost.runs.metadata import as_json

__all__ = ["html_of", "plotly_of", "table_of"]


def table_of(columns: Any, rows: Any) -> Form:
    """A table: names of columns and rows, a mapping of names to columns, or a frame of pandas.

    Raises:
        InvalidCallError: It is none of them.
        InvalidInputError: A row has more or fewer cells than there are columns, or columns differ in length.
    """
    if rows is None:
        columns, rows = _taken_apart(columns)
    if isinstance(columns, str) or not isinstance(columns, Iterable) or isinstance(rows, (str, Mapping)):
        raise InvalidCallError(
            f"log_table got {type(columns).__name__} and {type(rows).__name__}",
            cure="give names of columns and rows, or a mapping of columns, or a frame of pandas",
        )
    names = [redact(str(name)) for name in columns]
    cells = [_row(row, number, len(names)) for number, row in enumerate(rows)]
    content = as_json({"columns": names, "rows": cells})
    return Form(form="table", data=[content], facts={"columns": len(names), "rows": len(cells)})


def _taken_apart(table: Any) -> tuple[list[Any], Iterable[Sequence[Any]]]:
    if hasattr(table, "itertuples") and hasattr(table, "columns"):
        return list(table.columns), table.itertuples(index=False, name=None)
    if not isinstance(table, Mapping):
        raise InvalidCallError(
            f"log_table got {type(table).__name__} without rows",
            cure="give names of columns and rows, or a mapping of columns, or a frame of pandas",
        )
    columns = [list(column) for column in table.values()]
    lengths = {len(column) for column in columns}
    if len(lengths) > 1:
        raise InvalidInputError(f"columns have {sorted(lengths)} cells", cure="give columns of one length")
    return list(table), zip(*columns, strict=True)


def _row(row: Any, number: int, width: int) -> list[Any]:
    if isinstance(row, (str, Mapping)) or not isinstance(row, Iterable):
        raise InvalidCallError(f"row {number} is a {type(row).__name__}", cure="give a list of cells for each row")
    cells = [_cell(cell) for cell in row]
    if len(cells) != width:
        raise InvalidInputError(
            f"row {number} has {len(cells)} cells for {width} columns", cure="give one cell for each column"
        )
    return cells


def _cell(cell: Any) -> Any:
    if hasattr(cell, "item") and getattr(cell, "ndim", None) == 0:
        cell = cell.item()
    if cell is None or isinstance(cell, (bool, int, float)):
        return cell
    return redact(cell) if isinstance(cell, str) else redact_tree(plain(cell))


def html_of(html: Any) -> Form:
    """A page, or a piece of one.

    Raises:
        InvalidCallError: It is no text.
    """
    if not isinstance(html, str):
        raise InvalidCallError(f"log_html got {type(html).__name__}", cure="give a text")
    return Form(form="html", data=[redact(html).encode(errors="replace")])


def plotly_of(figure: Any) -> Form:
    """A figure of Plotly as the JSON that its own page reads; arrays in it stay as they are."""
    content = _without_secrets(json.loads(figure.to_json()))
    return Form(form="figure", data=[as_json(content)], facts={"encoding": "plotly"})


def _without_secrets(value: Any, key: str = "") -> Any:
    if isinstance(value, dict):
        return {name: _without_secrets(inner, name) for name, inner in value.items()}
    if isinstance(value, list):
        return [_without_secrets(inner, key) for inner in value]
    # What Plotly packs as base64 looks like a secret, and is numbers.
    return redact(value) if isinstance(value, str) and key != "bdata" else value
