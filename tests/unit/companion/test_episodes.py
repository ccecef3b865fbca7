"""Does each rule find what it is for, once, and nothing in ordinary noise?"""

from __future__ import annotations

import json
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milepost.companion.episodes import CALM, Memory, take
from milepost.core.rules import ExplodingGradients, NotFinite, Plateau, Spike, Threshold


def findings(rule, values, *, first=0, memory=None):
    memory = memory or Memory()
    found = []
    for step, value in enumerate(values, first):
        memory, finding = take(rule, memory, "loss", step, value)
        if finding is not None:
            assert finding.step == step
            found.append((step, finding.title))
    return found


def test_a_value_that_is_not_finite_is_found_once_until_ten_in_a_row_are_fine():
    values = [1.0, math.nan, math.nan, *[1.0] * (CALM - 1), math.inf, *[1.0] * CALM, -math.inf]
    assert findings(NotFinite(), values) == [(1, "loss is nan"), (len(values) - 1, "loss is -inf")]


def test_a_threshold_is_passed_in_either_direction():
    assert findings(Threshold("loss", above=2.0), [1.0, 2.0, 2.5]) == [(2, "loss is 2.5, above 2")]
    assert findings(Threshold("loss", below=0.0), [1.0, 0.0, -1.0]) == [(2, "loss is -1, below 0")]


def noise(seed, count, *, scale=0.1):
    source = random.Random(seed)
    return [3.0 * math.exp(-step / 2000) + source.gauss(0, scale) for step in range(count)]


@pytest.mark.parametrize("seed", range(5))
def test_a_spike_is_found_and_ordinary_noise_on_a_falling_curve_is_not(seed):
    values = noise(seed, 3000)
    assert findings(Spike("loss"), values) == []
    values[2000] = 9.0
    assert findings(Spike("loss"), values) == [(2000, "loss jumped to 9")]


def test_a_level_that_stays_is_one_spike_and_later_spikes_are_found_again():
    values = [*noise(1, 300), *[10 + v for v in noise(2, 300)], 60.0, 1.0]
    assert [step for step, _ in findings(Spike("loss"), values)] == [300, 600]


def test_a_constant_metric_has_a_spread_of_one_percent():
    assert findings(Spike("loss"), [1.0] * 100 + [1.05]) == []
    assert findings(Spike("loss"), [1.0] * 100 + [1.2]) == [(100, "loss jumped to 1.2")]


def test_nothing_is_judged_before_half_a_window_is_there():
    assert findings(Spike("loss", window=20), [1.0] * 9 + [100.0]) == []
    assert findings(Spike("loss", window=20), [1.0] * 10 + [100.0]) == [(10, "loss jumped to 100")]


def test_exploding_gradients_are_those_above_a_limit_or_far_above_the_usual():
    assert findings(ExplodingGradients(above=50.0), [1.0, 60.0, 70.0]) == [(1, "loss rose to 60")]
    assert findings(ExplodingGradients(window=50), [1.0] * 9 + [50.0]) == []
    assert findings(ExplodingGradients(window=50), [1.0] * 10 + [9.0, 50.0]) == [(11, "loss rose to 50")]


@pytest.mark.parametrize("sign", [1, -1])
def test_a_plateau_begins_when_the_best_value_is_old_and_ends_with_a_better_one(sign):
    rule = Plateau("loss", steps=5, min_improvement=0.1, mode="min" if sign == 1 else "max")
    values = [5, 4, 4, 4, 4, 3.95, 4, 4, 4, 3, 3, 3, 3, 3, 3, 3]
    assert [step for step, _ in findings(rule, [sign * value for value in values])] == [6, 14]


def test_values_that_are_not_finite_are_passed_over_by_all_rules_but_one():
    for rule in (
        Spike("loss", window=4),
        ExplodingGradients(above=1.0),
        Threshold("loss", above=5),
        Plateau("loss", 9),
    ):
        memory = Memory()
        for value in (math.nan, math.inf, -math.inf):
            assert take(rule, memory, "loss", 1, value) == (memory, None)


def test_after_a_rewind_what_is_done_again_is_judged_again():
    rule = Spike("loss", window=20)
    memory = Memory()
    for step, value in enumerate([1.0] * 15 + [50.0, 1.0]):
        memory, _ = take(rule, memory, "loss", step, value)
    assert memory.began == 15
    again = memory.rewound(12)
    assert (again.began, [step for step, _ in again.recent][-1]) == (None, 12)
    assert findings(rule, [1.0, 1.0, 50.0], first=13, memory=again) == [(15, "loss jumped to 50")]
    assert memory.rewound(15).began == 15


RULES = st.sampled_from(
    [
        NotFinite(),
        Spike("loss", window=5, factor=2.0),
        ExplodingGradients(window=5),
        Plateau("loss", 3),
        Threshold("loss", 1.0),
    ]
)


@given(RULES, st.lists(st.floats(allow_subnormal=False)), st.integers(0, 30))
def test_what_is_remembered_goes_through_json_and_stays_small(rule, values, cut):
    memory, through_json = Memory(), Memory()
    for step, value in enumerate(values):
        memory, found = take(rule, memory, "loss", step, value)
        if step == cut:
            through_json = Memory.from_dict(json.loads(json.dumps(through_json.to_dict())))
        through_json, found_again = take(rule, through_json, "loss", step, value)
        assert repr((through_json, found_again)) == repr((memory, found))
        assert len(memory.recent) <= 5
