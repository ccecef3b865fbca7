"""What TensorBoard's own reader finds in the files, also after crashes."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from milepost.core.events import (
    BigIntegers,
    Deferred,
    Event,
    Metrics,
    Noticed,
    Rewound,
    StatusChanged,
    Text,
)
from milepost.runs.scan import LoggedRecord
from milepost.trackers.protocol import RunDescription
from milepost.trackers.tensorboard import TensorboardTracker
from tests.unit.trackers.story import (
    STARTED,
    follower,
    identified,
    metrics,
    record,
    told,
    training,
)

pytest.importorskip("tensorboard")


def _run(folder: Path, **fields: Any) -> RunDescription:
    fields = {"attempt": 1, "started": STARTED, "host": "node 1", "pid": 77} | fields
    return RunDescription(id="exp-1", name="exp", folder=folder / "runs" / "exp-1", **fields)


def _deliver(folder: Path, records: Sequence[LoggedRecord], run: RunDescription | None = None) -> None:
    notices: list[Noticed] = []
    one = follower(folder, TensorboardTracker, records, run=run or _run(folder), notices=notices, name="tensorboard")
    one.start()
    assert one.finish(time.monotonic() + 60), notices


def _shown(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder / "runs" / "exp-1"), size_guidance={"scalars": 0, "tensors": 0})
    accumulator.Reload()
    return accumulator


def _scalars(folder: Path, tag: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in _shown(folder).Scalars(tag)]


def _scalars_of_the_page(folder: Path, tag: str) -> list[tuple[int, float]]:
    """What TensorBoard's own page shows where it runs without its data server."""
    from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
    from tensorboard.util import tensor_util

    accumulator = EventAccumulator(str(folder / "runs" / "exp-1"), size_guidance={"tensors": 0})
    accumulator.Reload()
    return [(e.step, tensor_util.make_ndarray(e.tensor_proto).item()) for e in accumulator.Tensors(tag)]


def _text(accumulator: Any, tag: str) -> str:
    from tensorboard.util import tensor_util

    return tensor_util.make_ndarray(accumulator.Tensors(tag)[0].tensor_proto).item().decode()


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "runs" / "exp-1").iterdir())}


def test_every_point_is_shown_with_its_step_and_wall_time(tmp_path: Path):
    _deliver(tmp_path, told(training(50)))
    points = _shown(tmp_path).Scalars("loss")
    assert [point.step for point in points] == list(range(50))
    assert [point.value for point in points] == pytest.approx([1.0 / (step + 1) for step in range(50)])
    assert [point.wall_time for point in points] == [STARTED + 1 + step for step in range(50)]


def test_what_is_no_ordinary_number_is_kept(tmp_path: Path):
    values = {"nan": math.nan, "inf": math.inf, "minus": -math.inf, "huge": 1e300, "yes": True, "count": 7}
    events: list[Event] = [Metrics(step=0, epoch=None, values=values)]
    events.append(BigIntegers(step=1, epoch=None, values={"big": str(10**30), "bigger": "-1" + "0" * 400}))
    _deliver(tmp_path, told(events))
    shown = {tag: _shown(tmp_path).Scalars(tag)[0].value for tag in (*values, "big", "bigger")}
    assert math.isnan(shown.pop("nan"))
    assert shown == {
        "inf": math.inf,
        "minus": -math.inf,
        "huge": math.inf,
        "yes": 1.0,
        "count": 7.0,
        "big": pytest.approx(1e30),
        "bigger": -math.inf,
    }


def test_ranks_other_than_0_stay_out_and_late_values_stand_at_their_step(tmp_path: Path):
    waiting = Metrics(step=5, epoch=None, values={}, rejected={"loss": "None"})
    records = told([identified(), waiting, metrics(6, loss=6.0)])
    records.append(record(Deferred(sequence=records[1].sequence, name="loss", value=5.0), 9))
    records += told([identified(rank=1), metrics(7, loss=7.0)], bytes(16))
    _deliver(tmp_path, records)
    assert sorted(_scalars(tmp_path, "loss")) == [(5, 5.0), (6, 6.0)]


def test_texts_and_the_words_about_the_run_are_shown(tmp_path: Path):
    run = _run(tmp_path, description="a *try*", model_config={"hidden": 768}, dataset_info={"name": "d\ud800"})
    _deliver(tmp_path, told([Text(step=3, name="sample", text="Grüße")]), run)
    shown = _shown(tmp_path)
    assert _text(shown, "sample") == "Grüße"
    assert shown.Tensors("sample")[0].step == 3
    assert _text(shown, "description") == "a *try*"
    assert '"hidden": 768' in _text(shown, "model_config")
    assert shown.PluginTagToContent("text").keys() == {"sample", "description", "model_config", "dataset_info"}


