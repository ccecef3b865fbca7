"""Guests that do as they should, and guests that do not."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from milepost.core.errors import MissingDependencyError
from milepost.core.events import Noticed, StatusChanged
from milepost.runs.scan import LoggedRecord
from milepost.trackers.cursor import load_cursor
from milepost.trackers.protocol import RunDescription
from tests.unit.trackers.story import (
    LOG,
    QUICK,
    Diary,
    Fails,
    Hangs,
    Memory,
    RaisesAlways,
    follower,
    identified,
    metrics,
    record,
    told,
    training,
)


def _soon() -> float:
    return time.monotonic() + 30


def test_a_guest_gets_every_record_once_and_then_the_end(tmp_path: Path):
    memory = Memory()
    one = follower(tmp_path, lambda: Diary(memory), told(training(5000)))
    one.start()
    assert one.finish(_soon())
    assert memory.steps == list(range(5000))
    assert memory.ends == [StatusChanged(status="completed")]
    assert one.state.phase == "finished"
    assert one.state.delivered == 5002
    assert not one.state.behind


def test_what_is_logged_while_following_is_delivered(tmp_path: Path):
    memory, records, delivered = Memory(), told(training(3, end=None)), threading.Event()

    class Tells(Diary):
        def flush(self) -> Mapping[str, object]:
            delivered.set()
            return super().flush()

    one = follower(tmp_path, lambda: Tells(memory), records, pace=replace(QUICK, poll_every=60.0))
    one.start()
    assert delivered.wait(30)
    records += [record(metrics(step, loss=0.0), step + 10) for step in range(3, 6)]
    delivered.clear()
    one.wake()
    assert delivered.wait(30)
    assert one.finish(_soon())
    assert memory.steps == list(range(6))
    assert memory.ends == [None]


def test_a_guest_that_hangs_for_ever_holds_up_neither_the_end_nor_another_guest(tmp_path: Path):
    entered, let_go, notices, memory = threading.Event(), threading.Event(), [], Memory()
    records = told(training(10))
    stuck = follower(tmp_path, lambda: Hangs(Memory(), entered, let_go), records, notices=notices, name="stuck")
    well = follower(tmp_path, lambda: Diary(memory), records)
    stuck.start()
    well.start()
    assert entered.wait(30)
    assert well.finish(_soon())
    assert memory.steps == list(range(10))
    before = time.monotonic()
    assert not stuck.finish(before + 0.05)
    assert [notice.topic for notice in notices] == ["unfinished"]
    assert "milepost doctor" in notices[0].cure
    assert next(t for t in threading.enumerate() if t.name == "milepost-stuck").daemon
    let_go.set()
    assert stuck.finish(_soon())


def test_a_call_that_takes_too_long_is_said_once_and_taken_back_when_it_returns(tmp_path: Path):
    entered, let_go, notices = threading.Event(), threading.Event(), []
    pace = replace(QUICK, patience=0.0)
    one = follower(tmp_path, lambda: Hangs(Memory(), entered, let_go), told(training(3)), notices=notices, pace=pace)
    one.start()
    assert entered.wait(30)
    while not notices:
        one.check()
    one.check()
    assert one.state.waiting > 0
    let_go.set()
    assert one.finish(_soon())
    assert [(n.source, n.topic, n.cured) for n in notices] == [("diary", "hanging", False), ("diary", "hanging", True)]


def test_a_guest_that_raises_on_every_call_is_said_once_parked_and_caught_up_later(tmp_path: Path):
    notices: list[Noticed] = []
    records = told(training(10))
    broken = follower(tmp_path, RaisesAlways, records, notices=notices)
    broken.start()
    assert not broken.finish(_soon())
    assert [notice.topic for notice in notices] == ["delivery"]
    assert "RuntimeError: no" in notices[0].message
    assert "milepost doctor" in notices[0].cure
    assert broken.state.phase == "parked"

    memory = Memory()
    mended = follower(tmp_path, lambda: Diary(memory), records)
    mended.start()
    assert mended.finish(_soon())
    assert memory.steps == list(range(10))


def test_a_guest_that_recovers_misses_nothing_and_the_notice_is_taken_back(tmp_path: Path):
    memory, notices = Memory(), []
    failures: list[BaseException] = [RuntimeError("one"), OSError("two"), ValueError("three")]
    one = follower(tmp_path, lambda: Fails(memory, failures), told(training(100)), notices=notices)
    one.start()
    assert one.finish(_soon())
    assert memory.steps == list(range(100))
    assert [(notice.topic, notice.cured) for notice in notices] == [("delivery", False), ("delivery", True)]
    assert one.state.error == ""


def test_a_failure_in_mid_flight_goes_on_from_what_was_acknowledged(tmp_path: Path):
    memory, batches = Memory(), iter(range(1000))

    class Trips(Diary):
        def write(self, records: Sequence[LoggedRecord]) -> None:
            super().write(records)
            if next(batches) == 3:
                raise ConnectionResetError("peer")

    one = follower(tmp_path, lambda: Trips(memory), told(training(100)), pace=replace(QUICK, batch=10))
    one.start()
    assert one.finish(_soon())
    assert memory.steps == list(range(100))
    assert [cursor.get("told") for cursor in memory.opened] == [None, 29]


def test_a_guest_that_leaves_by_exit_does_not_take_the_thread_with_it(tmp_path: Path):
    memory, failures = Memory(), [SystemExit(1)]
    one = follower(tmp_path, lambda: Fails(memory, failures), told(training(5)))
    one.start()
    assert one.finish(_soon())
    assert memory.steps == list(range(5))


def test_an_absent_package_is_said_in_one_line_and_not_tried_again_until_the_end(tmp_path: Path):
    notices, builds = [], []

    def absent() -> Diary:
        builds.append(1)
        raise MissingDependencyError("TensorBoard not available", cure="pip install tensorboard")

    one = follower(tmp_path, absent, told(training(3)), notices=notices)
    one.start()
    assert not one.finish(_soon())
    assert [(n.message, n.cure) for n in notices] == [("TensorBoard not available", "pip install tensorboard")]
    assert len(builds) <= 2


def test_a_parked_guest_is_tried_once_more_when_the_run_ends(tmp_path: Path):
    memory, parked, tries = Memory(), threading.Event(), []

    def build() -> Diary:
        tries.append(1)
        if len(tries) <= 4:
            raise ConnectionError("no network")
        return Diary(memory)

    one = follower(tmp_path, build, told(training(3)), notices=[])
    one.start()
    while one.state.phase != "parked":
        parked.wait(0.005)
    assert len(tries) == 4
    assert one.finish(_soon())
    assert memory.steps == [0, 1, 2]


def test_nobody_to_hear_a_notice_ends_no_delivery(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    memory, failures = Memory(), [ValueError("x")]
    one = follower(tmp_path, lambda: Fails(memory, failures), told(training(5)))
    one._notice = lambda notice: 1 / 0
    one.start()
    assert one.finish(_soon())
    assert memory.steps == list(range(5))
    assert "could not be given" in caplog.text


def test_a_backlog_goes_through_in_bounded_batches(tmp_path: Path):
    total, memory = 100_000, Memory()

    class Endless:
        """Makes its records when they are read, so that only the follower can be what holds many."""

        def __init__(self, cursor: Mapping[str, int]) -> None:
            self.cursor = dict(cursor)

        def read(self, limit: int) -> list[LoggedRecord]:
            first = self.cursor.get(LOG.hex(), 0)
            last = min(first + limit, total)
            self.cursor[LOG.hex()] = last
            event = metrics(0, loss=1.0)
            return [
                LoggedRecord(log_id=LOG, sequence=n, monotonic_ns=n, wall_ns=n, event=event) for n in range(first, last)
            ]

    class Counts(Diary):
        def write(self, records: Sequence[LoggedRecord]) -> None:
            self.memory.batches.append(len(records))

    one = follower(tmp_path, lambda: Counts(memory), [], pace=replace(QUICK, batch=2048, flush_every=0.2))
    one._open_source = Endless
    one.start()
    assert one.finish(time.monotonic() + 120)
    assert sum(memory.batches) == total
    assert max(memory.batches) == 2048


def test_two_processes_never_tell_one_guest_at_the_same_time(tmp_path: Path):
    entered, let_go, memory = threading.Event(), threading.Event(), Memory()
    records = told(training(10))
    first = follower(tmp_path, lambda: Hangs(memory, entered, let_go), records)
    first.start()
    assert entered.wait(30)
    second = follower(tmp_path, lambda: Diary(memory), records, notices=(notices := []))
    second.start()
    assert not second.finish(_soon())
    assert [notice.topic for notice in notices] == ["unfinished"]
    let_go.set()
    assert first.finish(_soon())
    assert memory.steps == list(range(10))


def test_a_guest_that_lost_what_the_cursor_speaks_of_is_told_the_run_from_its_beginning(tmp_path: Path):
    records = told(training(10, end=None))
    one = follower(tmp_path, lambda: Diary(Memory()), records)
    one.start()
    assert one.finish(_soon())
    memory = Memory()

    class Forgetful(Diary):
        def open(self, run: RunDescription, cursor: Mapping[str, object]) -> bool:
            super().open(run, cursor)
            return not cursor

    records.append(record(metrics(10, loss=0.0), 50))
    other = follower(tmp_path, lambda: Forgetful(memory), records)
    other.start()
    assert other.finish(_soon())
    assert memory.opened == [{"told": 10}, {}]
    assert memory.steps == list(range(11))


def test_a_run_of_which_nothing_is_new_wakes_no_guest(tmp_path: Path):
    records = told(training(5))
    one = follower(tmp_path, lambda: Diary(Memory()), records)
    one.start()
    assert one.finish(_soon())
    again = Memory()
    one = follower(tmp_path, lambda: Diary(again), records)
    one.start()
    assert one.finish(_soon())
    assert again.opened == []


def test_a_guest_that_died_before_it_was_told_the_end_is_told_it_later(tmp_path: Path):
    records, memory = told(training(5)), Memory()

    class DiesAtTheEnd(Diary):
        def close(self, end: StatusChanged | None) -> None:
            if end is not None:
                raise ConnectionError("gone")

    one = follower(tmp_path, lambda: DiesAtTheEnd(memory), records)
    one.start()
    assert not one.finish(_soon())
    assert not load_cursor(tmp_path / "guest-diary.json").closed
    other = follower(tmp_path, lambda: Diary(memory), records)
    other.start()
    assert other.finish(_soon())
    assert memory.steps == list(range(5))
    assert memory.ends == [StatusChanged(status="completed")]


def test_logs_of_other_ranks_alone_wake_no_guest(tmp_path: Path):
    memory = Memory()
    one = follower(tmp_path, lambda: Diary(memory), told([identified(rank=1), metrics(0, loss=1.0)]))
    one.start()
    assert one.finish(_soon())
    assert memory.opened == []


def test_a_description_survives_its_way_to_the_companion():
    run = RunDescription(id="a", name="b", tags=("x",), folder=Path("/runs/a"), hyperparameters={"lr": 0.1})
    assert RunDescription.from_dict(run.to_dict()) == run


def test_the_cursor_of_a_guest_that_needs_time_to_settle_lags_until_the_end(tmp_path: Path):
    memory, flushed, path = Memory(), threading.Event(), tmp_path / "guest-diary.json"

    class Tells(Diary):
        def flush(self) -> Mapping[str, object]:
            flushed.set()
            return super().flush()

    one = follower(tmp_path, lambda: Tells(memory), told(training(5)), pace=replace(QUICK, settle=3600.0))
    one.start()
    assert flushed.wait(30)
    assert not path.exists()
    assert one.finish(_soon())
    assert load_cursor(path).guest == {"told": 5}
    assert load_cursor(path).closed


def test_the_cursor_counts_what_was_told_of_the_log_over_all_processes(tmp_path: Path):
    records = told(training(10, end=None))
    for known in (4, len(records)):
        one = follower(tmp_path, lambda: Diary(Memory()), records[:known])
        one.start()
        assert one.finish(time.monotonic() + 60)
        assert load_cursor(tmp_path / "guest-diary.json").records == known
