"""Does an alert reach the record and the terminal, through every door?"""

from __future__ import annotations

import json
import os

import pytest
from typer.testing import CliRunner

import milepost
from milepost.cli.app import app
from milepost.companion.doctor import examine
from milepost.core.errors import InvalidCallError, InvalidInputError


@pytest.fixture
def quiet(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return milepost.ExperimentConfig(tensorboard_dir=None, capture_code=False, capture_console=False)


def alerts(folder):
    (run,) = milepost.open(folder).runs()
    return run.alerts


def test_an_alert_is_said_once_with_its_level_and_stands_in_the_record_at_the_last_step(tmp_path, quiet, capsys):
    with milepost.start("calls", config=quiet) as run:
        run.log({"loss": 1.0}, 7)
        run.alert("loss is odd", "it was 3 before", level="error")
    assert capsys.readouterr().err.count("milepost: error: loss is odd: it was 3 before") == 1
    (alert,) = alerts(tmp_path)
    assert (alert.step, alert.title, alert.text, alert.level, alert.rule) == (
        7,
        "loss is odd",
        "it was 3 before",
        "error",
        "",
    )


def test_the_door_of_the_mission_and_a_forked_child_give_alerts_too(tmp_path, quiet):
    system = milepost.ExperimentTrackingSystem(quiet)
    system.start_experiment("calls")
    system.alert("by the system", level="info")
    child = os.fork()
    if child == 0:
        try:
            system.run.alert("by a child")
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    system.end_experiment()
    assert {(alert.title, alert.level) for alert in alerts(tmp_path)} == {
        ("by the system", "info"),
        ("by a child", "warning"),
    }


def test_a_disabled_run_takes_an_alert_and_does_nothing(monkeypatch, tmp_path, quiet, capsys):
    monkeypatch.setenv("MILEPOST_MODE", "disabled")
    with milepost.start("calls", config=quiet) as run:
        run.alert("nobody hears this")
    assert "nobody" not in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_meant_raises_at_once_and_records_nothing(tmp_path, quiet):
    with milepost.start("calls", config=quiet) as run:
        with pytest.raises(InvalidInputError, match="level of an alert is 'fatal'"):
            run.alert("x", level="fatal")  # type: ignore[arg-type]
        with pytest.raises(InvalidCallError):
            run.alert(3)  # type: ignore[arg-type]
        with pytest.raises(InvalidInputError, match="empty"):
            run.alert("  ")
    assert alerts(tmp_path) == []


def test_secrets_are_redacted_and_no_alert_is_too_long_to_be_kept(tmp_path, quiet):
    with milepost.start("calls", config=quiet) as run:
        run.alert("the login failed: password=hunter2hunter2", "é" * 100_000)
    (alert,) = alerts(tmp_path)
    assert "hunter2" not in alert.title
    assert 4000 < len(alert.text) < 8192


def test_an_alert_after_the_end_is_lost_and_stops_nothing(tmp_path, quiet):
    run = milepost.start("calls", config=quiet)
    run.end()
    run.alert("too late")
    assert alerts(tmp_path) == []


def test_the_terminal_shows_alerts_of_a_run_and_of_what_is_going(tmp_path, quiet):
    run = milepost.start("calls", config=quiet)
    try:
        run.alert("look here", "now", level="error")
        for _ in range(400):
            if milepost.open(tmp_path).runs()[0].refresh().metadata.get("alerts"):
                break
            run._companion._helper.join(0.05)
        for command in ([], ["show", run.id]):
            out = CliRunner().invoke(app, command).output
            assert "error at step 0" in out
            assert "look here" in out
    finally:
        run.end()
    (shown,) = json.loads(CliRunner().invoke(app, ["show", run.id, "--json"]).stdout)["alerts"]
    assert (shown["title"], shown["level"], shown["actions"]) == ("look here", "error", [])


def test_the_metadata_can_be_made_again_with_its_alerts(tmp_path, quiet):
    with milepost.start("calls", config=quiet) as run:
        for number in range(7):
            run.alert(f"number {number}")
    path = tmp_path / "experiments" / run.id / "metadata.json"
    told = [alert["title"] for alert in json.loads(path.read_text())["alerts"]]
    assert told == [f"number {n}" for n in (2, 3, 4, 5, 6)]
    before = json.loads(path.read_text())["alerts"]
    path.with_name("summary.json").unlink()
    path.unlink()
    examine(milepost.open(tmp_path), lambda _: None)
    assert json.loads(path.read_text())["alerts"] == before
