"""How is a death told that nobody announced?"""

from __future__ import annotations

import pytest

from milepost.companion.process import death_of


@pytest.mark.parametrize(
    ("exit_code", "signal_name", "status", "reason"),
    [
        (None, "SIGKILL", "killed", "killed by SIGKILL"),
        (None, "SIGSEGV", "killed", "killed by SIGSEGV"),
        (None, "", "killed", "the process ended, how is not known"),
        (3, "", "failed", "the process left with exit status 3 without ending the run"),
        (0, "", "failed", "the process left with exit status 0 without ending the run"),
    ],
)
def test_a_death_is_told_by_what_the_kernel_knows(exit_code, signal_name, status, reason):
    told = death_of(exit_code, signal_name)
    assert (told.status, told.reason, told.signal) == (status, reason, signal_name)
    assert told.source == "companion"


def test_a_death_that_the_scheduler_had_announced_is_a_preemption():
    told = death_of(None, "SIGKILL", "after SIGUSR1")
    assert (told.status, told.reason, told.signal) == ("preempted", "killed by SIGKILL after SIGUSR1", "SIGKILL")
    assert death_of(3, "", "after SIGUSR1").status == "failed"
