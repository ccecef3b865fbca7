"""Which options and arguments mean the same in every command?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["AsJson", "Folder", "RunName"]

Folder = Annotated[
    Path | None,
    typer.Option(
        "--dir", metavar="FOLDER", help="Where the runs are. Default: MILEPOST_DIR, or the nearest store upward."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document with stable keys.")]
RunName = Annotated[
    str, typer.Argument(metavar="RUN", help="A name (its newest run), an id, or a unique start of one.")
]
