"""Are alerts given once, to the training they are about, whatever becomes of companions?"""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass, field

import pytest

from milepost.companion.consequences import Consequences
from milepost.companion.rulebook import RuleBook, entries_of
from milepost.core.config import ExperimentConfig
from milepost.core.events import (
    Alerted,
    CheckpointChanged,
    Described,
    Identified,
    Metrics,
    Rewound,
    StatusChanged,
)
from milepost.core.rules import NoProgress, NotFinite, Spike
from milepost.runs.layout import RunLayout
from milepost.runs.log import DirectLog, begin_log
from milepost.runs.scan import LoggedRecord
from milepost.runs.segment import new_log_id
from milepost.trackers.protocol import RunDescription

LOG = bytes(16)


@dataclass
class Heard:
    """Takes what a rule book asks for."""

    found_: list[tuple[str, int | None, bool]] = field(default_factory=list)
    pinned: list[int | None] = field(default_factory=list)
    tags: list[list[str]] = field(default_factory=list)

    def found(self, entry, finding, cause, tags, *, tell):
        self.found_.append((finding.title, finding.step, tell))
        self.tags.append(list(tags))

    def pin(self, before, rule):
        self.pinned.append(before)
        return ""


class Stage:
    def __init__(self, tmp_path, *rules, attempt=1):
        self.layout = RunLayout.from_config(ExperimentConfig(root=str(tmp_path)), "run_1")
        self.layout.log.mkdir(parents=True, exist_ok=True)
        self.now = 1000.0
        self.heard = Heard()
        self.rules = rules
        self.sequence = 0
        self.open(attempt=attempt)

    def open(self, cursor=None, *, attempt=1, respond=None):
        entries = entries_of({"rules": [rule.to_dict() for rule in self.rules]})
        self.book = RuleBook(self.layout, entries, respond or self.heard, clock=lambda: self.now)
        run = RunDescription(id="run_1", name="run", attempt=attempt)
        assert self.book.open(run, json.loads(json.dumps(cursor or {})))

    def tell(self, *events, log=LOG):
        for event in events:
            record = LoggedRecord(
                log_id=log, sequence=self.sequence, wall_ns=time.time_ns(), monotonic_ns=0, event=event
            )
            self.book.write([record])
            self.sequence += 1


def began(attempt=1):
    return Identified(
        role="trainer", attempt=attempt, rank=0, world_size=1, host="h", boot_id="b", pid=1, start_time=0.0
    )


def loss(step, value):
    return Metrics(step=step, epoch=None, values={"loss": value})


def test_records_that_are_told_again_after_a_crash_are_not_judged_twice(tmp_path):
    stage = Stage(tmp_path, NotFinite(call=print))
    stage.tell(began(), loss(1, 1.0))
    cursor = stage.book.flush()
    log = DirectLog(stage.layout, new_log_id())
    begin_log(log, role="companion", attempt=1)
    emitted = []
    consequences = Consequences(stage.layout, lambda event, step: log.append(event, step=step), emitted.append)
    for _ in range(2):  # the second one is a companion whose predecessor died before the cursor was saved
        stage.open(cursor, respond=consequences)
        stage.sequence = 2
        stage.tell(loss(2, math.nan))
    log.close()
    assert [message.alert["title"] for message in emitted] == ["loss is nan"]
    assert emitted[0].alert["actions"] == ["told the training to call its function"]


def test_what_an_attempt_did_that_is_over_is_not_held_against_the_one_that_runs(tmp_path):
    stage = Stage(tmp_path, NotFinite(stop=True), attempt=2)
    stage.tell(began(1), loss(1, math.nan))
    stage.tell(began(2), Rewound(step=0), loss(1, math.inf), log=b"2" * 16)
    assert stage.heard.found_ == [("loss is nan", 1, False), ("loss is inf", 1, True)]


