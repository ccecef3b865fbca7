"""Does the user's specification run as written: every block, under both import names, in an empty folder?

``mission_blocks`` holds its code blocks and its lists unchanged. They are never edited to make a test pass.
"""

from __future__ import annotations

import ast
import dataclasses
import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Optional

import pytest

from milepost import ExperimentConfig
from tests.docs.code_blocks import ROOT
from tests.docs.run_mission import BLOCKS

needs_torch = pytest.mark.skipif(find_spec("torch") is None, reason="the blocks save a model, and torch is not here")


@dataclasses.dataclass(frozen=True)
class Left:
    """What a run of all blocks left behind: its folder, its own report, and what it printed."""

    folder: Path
    report: dict[str, Any]
    output: str
    errors: str

    def read(self, *parts: str) -> Any:
        return json.loads(self.folder.joinpath(*parts).read_text(encoding="utf-8"))


@pytest.fixture(scope="module", params=["experiment_tracking_checkpointing_system", "milepost"])
def left(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Left:
    folder = tmp_path_factory.mktemp(request.param)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MILEPOST_")}
    done = subprocess.run(
        [sys.executable, "-m", "tests.docs.run_mission", request.param],
        cwd=folder,
        env=kept | {"PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "src")))},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return Left(folder, json.loads(done.stdout.splitlines()[-1]), done.stdout, done.stderr)


@needs_torch
def test_every_block_runs_as_written(left: Left) -> None:
    assert "Traceback" not in left.errors
    assert re.fullmatch(r"bert-fine-tuning_[\d-]+", left.report["first"])


@needs_torch
def test_the_directory_structure_is_the_one_described(left: Left) -> None:
    text = (BLOCKS / "directory_structure.txt").read_text(encoding="utf-8")
    described = re.findall(r"── ([\w.]+)(/?)", text)
    assert len(described) == 13
    experiment = left.folder / "experiments" / left.report["first"]
    for name in (name for name, slash in described if not slash and not name.startswith("checkpoint")):
        assert (experiment / name).is_file(), name
    folders = [name for name, slash in described if slash and name != "experiment_name_timestamp"]
    if find_spec("tensorboard") is None:
        folders.remove("runs")
    for name in folders:
        assert (left.folder / name).is_dir(), name
    assert (left.folder / "checkpoints" / "checkpoints.json").is_file()


@needs_torch
def test_checkpoints_are_named_by_time_and_step_and_marked_best(left: Left) -> None:
    names = sorted(path.name for path in (left.folder / "checkpoints").glob("*.milepost"))
    assert names
    assert all(re.fullmatch(r"checkpoint_[\d-]+_\d+(_best)?\.milepost", name) for name in names), names
    steps = [int(re.search(r"_(\d+)(_best)?\.", name)[1]) for name in names]  # type: ignore[index]
    # The newest five of the first experiment and its best; the one of the second.
    assert sorted(steps) == [0, 500, 600, 700, 800, 900, 999]
    assert [re.search(r"_(\d+)_best", name)[1] for name in names if "_best" in name] == ["0", "999"]  # type: ignore[index]


@needs_torch
def test_nothing_else_lies_in_the_folder(left: Left) -> None:
    expected = {"experiments", "checkpoints", "logs", "metrics", "runs"} | ({"wandb"} if find_spec("wandb") else set())
    assert {path.name for path in left.folder.iterdir()} <= expected
    assert not list(left.folder.rglob("*.tmp"))


@needs_torch
def test_metadata_tells_what_start_experiment_was_told_and_the_environment(left: Left) -> None:
    metadata = left.read("experiments", left.report["first"], "metadata.json")
    assert metadata["name"] == "bert-fine-tuning"
    assert metadata["description"] == "Fine-tune BERT model on custom dataset"
    assert metadata["hyperparameters"] == {"learning_rate": 2e-5, "batch_size": 16, "epochs": 3, "warmup_steps": 500}
    assert metadata["model_config"] == {"model_type": "bert", "hidden_size": 768, "num_layers": 12}
    assert metadata["dataset_info"] == {"name": "custom-dataset", "size": 50000, "vocab_size": 30000}
    assert metadata["tags"] == ["bert", "fine-tuning", "nlp"]
    assert metadata["status"] == "completed"
    assert "environment" in metadata


@needs_torch
def test_metric_history_holds_every_step_and_the_summary_the_final_metrics(left: Left) -> None:
    text = json.dumps(left.read("experiments", left.report["first"], "metrics.json"))
    assert all(name in text for name in ("loss", "accuracy", "learning_rate"))
    summary = json.dumps(left.read("experiments", left.report["first"], "summary.json"))
    assert '"final_loss": 0.25' in summary
    assert '"final_accuracy": 0.875' in summary


@needs_torch
def test_the_console_log_holds_what_was_printed(left: Left) -> None:
    printed = [line for line in left.output.splitlines() if line.startswith("Step ")]
    log = (left.folder / "experiments" / left.report["second"] / "experiment.log").read_text(encoding="utf-8")
    assert printed
    assert all(line in log for line in printed)


@needs_torch
def test_checkpoint_management_loads_lists_and_finds_the_best(left: Left) -> None:
    assert left.report["checkpoint_info_step"] == 999
    assert left.report["best_step"] == 999
    assert left.report["listed"] == [
        path.name for path in sorted((left.folder / "checkpoints").glob("*_999*.milepost"))
    ]


@needs_torch
def test_debug_mode_shows_what_the_system_does(left: Left) -> None:
    assert re.search(r"^DEBUG:milepost", left.errors, re.MULTILINE)


def test_the_nine_settings_have_the_mission_s_names_order_and_defaults() -> None:
    names: dict[str, Any] = {"dataclass": dataclasses.dataclass, "Optional": Optional}
    code = (BLOCKS / "05_experiment_config.py").read_text(encoding="utf-8")
    exec(compile(code, "05_experiment_config.py", "exec", dont_inherit=True), names)
    specified = [(field.name, field.default) for field in dataclasses.fields(names["ExperimentConfig"])]
    ours = [(field.name, field.default) for field in dataclasses.fields(ExperimentConfig)]
    assert ours[: len(specified)] == specified
    assert ExperimentConfig(*(default for _, default in specified)) == ExperimentConfig()


def test_the_block_of_imports_names_public_names_of_both_modules() -> None:
    import experiment_tracking_checkpointing_system as mission
    import milepost

    tree = ast.parse((BLOCKS / "01_setup.py").read_text(encoding="utf-8"))
    imported = [alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names]
    components = ["ExperimentTracker", "ModelCheckpointer", "TensorboardTracker", "WandbTracker"]
    for name in imported + components:
        assert getattr(mission, name) is getattr(milepost, name), name


def test_the_requirements_file_can_be_read_by_pip() -> None:
    asked = re.search(r"pip install -r (\S+)", (BLOCKS / "dependencies.sh").read_text(encoding="utf-8"))
    assert asked
    lines = [line.split("#")[0].strip() for line in (ROOT / asked[1]).read_text(encoding="utf-8").splitlines()]
    requirements = [line for line in lines if line]
    assert requirements
    pattern = re.compile(r"(\.|[A-Za-z0-9._-]+)(\[[A-Za-z0-9_,-]+\])?( *[<>=~!]=? *[\w.*]+,?)*")
    assert all(pattern.fullmatch(line) for line in requirements), requirements


def _troubleshooting() -> list[tuple[str, str]]:
    text = (BLOCKS / "troubleshooting.txt").read_text(encoding="utf-8")
    return re.findall(r"Error: (.*)\nSolution: (.*)", text)


def test_a_full_disk_is_reported_in_the_mission_s_words() -> None:
    import errno

    from milepost.io.durable import storage_error

    (error, solution) = _troubleshooting()[0]
    said = str(storage_error(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "write", Path("x"))).lower()
    assert error.lower() in said
    for advice in ("enable compression", "max_checkpoints", "free disk space"):
        assert advice in solution.lower()
        assert advice in said


def test_an_absent_tensorboard_is_reported_in_the_mission_s_words(monkeypatch: pytest.MonkeyPatch) -> None:
    from milepost import MissingDependencyError
    from milepost.trackers.event_file import EventEncoder

    error, solution = _troubleshooting()[1]
    for name in [name for name in sys.modules if name.split(".")[0] == "tensorboard"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(
        sys.modules, "tensorboard", None
    )  # which makes importing it fail, as it does where it is absent
    with pytest.raises(MissingDependencyError) as raised:
        EventEncoder()
    assert error in str(raised.value)
    assert raised.value.cure in solution


@pytest.mark.skipif(find_spec("wandb") is None, reason="W&B is not installed")
def test_a_login_that_wandb_refuses_is_reported_in_the_mission_s_words(tmp_path: Path) -> None:
    error, solution = _troubleshooting()[2]
    script = (
        "import sys; from pathlib import Path; from milepost.trackers.wandb import WandbTracker\n"
        "from milepost.trackers.protocol import RunDescription\n"
        "WandbTracker().open(RunDescription(id='r', name='r', folder=Path(sys.argv[1]), project='p'), {})"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        cwd=tmp_path,
        env=os.environ | {"WANDB_API_KEY": "far too short", "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        check=False,
    )
    last = done.stderr.splitlines()[-1]
    assert error in last
    assert "wandb login" in last
    assert "wandb login" in solution
