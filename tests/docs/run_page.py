"""What happens to a reader who types a page into one script? ``python -m tests.docs.run_page PAGE``."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.docs.code_blocks import code_blocks
from tests.docs.training import prepared_names


def run_page(page: Path) -> None:
    names = prepared_names() | {"__name__": "__main__"}
    for block in code_blocks(page):
        padding = "\n" * (block.line - 1)  # so that a traceback names the line of the page
        exec(compile(padding + block.code, page, "exec"), names)


if __name__ == "__main__":
    run_page(Path(sys.argv[1]))
