"""Unit tests of milepost.cli.app: exit codes, errors, and what a start loads, in real processes."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import milepost
from tests.unit.cli.stage import MAIN, Stage


def test_what_is_there_gives_0(stage: Stage) -> None:
    stage.run("bert_1")
    for words in ((), ("runs",), ("show", "bert"), ("checkpoints", "list", "bert"), ("--version",), ("--help",)):
        done = stage.call(*words)
        assert (done.returncode, done.stderr) == (0, ""), words


def test_a_run_that_is_not_there_gives_1_with_one_line_and_its_cure(stage: Stage) -> None:
    stage.run("bert_1")
    done = stage.call("show", "brt_1")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"milepost: no run 'brt_1' in {stage.root}\n  did you mean 'bert_1' or 'bert'?\n"


def test_an_error_is_a_document_for_programs(stage: Stage) -> None:
    done = stage.call("show", "bert", "--json")
    assert (done.returncode, done.stdout) == (1, "")
    assert json.loads(done.stderr)["error"]["kind"] == "not-found"


@pytest.mark.parametrize("words", [("bogus",), ("show",), ("runs", "--colour"), ("show", "a", "b")], ids=" ".join)
def test_a_command_that_is_not_understood_gives_2(stage: Stage, words: tuple[str, ...]) -> None:
    done = stage.call(*words)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_a_value_that_cannot_be_meant_gives_2(stage: Stage) -> None:
    layout = stage.run("bert_1").layout
    layout.metadata.write_text(json.dumps({"name": "bert", "code": {"commit": "0" * 40, "omitted": {}}}))
    (stage.root / "full").mkdir()
    (stage.root / "full" / "file").touch()
    assert stage.call("checkout", "bert_1", str(stage.root / "full")).returncode == 2


def test_outside_of_any_store_the_cure_is_named(stage: Stage) -> None:
    done = stage.call("--dir", str(stage.root / "nowhere"))
    assert done.returncode == 1
    assert "MILEPOST_DIR" in done.stderr


@pytest.mark.parametrize("runs", [1, 300])
def test_a_reader_that_leaves_early_is_told_nothing(stage: Stage, runs: int) -> None:
    for number in range(runs):
        (stage.root / "experiments" / f"bert_{number}").mkdir()
        (stage.root / "experiments" / f"bert_{number}" / "metadata.json").write_text("{}")
    with subprocess.Popen(
        [sys.executable, "-c", MAIN, "runs", "--json"],
        env=stage.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1


def test_a_terminal_without_the_symbols_still_gets_the_words(stage: Stage) -> None:
    stage.run("bert_1")
    environment = stage.environment | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", MAIN], env=environment, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"? running" in done.stdout


def test_the_version_is_the_one_of_the_package(stage: Stage) -> None:
    assert stage.call("--version").stdout == f"{milepost.__version__}\n"


def tell_of(*packages: str) -> str:
    """Code that says at the end which of the packages were loaded."""
    loaded = f"*sorted({set(packages)} & {{*sys.modules}})"
    return f"import atexit, sys; atexit.register(lambda: print({loaded}, file=sys.stderr))"


@pytest.mark.parametrize(
    "words",
    [
        "",
        "runs",
        "show bert",
        "checkpoints list bert",
        "checkpoints verify",
        "checkpoints prune bert --dry-run",
        "doctor --dry-run",
    ],
)
def test_no_command_that_reads_loads_torch_or_a_network(stage: Stage, words: str) -> None:
    stage.run("bert_1")
    assert stage.call(*words.split(), first=tell_of("torch", "wandb", "tensorboard", "ssl")).stderr == "\n"


def test_help_loads_nothing_that_only_a_reader_needs(stage: Stage) -> None:
    assert stage.call("--help", first=tell_of("numpy", "rich", "msgspec", "psutil")).stderr == "\n"
