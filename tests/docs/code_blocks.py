"""Which pieces of Python stand in the documentation?"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class CodeBlock:
    """One block, and the line of its file on which its code begins."""

    line: int
    code: str


def pages() -> list[Path]:
    """README.md and every page of docs/ with Python in it."""
    return [path for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))) if code_blocks(path)]


def code_blocks(page: Path) -> list[CodeBlock]:
    text = page.read_text(encoding="utf-8")
    return [CodeBlock(text[: found.start(1)].count("\n") + 1, found[1]) for found in _BLOCK.finditer(text)]
