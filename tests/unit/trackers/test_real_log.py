"""From the run log on disk to TensorBoard, with no part replaced."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from milepost.core.config import ExperimentConfig
from milepost.core.events import StatusChanged
from milepost.runs.direct_log import DirectLog
from milepost.runs.layout import RunLayout
from milepost.runs.scan import LogFollower
from milepost.runs.segment import new_log_id
from milepost.trackers.follower import Follower
from milepost.trackers.protocol import RunDescription
from milepost.trackers.registry import follower_for, guests_for
from tests.unit.trackers.story import identified

accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")


def _layout(folder: Path) -> RunLayout:
    layout = RunLayout.from_config(ExperimentConfig(root=str(folder)), "exp_1")
    layout.log.mkdir(parents=True, exist_ok=True)
    return layout


def _follower(layout: RunLayout) -> Follower:
    (plan,) = guests_for({"tensorboard_dir": layout.tensorboard})
    assert layout.tensorboard is not None
    return follower_for(
        plan,
        RunDescription(id="exp_1", name="exp", started=1_700_000_000.0, folder=layout.tensorboard),
        open_source=lambda cursor: LogFollower(layout.log, cursor),
        cursor_path=layout.cursor(plan.name),
        notice=lambda notice: pytest.fail(str(notice)),
    )


def test_a_run_of_two_attempts_followed_by_three_processes_is_shown_whole(tmp_path: Path):
    layout = _layout(tmp_path)
    for attempt, steps in ((1, range(100)), (2, range(100, 200)), (2, range(200, 5000))):
        log = DirectLog(layout, new_log_id())
        log.append(identified(attempt=attempt))
        for step in steps:
            log.log({"loss": float(step), "nested": {"lr": 0.1}}, step)
        log.append(StatusChanged(status="completed"))
        log.close()
        follower = _follower(layout)
        follower.start()
        assert follower.finish(time.monotonic() + 60)
    shown = accumulator.EventAccumulator(str(layout.tensorboard), size_guidance={"scalars": 0})
    shown.Reload()
    assert [(point.step, point.value) for point in shown.Scalars("loss")] == [(s, float(s)) for s in range(5000)]
    assert len(shown.Scalars("nested/lr")) == 5000
