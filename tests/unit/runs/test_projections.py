"""What can be made again from the log is the same every time, and any JSON reader reads it."""

import math

import numpy as np
import pytest

from milepost.core.errors import StorageError
from milepost.core.events import Described, Rewound, StatusChanged
from milepost.runs import projections
from milepost.runs.metadata import read_metadata, write_metadata
from milepost.runs.projections import fold_metadata, write_projections
from milepost.runs.telling import read_history
from tests.unit.runs.conftest import plain_json


@pytest.fixture
def finished(layout, direct):
    log = direct()
    fields = {"name": "bert", "hyperparameters": {"lr": 1e-5}, "settings": {"best_metric": "loss", "best_mode": "min"}}
    log.append(Described(fields=fields | {"code": {"commit": "abc"}}))
    for step, loss in enumerate([3.0, float("nan"), 1.0, float("inf"), 2.0]):
        log.log({"loss": loss, "lr": 0.1}, step, 0.5)
    log.append(StatusChanged(status="completed", reason="done", summary={"final_loss": float("nan")}))
    return log


def test_metadata_is_what_was_described_and_how_it_stands(layout, finished):
    write_projections(layout)
    metadata = plain_json(layout.metadata)
    assert metadata["name"] == "bert"
    assert metadata["status"] == "completed"
    assert metadata["git_commit"] == "abc"
    assert metadata["end_time"] >= metadata["start_time"]
    assert [attempt["number"] for attempt in metadata["attempts"]] == [1]
    assert read_metadata(layout) == metadata


def test_what_only_the_start_knew_is_kept(layout, finished):
    write_metadata(layout, {"resume_identity": {"kind": "key"}, "name": "old"})
    write_projections(layout)
    metadata = read_metadata(layout)
    assert metadata["resume_identity"] == {"kind": "key"}
    assert metadata["name"] == "bert"


def test_metrics_stand_in_columns_with_words_for_what_is_not_finite(layout, finished):
    write_projections(layout)
    loss = plain_json(layout.metrics_json)["metrics"]["loss"]
    assert loss["value"] == [3.0, "NaN", 1.0, "Infinity", 2.0]
    assert loss["step"] == [0, 1, 2, 3, 4]
    assert loss["epoch"] == [0.5] * 5
    assert len(loss["time"]) == 5


def test_the_summary_has_what_was_given_and_each_metrics_range(layout, finished):
    write_projections(layout)
    summary = plain_json(layout.summary)
    assert summary["final_metrics"] == {"final_loss": "NaN"}
    assert summary["status"] == "completed"
    loss = summary["metrics"]["loss"]
    assert (loss["last"], loss["last_step"]) == (2.0, 4)
    assert (loss["min"], loss["min_step"]) == (1.0, 2)
    assert (loss["max"], loss["max_step"]) == ("Infinity", 3)
    assert (loss["best"], loss["best_step"]) == (1.0, 2)
    assert (loss["points"], loss["nan"]) == (5, 1)
    assert "best" not in summary["metrics"]["lr"]


def test_deleted_projections_are_made_again_to_the_same_content(layout, finished):
    write_projections(layout)
    places = (layout.metadata, layout.metrics_json, layout.summary)
    before = [place.read_bytes() for place in places]
    for place in places:
        place.unlink()
    write_projections(layout)
    assert [place.read_bytes() for place in places] == before


def test_a_metric_of_only_nan_or_of_no_point_has_a_summary(layout, direct):
    first, second = direct(attempt=1), direct(attempt=2)
    first.log({"gone": 1.0}, 5)
    second.append(Rewound(step=1))
    second.log({"x": float("nan")}, 2)
    write_projections(layout)
    metrics = plain_json(layout.summary)["metrics"]
    assert metrics["gone"] == {"points": 0, "nan": 0}
    assert metrics["x"] == {"points": 1, "nan": 1, "last": "NaN", "last_step": 2}


def test_very_long_metrics_become_buckets_in_which_a_spike_stays_visible(layout, direct, monkeypatch):
    monkeypatch.setattr(projections, "_MOST_POINTS", 3000)
    log = direct()
    values = np.sin(np.arange(5000) / 100)
    values[1234] = 1000.0
    values[77] = math.nan
    for step, value in enumerate(values.tolist()):
        log.log({"x": value}, step)
    write_projections(layout)
    content = plain_json(layout.metrics_json)["metrics"]["x"]
    assert content["points"] == 5000
    assert content["all_points_in"] == str(layout.log)
    assert sum(content["count"]) == 5000
    assert sum(content["nan"]) == 1
    spike = content["max"].index(1000.0)
    assert content["first_step"][spike] <= 1234 <= content["last_step"][spike]
    assert content["mean"][spike] > 100
    assert content["first"][0] == 0.0
    assert content["last"][-1] == values[-1]
    assert content["first_step"][1:] == [step + 1 for step in content["last_step"][:-1]]


def test_a_damaged_metadata_file_reads_as_empty(layout):
    layout.metadata.write_text('{"name": ')
    assert read_metadata(layout) == {}
    layout.metadata.write_text("[1]")
    assert read_metadata(layout) == {}


def test_a_folder_that_is_gone_is_an_error_with_a_cure(layout):
    layout.experiment.rmdir()
    with pytest.raises(StorageError, match="check that the folder still exists"):
        write_metadata(layout, {})


def test_a_run_without_records_has_projections_too(layout):
    write_projections(layout)
    assert fold_metadata(read_history(layout)) == {"attempts": []}
    assert plain_json(layout.summary)["metrics"] == {}
