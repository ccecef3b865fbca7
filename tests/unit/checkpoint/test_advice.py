"""What is worth saying about saves is said once, and nothing else."""

from __future__ import annotations

import pytest

from milepost.checkpoint.advice import Advisor, back_pressure, unchanged
from milepost.checkpoint.job import SaveJob


def job(*, wait_ms: float = 0.0, stall_ms: float = 0.0, **more) -> SaveJob:
    given = {"path": "/c/1", "experiment_id": "r", "step": 7, "tree": "", "tensors": [], "arena_bytes": 1 << 30} | more
    return SaveJob(wait_ms=wait_ms, stall_ms=stall_ms, **given)


@pytest.mark.parametrize(
    ("wait_ms", "stall_ms", "said"),
    [
        (0.0, 20.0, False),
        (290.0, 350.0, False),  # 60 ms of copy
        (310.0, 370.0, True),
        (240.0, 241.0, False),  # many times the copy, but nothing that anybody would notice
        (900.0, 1200.0, False),
        (1001.0, 9000.0, True),
    ],
)
def test_a_wait_is_worth_saying_if_it_is_long_or_many_times_the_copy(wait_ms, stall_ms, said):
    noticed = back_pressure(job(wait_ms=wait_ms, stall_ms=stall_ms))
    assert (noticed is not None) == said
    if noticed is not None:
        assert f"{wait_ms / 1000:.1f} s" in noticed.message
        assert noticed.topic == "back-pressure"
        assert 'busy="skip"' in noticed.cure


def test_a_state_that_mostly_stays_as_it_is_has_two_cures_unless_one_is_taken():
    noticed = unchanged(job(), 0.87)
    assert "87%" in noticed.message
    assert 'compression="delta"' in noticed.cure
    assert 'include="trainable"' in noticed.cure
    for share, more in (
        (None, {}),
        (0.5, {}),
        (0.9, {"delta": True}),
        (0.9, {"include": "trainable"}),
        (0.9, {"format": "pt"}),
        (0.9, {"arena_bytes": 1 << 20}),
    ):
        assert unchanged(job(**more), share) is None


def test_each_is_said_once():
    said = []
    advisor = Advisor(said.append)
    for _ in range(3):
        advisor.staged(job(wait_ms=2000.0, stall_ms=2010.0))
    assert [noticed.topic for noticed in said] == ["back-pressure"]
