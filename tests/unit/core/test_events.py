"""Every event comes back from the body of its record; what is unknown or damaged is ignored, never an error."""

from __future__ import annotations

import typing
from dataclasses import fields

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from milepost.core import events
from milepost.core.events import Event, Metrics, Rewound, StatusChanged, body_of, event_from_body

KINDS = typing.get_args(Event)
OTHERS = [cls for cls in KINDS if cls is not Metrics]

json_like = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@st.composite
def some_event(draw):
    cls = draw(st.sampled_from(OTHERS))
    hints = typing.get_type_hints(cls)
    by_hint = {
        str: st.text(max_size=20),
        int: st.integers(-(2**63), 2**63 - 1),
        float: st.floats(allow_nan=False),
        bool: st.booleans(),
        int | None: st.none() | st.integers(-(2**63), 2**63 - 1),
        float | None: st.none() | st.floats(allow_nan=False),
        events.Number: st.floats(allow_nan=False) | st.integers(-(2**63), 2**63 - 1),
        dict[str, str]: st.dictionaries(st.text(max_size=8), st.text(max_size=8), max_size=3),
        dict[str, float]: st.dictionaries(st.text(max_size=8), st.floats(allow_nan=False), max_size=3),
        list[str]: st.lists(st.text(max_size=8), max_size=3),
        dict[str, typing.Any]: st.dictionaries(st.text(max_size=8), json_like, max_size=3),
    }

    def value(name: str):
        hint = hints[name]
        if typing.get_origin(hint) is typing.Literal:
            return draw(st.sampled_from(typing.get_args(hint)))
        return draw(by_hint[hint])

    return cls(**{field.name: value(field.name) for field in fields(cls)})


def test_kinds_are_distinct_and_never_renumbered():
    assert {cls.__name__: cls.kind for cls in KINDS} == {
        "Metrics": 1, "Line": 2, "MediaAdded": 3, "StatusChanged": 4, "Rewound": 5, "ClockSet": 6, "Deferred": 7,
        "Lost": 8, "BigIntegers": 9, "Identified": 10, "CheckpointChanged": 11, "Described": 12, "Noticed": 13,
        "Text": 14, "MediaStaged": 15, "SystemSampled": 16, "Alerted": 17,
    }  # fmt: skip


@given(some_event())
def test_an_event_comes_back_from_its_body_through_msgpack(event):
    body = msgspec.msgpack.decode(msgspec.msgpack.encode(body_of(event)))
    step = None if type(event) is Rewound else getattr(event, "step", None)
    assert event_from_body(event.kind, step, getattr(event, "epoch", None), body) == event


@given(some_event(), json_like)
def test_a_field_of_a_later_version_is_ignored(event, extra):
    step = None if type(event) is Rewound else getattr(event, "step", None)
    body = body_of(event) | {"a_field_of_2031": extra}
    assert event_from_body(event.kind, step, getattr(event, "epoch", None), body) == event


@given(st.integers(-5, 300), st.none() | st.integers(), json_like)
def test_no_kind_and_no_body_makes_a_reader_raise(kind, step, body):
    found = event_from_body(kind, step, None, body)
    assert found is None or found.kind == kind


@pytest.mark.parametrize("cls", OTHERS, ids=lambda cls: cls.__name__)
def test_a_record_that_lacks_what_it_needs_is_unknown(cls):
    found = event_from_body(cls.kind, None, None, {})
    required = {f.name for f in fields(cls) if f.default is f.default_factory} - {"step", "epoch"}
    assert (found is None) == bool(required)


def test_metrics_are_flattened_and_what_is_no_number_is_named_by_its_type():
    body = {"loss": 0.5, "nested": {"deep": {"x": 1}, "bad": [1]}, "text": "a", "none": None, "yes": True}
    assert event_from_body(1, 3, 0.5, body) == Metrics(
        step=3,
        epoch=0.5,
        values={"loss": 0.5, "nested/deep/x": 1, "yes": True},
        rejected={"nested/bad": "list", "text": "str", "none": "None"},
    )


def test_the_defaults_of_a_status_name_the_trainer():
    assert StatusChanged(status="running").source == "trainer"