def test_hyperparameters_fill_a_row_of_the_table_and_completion_is_marked(tmp_path: Path):
    from tensorboard.plugins.hparams import metadata

    given = {"lr": 1e-3, "layers": 12, "adam": {"beta": 0.9}, "amp": True, "name": "x", "none": None, "ids": [1, 2]}
    _deliver(tmp_path, told(training(3)), _run(tmp_path, hyperparameters=given))
    content = _shown(tmp_path).PluginTagToContent("hparams")
    row = metadata.parse_session_start_info_plugin_data(content[metadata.SESSION_START_INFO_TAG])
    shown = {name: getattr(value, value.WhichOneof("kind")) for name, value in row.hparams.items()}
    assert shown == {
        "lr": 1e-3,
        "layers": 12.0,
        "adam/beta": 0.9,
        "amp": True,
        "name": "x",
        "none": "None",
        "ids": "[1, 2]",
    }
    assert row.group_name == "exp-1"
    ended = metadata.parse_session_end_info_plugin_data(content[metadata.SESSION_END_INFO_TAG])
    assert ended.status == 1
    assert ended.end_time_secs == STARTED + 4


def test_a_run_that_may_go_on_is_not_marked_as_ended(tmp_path: Path):
    _deliver(tmp_path, told(training(3, end="failed")), _run(tmp_path, hyperparameters={"lr": 1}))
    assert list(_shown(tmp_path).PluginTagToContent("hparams")) == ["_hparams_/session_start_info"]


def test_after_a_rewind_the_superseded_tail_is_gone(tmp_path: Path):
    before = [identified(), *(metrics(step, loss=1.0) for step in range(10))]
    after = [identified(attempt=2), Rewound(step=5), *(metrics(step, loss=2.0) for step in range(6, 9))]
    records = told(before) + [record(event, 100 + n, bytes(16)) for n, event in enumerate(after)]
    _deliver(tmp_path, records)
    expected = [(s, 1.0) for s in range(6)] + [(s, 2.0) for s in range(6, 9)]
    assert _scalars(tmp_path, "loss") == expected
    assert _scalars_of_the_page(tmp_path, "loss") == expected


def test_a_second_attempt_has_its_own_file_that_is_read_later_and_hides_the_tail_of_the_first(tmp_path: Path):
    before = told([identified(), *(metrics(step, loss=1.0) for step in range(10))])
    _deliver(tmp_path, before)
    after = [identified(attempt=2), Rewound(step=5), *(metrics(step, loss=2.0) for step in range(6, 9))]
    records = before + [record(event, 100 + n, bytes(16)) for n, event in enumerate(after)]
    _deliver(tmp_path, records, _run(tmp_path, attempt=2, pid=5))
    expected = [(s, 1.0) for s in range(6)] + [(s, 2.0) for s in range(6, 9)]
    assert _scalars(tmp_path, "loss") == expected
    assert _scalars_of_the_page(tmp_path, "loss") == expected
    assert list(_files(tmp_path)) == [
        "events.out.tfevents.1700000000.node-1.77.1.milepost",
        "events.out.tfevents.1700000001.node-1.5.2.milepost",
    ]


def test_the_bytes_are_a_function_of_the_log_alone(tmp_path: Path):
    records = told([*training(20, end=None), Text(step=1, name="a", text="b"), StatusChanged(status="completed")])
    for name in ("a", "b"):
        _deliver(tmp_path / name, records, _run(tmp_path / name, hyperparameters={"lr": 0.1}))
    assert _files(tmp_path / "a") == _files(tmp_path / "b")


