"""What is left of a save when everything around it dies at once: trainer and companion, or a whole container?"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

import milepost
from milepost.companion.doctor import examine
from tests.contract.training_script import SOURCE, Script, run_script

pytestmark = pytest.mark.linux

TRAIN = """
    import os, signal
    import milepost, torch
    run = milepost.start("boxed", tensorboard_dir=None, capture_code=False, resume="auto")
    model = torch.nn.Linear(64, 64)
    torch.nn.init.constant_(model.weight, 1.0)
    os.stat(run.save_checkpoint(model, step=1))
    run.wait()
    os.kill(run._companion.pid, signal.SIGSTOP)
    torch.nn.init.constant_(model.weight, 2.0)
    run.save_checkpoint(model, step=2)
    print("staged", run._companion.pid, flush=True)
    signal.pause()
"""

GO_ON = """
    import milepost, torch
    run = milepost.start("boxed", tensorboard_dir=None, capture_code=False, resume="auto")
    model = torch.nn.Linear(64, 64)
    print(run.resume(model).step, float(model.weight.mean()))
    run.end()
"""


def left(folder: Path) -> list[int]:
    (run,) = milepost.open(folder).runs()
    return [info.step for info in run.checkpoints]


def spools(folder: Path) -> list[Path]:
    return list((folder / "checkpoints").glob(".spool-*"))


def gone(pid: int) -> None:
    """The kernel takes back the locks of the dead in its own time."""
    while Path(f"/proc/{pid}").exists():
        time.sleep(0.01)


def kill_both(folder: Path, **environment: str) -> None:
    script = Script(folder, TRAIN, **environment)
    companion = int(script.wait_for_line("staged")[-1].split()[1])
    script.process.send_signal(signal.SIGKILL)
    os.kill(companion, signal.SIGKILL)
    script.finish()
    gone(companion)


def kill_container(folder: Path, **environment: str) -> str:
    """Let the training be the first process of a process namespace, and kill that."""
    (folder / "train.py").write_text(textwrap.dedent(TRAIN))
    inside = ["unshare", "--pid", "--fork", "--mount-proc"]
    if subprocess.run([*inside, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no process namespace can be made here")
    box = subprocess.Popen(
        [*inside, "--kill-child", sys.executable, "train.py"],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(SOURCE)} | environment,
    )
    for line in box.stdout:
        if line.startswith("staged"):
            break
    box.kill()  # and the kernel, the first process of the namespace; and it, everything in there
    return box.communicate(timeout=120)[1]


def test_a_spooled_snapshot_survives_trainer_and_companion_and_the_next_start_has_it(tmp_path):
    kill_both(tmp_path, MILEPOST_STAGING="spool")
    assert left(tmp_path) == [1]
    assert len(spools(tmp_path)) == 1
    out, err, code = run_script(tmp_path, GO_ON, MILEPOST_STAGING="spool")
    assert (code, out) == (0, "3 2.0\n"), err
    assert "the checkpoint of step 2, staged when every process died, is written" in err
    assert left(tmp_path) == [1, 2]
    assert spools(tmp_path) == []


def test_doctor_finishes_it_as_well_and_a_look_alone_changes_nothing(tmp_path):
    kill_both(tmp_path, MILEPOST_STAGING="spool")
    found = examine(milepost.open(tmp_path), lambda _: None, dry_run=True)
    assert any("staged" in finding.what and not finding.done for finding in found)
    assert left(tmp_path) == [1]
    found = examine(milepost.open(tmp_path), lambda _: None)
    assert any(finding.done.startswith("written as checkpoint_") for finding in found)
    assert left(tmp_path) == [1, 2]
    assert spools(tmp_path) == []
    assert examine(milepost.open(tmp_path), lambda _: None) == []


def test_without_a_spool_the_checkpoint_before_remains(tmp_path):
    kill_both(tmp_path)
    out, err, code = run_script(tmp_path, GO_ON)
    assert (code, out) == (0, "2 1.0\n"), err


def test_a_training_that_is_the_first_process_of_its_container_is_told_and_the_spool_outlives_that(tmp_path):
    plain, spooled = tmp_path / "plain", tmp_path / "spooled"
    for folder, staging in ((plain, "memory"), (spooled, "spool")):
        folder.mkdir()
        err = kill_container(folder, MILEPOST_STAGING=staging)
        assert err.count('staging="spool"') == (staging == "memory"), err
    for folder, expected in ((plain, "2 1.0\n"), (spooled, "3 2.0\n")):
        out, err, code = run_script(folder, GO_ON)
        assert (code, out) == (0, expected), err


def test_a_spooled_snapshot_whose_trainer_alone_was_killed_is_committed_by_the_companion_and_nothing_is_left(tmp_path):
    script = Script(tmp_path, TRAIN, MILEPOST_STAGING="spool")
    companion = int(script.wait_for_line("staged")[-1].split()[1])
    script.kill()
    os.kill(companion, signal.SIGCONT)
    gone(companion)
    assert left(tmp_path) == [1, 2]
    assert spools(tmp_path) == []
