"""What stands in W&B's own files after a run was told to it."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from milepost.core.events import BigIntegers, Metrics, Noticed, StatusChanged
from milepost.runs.scan import LoggedRecord
from milepost.trackers.protocol import RunDescription
from milepost.trackers.wandb import WandbTracker
from milepost.trackers.wandb_login import has_login
from tests.unit.trackers import wandb_file
from tests.unit.trackers.story import STARTED, follower, metrics, record, told, training

wandb = pytest.importorskip("wandb")


@pytest.fixture(autouse=True)
def _no_login(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with wandb_file.no_login(tmp_path, monkeypatch):
        yield


def _run(folder: Path, **fields: Any) -> RunDescription:
    fields = {"project": "nlp"} | fields
    return RunDescription(id="exp_20260101-000000", name="exp", folder=folder / "logs", **fields)


def _deliver(folder: Path, records: Sequence[LoggedRecord], run: RunDescription | None = None) -> list[Noticed]:
    notices: list[Noticed] = []
    run = run or _run(folder)
    one = follower(folder, lambda: WandbTracker(notices.append), records, run=run, notices=notices, name="wandb")
    one.start()
    assert one.finish(time.monotonic() + 60), notices
    return notices


def _files(folder: Path) -> list[Path]:
    return sorted((folder / "logs").rglob("*.wandb"))


def _rows(folder: Path) -> list[dict[str, Any]]:
    return [row for path in _files(folder) for row in wandb_file.rows(path)]


def _only(folder: Path, kind: str) -> Any:
    (path,) = _files(folder)
    found = [getattr(r, kind) for r in wandb_file.records(path) if r.WhichOneof("record_type") == kind]
    return found[0]


def test_every_point_is_there_at_its_step_and_time(tmp_path: Path):
    _deliver(tmp_path, told(training(300)))
    rows = _rows(tmp_path)
    assert [row["trainer/global_step"] for row in rows] == list(range(300))
    assert [row["_step"] for row in rows] == list(range(300))
    assert [row["loss"] for row in rows] == [1.0 / (step + 1) for step in range(300)]
    assert [row["_timestamp"] for row in rows] == [STARTED + 1 + step for step in range(300)]


def test_steps_that_go_back_are_told_in_the_order_of_the_log(tmp_path: Path):
    _deliver(tmp_path, told([metrics(10, 1.5, loss=1.0), metrics(5, loss=2.0), metrics(5, 1.0, val=3.0)]))
    rows = _rows(tmp_path)
    assert [(row["_step"], row["trainer/global_step"], row.get("epoch")) for row in rows] == [
        (0, 10, 1.5),
        (1, 5, None),
        (2, 5, 1.0),
    ]


def test_what_is_no_ordinary_number_is_kept(tmp_path: Path):
    values = {"nan": math.nan, "inf": math.inf, "minus": -math.inf, "yes": True, "exact": 2**60}
    _deliver(
        tmp_path,
        told(
            [
                Metrics(step=0, epoch=None, values=values),
                BigIntegers(step=1, epoch=None, values={"big": "1" + "0" * 30}),
            ]
        ),
    )
    first, second = _rows(tmp_path)
    assert math.isnan(float(first["nan"]))
    assert (float(first["inf"]), float(first["minus"])) == (math.inf, -math.inf)
    assert first["exact"] == 2**60
    assert second["big"] == 1e30


def test_the_words_about_the_run_arrive(tmp_path: Path):
    run = _run(
        tmp_path,
        hyperparameters={"lr": 0.1},
        model_config={"hidden": 768},
        dataset_info={"name": "d"},
        tags=("bert", "bert", "", "x" * 100),
        group="sweep",
        notes="see log",
    )
    _deliver(tmp_path, told(training(1)), run)
    sent = _only(tmp_path, "run")
    config = {item.key: json.loads(item.value_json) for item in sent.config.update}
    assert config["lr"] == 0.1
    assert config["model_config"] == {"hidden": 768}
    assert config["dataset_info"] == {"name": "d"}
    assert (sent.run_id, sent.project, sent.display_name) == ("exp_20260101-000000", "nlp", "exp")
    assert (list(sent.tags), sent.run_group, sent.notes) == (["bert", "x" * 64], "sweep", "see log")


@pytest.mark.parametrize(("status", "code"), [("completed", 0), ("failed", 1), ("killed", 255), ("stopped", 255)])
def test_the_state_of_the_run_becomes_the_exit_code(tmp_path: Path, status: Any, code: int):
    _deliver(tmp_path, told([*training(2, end=None), StatusChanged(status=status)]))
    assert _only(tmp_path, "exit").exit_code == code


def test_the_final_metrics_become_the_summary(tmp_path: Path):
    end = StatusChanged(status="completed", summary={"final_loss": 0.25})
    _deliver(tmp_path, told([*training(2, end=None), end]))
    (path,) = _files(tmp_path)
    updates = [
        (item.key or "/".join(item.nested_key), json.loads(item.value_json))
        for sent in wandb_file.records(path)
        for item in sent.summary.update
    ]
    assert ("final_loss", 0.25) in updates


def test_nothing_of_the_machine_the_code_or_the_console_is_collected(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    _deliver(tmp_path, told(training(2)))
    kinds = {sent.WhichOneof("record_type") for path in _files(tmp_path) for sent in wandb_file.records(path)}
    assert not kinds & {"output", "output_raw", "stats", "environment", "files", "alert"}
    assert capfd.readouterr() == ("", "")


def test_without_a_login_it_stays_offline_and_says_once_how_to_upload(tmp_path: Path):
    notices = _deliver(tmp_path, told(training(2)))
    (path,) = _files(tmp_path)
    assert [notice.topic for notice in notices] == ["offline"]
    assert notices[0].cure == f"run wandb login, then wandb sync {path.parent}"
    assert path.parent.name.startswith("offline-run-")


def test_the_folder_that_is_named_is_one_that_wandb_syncs(tmp_path: Path):
    (notice,) = _deliver(tmp_path, told(training(2)))
    folder = notice.cure.split("wandb sync ")[1]
    command = [sys.executable, "-m", "wandb", "sync", "--dry-run", folder]
    said = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert "1 run(s)" in said.stderr + said.stdout
    assert _files(tmp_path)[0].name in said.stderr + said.stdout


def test_at_the_end_the_service_process_of_wandb_is_gone_and_with_it_what_it_still_held(tmp_path: Path):
    _deliver(tmp_path, told(training(2)))
    assert [child.name() for child in psutil.Process().children() if "wandb" in child.name()] == []


def test_a_person_who_chose_offline_is_not_told_of_a_login(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert _deliver(tmp_path, told(training(2))) == []
    assert len(_rows(tmp_path)) == 2


@pytest.mark.parametrize("where", ["environment", "netrc"])
def test_a_login_is_found_where_wandb_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str):
    host = wandb.Settings().base_url.split("//")[1]
    if where == "environment":
        monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    else:
        (tmp_path / "netrc").write_text(f"machine {host}\n  login user\n  password {'x' * 40}\n")
    assert has_login(wandb.Settings())


def test_a_login_that_is_refused_is_said_with_its_cure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WANDB_API_KEY", "short")
    notices: list[Noticed] = []
    one = follower(tmp_path, WandbTracker, told(training(2)), run=_run(tmp_path), notices=notices, name="wandb")
    one.start()
    assert not one.finish(time.monotonic() + 60)
    (notice,) = notices
    assert notice.message.startswith("W&B authentication failed")
    assert notice.cure == "run wandb login"


def test_a_server_that_cannot_be_reached_is_retried_and_caught_up_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    records = told(training(20))
    with monkeypatch.context() as outage:
        outage.setenv("WANDB_API_KEY", "x" * 40)
        outage.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
        outage.setenv("WANDB_INIT_TIMEOUT", "1")
        notices: list[Noticed] = []
        one = follower(tmp_path, WandbTracker, records, run=_run(tmp_path), notices=notices, name="wandb")
        one.start()
        assert not one.finish(time.monotonic() + 60)
        assert [notice.topic for notice in notices] == ["delivery"]
    _deliver(tmp_path, records)
    assert [row["trainer/global_step"] for row in _rows(tmp_path)] == list(range(20))


def test_a_resumed_run_goes_on_in_the_same_wandb_run_without_repeating_a_row(tmp_path: Path):
    records = told(training(10, end=None))
    _deliver(tmp_path, records)
    records += [record(metrics(step, loss=0.0), 100 + step, bytes(16)) for step in range(10, 15)]
    _deliver(tmp_path, records)
    assert [(row["_step"], row["trainer/global_step"]) for row in _rows(tmp_path)] == [(n, n) for n in range(15)]
    runs = [
        sent.run.run_id
        for path in _files(tmp_path)
        for sent in wandb_file.records(path)
        if sent.WhichOneof("record_type") == "run"
    ]
    assert set(runs) == {"exp_20260101-000000"}


def test_a_row_that_is_told_twice_has_the_same_step_twice(tmp_path: Path):
    records = told(training(10, end=None))
    _deliver(tmp_path, records[:6])
    cursor = (tmp_path / "guest-wandb.json").read_bytes()
    _deliver(tmp_path, records)
    (tmp_path / "guest-wandb.json").write_bytes(cursor)
    _deliver(tmp_path, records)
    for row in _rows(tmp_path):
        assert row["_step"] == row["trainer/global_step"]
    assert {row["_step"] for row in _rows(tmp_path)} == set(range(10))


_FOLLOWS = """
import sys, time
from pathlib import Path
from milepost.trackers.wandb import WandbTracker
from milepost.trackers.wandb_login import has_login
from tests.unit.trackers.story import QUICK, follower, told, training
from tests.unit.trackers.test_wandb import _run
from dataclasses import replace

