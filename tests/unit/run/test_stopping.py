"""Why a training stops, and what becomes of an end of which nobody said how it was."""

from __future__ import annotations

import time

import pytest

from milepost.core.events import StatusChanged
from milepost.environment.ranks import Ranks, StopAgreement
from milepost.run.stopping import Stopping

COMPLETED = StatusChanged(status="completed", summary={"loss": 0.5})
LEFT = StatusChanged(status="failed", reason="the script left with exit status 255", exit_code=255)
RAISED = StatusChanged(status="failed", reason="ValueError: no", traceback="...")
JOB = {"SLURM_JOB_ID": "17"}


def stopping(environ=None, **options):
    notices: list[tuple[str, str, str]] = []
    made = Stopping(
        StopAgreement(Ranks()), notice=lambda *notice: notices.append(notice), environ=environ or {}, **options
    )
    return made, notices


def ends(made: Stopping) -> list[str]:
    return [made.judged(end).status for end in (COMPLETED, LEFT, RAISED)]


def test_nobody_asked():
    made, _ = stopping(JOB)
    assert not made.tell(0)
    assert ends(made) == ["completed", "failed", "failed"]
    assert made.judged(COMPLETED) is COMPLETED


@pytest.mark.parametrize(
    ("environ", "signal_name", "expected"),
    [
        (JOB, "SIGUSR1", ["preempted", "preempted", "failed"]),
        (JOB, "SIGTERM", ["stopped", "failed", "failed"]),  # scancel sends it too
        ({}, "SIGUSR1", ["stopped", "failed", "failed"]),
    ],
)
def test_a_loop_that_left_for_a_signal_has_not_completed(environ, signal_name, expected):
    made, _ = stopping(environ)
    made.ask_for_signal(signal_name)
    assert made.tell(5)
    assert ends(made) == expected
    end = made.judged(COMPLETED)
    assert (end.reason, end.summary) == (f"{signal_name} came", {"loss": 0.5})


def test_a_loop_that_saved_and_went_on_to_its_end_has_completed():
    made, _ = stopping(JOB)
    made.ask_for_signal("SIGUSR1")
    assert made.decide(5)  # by should_save
    assert made.judged(COMPLETED).status == "completed"


def test_who_asks_first_gives_the_reason_and_a_reason_unknown_here_is_said_so():
    made, _ = stopping()
    made.ask("the loss is NaN")
    made.ask_for_signal("SIGTERM")
    made.tell(0)
    assert made.judged(COMPLETED).reason == "the loss is NaN"
    agreement = StopAgreement(Ranks())
    other = Stopping(agreement, notice=lambda *notice: None, environ={})
    agreement.request()
    assert other.tell(0)
    assert other.judged(COMPLETED).reason == "should_stop was true"


def test_a_warning_that_asks_for_nothing_explains_an_exit():
    made, _ = stopping(JOB)
    made.warned("SIGUSR2")
    assert not made.tell(0)
    assert made.judged(LEFT).reason == "SIGUSR2 came; the script left with exit status 255"
    assert made.judged(COMPLETED).status == "completed"


def test_ahead_of_the_time_limit_it_is_asked_once():
    made, notices = stopping(JOB | {"SLURM_JOB_END_TIME": str(int(time.time()) + 90)}, before_limit=2.0)
    assert made.tell(0)
    assert made.tell(1)
    assert [notice[:2] for notice in notices] == [("limit", "2 minutes are left before the time limit of the job")]
    assert made.judged(COMPLETED).status == "preempted"


def test_before_that_and_without_a_limit_it_is_not():
    far, notices = stopping(JOB | {"SLURM_JOB_END_TIME": str(int(time.time()) + 900)}, before_limit=2.0)
    assert not far.tell(0)
    at_home, more = stopping({}, before_limit=2.0)
    assert not at_home.tell(0)
    assert notices == more == []


def test_a_job_that_does_not_say_when_it_ends_is_said_with_what_helps():
    _, notices = stopping({"PBS_JOBID": "1.server"}, before_limit=2.0)
    ((source, message, cure),) = notices
    assert (source, "SLURM_JOB_END_TIME" in message, "save_on_signal" in cure) == ("limit", True, True)
