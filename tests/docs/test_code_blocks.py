"""Does what the documentation shows really run, as it stands and in its order?"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.docs.code_blocks import ROOT, pages


@pytest.mark.skipif(find_spec("torch") is None, reason="the examples train a model, and torch is not here")
@pytest.mark.parametrize("page", [page.relative_to(ROOT) for page in pages()], ids=str)
def test_every_python_block_of_a_page_runs_in_an_empty_folder(page: Path, tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "src")))}
    done = subprocess.run(
        [sys.executable, "-m", "tests.docs.run_page", str(ROOT / page)],
        cwd=tmp_path,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr, done.stderr
