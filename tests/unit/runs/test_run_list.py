"""Runs side by side: a table of what differs, the best and the worst, a frame."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from milepost.core.config import ExperimentConfig
from milepost.core.errors import InvalidInputError, NotFoundError
from milepost.core.events import Described, StatusChanged
from milepost.runs.layout import RunLayout
from milepost.runs.log import DirectLog, begin_log
from milepost.runs.metadata import write_metadata
from milepost.runs.run_list import RunList
from milepost.runs.segment import new_log_id
from milepost.runs.store import Store


def make_run(folder: Path, number: int, values: list[float], group: str = "lr-sweep", **hyperparameters: Any) -> None:
    layout = RunLayout.from_config(ExperimentConfig(root=str(folder)), f"bert_{number}")
    layout.experiment.mkdir(parents=True)
    layout.log.mkdir(parents=True)
    log = DirectLog(layout, new_log_id())
    begin_log(log, role="trainer", attempt=1)
    described = {"hyperparameters": hyperparameters, "group": group, "tags": ["bert"]}
    fields = {"name": f"bert-{number}", "start_time": 10.0 * number} | described
    log.append(Described(fields=fields))
    write_metadata(layout, fields)
    for step, value in enumerate(values):
        log.log({"train/loss": 1.0, "val/loss": value}, step)
    log.append(StatusChanged(status="completed"))
    log.close()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    make_run(tmp_path, 1, [0.9, 0.3, 0.5], learning_rate=1e-4, epochs=3)
    make_run(tmp_path, 2, [0.8, 0.7], learning_rate=1e-5, epochs=3)
    make_run(tmp_path, 3, [math.nan], learning_rate=1e-3, epochs=3)
    make_run(tmp_path, 4, [0.1], group="other", learning_rate=1.0, epochs=3)
    return Store(tmp_path)


def test_a_group_is_asked_for_and_its_best_and_worst_found(store: Store):
    sweep = store.runs("group:lr-sweep")
    assert isinstance(sweep, RunList)
    assert [run.id for run in sweep] == ["bert_3", "bert_2", "bert_1"]
    assert sweep.best("val/loss").id == "bert_1"
    assert sweep.worst("val/loss").id == "bert_2"
    assert sweep.best("val/loss", mode="max").id == "bert_1"
    assert sweep.worst("val/loss", mode="max").id == "bert_2"
    assert [run.id for run in store.runs("best(val/loss)<0.5 group:lr-sweep")] == ["bert_1"]


def test_printed_it_is_a_table_of_what_differs(store: Store):
    table = repr(store.runs("group:lr-sweep")).splitlines()
    assert table[0].split("  ")[0] == "state"
    assert "learning_rate" in table[0]
    assert "min val/loss" in table[0]
    assert "epochs" not in table[0]
    assert len(table) == 4
    assert all(part in table[3] for part in ("completed", "bert_1", "0.0001", "0.3"))
    assert repr(store.runs("group:nobody")) == "<no runs>"


def test_a_long_list_says_how_many_it_does_not_show(store: Store):
    runs = store.runs()
    assert repr(RunList(list(runs) * 6)).splitlines()[-1] == "... and 4 more"


def test_what_no_run_has_is_refused_with_what_they_have(store: Store):
    with pytest.raises(NotFoundError, match="val/los") as caught:
        store.runs().best("val/los")
    assert "val/loss" in caught.value.cure
    with pytest.raises(InvalidInputError, match="mode"):
        store.runs().best("val/loss", mode="smallest")  # type: ignore[arg-type]


def test_a_frame_has_a_row_for_each_run(store: Store):
    pytest.importorskip("pandas")
    frame = store.runs("group:lr-sweep").to_pandas().set_index("id")
    assert frame.loc["bert_1", "hyperparameters.learning_rate"] == 1e-4
    assert frame.loc["bert_1", "val/loss.min"] == 0.3
    assert frame.loc["bert_1", "val/loss.last"] == 0.5


def test_the_summary_of_a_reader_knows_every_metric(store: Store):
    run = store["bert_1"]
    assert run.summary == {}
    assert (run.summary["val/loss"].min, run.summary["val/loss"].min_step) == (0.3, 1)
    assert (run.group, run.tags, run.hyperparameters["epochs"]) == ("lr-sweep", ["bert"], 3)
