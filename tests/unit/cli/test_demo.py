"""Does the demo keep its word, and does it say so when it cannot?"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from milepost.cli import demo
from milepost.core.errors import ConflictError, MissingDependencyError

SRC = Path(__file__).resolve().parents[3] / "src"


def test_equal_losses_have_no_differences() -> None:
    losses = {"train/loss": {0: 0.1, 1: float("nan")}}
    assert demo.differences(losses, {"train/loss": {0: 0.1, 1: float("nan")}}) == []


def test_a_loss_that_differs_in_its_last_bit_is_named_with_its_step() -> None:
    problems = demo.differences({"val/loss": {3: 0.1, 4: 0.2}}, {"val/loss": {3: 0.1, 4: 0.2 + 2**-55}})
    assert len(problems) == 1
    assert problems[0].startswith("val/loss at step 4: 0.2 without, 0.20000000000000004 with")


@pytest.mark.parametrize("found", [{0: 1.0}, {0: 1.0, 1: 2.0, 2: 3.0}], ids=["missing", "too many"])
def test_a_step_that_only_one_of_the_runs_has_is_a_difference(found: dict[int, float]) -> None:
    assert len(demo.differences({"train/loss": {0: 1.0, 1: 2.0}}, {"train/loss": found})) == 1


def test_a_reference_without_losses_is_a_difference_because_nothing_was_compared() -> None:
    assert demo.differences({"val/loss": {}}, {"val/loss": {}}) == ["val/loss: the uninterrupted run logged none"]


def test_a_difference_is_the_verdict_and_names_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = {"train/loss": {0: 5.0, 1: 4.0}, "val/loss": {1: 4.5}}
    assert demo._pass_judgement(expected, expected, tmp_path)
    assert "All 2 train/loss and 1 val/loss values are equal" in capsys.readouterr().out
    assert not demo._pass_judgement(expected, expected | {"train/loss": {0: 5.0, 1: 3.0}}, tmp_path)
    assert "train/loss at step 1: 4.0 without, 3.0 with interruptions" in capsys.readouterr().out


def test_a_training_that_ends_otherwise_than_planned_fails_with_what_it_printed_last(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "train.py").write_text("print('step 3/9  train/loss 0.5')\nraise SystemExit('no more coffee')")
    attempt = demo._Attempt(expected="completed")
    assert not demo._run(attempt, tmp_path, lambda _: None)
    assert (attempt.done, attempt.total, attempt.loss) == (3, 9, "0.5")
    demo._explain_failure(attempt)
    said = capsys.readouterr().out
    assert "expected was 'completed', seen was 'unexpected end, exit code 1'" in said
    assert "no more coffee" in said


def test_each_demo_gets_a_fresh_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    first = demo._empty_folder(None)
    assert first == tmp_path / "milepost-demo"
    (first / "train.py").touch()
    assert demo._empty_folder(None) == tmp_path / "milepost-demo-2"


def test_a_folder_that_holds_something_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ConflictError, match="not empty: give --dir a new folder"):
        demo.demo(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_without_torch_the_demo_says_how_to_get_it_and_makes_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"torch.*: pip install torch"):
        demo.demo(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_the_training_finds_our_packages_from_its_own_folder_and_no_settings_of_ours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PYTHONPATH", f"src{os.pathsep}/opt/more")
    monkeypatch.setenv("MILEPOST_DIR", "/elsewhere")
    environment = demo._environment("step 3")
    assert environment["PYTHONPATH"] == f"{os.path.abspath('src')}{os.pathsep}/opt/more"
    assert environment["DEMO_ACCIDENT"] == "step 3"
    assert "MILEPOST_DIR" not in environment


@pytest.mark.slow
@pytest.mark.skipif(find_spec("torch") is None, reason="the demo trains a model, and torch is not here")
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_the_demo_s_killed_run_equals_its_undisturbed_one(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from milepost.cli.app import main; main()", "demo", "--dir", "demo"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(SRC)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "are equal, bit for bit" in done.stdout
    assert done.stdout.count("$ python train.py") == 4
    assert "SIGKILL between two steps" in done.stdout
    assert "SIGKILL inside save_checkpoint" in done.stdout
    assert "\x1b" not in done.stdout
    assert max(map(len, done.stdout.replace(str(tmp_path), "").splitlines())) < 140
