"""Whatever people write, MLflow takes what becomes of it, and two names never become one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milepost.trackers.mlflow_words import accepted_name, params_of, shortened, status_of, system_metric, tags_of
from milepost.trackers.protocol import RunDescription

validation = pytest.importorskip("mlflow.utils.validation")

NAMES = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=300)


@given(st.lists(NAMES | st.sampled_from(["a/b", "a//b", "./a", "..", "/", "a@b", "a#b", "."]), unique=True))
def test_every_name_becomes_one_that_mlflow_takes_and_no_other_name_becomes(names: list[str]):
    mapped = [accepted_name(name) for name in names]
    for name in mapped:
        validation._validate_metric_name(name)
        assert 0 < len(name) <= 250
    assert len(set(mapped)) == len(names)


def test_a_name_that_mlflow_takes_is_left_alone():
    for name in ("loss", "train/loss", "a b:c-d.e_f", "straße"):
        assert accepted_name(name) == name


def test_what_is_too_long_ends_with_an_ellipsis():
    assert shortened("abcdef", 6) == "abcdef"
    assert shortened("abcdefg", 6) == "abcde…"


def test_parameters_are_texts_and_those_that_were_cut_are_named():
    run = RunDescription(
        id="r", name="r", hyperparameters={"a": {"b": None, "c": {}}, "d": [1, {"e": 2}], "f": "x" * 9}
    )
    params = params_of(run, 12)
    assert params.values == {"a/b": "None", "a/c": "{}", "d": '[1, {"e": 2}]'[:11] + "…", "f": "x" * 9}
    assert params.cut == ["d"]


def test_words_for_states_tags_and_samples():
    assert [status_of(word) for word in ("running", "completed", "killed")] == ["RUNNING", "FINISHED", "KILLED"]
    assert tags_of(["bert", "mlflow.user", ""]) == {"bert": "true", "tag.mlflow.user": "true"}
    assert system_metric("system/gpu3/utilization_percent", 5.0) == ("system/gpu_3_utilization_percentage", 5.0)
    assert system_metric("system/process_memory_bytes", 5.0) == ("system/process_memory_bytes", 5.0)
