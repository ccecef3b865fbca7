"""Does the map still show the house?"""

from __future__ import annotations

import re

from tests.architecture.sources import ROOT, SOURCE, modules


def test_the_map_names_every_module_and_no_other() -> None:
    shown = set(re.findall(r"^\| `([\w/]+\.py)` \|", (ROOT / "ARCHITECTURE.md").read_text("utf-8"), re.MULTILINE))
    packages = {path.relative_to(SOURCE) for path in SOURCE.rglob("__init__.py")}
    there = {path.as_posix().removeprefix("milepost/") for path in modules() if path not in packages}
    assert there - shown == set(), "not on the map"
    assert shown - there == set(), "on the map, but gone"