folder = Path(sys.argv[1])
class Announces(WandbTracker):
    def flush(self):
        cursor = super().flush()
        print("flushed", flush=True)
        time.sleep(0.05)
        return cursor
pace = replace(QUICK, batch=20, settle=2.0)
one = follower(folder, Announces, told(training(2000)), run=_run(folder), pace=pace, name="wandb")
one.start()
one.finish(float(1e9))
"""


def test_killed_in_mid_flight_and_followed_again_every_row_is_there(tmp_path: Path):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(["src", "."])}
    cursor = tmp_path / "guest-wandb.json"
    with subprocess.Popen(
        [sys.executable, "-c", _FOLLOWS, str(tmp_path)], stdout=subprocess.PIPE, env=environment, text=True
    ) as process:
        assert process.stdout is not None
        while not cursor.exists():
            assert process.stdout.readline() == "flushed\n"
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert json.loads(cursor.read_text())["guest"]["rows"] > 0
    _deliver(tmp_path, told(training(2000)))
    _until(lambda: {row["_step"] for row in _rows(tmp_path)} == set(range(2000)))
    told_once: dict[int, dict[str, Any]] = {}
    for row in _rows(tmp_path):
        points = {name: value for name, value in row.items() if name != "_runtime"}
        assert points == told_once.setdefault(row["_step"], points)
    assert [told_once[step]["loss"] for step in range(2000)] == [1.0 / (step + 1) for step in range(2000)]
    assert all(step == row["trainer/global_step"] for step, row in told_once.items())


def _until(true: Any) -> None:
    """W&B's service process writes what it was given after its parent has died."""
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)
