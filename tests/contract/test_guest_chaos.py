"""Guests with the worst of habits, in a whole run: the training does not notice, and everything is delivered later."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from torture.faulty_server import Fault, FaultyServer

import milepost
from milepost.companion.doctor import examine
from milepost.core.events import Event, Noticed, StatusChanged, Text
from milepost.trackers.delivery import Pace
from milepost.trackers.mlflow import MlflowTracker
from milepost.trackers.protocol import RunDescription
from tests.contract.training_script import Script, run_script
from tests.unit.trackers import wandb_file
from tests.unit.trackers.story import follower, told
from tests.unit.trackers.story import training as training_records

pytest.importorskip("tensorboard")

TRAINING = """
    import milepost
    run = milepost.start("guests", wandb_project="p", exit_timeout=10.0, **SETTINGS)
    for step in range(500):
        run.log({"loss": 1.0 / (step + 1)}, step)
    run.end()
"""


def training(**settings: object) -> str:
    return TRAINING.replace("**SETTINGS", ", ".join(f"{name}={value!r}" for name, value in settings.items()))


def a_wandb_that_hangs(folder: Path) -> str:
    """A package that is found before the real one and whose init never returns."""
    package = folder / "hanging" / "wandb"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("import threading\ndef __getattr__(name): threading.Event().wait()\n")
    return str(package.parent)


def only_run(folder: Path) -> milepost.runs.store.RunReader:  # type: ignore[name-defined]
    (run,) = milepost.open(folder).runs()
    return run


def points_in_tensorboard(folder: Path) -> int:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return len(events.Scalars("loss"))


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def doctor(folder: Path, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", "from milepost.cli.app import main; main()", "doctor"],
        cwd=folder, capture_output=True, text=True, timeout=180, check=False, env=os.environ | environment,
    )  # fmt: skip
    return done.stdout + done.stderr


def test_a_wandb_that_hangs_for_ever_holds_up_neither_the_run_nor_its_end(tmp_path):
    hanging = a_wandb_that_hangs(tmp_path)
    _, err, code = run_script(tmp_path, training(), PYTHONPATH=f"{hanging}:{Path(milepost.__file__).parents[1]}")
    assert code == 0
    assert "wandb" in err
    assert "milepost doctor" in err
    run = only_run(tmp_path)
    assert run.status == "completed"
    assert len(run.series("loss").step) == 500
    assert (run.layout.experiment / "summary.json").exists()
    assert points_in_tensorboard(run.layout.tensorboard) == 500


def test_what_a_broken_tensorboard_missed_is_delivered_by_the_doctor(tmp_path):
    (tmp_path / "runs").write_text("a file where the folder should be: every call of the guest raises")
    _, err, code = run_script(tmp_path, training().replace('wandb_project="p", ', ""))
    assert code == 0
    assert err.count("tensorboard does not take the run") == 1
    run = only_run(tmp_path)
    assert run.status == "completed"
    assert len(run.series("loss").step) == 500
    (tmp_path / "runs").unlink()
    assert "tensorboard" in doctor(tmp_path)
    assert points_in_tensorboard(tmp_path / "runs" / run.id) == 500
    assert "nothing was left to do" in doctor(tmp_path)


@pytest.mark.slow
def test_wandb_without_a_login_keeps_every_point_offline(tmp_path):
    pytest.importorskip("wandb")
    _, err, code = run_script(
        tmp_path, training().replace("exit_timeout=10.0", "exit_timeout=60.0"), HOME=str(tmp_path)
    )
    assert code == 0, err
    run = only_run(tmp_path)
    files = list(run.layout.experiment.rglob("*.wandb"))
    assert len(files) == 1
    assert files[0].stat().st_size > 1000
    shutil.rmtree(run.layout.experiment / "wandb")


def test_the_doctor_does_not_claim_to_have_fed_a_guest_that_is_not_installed(tmp_path, monkeypatch):
    (tmp_path / "runs").write_text("a file where the folder should be")
    run_script(tmp_path, training().replace('wandb_project="p", ', ""))
    (tmp_path / "runs").unlink()
    run = only_run(tmp_path)
    before = sorted(path.name for path in run.layout.log.iterdir())
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    found = examine(milepost.open(tmp_path), lambda finding: None)
    assert [(finding.what, finding.done) for finding in found] == [("tensorboard has not taken all of it", "")]
    assert "pip install tensorboard" in found[0].cure
    assert sorted(path.name for path in run.layout.log.iterdir()) == before


# ---------------------------------------------------------------- over a network

FAULTS: tuple[Fault, ...] = ("refused", "500", "429", "hanging", "dying", "unanswered", "garbage")


@pytest.fixture(scope="module")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real MLflow server on the loopback."""
    pytest.importorskip("mlflow")
    folder = tmp_path_factory.mktemp("mlflow-server")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{folder}/mlflow.db",
         "--artifacts-destination", str(folder / "artifacts"), "--port", str(port), "--workers", "1"],
        env=os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true"}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 120
        while not answers(f"http://127.0.0.1:{port}/health"):
            assert server.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def in_mlflow(uri: str, experiment: str) -> tuple[Any, Any]:
    """A client, and the only run of the experiment."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    (found,) = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    return client, found


def losses_in_mlflow(uri: str, experiment: str) -> list[tuple[int, float]]:
    """Its points, by step."""
    client, found = in_mlflow(uri, experiment)
    return sorted((point.step, point.value) for point in client.get_metric_history(found.info.run_id, "loss"))


@pytest.fixture
def _an_impatient_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    """It must give a hanging request up while a test waits, and is imported by the test itself."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "4")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")