def test_the_same_bytes_come_out_however_often_it_was_interrupted(tmp_path: Path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    records = told(training(30, end=None))
    _deliver(whole, records)
    for known in (1, 7, 20):
        _deliver(parts, records[:known])
        _tear(parts)
    _deliver(parts, records)
    assert _files(parts) == _files(whole)


def _tear(folder: Path) -> None:
    """As after a crash between a write and the cursor: half a record more than the cursor says."""
    for path in (folder / "runs" / "exp-1").iterdir():
        with path.open("ab") as file:
            file.write(b"\x18\0\0\0\0\0\0\0torn")


def test_what_an_attempt_wrote_before_its_first_cursor_is_taken_back(tmp_path: Path):
    records = told(training(10, end=None))
    _deliver(tmp_path, records[:5])
    second = _run(tmp_path, attempt=2, started=STARTED + 50)
    cursor = (tmp_path / "guest-tensorboard.json").read_bytes()
    _deliver(tmp_path, records, second)
    (tmp_path / "guest-tensorboard.json").write_bytes(cursor)
    _deliver(tmp_path, records, _run(tmp_path, attempt=3, started=STARTED + 60))
    assert [step for step, _ in _scalars(tmp_path, "loss")] == list(range(10))


@pytest.mark.parametrize("lost", ["cursor", "file", "tail", "folder"])
def test_whatever_is_lost_the_run_is_told_whole_again(tmp_path: Path, lost: str):
    records = told(training(20, end=None))
    _deliver(tmp_path, records[:15])
    file = next((tmp_path / "runs" / "exp-1").iterdir())
    if lost == "cursor":
        (tmp_path / "guest-tensorboard.json").unlink()
    elif lost == "tail":
        os.truncate(file, 100)
    else:
        file.unlink()
    if lost == "folder":
        file.parent.rmdir()
    _deliver(tmp_path, records)
    assert [step for step, _ in _scalars(tmp_path, "loss")] == list(range(20))


def test_files_of_others_in_the_folder_are_left_alone(tmp_path: Path):
    theirs = tmp_path / "runs" / "exp-1" / "events.out.tfevents.1600000000.host.1.0"
    theirs.parent.mkdir(parents=True)
    theirs.write_bytes(b"")
    _deliver(tmp_path, told(training(3)))
    assert theirs.exists()


def test_a_file_that_vanishes_while_it_is_written_is_made_again(tmp_path: Path):
    run, tracker = _run(tmp_path), TensorboardTracker()
    records = told(training(5, end=None))
    tracker.open(run, {})
    tracker.write(records[:3])
    cursor = dict(tracker.flush())
    next(run.folder.iterdir()).unlink()
    with pytest.raises(OSError, match="No such file"):
        tracker.write(records[3:])
    assert TensorboardTracker().open(run, cursor) is False


def test_somebody_else_writing_to_the_file_is_noticed(tmp_path: Path):
    run, tracker = _run(tmp_path), TensorboardTracker()
    tracker.open(run, {})
    _tear(tmp_path)
    with pytest.raises(OSError, match="somebody else"):
        tracker.write(told(training(3)))


_FOLLOWS = """
import sys
from pathlib import Path
from milepost.trackers.tensorboard import TensorboardTracker
from tests.unit.trackers.story import QUICK, follower, told, training
from tests.unit.trackers.test_tensorboard import _run
from dataclasses import replace

folder = Path(sys.argv[1])
class Announces(TensorboardTracker):
    def write(self, records):
        super().write(records)
        print("written", flush=True)
pace = replace(QUICK, batch=50, flush_every=0.002)
one = follower(folder, Announces, told(training(3000)), run=_run(folder), pace=pace, name="tensorboard")
one.start()
one.finish(float(1e9))
"""


def test_killed_in_mid_flight_and_followed_again_every_point_stands_once(tmp_path: Path):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(["src", "."])}
    for batches in (3, 11, 25):
        with subprocess.Popen(
            [sys.executable, "-c", _FOLLOWS, str(tmp_path)], stdout=subprocess.PIPE, env=environment, text=True
        ) as process:
            assert process.stdout is not None
            for _ in range(batches):
                assert process.stdout.readline() == "written\n"
            process.send_signal(signal.SIGKILL)
            process.wait()
        assert process.returncode == -signal.SIGKILL
    _deliver(tmp_path, told(training(3000)))
    assert [step for step, _ in _scalars(tmp_path, "loss")] == list(range(3000))


def test_neither_pytorch_nor_tensorflow_is_imported(tmp_path: Path):
    code = (
        "import sys; sys.modules['torch'] = sys.modules['tensorflow'] = None\n"
        "from pathlib import Path\n"
        "from tests.unit.trackers.test_tensorboard import _deliver, told, training\n"
        "_deliver(Path(sys.argv[1]), told(training(3)))\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(["src", "."])}
    subprocess.run([sys.executable, "-W", "error", "-c", code, str(tmp_path)], check=True, env=environment)
    assert len(_scalars(tmp_path, "loss")) == 3


def test_an_identification_alone_makes_a_file_that_tensorboard_reads(tmp_path: Path):
    _deliver(tmp_path, told([identified()]))
    assert _shown(tmp_path).Tags()["scalars"] == []
