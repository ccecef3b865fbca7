"""The trainer's half of saving: one snapshot in the arena, every save ends once, nobody waits for the dead."""

from __future__ import annotations

import threading
from dataclasses import asdict
from pathlib import Path

import pytest

from milepost.checkpoint.job import SaveJob
from milepost.checkpoint.writer import PendingSave
from milepost.companion.desk import SaveDesk, Submitted
from milepost.companion.messages import Saved, SaveFailed, SaveOver
from milepost.core.errors import GaveUpWaitingError, InvalidInputError, MilepostError, StorageError
from milepost.core.records import CheckpointInfo


def job(step: int, **more) -> SaveJob:
    return SaveJob(path=f"/c/{step}", experiment_id="run", step=step, tree="", tensors=[], arena_bytes=0, **more)


def saved(number: int, step: int) -> Saved:
    info = CheckpointInfo(filename=str(step), path=Path(f"/c/{step}"), experiment_id="run", step=step)
    return Saved(number=number, info=asdict(info) | {"path": str(info.path)})


class Writing:
    """Remembers what was dispatched."""

    def __init__(self) -> None:
        self.jobs: list[tuple[int, int]] = []
        self.recorded: list[tuple[int, str]] = []
        self.refuses: Exception | None = None

    def __call__(self, submitted: Submitted) -> None:
        if self.refuses is not None:
            raise self.refuses
        self.jobs.append((submitted.number, submitted.job.step))

    def record(self, given: SaveJob, error: MilepostError) -> None:
        self.recorded.append((given.step, error.what))


@pytest.fixture
def writing() -> Writing:
    return Writing()


@pytest.fixture
def desk(writing: Writing) -> SaveDesk:
    return SaveDesk(writing, writing.record)


def waits(call) -> threading.Thread:
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(0.05)
    assert thread.is_alive()
    return thread


def test_a_save_is_dispatched_with_a_number_and_committed_by_its_answer(desk, writing):
    pending = desk.submit(job(5), desk.arena())
    assert writing.jobs == [(1, 5)]
    assert not pending.done
    desk.take(saved(1, 5))
    info = pending.wait(0)
    assert (info.step, info.path) == (5, Path("/c/5"))


def test_the_arena_is_free_when_its_snapshot_is_committed_or_failed_and_not_before(desk):
    for number, answer in ((1, saved(1, 1)), (2, SaveFailed(number=2, what="w", cure="c", kind="k"))):
        desk.submit(job(number), desk.arena())
        waiter = waits(desk.arena)
        desk.take(answer)
        waiter.join(10)
        assert not waiter.is_alive()
    desk.submit(job(3, format="rank"), None)
    desk.arena()  # the state of another rank lies in no arena, nor does one that was streamed
    desk.submit(job(4), None)
    assert desk.is_free()


def test_a_failure_is_the_error_of_that_save_alone(desk):
    first = desk.submit(job(1), desk.arena())
    desk.take(SaveFailed(number=1, what="no space left on device", cure="free disk space", kind="disk-full"))
    second = desk.submit(job(2), desk.arena())
    desk.take(saved(2, 2))
    with pytest.raises(StorageError, match="no space left on device: free disk space") as raised:
        first.wait(0)
    assert raised.value.kind == "disk-full"
    assert second.wait(0).step == 2


def test_wait_ends_when_read_back_and_retention_are_over_too(desk):
    desk.submit(job(1), desk.arena())
    desk.take(saved(1, 1))
    with pytest.raises(GaveUpWaitingError):
        desk.wait(0.01)
    desk.take(SaveOver(number=1))
    desk.wait(0)
    desk.take(saved(1, 1))  # an answer that comes twice, or to a question nobody asked, is no error
    desk.take(SaveOver(number=99))


def test_a_new_writing_side_is_given_what_is_not_committed_and_the_rest_is_not_waited_for(desk):
    desk.submit(job(1), desk.arena())
    desk.take(saved(1, 1))
    pending = desk.submit(job(2), desk.arena())
    assert [(one.number, one.job.step, one.staged) for one in desk.uncommitted()] == [(2, 2, True)]
    assert desk.after_death() == []
    desk.take(saved(2, 2))
    desk.take(SaveOver(number=2))
    desk.wait(0)
    assert pending.done
    assert desk.uncommitted() == []


def test_a_save_that_two_writers_died_over_fails_and_the_others_go_on(desk, writing):
    first = desk.submit(job(1), desk.arena())
    second = desk.submit(job(2), None)
    assert desk.after_death() == []
    ((given_up, error),) = desk.after_death()
    assert (given_up.step, error.kind, desk.unprotected_since) == (1, "companion-died", 1)
    with pytest.raises(StorageError, match="two companion processes died"):
        first.wait(0)
    assert desk.is_free()
    assert [one.job.step for one in desk.uncommitted()] == [2]
    desk.take(saved(2, 2))
    assert second.wait(0).step == 2
    assert desk.unprotected_since is None


def test_a_death_while_a_committed_save_is_read_back_is_held_against_no_other(desk, writing):
    desk.submit(job(1), desk.arena())
    desk.take(saved(1, 1))
    desk.submit(job(2), desk.arena())
    assert desk.after_death() == []
    assert desk.after_death() == []
    ((given_up, _),) = desk.after_death()
    assert given_up.step == 2


def test_a_save_that_could_not_be_staged_fails_is_recorded_and_leaves_the_state_until_the_next_commit(desk, writing):
    pending = PendingSave(Path("/c/1"), 1)
    desk.refuse(job(1), pending, StorageError("no memory", cure="more"))
    with pytest.raises(StorageError, match="no memory"):
        pending.wait(0)
    assert writing.recorded == [(1, "no memory")]
    assert desk.unprotected_since == 1


def test_what_is_prepared_is_ready_before_the_first_snapshot_and_costs_no_second_one(desk):
    desk.prepare(9 << 20)
    while desk.arena().size == 0 or desk._to_prepare:
        desk.make_ready()
    with desk.held() as segment:
        assert segment.size >= 9 << 20
    assert desk.arena().reserve(9 << 20) is segment
    assert desk.arena().generation == 1


def test_after_close_nothing_hangs_what_was_open_and_what_comes_later_fails_with_its_reason(desk, writing):
    opened = desk.submit(job(1), desk.arena())
    waiter = waits(desk.arena)
    desk.close(StorageError("the companion keeps dying"))
    waiter.join(10)
    assert not waiter.is_alive()
    later = desk.submit(job(2), desk.arena())
    for pending in (opened, later, desk.submit(job(3), desk.arena())):
        with pytest.raises(StorageError, match="keeps dying"):
            pending.wait(0)
    desk.wait(0)
    desk.close(StorageError("the run ended"))
    with pytest.raises(StorageError, match="keeps dying"):  # the first reason is the true one
        desk.submit(job(4), desk.arena()).wait(0)
    assert writing.jobs == [(1, 1)]


def test_a_save_that_could_not_be_dispatched_leaves_the_arena_free(desk, writing):
    writing.refuses = InvalidInputError("no plain value")
    with pytest.raises(InvalidInputError):
        desk.submit(job(1), desk.arena())
    writing.refuses = None
    pending = desk.submit(job(2), desk.arena())
    desk.take(saved(writing.jobs[-1][0], 2))
    assert pending.wait(0).step == 2
    desk.take(SaveOver(number=writing.jobs[-1][0]))
    desk.wait(0)
