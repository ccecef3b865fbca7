"""Is a rule that cannot be meant refused at once, and does one survive being written down?"""

from __future__ import annotations

import json
import math

import pytest

import milepost.rules
from milepost.core.config import ExperimentConfig
from milepost.core.errors import InvalidInputError
from milepost.core.rules import (
    ExplodingGradients,
    NoProgress,
    NotFinite,
    Plateau,
    Rule,
    Spike,
    Threshold,
    rule_from_dict,
)

EACH = [
    NotFinite(),
    Spike("train/*", factor=5.0, window=50, mark="spiky"),
    Plateau("val/loss", steps=100, min_improvement=0.01, mode="max", pin=True),
    ExplodingGradients(above=100.0, stop=True),
    NoProgress(minutes=0.5, level="error"),
    Threshold("acc", below=0.1, above=2.0),
]


@pytest.mark.parametrize("rule", EACH, ids=str)
def test_a_rule_survives_json_but_for_its_function(rule):
    assert rule_from_dict(json.loads(json.dumps(rule.to_dict()))) == rule


def test_a_rule_of_a_later_version_is_none_of_ours():
    assert rule_from_dict({"rule": "Drift", "metric": "x"}) is None
    assert rule_from_dict({"rule": "Spike"}) is None
    assert rule_from_dict(NotFinite(call=print).to_dict()) == NotFinite()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: NotFinite(""), "metric of NotFinite is ''"),
        (lambda: NotFinite(level="fatal"), "level of NotFinite is 'fatal'"),
        (lambda: NotFinite(mark=" "), "mark of NotFinite"),
        (lambda: NotFinite(pin="yes"), "pin of NotFinite is 'yes'"),
        (lambda: NotFinite(call="function"), "call of NotFinite"),
        (lambda: Spike("x", factor=0), "factor of Spike is 0"),
        (lambda: Spike("x", factor=math.nan), "factor of Spike is nan"),
        (lambda: Spike("x", window=3), "window of Spike is 3"),
        (lambda: Plateau("x", steps=0), "steps of Plateau is 0"),
        (lambda: Plateau("x", steps=1, mode="most"), "mode of Plateau is 'most'"),
        (lambda: Plateau("x", steps=1, min_improvement=-1), "min_improvement of Plateau is -1"),
        (lambda: ExplodingGradients(above=-1), "above of ExplodingGradients is -1"),
        (lambda: ExplodingGradients(factor=1), "factor of ExplodingGradients is 1"),
        (lambda: NoProgress(0), "minutes of NoProgress is 0"),
        (lambda: Threshold("x"), "no limit"),
        (lambda: Threshold("x", above=True), "above of Threshold is True"),
        (lambda: ExperimentConfig(rules=["NotFinite"]), "rules is 'NotFinite'"),
        (lambda: ExperimentConfig(rules=[NotFinite]), "rules is <class"),
        (lambda: ExperimentConfig(rules=[Rule()]), "rules is Rule"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_its_name_and_value(make, said):
    with pytest.raises(InvalidInputError, match=said):
        make()


def test_rules_are_written_as_one_would_write_them_without_what_is_to_be_done():
    assert str(NotFinite(mark="x", stop=True)) == "NotFinite()"
    assert str(Spike("loss", factor=5.0)) == "Spike(metric='loss', factor=5.0)"


def test_a_star_stands_for_any_text_and_every_other_name_for_itself():
    assert NotFinite().watches("train/loss")
    assert NotFinite("train/*").watches("train/loss")
    assert not NotFinite("train/*").watches("val/loss")
    assert NotFinite("loss[0]").watches("loss[0]")
    assert not NoProgress().watches("loss")


def test_a_config_takes_a_list_of_rules_and_the_public_module_offers_each_kind():
    assert ExperimentConfig(rules=EACH).rules == tuple(EACH)
    assert {type(rule).__name__ for rule in EACH} < set(milepost.rules.__all__)
