from __future__ import annotations

import pytest

from milepost.checkpoint.cadence import Cadence
from milepost.core.errors import InvalidInputError


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def saves(cadence: Cadence, clock: Clock, *, steps: int, step_seconds: float, cost: float) -> list[int]:
    """The steps at which a training would save."""
    found = []
    for step in range(steps):
        clock.now += step_seconds
        if cadence.due(step):
            clock.now += cost
            cadence.saved(step, cost)
            found.append(step)
    return found


def test_by_steps_it_is_due_that_many_after_the_last_save_and_never_at_0(clock: Clock) -> None:
    assert saves(Cadence(every_steps=4, clock=clock), clock, steps=13, step_seconds=1, cost=0) == [4, 8, 12]


def test_after_a_resume_steps_and_minutes_count_from_there(clock: Clock) -> None:
    cadence = Cadence(every_steps=10, every_minutes=1, clock=clock)
    cadence.resumed_at(95)
    assert not cadence.due(104)
    assert cadence.due(105)
    clock.now += 60
    assert cadence.due(96)


def test_minutes_come_on_top_of_steps(clock: Clock) -> None:
    quick, slow = (Cadence(every_steps=100, every_minutes=2, clock=clock) for _ in range(2))

    assert saves(quick, clock, steps=201, step_seconds=1, cost=0) == [100, 200]
    assert saves(slow, clock, steps=30, step_seconds=20, cost=0) == [6, 12, 18, 24]


@pytest.mark.parametrize(("share", "cost"), [(1, 0.05), (5, 2.0), (50, 1.0)])
def test_saving_costs_no_more_than_its_share_of_the_time(clock: Clock, share: float, cost: float) -> None:
    cadence = Cadence(every_steps=10**9, max_overhead=share, clock=clock)
    started = clock.now
    count = len(saves(cadence, clock, steps=20_000, step_seconds=0.1, cost=cost))

    spent = 100 * count * cost / (clock.now - started)
    assert 0.8 * share < spent <= share


def test_a_share_stands_in_for_the_steps(clock: Clock) -> None:
    cadence = Cadence(every_steps=1, max_overhead=10, clock=clock)
    cadence.saved(1, 6.0)
    clock.now += 53.9
    assert not cadence.due(1000)
    clock.now += 0.2
    assert cadence.due(1001)


def test_the_first_save_whose_cost_nobody_knows_is_due_after_a_minute(clock: Clock) -> None:
    cadence = Cadence(every_steps=1, max_overhead=0.001, clock=clock)
    assert not cadence.due(1)
    clock.now += 60
    assert cadence.due(2)


def test_a_save_that_became_cheaper_is_made_more_often(clock: Clock) -> None:
    cadence = Cadence(every_steps=1, max_overhead=10, clock=clock)
    cadence.saved(1, 60.0)
    for step in range(2, 7):
        cadence.saved(step, 1.0)
    clock.now += 10
    assert cadence.due(8)


def test_a_signal_makes_one_save_due_whatever_the_rule(clock: Clock) -> None:
    cadence = Cadence(every_steps=100, clock=clock)
    cadence.signalled = True
    assert cadence.due(0)
    assert not cadence.due(1)


@pytest.mark.parametrize("rule", ["every_minutes", "max_overhead"])
def test_ranks_cannot_agree_by_their_clocks(rule: str) -> None:
    with pytest.raises(InvalidInputError, match="4 ranks") as caught:
        Cadence(every_steps=1, world_size=4, **{rule: 5.0})  # type: ignore[arg-type]
    assert "save_frequency" in caught.value.cure
