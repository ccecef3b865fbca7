"""Tracker objects: one name each, the same object again after a failure, and a cost that is told."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from milepost.core.config import ExperimentConfig
from milepost.core.errors import InvalidInputError
from milepost.core.events import Metrics, Noticed, StatusChanged
from milepost.runs.layout import RunLayout
from milepost.runs.log import DirectLog, begin_log
from milepost.runs.segment import new_log_id
from milepost.system.inside_trackers import InsideTrackers, given_objects, refuse_names_taken
from milepost.trackers.protocol import RunDescription
from tests.unit.trackers.story import Diary, Fails, Memory


def layout_with_a_log(folder: Path, steps: int) -> RunLayout:
    layout = RunLayout.from_config(ExperimentConfig(root=str(folder)), "exp_20260101-000000")
    layout.log.mkdir(parents=True)
    log = DirectLog(layout, new_log_id())
    begin_log(log, role="trainer", attempt=1, rank=0, world_size=1)
    for step in range(steps):
        log.log({"loss": 1.0}, step)
    log.append(StatusChanged(status="completed"))
    log.close()
    return layout


def test_only_objects_are_taken_out_of_the_setting():
    diary = Diary(Memory())
    assert given_objects(("neptune", diary)) == [diary]


def test_a_name_is_taken_once():
    diaries = [Diary(Memory()), Diary(Memory())]
    refuse_names_taken(diaries[:1], ["tensorboard"])
    for trackers, taken in ((diaries, []), (diaries[:1], ["diary"])):
        with pytest.raises(InvalidInputError, match="two trackers have the name 'diary'"):
            refuse_names_taken(trackers, taken)


def test_an_object_that_raised_is_opened_again_and_told_all(tmp_path):
    memory, notices = Memory(), list[Noticed]()
    layout = layout_with_a_log(tmp_path, 50)
    inside = InsideTrackers(
        [Fails(memory, [RuntimeError("no")])], RunDescription(id="exp-1", name="exp"), layout, notices.append
    )
    inside.start()
    inside.finish(time.monotonic() + 60)
    assert memory.steps == list(range(50))
    assert [end and end.status for end in memory.ends] == [None, "completed"]
    assert [(notice.topic, notice.cured) for notice in notices] == [("delivery", False), ("delivery", True)]
    assert "told the rest when the run goes on with it" in notices[0].cure


def test_what_an_object_costs_is_measured_and_said_if_it_is_much(tmp_path, capsys):
    class Busy(Diary):
        def write(self, records):
            super().write(records)
            if any(isinstance(record.event, Metrics) for record in records):
                began = time.thread_time()
                while time.thread_time() - began < 1.1:
                    sum(range(1000))

    layout = layout_with_a_log(tmp_path, 5)
    inside = InsideTrackers([Busy(Memory())], RunDescription(id="exp-1", name="exp"), layout, lambda notice: None)
    inside.start()
    inside.finish(time.monotonic() + 60)
    assert 1.1 <= inside.cost()["diary"] < 5
    assert "the tracker 'diary' took 1." in capsys.readouterr().err
