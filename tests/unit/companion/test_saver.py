"""Saves are written in the order they came; what goes wrong with one is told and harms no other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from milepost.checkpoint.retention import RetentionRule
from milepost.companion.saver import Saver
from tests.unit.companion.jobs import staged


class Heard:
    """What a saver reported, in order."""

    def __init__(self) -> None:
        self.events: list[tuple] = []
        self.errors: list[Exception] = []
        self.saver = Saver(RetentionRule(keep_newest=2), self.report, self.failed, self.over)

    def report(self, number, change):
        self.events.append((number, change.action, change.step))

    def failed(self, number, job, error):
        self.events.append((number, "failed", job.step))
        self.errors.append(error)

    def over(self, number):
        self.events.append((number, "over"))

    def of(self, number: int) -> list:
        return [event[1:] for event in self.events if event[0] == number]


@pytest.fixture
def heard():
    made = Heard()
    yield made
    made.saver.finish()


def submit(heard: Heard, folder: Path, number: int, step: int, **more) -> None:
    job, arena = staged(folder, step, **more)
    heard.saver.submit(number, job, arena.view)


def test_saves_are_committed_verified_and_over_in_their_order(heard, tmp_path):
    for step in (1, 2, 3):
        submit(heard, tmp_path, step, step)
    assert heard.saver.doing.startswith("checkpoint of step")
    assert heard.saver.finish(60)
    assert heard.saver.doing == ""
    assert heard.of(1) == [("committed", 1), ("verified", 1), ("over",)]
    assert heard.of(3) == [("committed", 3), ("verified", 3), ("removed", 1), ("over",)]
    assert [event[0] for event in heard.events] == sorted(event[0] for event in heard.events)


def test_the_same_job_given_again_is_committed_and_its_file_stays_as_it_is(heard, tmp_path):
    submit(heard, tmp_path, 1, 1)
    assert heard.saver.finish(60)
    (path,) = tmp_path.glob("checkpoint_*")
    before = path.stat()
    submit(heard, tmp_path, 2, 1)  # what the next companion gets when one died before it could answer
    assert heard.saver.finish(60)
    assert heard.of(2) == heard.of(1)
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_another_save_under_a_name_that_is_taken_fails_and_the_file_stays(heard, tmp_path):
    submit(heard, tmp_path, 1, 1)
    assert heard.saver.finish(60)
    (path,) = tmp_path.glob("checkpoint_*")
    before = path.read_bytes()
    job, arena = staged(tmp_path, 1)
    heard.saver.submit(2, replace(job, timestamp=99.0), arena.view)
    assert heard.saver.finish(60)
    assert heard.of(2) == [("failed", 1), ("over",)]
    assert path.read_bytes() == before


def test_a_save_that_fails_is_told_and_the_next_one_is_written(heard, tmp_path):
    (tmp_path / "file").touch()
    submit(heard, tmp_path / "file" / "folder", 1, 1)
    submit(heard, tmp_path, 2, 2)
    assert heard.saver.finish(60)
    assert heard.of(1) == [("failed", 1), ("over",)]
    assert heard.of(2) == [("committed", 2), ("verified", 2), ("over",)]
    assert heard.errors[0].cure


def test_a_job_that_contradicts_itself_is_told_and_the_next_one_is_written(heard, tmp_path):
    job, _ = staged(tmp_path, 1)
    heard.saver.submit(1, job, memoryview(b""))
    submit(heard, tmp_path, 2, 2)
    assert heard.saver.finish(60)
    assert heard.of(1) == [("failed", 1), ("over",)]
    assert heard.of(2)[0] == ("committed", 2)
    assert [path.name for path in tmp_path.glob("*.tmp")] == []


def test_nothing_submitted_is_nothing_to_finish(heard):
    assert heard.saver.finish(0)
