from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from milepost.companion.messages import FromCompanion, Hello
from milepost.core.config import ExperimentConfig
from milepost.io.process import this_process
from milepost.runs.layout import RunLayout
from milepost.runs.log import DirectLog, begin_log
from milepost.runs.projections import write_metadata
from milepost.runs.segment import new_log_id

SETTINGS: dict[str, Any] = {
    "wandb_project": None,
    "tensorboard_dir": None,
    "trackers": [],
    "max_checkpoints": 2,
    "best_metric": None,
    "best_mode": "min",
    "capture_code": False,
    "exit_timeout": 5.0,
}


@pytest.fixture
def layout(tmp_path: Path) -> RunLayout:
    """The places of a run whose folders exist and whose start was described."""
    made = RunLayout.from_config(ExperimentConfig(root=str(tmp_path), tensorboard_dir=None), "run_20261124-133155")
    made.experiment.mkdir(parents=True)
    made.log.mkdir(parents=True)
    write_metadata(made, {"name": "run", "start_time": 1.0, "tags": ["a"], "settings": SETTINGS})
    return made


@pytest.fixture
def log(layout: RunLayout):
    """The log of the run's trainer, begun."""
    made = DirectLog(layout, new_log_id())
    begin_log(made, role="trainer", attempt=1)
    yield made
    made.close()


@pytest.fixture
def hello(layout: RunLayout, log: DirectLog) -> Hello:
    """What the trainer says of itself."""
    me = this_process()
    return Hello(
        layout=layout.to_dict(),
        settings=SETTINGS,
        log_id=log.log_id,
        host=me.host,
        boot_id=me.boot_id,
        pid=me.pid,
        start_time=me.start_time,
        attempt=1,
        rank=0,
        world_size=1,
        facts={},
    )


@pytest.fixture
def emitted() -> list[FromCompanion]:
    """What the training process was told."""
    return []
