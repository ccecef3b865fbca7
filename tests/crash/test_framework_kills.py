"""Does a training that a framework drives survive kills inside of a save? A part of ``torture/framework_calls.py``."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from torture.tracer import is_available

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.linux
@pytest.mark.skipif(not is_available(), reason="a process must be allowed to trace its own child")
@pytest.mark.parametrize("training", ["huggingface-callback", "huggingface-mixin"])
def test_after_a_kill_inside_of_a_save_the_same_training_ends_with_the_same_losses(
    training: str, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "torture.framework_calls", "--points", "3", training],
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    row = done.stdout.rstrip().splitlines()[-1].split("|")
    assert int(row[3]) == int(row[4]) >= 3
