from __future__ import annotations

from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from milepost.checkpoint.retention import RetentionRule, best_of, decide, newest_first
from milepost.core.records import CheckpointInfo


def info(step: int, *, verified: bool = True, **more: Any) -> CheckpointInfo:
    name = f"checkpoint_{step}.milepost"
    return CheckpointInfo(
        filename=name,
        path=Path("/c") / name,
        experiment_id="a",
        step=step,
        timestamp=float(step),
        verified=verified,
        **more,
    )


def kept(infos: list[CheckpointInfo], **rule: Any) -> dict[int, str]:
    decisions = decide(infos, RetentionRule(**({"keep_newest": 2} | rule)))
    return {decision.info.step: decision.reason for decision in decisions if decision.keep}


def test_the_newest_the_best_and_the_pinned_stay() -> None:
    infos = [info(1, pinned=True), info(2, is_best=True), info(3, is_best=True), info(4), info(5), info(6)]

    assert kept(infos) == {6: "one of the newest 2", 5: "one of the newest 2", 3: "best", 1: "pinned"}


def test_nothing_goes_before_a_newer_one_was_verified() -> None:
    infos = [info(1), info(2, verified=False), info(3, verified=False), info(4, verified=False)]

    assert kept(infos)[2] == "no newer one is verified yet"
    assert 1 in kept(infos)
    assert set(kept([*infos, info(5)])) == {5, 4}


def test_the_best_is_the_last_one_marked() -> None:
    infos = [info(1, is_best=True), info(2, is_best=True), info(3, metrics={"loss": 0.0})]

    assert best_of(infos, "loss") == infos[1]


def test_without_a_mark_a_metric_decides_and_what_is_no_number_takes_no_part() -> None:
    infos = [info(1, metrics={"loss": 3}), info(2, metrics={"loss": float("nan")}), info(3, metrics={"loss": "0"})]

    assert best_of(infos, "loss") == infos[0]
    assert best_of([*infos, info(4, metrics={"loss": 9.0})], "loss", "max").step == 4  # type: ignore[union-attr]


def test_nobody_guesses_which_is_best() -> None:
    assert best_of([info(1, metrics={"loss": 1.0})]) is None
    assert best_of([info(1, metrics={"loss": 1.0})], "accuracy") is None


def test_newest_is_by_time_because_a_resume_may_go_back() -> None:
    before, after = info(600), info(510)
    after = CheckpointInfo(**{name: after[name] for name in after} | {"timestamp": 700.0})

    assert newest_first([before, after]) == [after, before]


infos_of_any_kind = st.lists(
    st.tuples(st.integers(0, 50), st.booleans(), st.booleans(), st.booleans()), max_size=12, unique_by=lambda t: t[0]
)


@given(infos_of_any_kind, st.integers(1, 4))
def test_whatever_goes_is_older_than_a_verified_one_that_stays(
    drawn: list[tuple[int, bool, bool, bool]], keep_newest: int
) -> None:
    infos = [info(step, verified=v, is_best=b, pinned=p) for step, v, b, p in drawn]
    decisions = decide(infos, RetentionRule(keep_newest=keep_newest))
    gone = [decision.info for decision in decisions if not decision.keep]
    stay = [decision.info for decision in decisions if decision.keep]

    assert len(decisions) == len(infos)
    assert len(stay) >= min(keep_newest, len(infos))
    for each in gone:
        assert not each.pinned
        assert any(other.verified and other.timestamp > each.timestamp for other in infos)
        assert sum(other.timestamp > each.timestamp for other in stay) >= keep_newest
