"""Guests with the worst of habits, in a whole run: the training does not notice, and everything is delivered later."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import milepost
from milepost.companion.doctor import examine
from tests.contract.training_script import run_script

pytest.importorskip("tensorboard")

TRAINING = """
    import milepost
    run = milepost.start("guests", wandb_project="p", exit_timeout=10.0, **SETTINGS)
    for step in range(500):
        run.log({"loss": 1.0 / (step + 1)}, step)
    run.end()
"""


def training(**settings: object) -> str:
    return TRAINING.replace("**SETTINGS", ", ".join(f"{name}={value!r}" for name, value in settings.items()))


def a_wandb_that_hangs(folder: Path) -> str:
    """A package that is found before the real one and whose init never returns."""
    package = folder / "hanging" / "wandb"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("import threading\ndef __getattr__(name): threading.Event().wait()\n")
    return str(package.parent)


def only_run(folder: Path) -> milepost.runs.store.RunReader:  # type: ignore[name-defined]
    (run,) = milepost.open(folder).runs()
    return run


def points_in_tensorboard(folder: Path) -> int:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return len(events.Scalars("loss"))


def doctor(folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", "from milepost.cli.app import main; main()", "doctor"],
        cwd=folder, capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip
    return done.stdout + done.stderr


def test_a_wandb_that_hangs_for_ever_holds_up_neither_the_run_nor_its_end(tmp_path):
    hanging = a_wandb_that_hangs(tmp_path)
    _, err, code = run_script(tmp_path, training(), PYTHONPATH=f"{hanging}:{Path(milepost.__file__).parents[1]}")
    assert code == 0
    assert "wandb" in err
    assert "milepost doctor" in err
    run = only_run(tmp_path)
    assert run.status == "completed"
    assert len(run.series("loss").step) == 500
    assert (run.layout.experiment / "summary.json").exists()
    assert points_in_tensorboard(run.layout.tensorboard) == 500


def test_what_a_broken_tensorboard_missed_is_delivered_by_the_doctor(tmp_path):
    (tmp_path / "runs").write_text("a file where the folder should be: every call of the guest raises")
    _, err, code = run_script(tmp_path, training().replace('wandb_project="p", ', ""))
    assert code == 0
    assert err.count("tensorboard does not take the run") == 1
    run = only_run(tmp_path)
    assert run.status == "completed"
    assert len(run.series("loss").step) == 500
    (tmp_path / "runs").unlink()
    assert "tensorboard" in doctor(tmp_path)
    assert points_in_tensorboard(tmp_path / "runs" / run.id) == 500
    assert "nothing was left to do" in doctor(tmp_path)


@pytest.mark.slow
def test_wandb_without_a_login_keeps_every_point_offline(tmp_path):
    pytest.importorskip("wandb")
    _, err, code = run_script(
        tmp_path, training().replace("exit_timeout=10.0", "exit_timeout=60.0"), HOME=str(tmp_path)
    )
    assert code == 0, err
    run = only_run(tmp_path)
    files = list(run.layout.experiment.rglob("*.wandb"))
    assert len(files) == 1
    assert files[0].stat().st_size > 1000
    shutil.rmtree(run.layout.experiment / "wandb")


def test_the_doctor_does_not_claim_to_have_fed_a_guest_that_is_not_installed(tmp_path, monkeypatch):
    (tmp_path / "runs").write_text("a file where the folder should be")
    run_script(tmp_path, training().replace('wandb_project="p", ', ""))
    (tmp_path / "runs").unlink()
    run = only_run(tmp_path)
    before = sorted(path.name for path in run.layout.log.iterdir())
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    found = examine(milepost.open(tmp_path), lambda finding: None)
    assert [(finding.what, finding.done) for finding in found] == [("tensorboard has not taken all of it", "")]
    assert "pip install tensorboard" in found[0].cure
    assert sorted(path.name for path in run.layout.log.iterdir()) == before
