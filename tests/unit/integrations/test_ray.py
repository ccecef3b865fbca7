"""A Tune experiment is a group, a trial a run of it, told from the driver; real Ray on this machine."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import milepost
from tests.contract.training_script import run_script

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="the trials kill themselves"),
]

SWEEP = """
    import os, signal, sys, tempfile
    import ray
    from ray import tune
    from milepost.integrations.ray import MilepostCallback

    def train(config):
        came_from = tune.get_checkpoint()
        begin = 0
        if came_from is not None:
            with came_from.as_directory() as folder:
                begin = int(open(os.path.join(folder, "done")).read()) + 1
        for epoch in range(begin, 4):
            if config["x"] == 2 and epoch == 3 and begin == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            if config["x"] == 3 and epoch == 1:
                raise ValueError("broken")
            with tempfile.TemporaryDirectory() as folder:
                open(os.path.join(folder, "done"), "w").write(str(epoch))
                saved = tune.Checkpoint.from_directory(folder) if epoch in (1, 3) else None
                tune.report({"loss": config["x"] / (epoch + 1), "word": "no number"}, checkpoint=saved)

    ray.init(num_cpus=2, include_dashboard=False, logging_level="error")
    tracking = MilepostCallback("x{x}", tags=["tune"], tensorboard_dir=None, capture_code=False)
    tune.Tuner(
        train,
        param_space={"x": tune.grid_search([1, 2, 3])},
        run_config=tune.RunConfig(
            name="sweep", storage_path=os.path.abspath("results"), verbose=0, callbacks=[tracking],
            failure_config=tune.FailureConfig(max_failures=1)),
    ).fit()
    ray.shutdown()
"""


def test_trials_in_processes_of_their_own_become_runs_and_one_that_was_killed_goes_on_in_its_run(tmp_path: Path):
    quiet = {"RAY_USAGE_STATS_ENABLED": "0", "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1"}
    _, err, code = run_script(tmp_path, SWEEP, **quiet)
    assert code == 0, err
    runs = {run.name: run for run in milepost.open(tmp_path).runs("group:sweep tag:tune")}
    assert sorted(runs) == ["x1", "x2", "x3"]
    assert runs["x1"].status == runs["x2"].status == "completed"
    assert runs["x1"].hyperparameters == {"x": 1}
    assert runs["x1"].metrics() == ["loss"]
    assert runs["x1"].series("loss").value.tolist() == [1.0, 1 / 2, 1 / 3, 1 / 4]
    assert [info.step for info in runs["x1"].checkpoints] == [2, 4]
    assert all((info.path / "done").is_file() for info in runs["x1"].checkpoints)
    killed = runs["x2"]
    assert killed.series("loss").step.tolist() == [1, 2, 3, 4]
    assert killed.series("loss").value.tolist() == [2.0, 1.0, 2 / 3, 1 / 2]
    assert killed.lost_steps == 1
    assert (runs["x3"].status, "broken" in runs["x3"].state.reason) == ("failed", True)
