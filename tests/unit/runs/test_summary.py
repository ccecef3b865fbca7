"""A run in a few numbers: the final ones as they were given, and a summary for each metric."""

from __future__ import annotations

import json
import math
import pickle

import pytest

from milepost.core.errors import NotFoundError
from milepost.runs.summary import MetricSummary, RunSummary

TOLD = {"points": 3, "last": 0.5, "last_step": 9, "min": 0.25, "min_step": 4, "max": 2.0, "max_step": 0, "mean": 0.75}


def summary(**final: object) -> RunSummary:
    return RunSummary(final, ["val/loss"], {"val/loss": TOLD}.__getitem__)


def test_it_is_what_end_experiment_was_given_and_answers_for_metrics_too():
    told = summary(accuracy=0.9, verdict="good")
    assert told == {"accuracy": 0.9, "verdict": "good"}
    assert (told["accuracy"], told["verdict"]) == (0.9, "good")
    loss = told["val/loss"]
    assert (loss.points, loss.last, loss.min, loss.max, loss.mean) == (3, 0.5, 0.25, 2.0, 0.75)
    assert (loss.last_step, loss.min_step, loss.max_step) == (9, 4, 0)
    assert "val/loss" in told
    assert list(told) == ["accuracy", "verdict"]
    assert told.get("val/loss").min == 0.25
    assert told.get("absent", 7) == 7


def test_a_final_value_of_a_metric_is_its_value_and_knows_the_range_as_well():
    told = summary(**{"val/loss": 0.3})
    assert told == {"val/loss": 0.3}
    assert told["val/loss"] == 0.3
    assert told["val/loss"].min == 0.25
    assert summary()["val/loss"] == 0.5
    assert summary(**{"val/loss": "diverged"})["val/loss"] == "diverged"


def test_a_name_that_is_not_there_is_answered_with_those_that_are():
    with pytest.raises(NotFoundError, match="val/los") as caught:
        summary()["val/los"]
    assert "val/loss" in caught.value.cure
    assert "val/los" not in summary()


def test_it_travels_and_becomes_json():
    told = summary(final=1)
    assert json.loads(json.dumps(told)) == {"final": 1}
    copied = pickle.loads(pickle.dumps(told))
    assert copied == told
    assert copied["val/loss"].min_step == 4
    one = pickle.loads(pickle.dumps(MetricSummary(TOLD, 0.1)))
    assert (one, one.min, one.last) == (0.1, 0.25, 0.5)


def test_a_metric_of_which_every_value_is_nan_has_no_range():
    nothing = MetricSummary({"points": 2, "nan": 2, "last": math.nan, "last_step": 1})
    assert math.isnan(nothing)
    assert math.isnan(nothing.min)
    assert nothing.min_step is None
    assert repr(MetricSummary({})) == "<no values>"
    assert repr(MetricSummary(TOLD)) == "<last=0.5 at step 9, min=0.25 at step 4, max=2 at step 0>"
