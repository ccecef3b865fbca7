from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from milepost.checkpoint.retention import Decision, RetentionRule, best_of, decide, newest_first
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


def test_further_best_ones_stay_by_mark_and_then_by_metric() -> None:
    infos = [info(step, metrics={"loss": loss}) for step, loss in enumerate([0.5, 0.1, 0.3, 0.2, 0.9, 0.8])]
    found = kept([*infos, info(6, is_best=True)], keep_newest=1, best_metric="loss", keep_best=3)

    assert found == {6: "one of the newest 1", 3: "one of the best 3", 1: "one of the best 3"}


def test_the_last_of_each_stretch_of_steps_stays_and_a_multiple_ends_its_stretch() -> None:
    infos = [info(step) for step in (0, 250, 500, 900, 1000, 1250, 2000, 2250, 2500)]

    assert kept(infos, keep_newest=1, every_steps=1000) == {
        2500: "one of the newest 1",
        2000: "the last of its 1000 steps",
        1000: "the last of its 1000 steps",
    }


def test_the_last_of_each_stretch_of_time_stays() -> None:
    assert set(kept([info(second) for second in range(0, 200, 25)], keep_newest=1, every_seconds=60)) == {175, 100, 50}


def test_a_keyframe_stays_as_long_as_one_that_needs_it() -> None:
    infos = [info(1), info(2, base="checkpoint_1.milepost"), info(3, base="checkpoint_1.milepost"), info(4)]

    assert kept(infos)[1] == "keyframe of checkpoint_3.milepost"
    assert set(kept([*infos, info(5)])) == {5, 4}


# ---------------------------------------------------------------- cut down to the weights

FULL = ("model", "optimizer", "rng")


def cut(infos: list[CheckpointInfo], **rule: Any) -> list[int]:
    decisions = decide(infos, RetentionRule(**({"keep_newest": 9, "weights_only_after": 1} | rule)))
    assert all(decision.keep for decision in decisions)
    return [decision.info.step for decision in decisions if decision.weights_only]


def test_all_but_the_newest_are_cut_down_to_their_weights() -> None:
    infos = [info(1, contents=FULL), info(2, contents=FULL, is_best=True), info(3, contents=FULL)]

    assert cut(infos) == [2, 1]
    assert cut(infos, weights_only_after=2) == [1]
    assert decide(infos, RetentionRule(keep_newest=9, weights_only_after=2))[-1].reason == (
        "one of the newest 9; its weights only, as it is not one of the newest 2"
    )


def test_pinned_ones_foreign_ones_and_those_that_hold_no_more_are_not_cut() -> None:
    infos = [
        info(1, contents=FULL, pinned=True),
        info(2, contents=FULL, format="pt"),
        info(3, contents=("model",)),
        info(4, contents=("optimizer",)),
        info(5, contents=FULL),
    ]

    assert cut(infos) == []


def test_nothing_is_cut_before_a_newer_one_was_verified() -> None:
    newer = [info(2, contents=FULL), info(3, contents=FULL, verified=False), info(4, contents=FULL, verified=False)]

    assert cut([info(1, contents=FULL), *newer]) == [1]


def test_a_keyframe_is_cut_only_with_all_that_need_it() -> None:
    infos = [
        info(1, contents=FULL),
        info(2, contents=FULL, base="checkpoint_1.milepost"),
        info(3, contents=FULL, base="checkpoint_1.milepost"),
        info(4, contents=FULL),
    ]

    assert cut(infos, weights_only_after=2) == [2]
    assert cut(infos, weights_only_after=1) == [3, 2, 1]


# ---------------------------------------------------------------- the disk budget


def test_over_the_budget_the_oldest_go_but_not_the_newest_verified_nor_the_best_nor_the_pinned() -> None:
    infos = [info(step, size=10, pinned=step == 1, is_best=step == 2) for step in range(1, 7)]
    infos.append(info(7, size=10, verified=False))

    assert set(kept(infos, keep_newest=9, max_bytes=50)) == {7, 6, 5, 2, 1}
    assert set(kept(infos, keep_newest=9, max_bytes=1)) == {7, 6, 2, 1}
    gone = decide(infos, RetentionRule(keep_newest=9, max_bytes=50))[3]
    assert gone.reason == "all together take 60 bytes, and max_disk is 50"


def test_over_the_budget_one_that_was_never_read_back_goes_first() -> None:
    infos = [info(1, size=10), info(2, size=10, verified=False), info(3, size=10)]

    assert set(kept(infos, keep_newest=9, max_bytes=20)) == {3, 1}


def test_over_the_budget_a_keyframe_goes_with_the_last_that_needs_it() -> None:
    infos = [info(1, size=10), info(2, size=1, base="checkpoint_1.milepost"), info(3, size=10)]

    assert kept(infos, keep_newest=9, max_bytes=20) == {3: "one of the newest 9"}
    assert kept(infos, keep_newest=9, max_bytes=21)[1] == "one of the newest 9"


