"""What MLflow's own client reads back after a run was told to it."""

from __future__ import annotations

import math
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from torture.faulty_server import FaultyServer

from milepost.core.errors import InvalidCallError, InvalidInputError, MissingDependencyError
from milepost.core.events import (
    Alerted,
    BigIntegers,
    CheckpointChanged,
    Described,
    Event,
    MediaAdded,
    Metrics,
    Noticed,
    Rewound,
    StatusChanged,
    SystemSampled,
    Text,
)
from milepost.runs.scan import LoggedRecord
from milepost.trackers.mlflow import MlflowTracker
from milepost.trackers.protocol import RunDescription
from tests.unit.trackers.story import STARTED, follower, identified, metrics, record, told, training

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
mlflow = pytest.importorskip("mlflow")

#: MLflow asks SQLAlchemy for what SQLAlchemy 2.1 begins to take back.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning")


@pytest.fixture(scope="module")
def _empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its tables take seconds to be made: once is enough."""
    path = tmp_path_factory.mktemp("mlflow") / "empty.db"
    mlflow.MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture(autouse=True)
def _of_this_test(tmp_path: Path, _empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    shutil.copy(_empty_database, tmp_path / "mlflow.db")
    for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setattr("milepost.trackers.mlflow._QUIET", {})
    yield
    store = sys.modules.get("mlflow.store.tracking.sqlalchemy_store")
    for engine in list(getattr(getattr(store, "SqlAlchemyStore", None), "_engine_map", {}).values()):
        engine.dispose()


def _uri(folder: Path) -> str:
    return f"sqlite:///{folder / 'mlflow.db'}"


def _client(folder: Path) -> Any:
    return mlflow.MlflowClient(tracking_uri=_uri(folder))


def _run(folder: Path, **fields: Any) -> RunDescription:
    fields = {"started": float(STARTED), "media": folder / "media"} | fields
    return RunDescription(id="exp_20260101-000000", name="exp", folder=folder / "mlflow", **fields)


def _deliver(folder: Path, events: Sequence[Event] | Sequence[LoggedRecord], **fields: Any) -> list[Noticed]:
    records = [e if isinstance(e, LoggedRecord) else record(e, number) for number, e in enumerate(events)]
    notices: list[Noticed] = []
    one = follower(
        folder,
        lambda: MlflowTracker(_uri(folder), notices.append),
        records,
        run=_run(folder, **fields),
        notices=notices,
        name="mlflow",
    )
    one.start()
    assert one.finish(time.monotonic() + 60), notices
    return notices


def _only(folder: Path) -> Any:
    client = _client(folder)
    (found,) = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    return found


def _points(folder: Path, name: str) -> list[tuple[int, int, float]]:
    history = _client(folder).get_metric_history(_only(folder).info.run_id, name)
    return sorted((point.step, point.timestamp, point.value) for point in history)


def _artifacts(folder: Path, below: str | None = None) -> list[str]:
    found = []
    for item in _client(folder).list_artifacts(_only(folder).info.run_id, below):
        found += _artifacts(folder, item.path) if item.is_dir else [item.path]
    return sorted(found)


def test_every_number_is_there_at_its_step_and_time(tmp_path: Path):
    _deliver(tmp_path, training(2500))
    expected = [(step, (STARTED + 1 + step) * 1000, 1.0 / (step + 1)) for step in range(2500)]
    assert _points(tmp_path, "loss") == expected
    run = _only(tmp_path)
    assert (run.info.status, run.info.run_name) == ("FINISHED", "exp")
    assert (run.info.start_time, run.info.end_time) == (STARTED * 1000, (STARTED + 2501) * 1000)


def test_numbers_that_are_not_finite_or_not_floats_are_what_mlflow_can_hold_of_them(tmp_path: Path):
    values = {"nan": math.nan, "up": math.inf, "down": -math.inf, "yes": True, "whole": 2**53}
    big = BigIntegers(step=1, epoch=None, values={"big": "1" + "0" * 30, "beyond": "9" * 400})
    _deliver(tmp_path, [identified(), metrics(1, **values), big])
    assert math.isnan(_points(tmp_path, "nan")[0][2])
    largest = sys.float_info.max
    found = {name: _points(tmp_path, name)[0][2] for name in ("up", "down", "yes", "whole", "big", "beyond")}
    assert found == {"up": largest, "down": -largest, "yes": 1, "whole": 2.0**53, "big": 1e30, "beyond": largest}


def test_what_is_told_twice_is_there_once(tmp_path: Path):
    events = [
        identified(),
        *(metrics(s, 0.5, loss=float(s), nan=math.nan) for s in range(1500)),
        Text(step=3, name="t", text="x"),
    ]
    _deliver(tmp_path, events)
    (tmp_path / "guest-mlflow.json").unlink()  # the cursor of a companion that was killed before it could be saved
    _deliver(tmp_path, [*events, metrics(1500, 0.5, loss=1500.0)])
    assert [point[0] for point in _points(tmp_path, "loss")] == list(range(1501))
    assert len(_points(tmp_path, "nan")) == 1500
    assert len(_points(tmp_path, "epoch")) == 1501
    assert _artifacts(tmp_path) == ["text/t/3.txt"]


def test_a_later_attempt_goes_on_in_the_same_run_and_says_where_it_resumed(tmp_path: Path):
    first = told([*training(10, end=None), StatusChanged(status="killed")])
    _deliver(tmp_path, first)
    assert _only(tmp_path).info.status == "KILLED"
    second = [identified(attempt=2), Rewound(step=6), metrics(7, loss=9.0), StatusChanged(status="completed")]
    _deliver(tmp_path, [*first, *told(second, log=b"2" * 16)], attempt=2)
    run = _only(tmp_path)
    assert run.info.status == "FINISHED"
    assert (run.data.tags["milepost.attempt"], run.data.tags["milepost.resumed_at"]) == ("2", "7")
    assert [value for step, _, value in _points(tmp_path, "loss") if step == 7] == [9.0, 1 / 8]


def test_a_run_that_was_deleted_there_is_told_again_from_its_first_record(tmp_path: Path):
    _deliver(tmp_path, training(5, end=None))
    deleted = _only(tmp_path).info.run_id
    _client(tmp_path).delete_run(deleted)
    _deliver(tmp_path, training(6))
    assert _only(tmp_path).info.run_id != deleted
    assert len(_points(tmp_path, "loss")) == 6


def test_an_experiment_that_was_deleted_there_is_named_with_the_command_that_brings_it_back(tmp_path: Path):
    client = _client(tmp_path)
    identity = client.create_experiment("sweep")
    client.delete_experiment(identity)
    with pytest.raises(InvalidInputError, match="deleted") as caught:
        MlflowTracker(_uri(tmp_path)).open(_run(tmp_path, group="sweep"), {})
    assert f"mlflow experiments restore --experiment-id {identity}" in caught.value.cure


def test_the_experiment_is_the_variable_else_the_group_else_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def named(**fields: Any) -> str:
        _deliver(tmp_path, training(1), **fields)
        (tmp_path / "guest-mlflow.json").unlink()
        run = _only(tmp_path)
        _client(tmp_path).delete_run(run.info.run_id)
        return str(_client(tmp_path).get_experiment(run.info.experiment_id).name)

    assert named() == "exp"
    assert named(group="sweep") == "sweep"
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    assert named(group="sweep") == "mine"


def test_parameters_are_flat_and_a_long_one_is_cut_where_everybody_can_see_it(tmp_path: Path):
    given: Mapping[str, Any] = {"lr": 1e-4, "optimizer": {"name": "adamw", "betas": [0.9, 0.999]}, "long": "x" * 9000}
    notices = _deliver(
        tmp_path, training(1), hyperparameters=given, model_config={"layers": 2}, dataset_info={"name": "d"}
    )
    run = _only(tmp_path)
    cut = run.data.params.pop("long")
    assert len(cut) == 6000
    assert cut.endswith("x…")
    assert run.data.tags["milepost.cut_params"] == "long"
    assert [n.topic for n in notices] == ["params"]
    assert run.data.params == {
        "lr": "0.0001", "optimizer/name": "adamw", "optimizer/betas": "[0.9, 0.999]",
        "model_config/layers": "2", "dataset_info/name": "d",
    }  # fmt: skip


def test_a_parameter_that_changed_by_force_stands_in_a_tag(tmp_path: Path):
    _deliver(tmp_path, training(1, end=None), hyperparameters={"lr": 1})
    _deliver(tmp_path, training(2), hyperparameters={"lr": 2, "new": 3}, attempt=2)
    run = _only(tmp_path)
    assert run.data.params == {"lr": "1", "new": "3"}
    assert run.data.tags["milepost.changed.lr"] == "2"


def test_more_parameters_than_one_request_may_hold(tmp_path: Path):
    _deliver(tmp_path, training(1), hyperparameters={f"p{n}": n for n in range(250)})
    assert len(_only(tmp_path).data.params) == 250


def test_tags_and_notes_and_their_later_edits(tmp_path: Path):
    later = [
        Described(fields={"tags": ["bert", "good one", "mlflow.runName"]}),
        Described(fields={"notes": "look at step 9"}),
    ]
    commit = Described(fields={"code": {"commit": "abc123"}})
    _deliver(tmp_path, [*training(2, end=None), *later, commit], description="a try", tags=("bert",), group="g")
    run = _only(tmp_path)
    assert run.data.tags["mlflow.note.content"] == "a try\n\nlook at step 9"
    assert run.data.tags["bert"] == run.data.tags["good one"] == run.data.tags["tag.mlflow.runName"] == "true"
    assert run.data.tags["milepost.group"] == "g"
    assert run.data.tags["mlflow.source.git.commit"] == "abc123"
    assert run.info.run_name == "exp"


def test_names_that_mlflow_refuses_are_mapped_and_said_once(tmp_path: Path):
    values = {"acc@1": 1.0, "acc%1": 2.0, "a//b": 3.0, "../up": 4.0, "n" * 300: 5.0, "straße/дом x:y": 6.0}
    notices = _deliver(tmp_path, [identified(), metrics(0, **values), metrics(1, **values)])
    found = _only(tmp_path).data.metrics
    assert sorted(found.values()) == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    assert found["straße/дом x:y"] == 6.0
    assert [n.topic for n in notices] == ["names"]


def test_files_and_texts_become_artifacts_and_nothing_outside_of_the_folder_of_media(tmp_path: Path):
    (tmp_path / "media" / "images").mkdir(parents=True)
    (tmp_path / "media" / "images" / "cat.png").write_bytes(b"png")
    (tmp_path / "secret").write_text("private")

    def added(path: str) -> MediaAdded:
        return MediaAdded(step=1, name="cat", path=path, media_type="image/png", size=3)

    events = [
        identified(),
        added("images/cat.png"),
        added("images/gone.png"),
        added("../secret"),
        Text(step=2, name="out", text="hello"),
    ]
    _deliver(tmp_path, events)
    assert _artifacts(tmp_path) == ["media/images/cat.png", "text/out/2.txt"]


def test_checkpoints_are_named_and_not_copied(tmp_path: Path):
    info = {"step": 5, "path": "/ckpt/a.ckpt", "metrics": {"val/loss": 0.5}, "is_best": True}
    committed = CheckpointChanged(step=5, action="committed", filename="a.ckpt", info=info)
    later = CheckpointChanged(step=6, action="committed", filename="b.ckpt", info={"step": 6, "path": "/ckpt/b.ckpt"})
    _deliver(tmp_path, [identified(), committed, later])
    tags = _only(tmp_path).data.tags
    assert (tags["milepost.best_checkpoint"], tags["milepost.checkpoint"]) == ("/ckpt/a.ckpt", "/ckpt/b.ckpt")
    assert _artifacts(tmp_path) == ["checkpoints/a.ckpt.json", "checkpoints/b.ckpt.json"]


def test_an_artifact_that_is_refused_keeps_no_number_back(tmp_path: Path):
    (tmp_path / "mlartifacts").write_text("a file where the folder should be")
    notices = _deliver(tmp_path, [identified(), Text(step=0, name="t", text="x"), metrics(1, loss=2.0)])
    assert [n.topic for n in notices] == ["artifacts"]
    assert len(_points(tmp_path, "loss")) == 1


def test_system_metrics_have_mlflows_names_and_units_and_a_count_for_a_step(tmp_path: Path):
    values = {"system/memory_used_bytes": 5e6, "system/gpu0/power_watts": 300.0, "system/disk_free_bytes": 7.0}
    sampled = [SystemSampled(values=values | {"system/cpu_percent": float(n)}) for n in range(3)]
    _deliver(tmp_path, [identified(), *sampled[:2]])
    _deliver(tmp_path, [identified(), *sampled])
    cpu = _points(tmp_path, "system/cpu_utilization_percentage")
    assert [(step, value) for step, _, value in cpu] == [(0, 0.0), (1, 1.0), (2, 2.0)]
    found = _only(tmp_path).data.metrics
    assert found["system/system_memory_usage_megabytes"] == 5.0
    assert found["system/gpu_0_power_usage_watts"] == 300.0
    assert found["system/disk_free_bytes"] == 7.0


def test_an_alert_is_a_tag(tmp_path: Path):
    _deliver(tmp_path, [identified(), Alerted(step=1, title="loss is NaN", level="error")])
    assert _only(tmp_path).data.tags["milepost.alert"] == "error: loss is NaN"


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ("completed", "FINISHED"),
        ("failed", "FAILED"),
        ("stopped", "KILLED"),
        ("preempted", "KILLED"),
        ("paused", "SCHEDULED"),
    ],
)
def test_an_end_is_mlflows_word_for_it_and_ours_in_a_tag(tmp_path: Path, status: Any, expected: str):
    end = StatusChanged(status=status, reason="why", summary={"accuracy": 0.9, "verdict": "good"})
    _deliver(tmp_path, [*training(3, end=None), end])
    run = _only(tmp_path)
    assert run.info.status == expected
    assert (run.data.tags["milepost.status"], run.data.tags["milepost.reason"]) == (status, "why")
    assert run.data.tags["final/verdict"] == "good"
    assert _points(tmp_path, "final/accuracy") == [(2, (STARTED + 4) * 1000, 0.9)]


def test_a_login_that_is_refused_is_for_a_person_to_mend(tmp_path: Path):
    with FaultyServer(fault="401") as server, pytest.raises(InvalidInputError, match="login") as caught:
        MlflowTracker(server.url).open(_run(tmp_path), {})
    assert "MLFLOW_TRACKING_TOKEN" in caught.value.cure


def test_what_was_said_is_not_said_again_by_the_next_process(tmp_path: Path):
    first = _deliver(tmp_path, [identified(), metrics(0, **{"a@b": 1.0})])
    again = _deliver(tmp_path, [identified(), metrics(0, **{"a@b": 1.0}), metrics(1, **{"a@b": 1.0})])
    assert (len(first), len(again)) == (1, 0)


def test_a_name_longer_than_mlflows_column_is_cut(tmp_path: Path):
    _deliver(tmp_path, training(1), group="g" * 400)
    run = _only(tmp_path)
    assert _client(tmp_path).get_experiment(run.info.experiment_id).name == "g" * 249 + "…"


def test_a_tracker_that_is_not_open_says_so():
    with pytest.raises(InvalidCallError, match="not open"):
        MlflowTracker("sqlite:///x.db").write([record(Metrics(step=0, epoch=None, values={"a": 1.0}), 0)] * 1000)


def test_an_absent_package_is_named_with_its_cure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(MissingDependencyError) as caught:
        MlflowTracker(_uri(tmp_path)).open(_run(tmp_path), {})
    assert caught.value.cure == "pip install mlflow"
