"""A run as a child process sees it."""

from __future__ import annotations

import os
import pickle

import pytest

from milepost.core.config import ExperimentConfig
from milepost.run import WorkerRun
from milepost.runs.layout import RunLayout
from milepost.runs.scan import read_log_files
from milepost.runs.staged import read_staged, staged_names
from milepost.runs.store import RunReader


@pytest.fixture
def worker(tmp_path):
    layout = RunLayout.from_config(ExperimentConfig(root=str(tmp_path)), "run_20261124-133155")
    layout.experiment.mkdir(parents=True)
    layout.log.mkdir(parents=True)
    made = WorkerRun.open(layout.to_dict(), attempt=2, rank=0)
    yield made
    made.close()


def test_a_worker_that_logs_nothing_leaves_nothing(worker):
    assert list(worker._layout.log.iterdir()) == []
    worker.close()


def test_a_worker_logs_numbers_and_texts_and_gives_its_lock_back(worker):
    worker.log({"loss": 0.5}, 3)
    worker.log_text("note", "x" * 100_000)
    assert list(worker._layout.log.glob("*.lock"))
    worker.close()
    assert not list(worker._layout.log.glob("*.lock"))
    reader = RunReader(worker._layout)
    assert list(reader.series("loss").step) == [3]
    (long,) = staged_names(worker._layout.staged_media)
    assert read_staged(worker._layout.staged_media / long)[1] == b"x" * 100_000


def test_a_pickled_worker_logs_to_another_log(worker):
    worker.log({"loss": 0.0}, 0)
    other = pickle.loads(pickle.dumps(worker))
    other.log({"loss": 1.0}, 1)
    other.close()
    assert len(read_log_files(worker._layout.log)) == 2
    assert list(RunReader(worker._layout).series("loss").step) == [0, 1]


def test_after_a_fork_parent_and_child_write_to_logs_of_their_own(worker):
    worker.log({"loss": 0.0}, 0)
    child = os.fork()
    if child == 0:
        worker.log({"loss": 1.0}, 1)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    worker.log({"loss": 2.0}, 2)
    assert len(read_log_files(worker._layout.log)) == 2
    reader = RunReader(worker._layout)
    assert sorted(reader.series("loss").step) == [0, 1, 2]
    assert reader.history.damage == []
