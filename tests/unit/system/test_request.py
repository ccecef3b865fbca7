"""What a user passes to a start becomes plain, without secrets, and is refused before anything is created."""

from __future__ import annotations

import argparse
import threading
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest

from milepost.core.errors import InvalidCallError, InvalidInputError
from milepost.system.request import make_request, script_of_this_process


def request(name="bert", **more):
    given = {"description": "", "hyperparameters": None, "model_config": None, "dataset_info": None, "tags": None}
    given |= {"group": None, "resume": "never", "force": False} | more
    return make_request(name, **given)


@dataclass
class Settings:
    lr: float = 0.5
    lock: object = field(default_factory=threading.Lock)


@pytest.mark.parametrize(
    "settings", [{"lr": 0.5}, argparse.Namespace(lr=0.5, _private=1), SimpleNamespace(lr=0.5), Settings()]
)
def test_a_mapping_a_dataclass_and_a_namespace_are_all_hyperparameters(settings):
    made = request("bert-lr{lr}", hyperparameters=settings)
    assert made.name == "bert-lr0.5"
    assert made.hyperparameters["lr"] == 0.5
    assert "_private" not in made.hyperparameters


@pytest.mark.parametrize(
    ("field_name", "value"),
    [
        ("name", 5),
        ("description", None),
        ("tags", "abc"),
        ("tags", 5),
        ("resume", True),
        ("resume", None),
        ("hyperparameters", "text"),
        ("hyperparameters", [1]),
        ("model_config", dict),
        ("dataset_info", 5),
    ],
)
def test_an_argument_of_the_wrong_type_is_named(field_name, value):
    with pytest.raises(InvalidCallError, match=field_name) as raised:
        request(**{field_name: value})
    assert raised.value.cure


@pytest.mark.parametrize(
    ("field_name", "value", "named"),
    [
        ("name", " ", "name"),
        ("name", "x" * 50_000, "name"),
        ("tags", [""], "tag"),
        ("tags", [5], "tag"),
        ("tags", ["x" * 50_000], "tags"),
        ("group", "", "group"),
        ("group", 5, "group"),
        ("description", "x" * 50_000, "description"),
        ("hyperparameters", {"a": "x" * 50_000}, "hyperparameters"),
        ("model_config", {"a": [0.5] * 10_000}, "model_config"),
    ],
)
def test_a_value_that_cannot_be_meant_is_named(field_name, value, named):
    with pytest.raises(InvalidInputError, match=named) as raised:
        request(**{field_name: value})
    assert raised.value.cure


def test_secrets_are_in_nothing_that_is_kept():
    token = "gh" + "p_" + "aB3" * 12
    made = request(
        hyperparameters={"api_key": token, "x": token}, model_config={"url": token}, description=f"a {token}"
    )
    assert token not in repr(made)


def test_tags_may_be_any_iterable_of_words():
    assert request(tags=(tag for tag in ("a", "b"))).tags == ["a", "b"]
    assert request(tags=None).tags == []


def test_the_script_has_a_name():
    assert script_of_this_process()
