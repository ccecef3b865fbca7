"""What TensorBoard's readers find of images, histograms, sounds, tables, graphs, alerts and the machine."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator as PageAccumulator
from tensorboard.util import tensor_util

from milepost.core.events import Alerted, Described, Event, Noticed, Rewound, StatusChanged, SystemSampled, Text
from milepost.runs.scan import LoggedRecord
from milepost.trackers.protocol import RunDescription
from milepost.trackers.tensorboard import TensorboardTracker
from tests.unit.trackers.pictures import COUNTED, graph, kept, one_of_each, png, wav
from tests.unit.trackers.story import STARTED, follower, identified, metrics, record, told

_ALL = {"scalars": 0, "images": 0, "histograms": 0, "audio": 0, "tensors": 0, "compressedHistograms": 0}


def _run(folder: Path, **fields: Any) -> RunDescription:
    fields = {"started": STARTED, "hyperparameters": {"lr": 0.1}} | fields
    return RunDescription(
        id="exp-1", name="exp", folder=folder / "runs" / "exp-1", media=folder / "media", pid=7, **fields
    )


def _deliver(folder: Path, records: Sequence[LoggedRecord], run: RunDescription | None = None) -> list[Noticed]:
    notices: list[Noticed] = []
    one = follower(
        folder,
        lambda: TensorboardTracker(notices.append),
        records,
        run=run or _run(folder),
        notices=notices,
        name="tensorboard",
    )
    one.start()
    assert one.finish(time.monotonic() + 60), notices
    return notices


def _shown(folder: Path) -> Any:
    accumulator = EventAccumulator(str(folder / "runs" / "exp-1"), size_guidance=_ALL)
    accumulator.Reload()
    return accumulator


def _text(shown: Any, tag: str, index: int = 0) -> str:
    return tensor_util.make_ndarray(shown.Tensors(tag)[index].tensor_proto).item().decode()


def _story(folder: Path) -> list[Event]:
    return [
        identified(),
        *(metrics(step, loss=1.0 / (step + 1)) for step in range(10)),
        *one_of_each(folder / "media"),
        *(SystemSampled(values={"system/cpu_percent": 50.0 + n}) for n in range(3)),
        Alerted(step=8, title="loss is NaN", text="look", level="error", rule="nan(loss)", actions=["paused"]),
        StatusChanged(status="completed", summary={"val/loss": 0.25, "note": "words"}),
    ]


def test_images_stand_under_their_names_and_those_of_one_call_under_a_tag_each(tmp_path: Path):
    assert _deliver(tmp_path, told(_story(tmp_path))) == []
    shown = _shown(tmp_path)
    assert set(shown.Tags()["images"]) == {"sample", "grid/0", "grid/1", "curve"}
    (image,) = shown.Images("curve")
    assert (image.step, image.width, image.height, image.encoded_image_string) == (2, 5, 4, png(5, 4))
    assert shown.Images("grid/1")[0].encoded_image_string == png(shade=2)
    assert _text(shown, "sample/caption") == "a caption"


def test_a_histogram_keeps_its_bins_and_its_moments(tmp_path: Path):
    _deliver(tmp_path, told(_story(tmp_path)))
    events = _shown(tmp_path).Histograms("weights")
    assert [event.step for event in events] == [3, 4]
    value = events[0].histogram_value
    assert (value.min, value.max, value.num, value.sum, value.sum_squares) == (0.5, 3.5, 4, 9.5, 28.0)
    assert (list(value.bucket_limit), list(value.bucket)) == ([1.0, 2.0, 4.0], [1.0, 0.0, 3.0])


def test_a_sound_keeps_its_bytes_and_its_rate(tmp_path: Path):
    _deliver(tmp_path, told(_story(tmp_path)))
    (sound,) = _shown(tmp_path).Audio("voice")
    assert (sound.step, sound.encoded_audio_string, sound.content_type) == (4, wav(), "audio/wav")
    assert (sound.sample_rate, sound.length_frames) == (8000.0, 80)


def test_a_table_is_markdown_and_other_files_say_where_they_are(tmp_path: Path):
    _deliver(tmp_path, told(_story(tmp_path)))
    shown = _shown(tmp_path)
    assert _text(shown, "errors") == ("| text | score |\n| --- | --- |\n| a \\| b | 0.5 |\n| line break | None |")
    assert re.fullmatch(r"`report.*\.html` \(12 bytes\) in the folder `media` of .*`exp-1`", _text(shown, "report"))
    assert "notes.bin" in _text(shown, "notes.bin")
    assert _text(shown, "long") == "many words " * 10


def test_a_table_too_long_for_a_page_says_how_much_is_left_out(tmp_path: Path):
    table = {"columns": ["n"], "rows": [[n] for n in range(1000)]}
    _deliver(tmp_path, told([kept(tmp_path / "media", "table", "long", table)]))
    assert _text(_shown(tmp_path), "long").endswith("| 199 |\n\n… 800 more rows")


def test_the_graph_of_the_model_is_the_graph_of_the_run(tmp_path: Path):
    _deliver(tmp_path, told(_story(tmp_path)))
    assert [node.name for node in _shown(tmp_path).Graph().node] == ["input", "layer"]


def test_samples_of_the_machine_stand_at_the_second_of_the_run(tmp_path: Path):
    records = told([identified(), metrics(1000, loss=1.0)])
    records += [record(SystemSampled(values={"system/cpu_percent": 5.0}), number) for number in (10, 20)]
    _deliver(tmp_path, records)
    points = _shown(tmp_path).Scalars("system/cpu_percent")
    assert [(point.step, point.wall_time) for point in points] == [(10, STARTED + 10), (20, STARTED + 20)]


def test_an_alert_is_a_text_with_its_rule_and_what_was_done(tmp_path: Path):
    _deliver(tmp_path, told(_story(tmp_path)))
    text = _text(_shown(tmp_path), "alerts/loss is NaN")
    assert text == "**error**: loss is NaN\n\nlook\n\nRule: nan(loss)\n\npaused"


def test_the_final_metrics_stand_beside_the_curves(tmp_path: Path):
    _deliver(tmp_path, told(_story(tmp_path)))
    (point,) = _shown(tmp_path).Scalars("final/val/loss")
    assert (point.step, point.value) == (9, 0.25)
    assert "final/note" not in _shown(tmp_path).Tags()["scalars"]


def test_what_is_edited_later_is_a_text_and_what_the_start_said_is_not_said_again(tmp_path: Path):
    events: list[Event] = [
        identified(),
        Described(fields={"hyperparameters": {"lr": 0.1}}),
        Described(fields={"tags": [], "notes": ""}),
        metrics(5, loss=1.0),
        Described(fields={"tags": ["good"]}),
        Described(fields={"notes": "watch *this*"}),
        Described(fields={"hyperparameters": {"lr": 0.2}}),
    ]
    _deliver(tmp_path, told(events))
    shown = _shown(tmp_path)
    assert set(shown.Tags()["tensors"]) - {"_hparams_/session_start_info"} == {"tags", "notes", "hyperparameters"}
    assert (_text(shown, "notes"), shown.Tensors("notes")[0].step) == ("watch *this*", 5)
    assert '"lr": 0.2' in _text(shown, "hyperparameters")


def test_a_name_used_for_two_kinds_has_a_tag_for_each(tmp_path: Path):
    media = tmp_path / "media"
    events: list[Event] = [
        metrics(0, weights=1.0),
        kept(media, "histogram", "weights", COUNTED),
        kept(media, "image", "first", png()),
        metrics(1, weights=2.0, first=3.0),
        Text(step=1, name="weights", text="w"),
    ]
    _deliver(tmp_path, told(events))
    tags = _shown(tmp_path).Tags()
    assert set(tags["scalars"]) == {"weights", "first/scalar"}
    assert (tags["histograms"], tags["images"]) == (["weights/histogram"], ["first"])
    assert "weights/text" in tags["tensors"]


@pytest.mark.parametrize("form", ["image", "audio", "histogram", "table", "graph"])
def test_a_damaged_file_is_left_out_with_one_notice_and_the_rest_goes_on(tmp_path: Path, form: str):
    media = tmp_path / "media"
    damaged = [kept(media, form, f"bad{n}", b"\x0a\xff damaged", step=n) for n in range(2)]
    gone = kept(media, "image", "gone", png())
    (media / gone.path).unlink()
    shortened = kept(media, "text", "shortened", "many words")
    (media / shortened.path).write_text("many")
    outside = kept(media, "text", "outside", "words")
    events = [*damaged, gone, shortened, *[type(outside)(**_fields(outside) | {"path": "../secret.txt"})]]
    notices = _deliver(tmp_path, told([*events, kept(media, "image", "good", png()), metrics(1, loss=1.0)]))
    assert [notice.topic for notice in notices] == ["media"]
    assert "bad0" in notices[0].message
    shown = _shown(tmp_path)
    assert (shown.Tags()["images"], shown.Tags()["scalars"]) == (["good"], ["loss"])


def _fields(event: Any) -> dict[str, Any]:
    return {name: getattr(event, name) for name in type(event).__slots__}


def test_the_same_bytes_come_out_however_often_it_was_interrupted(tmp_path: Path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder in (whole, parts):
        events = _story(folder)[:-1]
    events += [Text(step=step, name=name, text="again") for step in range(3) for name in ("long", "loss")]
    records = told(events)
    _deliver(whole, records)
    for known in (5, 14, 17, 22, 29, 31, len(records)):
        _deliver(parts, records[:known])
    files = [{p.name: p.read_bytes() for p in (f / "runs" / "exp-1").iterdir()} for f in (whole, parts)]
    assert files[0] == files[1]


def test_after_a_rewind_what_was_logged_after_it_is_hidden_of_every_kind(tmp_path: Path):
    media = tmp_path / "media"
    before: list[Event] = [kept(media, "histogram", "weights", COUNTED, step=step) for step in range(4)]
    before += [Text(step=step, name="words", text=f"first {step}") for step in range(4)]
    after: list[Event] = [Rewound(step=1), kept(media, "histogram", "weights", COUNTED, step=2)]
    after.append(Text(step=2, name="words", text="second 2"))
    _deliver(tmp_path, told([identified(), *before, *after]))
    assert [event.step for event in _shown(tmp_path).Histograms("weights")] == [0, 1, 2]
    page = PageAccumulator(str(tmp_path / "runs" / "exp-1"), size_guidance={"tensors": 0})
    page.Reload()
    assert [event.step for event in page.Tensors("words")] == [0, 1, 2]
    assert page.SummaryMetadata("words").plugin_data.plugin_name == "text"


@contextmanager
def _tensorboard(logdir: Path, *options: str) -> Iterator[str]:
    """The real program on a free port of this machine; its address."""
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(logdir), "--port", "0", *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stderr is not None
            said = []
            for line in process.stderr:
                said.append(line)
                if found := re.search(r"http://localhost:\d+", line):
                    yield found[0]
                    break
            else:
                pytest.fail("".join(said))
        finally:
            process.terminate()
            process.communicate()


class _Plugins:
    """Asks what the page asks."""

    def __init__(self, address: str) -> None:
        self._address = address

    def get(self, path: str, **query: str) -> Any:
        return json.loads(self.raw(path, urllib.parse.urlencode(query)))

    def raw(self, path: str, query: str) -> bytes:
        with urllib.request.urlopen(f"{self._address}/data/{path}?{query}") as answer:
            content: bytes = answer.read()
        return content

    def ask(self, path: str, question: dict[str, Any]) -> Any:
        headers = {"Content-Type": "application/json"}
        data = json.dumps(question).encode()
        request = urllib.request.Request(f"{self._address}/data/{path}", data, headers)
        with urllib.request.urlopen(request) as answer:
            return json.loads(answer.read())

    def until_loaded(self, run: str, tag: str) -> None:
        deadline = time.monotonic() + 60
        while tag not in self.get("plugin/scalars/tags").get(run, {}):
            assert time.monotonic() < deadline
            time.sleep(0.1)


@pytest.mark.parametrize("loading", ["--load_fast=true", "--load_fast=false"])
def test_the_program_itself_shows_every_kind(tmp_path: Path, loading: str):
    _deliver(tmp_path, told(_story(tmp_path)))
    with _tensorboard(tmp_path / "runs", loading) as address:
        plugins = _Plugins(address)
        plugins.until_loaded("exp-1", "final/val/loss")
        where = {"run": "exp-1"}
        scalars = plugins.get("plugin/scalars/scalars", tag="loss", **where)
        assert [(step, value) for _, step, value in scalars] == [(n, pytest.approx(1 / (n + 1))) for n in range(10)]
        assert len(plugins.get("plugin/scalars/scalars", tag="system/cpu_percent", **where)) == 3
        assert _pictures(plugins) == {
            "sample": png(),
            "grid/0": png(shade=1),
            "grid/1": png(shade=2),
            "curve": png(5, 4),
        }
        buckets = plugins.get("plugin/histograms/histograms", tag="weights", **where)
        assert [step for _, step, _ in buckets] == [3, 4]
        assert buckets[0][2] == [[0.5, 1.0, 1.0], [1.0, 2.0, 0.0], [2.0, 3.5, 3.0]]
        (sound,) = plugins.get("plugin/audio/audio", tag="voice", sample="0", **where)
        assert plugins.raw("plugin/audio/individualAudio", sound["query"]) == wav()
        (words,) = plugins.get("plugin/text/text", tag="errors", **where)
        assert "<table>" in words["text"]
        assert b'name: "layer"' in plugins.raw("plugin/graphs/graph", "run=exp-1&conceptual=false")


def _pictures(plugins: _Plugins) -> dict[str, bytes]:
    found = {}
    for tag in plugins.get("plugin/images/tags")["exp-1"]:
        (image,) = plugins.get("plugin/images/images", run="exp-1", tag=tag, sample="0")
        found[tag] = plugins.raw("plugin/images/individualImage", image["query"])
    return found


def test_the_table_of_hyperparameters_has_a_row_per_run_with_every_metric(tmp_path: Path):
    _deliver(tmp_path, told(_story(tmp_path)))
    other = tmp_path / "other"
    run = RunDescription(
        id="exp-2", name="exp", folder=tmp_path / "runs" / "exp-2", started=STARTED, hyperparameters={"layers": 3}
    )
    _deliver(other, told([identified(), metrics(1, accuracy=0.5), StatusChanged(status="failed")]), run)
    with _tensorboard(tmp_path / "runs", "--load_fast=true") as address:
        plugins = _Plugins(address)
        plugins.until_loaded("exp-1", "final/val/loss")
        plugins.until_loaded("exp-2", "accuracy")
        experiment = plugins.ask("plugin/hparams/experiment", {"experimentName": "", "includeMetrics": True})
        assert {info["name"] for info in experiment["hparamInfos"]} == {"lr", "layers"}
        names = {info["name"]["tag"] for info in experiment["metricInfos"]}
        assert {"loss", "final/val/loss", "accuracy", "system/cpu_percent"} <= names
        question = {
            "experimentName": "",
            "startIndex": 0,
            "sliceSize": 10,
            "allowedStatuses": ["STATUS_SUCCESS", "STATUS_UNKNOWN"],
            "colParams": [{"metric": {"group": "", "tag": name}} for name in ("loss", "final/val/loss", "accuracy")],
        }
        groups = {
            group["name"]: group for group in plugins.ask("plugin/hparams/session_groups", question)["sessionGroups"]
        }
    assert groups["exp-1"]["hparams"] == {"lr": 0.1}
    assert groups["exp-1"]["sessions"][0]["status"] == "STATUS_SUCCESS"
    values = {value["name"]["tag"]: value["value"] for value in groups["exp-1"]["metricValues"]}
    assert values == {"loss": pytest.approx(0.1), "final/val/loss": 0.25, "system/cpu_percent": 52.0}
    assert groups["exp-2"]["sessions"][0]["status"] == "STATUS_UNKNOWN"


def test_the_graph_stays_what_was_logged(tmp_path: Path):
    definition = graph()
    _deliver(tmp_path, told([kept(tmp_path / "media", "graph", "model", definition)]))
    assert _shown(tmp_path).Graph().SerializeToString() == definition
