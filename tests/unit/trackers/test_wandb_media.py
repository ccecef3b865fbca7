"""What stands in W&B's own files of images, sounds, histograms, tables, texts, alerts, the machine and later edits."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from milepost.core.events import (
    Alerted,
    CheckpointChanged,
    Described,
    Event,
    MediaAdded,
    Noticed,
    StatusChanged,
    SystemSampled,
    Text,
)
from milepost.runs.scan import LoggedRecord
from milepost.trackers.protocol import RunDescription
from milepost.trackers.wandb import WandbTracker
from milepost.trackers.wandb_media import Galleries
from milepost.trackers.wandb_summary import Extremes
from tests.unit.trackers import wandb_file
from tests.unit.trackers.pictures import COUNTED, kept, one_of_each, png, wav
from tests.unit.trackers.story import STARTED, follower, identified, metrics, record, told


@pytest.fixture(autouse=True)
def _no_login(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("WANDB_MODE", "offline")
    with wandb_file.no_login(tmp_path, monkeypatch):
        monkeypatch.setenv("WANDB_MODE", "offline")
        yield


def _deliver(folder: Path, events: Sequence[Event] | Sequence[LoggedRecord], **fields: Any) -> list[Noticed]:
    fields = {"hyperparameters": {"lr": 0.1}} | fields
    run = RunDescription(
        id="exp_1", name="exp", project="nlp", folder=folder / "logs", media=folder / "media", **fields
    )
    records = [event if isinstance(event, LoggedRecord) else record(event, n) for n, event in enumerate(events)]
    notices: list[Noticed] = []
    one = follower(folder, lambda: WandbTracker(notices.append), records, run=run, notices=notices, name="wandb")
    one.start()
    assert one.finish(time.monotonic() + 60), notices
    return notices


def _records(folder: Path, kind: str) -> list[Any]:
    files = sorted((folder / "logs").rglob("*.wandb"))
    sent = [one for path in files for one in wandb_file.records(path)]
    return [getattr(one, kind) for one in sent if one.WhichOneof("record_type") == kind]


def _rows(folder: Path) -> list[dict[str, Any]]:
    return [row for path in sorted((folder / "logs").rglob("*.wandb")) for row in wandb_file.rows(path)]


def _row_of(rows: list[dict[str, Any]], name: str) -> dict[str, Any]:
    """The values of the first row in which something is called ``name``."""
    row = next(row for row in rows if any(key == name or key.startswith(f"{name}/") for key in row))
    return {key.removeprefix(f"{name}/"): value for key, value in row.items()}


def _stored(folder: Path, path: str) -> bytes:
    (file,) = (folder / "logs").rglob(f"files/{path}")
    return file.read_bytes()


def test_every_kind_has_a_row_with_its_file_at_its_step(tmp_path: Path):
    media = one_of_each(tmp_path / "media")
    assert _deliver(tmp_path, [identified(), *media, metrics(8, loss=1.0), StatusChanged(status="completed")]) == []
    rows = _rows(tmp_path)
    sample = _row_of(rows, "sample")
    assert (sample["trainer/global_step"], sample["_type"], sample["caption"]) == (1, "image-file", "a caption")
    assert (_stored(tmp_path, sample["path"]), sample["width"], sample["height"]) == (png(), 3, 2)
    assert _stored(tmp_path, _row_of(rows, "curve")["path"]) == png(5, 4)
    voice = _row_of(rows, "voice")
    assert (voice["_type"], _stored(tmp_path, voice["path"])) == ("audio-file", wav())
    assert b"<p>hello</p>" in _stored(tmp_path, _row_of(rows, "report")["path"])
    assert b"<pre>many words" in _stored(tmp_path, _row_of(rows, "long")["path"])
    table = json.loads(_stored(tmp_path, _row_of(rows, "errors")["path"]))
    assert table["data"] == [["a | b", 0.5], ["line\nbreak", None]]
    assert _stored(tmp_path, media[-1].path) == b"\0\1\2"
    assert _row_of(rows, "loss")["trainer/global_step"] == 8


def test_a_histogram_keeps_its_bins_or_puts_neighbours_together(tmp_path: Path):
    fine = COUNTED | {"bin_edges": [float(n) for n in range(1025)], "counts": [1] * 1024}
    media = tmp_path / "media"
    _deliver(tmp_path, [kept(media, "histogram", "few", COUNTED), kept(media, "histogram", "many", fine)])
    few, many = (_row_of(_rows(tmp_path), name) for name in ("few", "many"))
    assert (few["_type"], few["bins"], few["values"]) == ("histogram", COUNTED["bin_edges"], COUNTED["counts"])
    assert (len(many["values"]), set(many["values"])) == (512, {2})
    assert many["bins"] == [float(n) for n in range(0, 1025, 2)]


def test_images_of_one_list_stand_in_one_row_whatever_comes_between(tmp_path: Path):
    media = tmp_path / "media"
    listed = [kept(media, "image", "grid", png(shade=n), step=4, facts={"index": n, "count": 3}) for n in range(3)]
    records = told([identified(), listed[0], metrics(4, loss=1.0), *listed[1:], metrics(5, loss=1.0)])
    for known in (2, 4, len(records)):  # a process ended in the middle of the list
        _deliver(tmp_path, records[:known])
    rows = _rows(tmp_path)
    grid = _row_of(rows, "grid")
    assert (grid["_type"], grid["count"], grid["trainer/global_step"]) == ("images/separated", 3, 4)
    assert [_stored(tmp_path, path) for path in grid["filenames"]] == [png(shade=n) for n in range(3)]
    assert [row["_step"] for row in rows] == [0, 1, 2]


def test_a_list_that_stays_incomplete_is_shown_when_the_next_comes():
    one = MediaAdded(step=1, name="a", path="p", media_type="image/png", size=1, facts={"index": 0, "count": 2})
    other = replace(one, step=2)
    galleries = Galleries([])
    assert galleries.taken(one) == []
    assert galleries.taken(other) == [[one]]
    again = Galleries(json.loads(json.dumps(galleries.open_one())))
    last = replace(other, facts={"index": 1, "count": 2})
    assert again.taken(last) == [[other, last]]
    assert again.rest() == []


def test_a_damaged_file_is_left_out_with_one_notice_and_moves_no_other_row(tmp_path: Path):
    media = tmp_path / "media"
    gone = kept(media, "image", "gone", png(), step=1)
    damaged = kept(media, "table", "damaged", "[]", step=2)
    undrawable = kept(media, "image", "undrawable", png().replace(b"IDAT", b"IDAX"), step=3)
    (media / gone.path).unlink()
    notices = _deliver(tmp_path, [gone, damaged, undrawable, metrics(4, loss=1.0)])
    assert [notice.topic for notice in notices] == ["media"]
    assert gone.path in notices[0].message
    (row,) = _rows(tmp_path)
    assert (row["_step"], row["trainer/global_step"]) == (3, 4)


def test_a_figure_of_plotly_is_one_there_too(tmp_path: Path):
    plotly = pytest.importorskip("plotly.graph_objects")
    figure = plotly.Figure(data=[plotly.Scatter(x=[1, 2], y=[3, 4])]).to_json()
    event = replace(kept(tmp_path / "media", "figure", "curve", figure), media_type="application/vnd.plotly.v1+json")
    assert _deliver(tmp_path, [event]) == []
    curve = _row_of(_rows(tmp_path), "curve")
    assert curve["_type"] == "plotly-file"
    assert json.loads(_stored(tmp_path, curve["path"]))["data"][0]["y"] == [3, 4]


def test_a_text_is_a_page_that_keeps_its_lines(tmp_path: Path):
    _deliver(tmp_path, [Text(step=3, name="sample", text="one\n<two>")])
    sample = _row_of(_rows(tmp_path), "sample")
    assert sample["trainer/global_step"] == 3
    assert _stored(tmp_path, sample["path"]) == b"<pre>one\n&lt;two&gt;</pre>"


def test_samples_of_the_machine_stand_over_the_seconds_of_the_run(tmp_path: Path):
    records = told([identified(), metrics(1000, loss=1.0)])
    records += [record(SystemSampled(values={"system/cpu_percent": 5.0}), number) for number in (10, 20)]
    _deliver(tmp_path, records)
    samples = [row for row in _rows(tmp_path) if "system/cpu_percent" in row]
    assert [(row["system/seconds"], row["_timestamp"]) for row in samples] == [(10, STARTED + 10), (20, STARTED + 20)]
    axes = {metric.name or metric.glob_name: metric.step_metric for metric in _records(tmp_path, "metric")}
    assert axes["system/cpu_percent"] == "system/seconds"
    assert axes["*"] == "trainer/global_step"


def test_an_alert_is_an_alert_with_its_rule_and_what_was_done(tmp_path: Path):
    _deliver(tmp_path, [Alerted(step=8, title="t" * 80, text="look", level="error", rule="nan", actions=["paused"])])
    (alert,) = _records(tmp_path, "alert")
    assert (alert.title, alert.text, alert.level) == ("t" * 63, "look\nrule: nan\npaused", "ERROR")


def test_later_edits_arrive_and_what_the_start_said_is_not_said_again(tmp_path: Path):
    start = [{"name": "exp"}, {"tags": ["a"]}, {"notes": ""}, {"hyperparameters": {"lr": 0.1}}, {"attempt": 1}]
    edits = [{"tags": ["a", "good"]}, {"notes": "watch"}, {"hyperparameters": {"lr": 0.2}}, {"name": "better"}]
    events = [Described(fields=fields) for fields in start]
    _deliver(tmp_path, events, tags=("a",))
    assert len(_records(tmp_path, "run")) == 1
    _deliver(tmp_path, [*events, *(Described(fields=fields) for fields in edits)], tags=("a",))
    run = _records(tmp_path, "run")[-1]
    assert (list(run.tags), run.notes, run.display_name) == (["a", "good"], "watch", "better")
    (config,) = _records(tmp_path, "config")
    assert [(item.key, json.loads(item.value_json)) for item in config.update] == [("lr", 0.2)]


def test_the_summary_holds_the_smallest_the_largest_and_the_final_values(tmp_path: Path):
    values = [3.0, 1.0, float("nan"), 2.0]
    events = told([metrics(step, loss=value) for step, value in enumerate(values)])
    _deliver(tmp_path, events[:2])
    _deliver(tmp_path, [*events, record(StatusChanged(status="failed", summary={"f1": 0.5}), 9)])
    updates = [item for sent in _records(tmp_path, "summary") for item in sent.update]
    last = {item.key: json.loads(item.value_json) for item in updates if item.key in {"min/loss", "max/loss", "f1"}}
    assert last == {"min/loss": 1.0, "max/loss": 3.0, "f1": 0.5}


def test_a_checkpoint_that_is_called_best_says_so_in_the_summary(tmp_path: Path):
    info = {"step": 5, "metrics": {"val/loss": 0.5}, "path": "/gone/x", "is_best": True, "filename": "x"}
    _deliver(tmp_path, [CheckpointChanged(step=5, action="committed", filename="x", info=info)])
    updates = [item for sent in _records(tmp_path, "summary") for item in sent.update]
    assert {item.key: json.loads(item.value_json) for item in updates if item.key.startswith("best/")} == {
        "best/step": 5,
        "best/val/loss": 0.5,
    }


def test_extremes_go_on_where_they_were():
    extremes = Extremes({})
    extremes.take({"loss": 2.0, "flag": True, "bad": float("inf")})
    again = Extremes(extremes.known())
    again.take({"loss": 1.0})
    assert again.summary() == {"min/loss": 1.0, "max/loss": 2.0}
    known = again.known()
    again.take({"loss": 9.0})
    assert known == {"loss": [1.0, 2.0]}  # a cursor that waits to be saved does not change
    assert extremes.summary() == {"min/loss": 2.0, "max/loss": 2.0}
