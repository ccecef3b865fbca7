"""A store finds its runs wherever it was copied to, reads everything, and changes nothing."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from milepost.core.config import ExperimentConfig
from milepost.core.errors import NotFoundError
from milepost.core.events import CheckpointChanged, Described, Line, Noticed, Rewound, StatusChanged
from milepost.runs.layout import RunLayout
from milepost.runs.log import DirectLog, begin_log
from milepost.runs.metadata import write_metadata
from milepost.runs.projections import write_projections
from milepost.runs.segment import new_log_id
from milepost.runs.store import open as open_store


def make_run(config, experiment_id, *, name="bert", started=0.0, settings=None):
    layout = RunLayout.from_config(config, experiment_id)
    layout.experiment.mkdir(parents=True)
    layout.log.mkdir(parents=True)
    layout.checkpoints.mkdir(exist_ok=True)
    log = DirectLog(layout, new_log_id())
    begin_log(log, role="trainer", attempt=1)
    folders = {key: value for key, value in layout.to_dict().items() if key.endswith("_dir")}
    fields = {"name": name, "start_time": started, "folders": folders, "settings": settings or {}}
    log.append(Described(fields=fields))
    write_metadata(layout, fields)
    return layout, log


def commit(layout, log, step, **info):
    filename = f"checkpoint_1_{step}.milepost"
    (layout.checkpoints / filename).write_bytes(b"content")
    fields = {"filename": filename, "path": str(layout.checkpoints / filename), "step": step, "timestamp": float(step)}
    log.append(CheckpointChanged(step=step, action="committed", filename=filename, info=fields | info))
    return filename


@pytest.fixture
def config(tmp_path):
    return ExperimentConfig(root=str(tmp_path / "project"))


@pytest.fixture
def run(config):
    layout, log = make_run(config, "bert_1", settings={"best_metric": "loss", "best_mode": "min"})
    for step in range(5):
        log.log({"loss": 1.0 / (step + 1)}, step)
    yield layout, log
    log.close()


def test_runs_come_newest_first(config):
    for number, started in ((1, 10.0), (2, 30.0), (3, 20.0)):
        make_run(config, f"bert_{number}", started=started)[1].close()
    store = open_store(config.root)
    assert [run.id for run in store.runs()] == ["bert_2", "bert_3", "bert_1"]
    assert open_store(config.experiment_dir).runs()[0].id == "bert_2"


def test_a_run_is_named_by_id_by_name_or_by_the_beginning_of_its_id(config):
    make_run(config, "bert_1", name="bert", started=1.0)[1].close()
    make_run(config, "bert_2", name="bert", started=2.0)[1].close()
    make_run(config, "gpt_1", name="tiny gpt", started=3.0)[1].close()
    store = open_store(config.root)
    assert store["bert_1"].id == "bert_1"
    assert store["bert"].id == "bert_2"
    assert store["tiny gpt"].id == "gpt_1"
    assert store["gp"].id == "gpt_1"
    with pytest.raises(NotFoundError, match="several"):
        store["bert_"]
    with pytest.raises(NotFoundError, match=r"did you mean 'gpt_1'"):
        store["gtp_1"]


def test_a_run_tells_everything_that_its_log_holds(config, run):
    _, log = run
    log.append(Line(stream="stdout", text="hello"))
    log.append(Noticed(source="wandb", topic="login", message="failed"))
    log.append(StatusChanged(status="completed", summary={"final": 0.2}))
    reader = open_store(config.root)["bert_1"]
    assert reader.name == "bert"
    assert reader.status == "completed"
    assert reader.metrics() == ["loss"]
    assert reader.series("loss").step.tolist() == [0, 1, 2, 3, 4]
    assert reader.summarize("loss")["min"] == 0.2
    assert reader.summary == {"final": 0.2}
    assert reader.last_step == 4
    assert [line.text for line in reader.lines] == ["hello"]
    assert [notice.source for notice in reader.notices] == ["wandb"]
    assert [(a.number, a.status) for a in reader.attempts] == [(1, "completed")]
    with pytest.raises(NotFoundError, match="did you mean 'loss'"):
        reader.series("los")


def test_a_dead_run_is_killed_in_its_attempts_too(config, run):
    reader = open_store(config.root)["bert_1"]
    assert reader.status == "killed"
    assert reader.attempts[-1].status == "killed"


def test_superseded_points_can_be_shown(config, run):
    _, log = run
    log.append(Rewound(step=2))
    reader = open_store(config.root)["bert_1"]
    assert reader.series("loss").step.tolist() == [0, 1, 2]
    assert reader.series("loss", superseded=True).step.tolist() == [3, 4]
    assert reader.lost_steps == 2


def test_checkpoints_are_listed_by_step_and_judged_as_configured(config, run):
    layout, log = run
    for step, loss in ((30, 0.5), (10, 0.1), (20, float("nan"))):
        commit(layout, log, step, metrics={"loss": loss})
    reader = open_store(config.root)["bert_1"]
    assert [info.step for info in reader.checkpoints] == [10, 20, 30]
    assert reader.latest.step == 30
    assert reader.best.step == 10
    (layout.checkpoints / "checkpoint_1_10.milepost").unlink()
    assert reader.best.step == 30
    commit(layout, log, 40, is_best=True)
    assert reader.refresh().best.step == 40


def test_no_best_is_guessed(config):
    layout, log = make_run(config, "bert_1")
    commit(layout, log, 1, metrics={"loss": 0.5})
    reader = open_store(config.root)["bert_1"]
    assert reader.best is None
    assert reader.latest.step == 1
    log.close()


@pytest.mark.parametrize("filename", ["../../etc/passwd", "a/b", "..", ""])
def test_a_recorded_checkpoint_never_leaves_its_folder(config, run, filename):
    _, log = run
    info = {"filename": filename, "path": "/etc/passwd", "step": 1}
    log.append(CheckpointChanged(step=1, action="committed", filename=filename, info=info))
    assert open_store(config.root)["bert_1"].checkpoints == []


def test_a_store_that_was_moved_reads_its_own_files(config, run, tmp_path):
    layout, log = run
    commit(layout, log, 3)
    moved = tmp_path / "elsewhere"
    shutil.copytree(config.root, moved)
    shutil.rmtree(config.root)
    reader = open_store(moved)["bert_1"]
    assert reader.layout.log == moved / "metrics" / "bert_1"
    assert reader.latest.path == moved / "checkpoints" / "checkpoint_1_3.milepost"
    assert len(reader.series("loss")) == 5


def test_folders_that_lie_apart_are_found_through_the_metadata(tmp_path):
    config = ExperimentConfig(
        experiment_dir=str(tmp_path / "a/experiments"),
        metrics_dir=str(tmp_path / "b/m"),
        checkpoint_dir=str(tmp_path / "c"),
    )
    layout, log = make_run(config, "bert_1")
    log.log({"loss": 1.0}, 0)
    commit(layout, log, 0)
    reader = open_store(tmp_path / "a")["bert_1"]
    assert len(reader.series("loss")) == 1
    assert reader.latest.path.parent == tmp_path / "c"
    log.close()


def test_a_store_is_found_upward_or_by_the_environment(config, run, monkeypatch, tmp_path):
    inside = Path(config.root) / "src" / "deep"
    inside.mkdir(parents=True)
    monkeypatch.chdir(inside)
    assert open_store().folder == Path(config.root)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NotFoundError, match="MILEPOST_DIR"):
        open_store()
    monkeypatch.setenv("MILEPOST_DIR", config.root)
    assert open_store().folder == Path(config.root)
    with pytest.raises(NotFoundError, match="no folder"):
        open_store(tmp_path / "absent")


def test_a_run_whose_metadata_is_gone_is_still_there(config, run):
    layout, _ = run
    layout.metadata.unlink()
    reader = open_store(config.root)["bert_1"]
    assert reader.name == "bert"


def test_reading_changes_nothing(config, run):
    layout, log = run
    write_projections(layout)
    commit(layout, log, 1)

    def state():
        return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in sorted(Path(config.root).rglob("*"))}

    before = state()
    for reader in open_store(config.root).runs():
        assert reader.status
        assert reader.checkpoints
        assert reader.best is None or reader.best
        assert reader.attempts
    assert state() == before


def test_the_store_needs_no_torch():
    code = "import sys, milepost.runs.store; assert 'torch' not in sys.modules and 'rich' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ)