def test_the_budget_waits_for_what_a_cut_saves() -> None:
    infos = [info(step, size=10, contents=FULL) for step in (1, 2, 3)]

    assert cut(infos, max_bytes=15) == [2, 1]


# ---------------------------------------------------------------- whatever there is, whatever is asked for

positions = st.integers(0, 60)
drawn_infos = st.lists(
    st.builds(
        info,
        positions,
        verified=st.booleans(),
        is_best=st.booleans(),
        pinned=st.sampled_from([False, False, False, True]),
        size=st.integers(1, 100),
        metrics=st.fixed_dictionaries({"loss": st.sampled_from([0.1, 0.2, 0.3, float("nan")])}),
        contents=st.sampled_from([FULL, ("model",)]),
        format=st.sampled_from(["milepost", "milepost", "pt"]),
    ),
    max_size=12,
    unique_by=lambda one: one.step,
)
drawn_rules = st.builds(
    RetentionRule,
    keep_newest=st.integers(1, 4),
    best_metric=st.sampled_from([None, "loss"]),
    keep_best=st.integers(1, 3),
    every_steps=st.none() | st.integers(1, 20),
    every_seconds=st.none() | st.integers(1, 20),
    max_bytes=st.none() | st.integers(1, 600),
    weights_only_after=st.none() | st.integers(1, 4),
)


@st.composite
def with_keyframes(draw: st.DrawFn) -> list[CheckpointInfo]:
    """Some of them hold differences to an older one that stands alone."""
    infos = newest_first(draw(drawn_infos))
    found = []
    for rank, one in enumerate(infos):
        older = [other for other in infos[rank + 1 :] if other.step % 3 == 0]
        needs_one = one.step % 3 and older and draw(st.booleans())
        found.append(replace(one, base=draw(st.sampled_from(older)).filename) if needs_one else one)
    return found


def carried_out(decisions: list[Decision]) -> list[CheckpointInfo]:
    cut = {"contents": ("model",), "base": "", "size": 1}
    return [replace(d.info, **cut) if d.weights_only else d.info for d in decisions if d.keep]


@given(with_keyframes(), drawn_rules)
def test_what_must_stay_stays(infos: list[CheckpointInfo], rule: RetentionRule) -> None:
    decisions = decide(infos, rule)
    stay = {decision.info.filename: decision for decision in decisions if decision.keep}

    assert [decision.info for decision in decisions] == newest_first(infos)
    assert all(decision.reason for decision in decisions)
    best = best_of(infos, rule.best_metric, rule.best_mode)
    verified = [one for one in newest_first(infos) if one.verified]
    for one in [
        *newest_first(infos)[:1],
        *verified[:1],
        *(one for one in infos if one.pinned),
        *([best] if best else []),
    ]:
        assert one.filename in stay
    for decision in decisions:
        if not decision.keep or decision.weights_only:
            assert not decision.info.pinned
            assert any(other.timestamp > decision.info.timestamp for other in verified)
    if rule.max_bytes is None:
        assert len(stay) >= min(rule.keep_newest, len(infos))


@given(with_keyframes(), drawn_rules)
def test_every_difference_that_stays_has_its_whole_keyframe(infos: list[CheckpointInfo], rule: RetentionRule) -> None:
    stay = {decision.info.filename: decision for decision in decide(infos, rule) if decision.keep}

    for decision in stay.values():
        if decision.info.base and not decision.weights_only:
            assert decision.info.base in stay
            assert not stay[decision.info.base].weights_only


@given(with_keyframes(), drawn_rules)
def test_deciding_again_changes_nothing(infos: list[CheckpointInfo], rule: RetentionRule) -> None:
    left = carried_out(decide(infos, rule))
    if any(decision.weights_only for decision in decide(infos, rule)):
        left = carried_out(decide(left, rule))  # the budget is judged when the cuts are done

    assert carried_out(decide(left, rule)) == left


@given(with_keyframes(), drawn_rules)
def test_the_budget_is_kept_unless_only_untouchable_ones_are_left(
    infos: list[CheckpointInfo], rule: RetentionRule
) -> None:
    rule = replace(rule, max_bytes=rule.max_bytes or 300, weights_only_after=None)
    stay = [decision.info for decision in decide(infos, rule) if decision.keep]
    needed = {one.base for one in stay}
    best = best_of(infos, rule.best_metric, rule.best_mode)

    if sum(one.size for one in stay) > (rule.max_bytes or 0):
        for one in stay:
            newer = any(other.verified and other.timestamp > one.timestamp for other in infos)
            assert one.pinned or one == best or not newer or one.filename in needed
