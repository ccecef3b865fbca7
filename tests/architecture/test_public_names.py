"""Are the public names there, where they are said to be, and cheap to reach?"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

import experiment_tracking_checkpointing_system as mission
import milepost
from tests.architecture.sources import SOURCE


def modules_after(statement: str) -> set[str]:
    """Top-level packages that a fresh interpreter holds after ``statement``."""
    code = f"{statement}\nimport sys, json; print(json.dumps(sorted({{name.split('.')[0] for name in sys.modules}})))"
    environment = os.environ | {"PYTHONPATH": str(SOURCE)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


@pytest.mark.parametrize("name", milepost.__all__)
def test_every_public_name_can_be_had(name: str) -> None:
    assert getattr(milepost, name) is not None
    assert name in dir(milepost)


@pytest.mark.parametrize("name", mission.__all__)
def test_the_mission_module_gives_the_same_objects(name: str) -> None:
    assert getattr(mission, name) is getattr(milepost, name)


def test_a_name_that_is_not_there_says_so() -> None:
    with pytest.raises(AttributeError, match="no attribute 'strat'"):
        getattr(milepost, "strat")  # noqa: B009 - the type checker knows the names
    with pytest.raises(AttributeError, match="no attribute 'start'"):
        getattr(mission, "start")  # noqa: B009


@pytest.mark.parametrize("module", ["milepost", "experiment_tracking_checkpointing_system"])
def test_importing_loads_no_package(module: str) -> None:
    heavy = {"numpy", "torch", "msgspec", "psutil", "rich", "typer", "xxhash", "zstandard"}
    assert modules_after(f"import {module}") & heavy == set()


@pytest.mark.parametrize(
    "name",
    [
        "ExperimentTrackingSystem",
        "ModelCheckpointer",
        "Run",
        "TensorboardTracker",
        "WandbTracker",
        "load",
        "open",
        "start",
    ],
)
def test_names_are_reached_without_torch_and_without_a_terminal(name: str) -> None:
    assert modules_after(f"from milepost import {name}") & {"torch", "rich", "typer", "tensorboard", "wandb"} == set()
