"""Which files does the package consist of, and what is written in them?"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src"


def modules() -> list[Path]:
    """Every Python file that is shipped, relative to ``src``."""
    return sorted(path.relative_to(SOURCE) for path in SOURCE.rglob("*.py"))


def tree(module: Path) -> ast.Module:
    return ast.parse((SOURCE / module).read_text(encoding="utf-8"))


def nodes(module: Path) -> Iterator[ast.AST]:
    yield from ast.walk(tree(module))


def imported_at_once(module: Path) -> Iterator[str]:
    """Top-level packages imported when the module itself is: not in functions, not for the type checker alone."""
    waiting: list[ast.AST] = list(tree(module).body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").split(".")[0]
        elif not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and not _for_types_only(node):
            waiting.extend(ast.iter_child_nodes(node))


def _for_types_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
