"""Does the map still show the house, in the modules' own words?"""

from __future__ import annotations

import ast
import re

from tests.architecture.sources import ROOT, modules, tree


def questions() -> dict[str, str]:
    """By module, the first paragraph of its docstring on one line."""
    found = {}
    for module in modules():
        if module.parts[0] == "milepost" and module.name != "__init__.py":
            docstring = ast.get_docstring(tree(module)) or ""
            found["/".join(module.parts[1:])] = " ".join(docstring.split("\n\n")[0].split())
    return found


def test_the_map_names_every_module_with_its_question_and_no_other() -> None:
    rows = re.findall(r"^\| `([\w/]+\.py)` \| (.*) \|$", (ROOT / "ARCHITECTURE.md").read_text("utf-8"), re.MULTILINE)
    assert dict(rows) == questions()