#: MLflow asks SQLAlchemy for what SQLAlchemy 2.1 begins to take back.
of_mlflow = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning")


@pytest.mark.slow
@pytest.mark.usefixtures("_an_impatient_mlflow")
@pytest.mark.parametrize("fault", FAULTS)
def test_whatever_becomes_of_the_network_mlflow_has_every_point_once_when_it_is_back(tmp_path, mlflow_server, fault):
    end: list[Event] = [Text(step=299, name="note", text="done"), StatusChanged(status="completed")]
    records = told([*training_records(300, end=None), *end])
    run = RunDescription(id=f"exp-{fault}", name=f"network-{fault}", folder=tmp_path)
    notices: list[Noticed] = []
    pace = Pace(poll_every=0.01, flush_every=0.0, batch=100, backoff=(0.1,) * 50)
    with FaultyServer(mlflow_server) as server:
        one = follower(
            tmp_path, lambda: MlflowTracker(server.url), records, run=run, notices=notices, pace=pace, name="mlflow"
        )
        tracker = MlflowTracker(server.url)  # half of it is told by a process that is then gone without a word
        assert tracker.open(run, {})
        tracker.write(records[:140])
        tracker.flush()
        server.fault = fault
        one.start()
        wait_until(lambda: bool(notices))
        server.fault = "none"
        assert one.finish(time.monotonic() + 60), notices
    assert losses_in_mlflow(mlflow_server, run.name) == [(step, 1.0 / (step + 1)) for step in range(300)]
    client, found = in_mlflow(mlflow_server, run.name)
    assert found.info.status == "FINISHED"
    assert [item.path for item in client.list_artifacts(found.info.run_id, "text/note")] == ["text/note/299.txt"]
    said = [notice.cured for notice in notices if notice.topic == "delivery"]
    assert (said[0], said[-1]) == (False, True)


@pytest.mark.slow
def test_a_training_beside_servers_that_hang_ends_in_time_and_the_doctor_delivers_everything(tmp_path, mlflow_server):
    with FaultyServer(mlflow_server, "hanging") as server:
        login = {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": "0" * 40}
        script = training(mlflow_uri=server.url, tensorboard_dir=None).replace("exit_timeout=10.0", "exit_timeout=3.0")
        _, err, code = run_script(tmp_path, script, **login)
        assert code == 0, err
        assert "milepost doctor" in err
        run = only_run(tmp_path)
        assert run.status == "completed"
        assert len(run.series("loss").step) == 500
        wait_until(lambda: not only_run(tmp_path).state.live)  # the companion leaves too
        server.fault = "none"
        said = doctor(tmp_path, WANDB_MODE="offline", **login)
        assert "nothing was left to do" in doctor(tmp_path), said
    assert losses_in_mlflow(mlflow_server, "guests") == [(step, 1.0 / (step + 1)) for step in range(500)]
    # A start that hung may have left a folder of its own; the same row told twice is the same row.
    rows = [row for file in run.layout.experiment.rglob("*.wandb") for row in wandb_file.rows(file) if "loss" in row]
    told = {row["trainer/global_step"]: row["loss"] for row in rows}
    assert told == {step: 1.0 / (step + 1) for step in range(500)}


@of_mlflow
@pytest.mark.slow
def test_a_companion_that_is_killed_between_two_batches_leaves_mlflow_with_every_point_once(tmp_path):
    mlflow = pytest.importorskip("mlflow")
    mlflow.MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db").search_experiments()  # makes the tables
    script = Script(
        tmp_path,
        """
        import os, time
        import milepost
        run = milepost.start("guests", mlflow_uri="sqlite:///mlflow.db", tensorboard_dir=None, capture_code=False)
        print("companion", run._companion.pid, flush=True)
        for step in range(200_000):
            run.log({"loss": 1.0 / (step + 1)}, step)
            time.sleep(0.001)
        """,
    )
    companion = int(script.wait_for_line("companion")[-1].split()[1])
    cursors = tmp_path / "metrics"
    wait_until(lambda: any(cursors.rglob("*mlflow.json")))
    script.process.kill()
    os.kill(companion, signal.SIGKILL)
    script.finish()
    assert "mlflow" in doctor(tmp_path)
    series = only_run(tmp_path).series("loss")
    expected = list(zip(series.step.tolist(), series.value.tolist(), strict=True))
    assert losses_in_mlflow(f"sqlite:///{tmp_path}/mlflow.db", "guests") == expected
