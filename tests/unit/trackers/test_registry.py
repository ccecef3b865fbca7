"""From a configuration to guests."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from milepost.core.config import ExperimentConfig
from milepost.core.errors import InvalidInputError, MissingDependencyError, NotFoundError
from milepost.core.events import Noticed
from milepost.trackers.mlflow import MlflowTracker
from milepost.trackers.protocol import RunDescription
from milepost.trackers.registry import GuestPlan, build_tracker, follower_for, guests_for
from milepost.trackers.tensorboard import TensorboardTracker
from milepost.trackers.wandb import WandbTracker
from tests.unit.trackers.story import source_of, told, training


@pytest.fixture
def _plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An installed package that offers a tracker."""
    folder = tmp_path / "site"
    (folder / "neptunian-1.0.dist-info").mkdir(parents=True)
    (folder / "neptunian-1.0.dist-info" / "METADATA").write_text("Name: neptunian\nVersion: 1.0\n")
    (folder / "neptunian-1.0.dist-info" / "entry_points.txt").write_text(
        "[milepost.trackers]\nneptune = neptunian_tracker:make\nbroken = no_such_module:make\n"
    )
    (folder / "neptunian_tracker.py").write_text(
        "from tests.unit.trackers.story import Diary, Memory\ndef make(): return Diary(Memory())\n"
    )
    monkeypatch.syspath_prepend(str(folder))
    yield
    sys.modules.pop("neptunian_tracker", None)


def _names(**fields: object) -> list[str]:
    return [plan.name for plan in guests_for(asdict(ExperimentConfig(**fields)))]  # type: ignore[arg-type]


def test_the_fields_of_the_configuration_decide():
    assert _names() == ["tensorboard"]
    assert _names(wandb_project="nlp") == ["tensorboard", "wandb"]
    assert _names(mlflow_uri="sqlite:///m.db") == ["tensorboard", "mlflow"]
    assert _names(tensorboard_dir=None) == []


def test_the_own_guests_are_built_without_importing_their_packages():
    plans = guests_for({"tensorboard_dir": "./runs", "wandb_project": "nlp", "mlflow_uri": "sqlite:///m.db"})
    kinds = [type(build_tracker(plan, lambda notice: None)) for plan in plans]
    assert kinds == [TensorboardTracker, WandbTracker, MlflowTracker]


@pytest.mark.usefixtures("_plugin")
def test_a_name_in_trackers_is_an_entry_point_of_an_installed_package():
    (plan,) = guests_for({"trackers": ["neptune"]})
    assert plan == GuestPlan(name="neptune", factory="neptunian_tracker:make")
    assert build_tracker(plan, lambda notice: None).name == "diary"


@pytest.mark.usefixtures("_plugin")
def test_a_name_that_nobody_offers_is_refused_with_those_that_are():
    with pytest.raises(NotFoundError, match="neptunus") as caught:
        guests_for({"trackers": ["neptunus"]})
    assert "broken, neptune" in caught.value.cure


@pytest.mark.usefixtures("_plugin")
def test_a_guest_asked_for_twice_is_refused():
    with pytest.raises(InvalidInputError, match="twice"):
        guests_for({"trackers": ["neptune", "neptune"]})


@pytest.mark.usefixtures("_plugin")
@pytest.mark.parametrize("factory", ["no_such_module:make", "neptunian_tracker:made"])
def test_a_guest_whose_code_is_absent_is_said_by_its_follower(tmp_path: Path, factory: str):
    plan, notices = GuestPlan(name="broken", factory=factory), list[Noticed]()
    with pytest.raises(MissingDependencyError, match="broken"):
        build_tracker(plan, notices.append)
    one = follower_for(
        plan,
        RunDescription(id="e", name="e"),
        open_source=source_of(told(training(2))),
        cursor_path=tmp_path / "guest-broken.json",
        notice=notices.append,
    )
    one.start()
    assert not one.finish(time.monotonic() + 30)
    assert [notice.source for notice in notices] == ["broken"]
