"""Does a lower room import a higher one? The contract stands in pyproject.toml."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.architecture.sources import ROOT, SOURCE


def test_no_room_imports_a_higher_one_and_every_room_has_its_place() -> None:
    code = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    environment = os.environ | {"PYTHONPATH": str(SOURCE)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout, done.stdout