@pytest.mark.parametrize("tell", [True, False])
def test_only_a_training_that_lives_is_told_to_stop(tmp_path, tell):
    stage = Stage(tmp_path, NotFinite(stop=True))
    recorded, emitted = [], []
    stage.open(respond=Consequences(stage.layout, lambda event, step: recorded.append(event), emitted.append))
    stage.tell(*([began()] if tell else []), loss(1, math.nan))
    (alert,) = recorded
    assert isinstance(alert, Alerted)
    assert (len(emitted), alert.actions) == ((1, ["told the training to stop"]) if tell else (0, []))


def test_a_mark_joins_the_tags_that_the_run_has_at_that_point_of_its_log(tmp_path):
    stage = Stage(tmp_path, NotFinite(mark="diverged"))
    recorded = []
    stage.open(respond=Consequences(stage.layout, lambda event, step: recorded.append(event), lambda _: None))
    stage.tell(began(), Described(fields={"tags": ["a", "b"]}), loss(1, math.nan))
    assert recorded[0] == Described(fields={"tags": ["a", "b", "diverged"]})


def test_a_checkpoint_that_was_still_being_written_when_it_happened_is_pinned_when_it_is_there(tmp_path):
    stage = Stage(tmp_path, NotFinite(pin=True))
    stage.tell(began(), loss(9, math.nan))
    cursor = stage.book.flush()
    stage.open(cursor)
    for step in (8, 9, 7):
        stage.tell(CheckpointChanged(step=step, action="committed", filename=f"checkpoint_{step}"))
    assert stage.heard.pinned == [9]


def test_without_a_checkpoint_there_is_nothing_to_pin_and_that_is_said(tmp_path):
    stage = Stage(tmp_path, NotFinite(pin=True))
    assert Consequences(stage.layout, lambda *_: None, lambda _: None).pin(5, "x") == "no checkpoint to pin yet"


def test_silence_is_found_once_by_the_clock_and_again_after_new_metrics(tmp_path):
    stage = Stage(tmp_path, NoProgress(minutes=1))
    stage.tell(began(), StatusChanged(status="running"))
    for seconds in (50, 5, 10, 100):
        stage.now += seconds
        stage.book.check()
    assert stage.heard.found_ == [("no metrics for 1 minutes", None, True)]
    stage.open(stage.book.flush())
    stage.tell(loss(3, 1.0))
    stage.book.check()
    stage.now += 61
    stage.book.check()
    stage.book.check()
    assert len(stage.heard.found_) == 2


def test_a_run_that_is_paused_or_over_may_be_silent(tmp_path):
    stage = Stage(tmp_path, NoProgress(minutes=1))
    stage.tell(began(), StatusChanged(status="running"), loss(1, 1.0), StatusChanged(status="paused"))
    stage.now += 600
    stage.book.check()
    stage.tell(StatusChanged(status="running"))
    stage.book.check()
    stage.tell(StatusChanged(status="completed"))
    stage.now += 600
    stage.book.check()
    assert stage.heard.found_ == []


def test_a_companion_that_takes_over_counts_the_silence_of_its_predecessor(tmp_path):
    stage = Stage(tmp_path, NoProgress(minutes=1))
    stage.tell(began(), StatusChanged(status="running"), loss(1, 1.0))
    cursor = dict(stage.book.flush())
    cursor["progress"]["wall"] -= 59.5
    stage.open(cursor)
    stage.book.check()
    assert stage.heard.found_ == []
    stage.now += 1
    stage.book.check()
    assert stage.heard.found_ == [("no metrics for 1 minutes", None, True)]


def test_a_rewind_makes_a_rule_forget_what_will_be_done_again(tmp_path):
    stage = Stage(tmp_path, Spike("loss", window=10))
    stage.tell(began(), *[loss(step, 1.0) for step in range(10)], loss(10, 99.0), loss(11, 99.0))
    stage.tell(Rewound(step=9), loss(10, 99.0))
    assert stage.heard.found_ == [("loss jumped to 99", 10, True)] * 2
